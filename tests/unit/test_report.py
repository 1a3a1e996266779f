"""The report on a network: its measures by hand, its rules at their limits, a page that is safe."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import siamcam_lib as sc
from siamcam_lib.cache import FeatureCache
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import Estimate
from siamcam_lib.explanation import finish
from siamcam_lib.report import (
    ClassPair,
    Evidence,
    audit,
    calibration_error,
    checks,
    class_pairs,
    evidence,
    pair_page,
)

HOSTILE = "<img src=x onerror=alert(1)>\"'&\udcff"


class Tags(HTMLParser):
    """All tags of a page with their attributes, and all of its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def harmless(page: str) -> Tags:
    """The tags of a page, none of which runs or fetches anything."""
    found = Tags(page)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "iframe", "object", "form", "a"})
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert attributes["src"].startswith("data:image/") and attributes["alt"]
    assert "default-src 'none'" in page
    return found


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return sc.SiameseNet(image_size=64).eval()


@pytest.fixture(scope="module")
def images():
    return sc.datasets.load("scenes/flowers", n=20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return FeatureCache(tmp_path_factory.mktemp("cache") / "features.sqlite")


@pytest.fixture(scope="module")
def found(net, images, cache):
    net.threshold = float(np.median(sc.evaluation.score_pairs(
        net, sc.pairs.sample(images, 0), cache=cache, progress=False)))  # fmt: skip
    return audit(net, images, cache=cache, progress=False)


def explained(raw_a, raw_b, y: float = 0.2, size: int = 40):
    """An explanation with these raw maps; from y = 0.5 on the pair is judged dissimilar."""
    images = [Image.new("RGB", (size, size), colour) for colour in ("red", "blue")]
    raw = torch.tensor(np.stack([raw_a, raw_b]), dtype=torch.float32)
    return finish(images, [(size, size)] * 2, y, 0.5, raw, "gradcam", "decision")


class TestCalibrationError:
    def test_is_the_mean_gap_of_each_bin(self):
        score = np.repeat([0.1, 0.7], 20)  # two bins of twenty
        label = np.concatenate([np.repeat([0, 1], [16, 4]), np.repeat([0, 1], [6, 14])])
        assert calibration_error(score, label) == pytest.approx((abs(0.1 - 0.2) + 0) / 2)

    def test_is_near_zero_where_y_is_the_share(self):
        random = np.random.default_rng(0)
        score = random.random(20_000)
        assert calibration_error(score, random.random(20_000) < score) < 0.02

    def test_is_one_where_every_sure_judgement_is_wrong(self):
        score = np.repeat([0.0, 1.0], 40)  # two bins of each
        assert calibration_error(score, 1 - score) == 1


class TestClassPairs:
    def test_counts_by_hand(self, images):
        labels = np.array([0, 0, 1, 1, 2])
        small = replace(images.subset(range(5)), labels=labels, classes=("x", "y", "z"))
        a, b = np.array([0, 0, 2, 2, 4]), np.array([1, 2, 1, 3, 0])
        pairs = sc.pairs.PairSet(small, a, b, (labels[a] != labels[b]).astype(int))
        report = sc.evaluation.report(np.array([0.1, 0.9, 0.4, 0.8, 0.7]), pairs.label, 0.5)
        assert class_pairs(pairs, report) == (
            ClassPair(("y", "y"), 1, 0.0, 0.8),
            ClassPair(("x", "y"), 2, 0.5, pytest.approx(0.65)),
            ClassPair(("x", "x"), 1, 1.0, 0.1),
            ClassPair(("x", "z"), 1, 1.0, 0.7),
        )


class TestEvidence:
    def test_even_maps_lie_evenly(self):
        rests = evidence([explained(np.ones((4, 4)), np.ones((4, 4)))] * 3, np.arange(3))
        assert rests.border == pytest.approx((1, 1, 1)) and rests.centre == pytest.approx((1, 1, 1))
        assert rests.blank == 0 and rests.mean == pytest.approx(np.full((40, 40), 1 / 1600))

    @pytest.mark.parametrize("place", ["border", "centre"])
    def test_a_map_that_lies_in_one_place_only(self, place):
        raw = np.zeros((40, 40))
        raw[10:30, 10:30] = 1  # the middle half: 0.25 of the picture
        if place == "border":
            raw = np.ones((40, 40))
            raw[4:36, 4:36] = 0  # the outer tenth: 0.36
        rests = evidence([explained(raw, raw)] * 2, np.arange(2))
        inside, outside = rests.border, rests.centre
        if place == "centre":
            inside, outside = outside, inside
        assert inside.value == pytest.approx({"border": 1 / 0.36, "centre": 4}[place])
        assert outside.value == 0

    def test_takes_the_evidence_for_the_decision(self):
        raw = np.where(np.arange(40)[:, None] < 20, 1.0, -1.0) * np.ones((40, 40))
        similar = evidence([explained(raw, raw, y=0.2)], np.zeros(1, int)).mean
        dissimilar = evidence([explained(raw, raw, y=0.8)], np.zeros(1, int)).mean
        assert similar[:20].sum() == pytest.approx(1) and dissimilar[20:].sum() == pytest.approx(1)

    def test_a_spot_that_its_neighbours_outweigh_adds_nothing(self):
        spot = np.full((7, 7), -1.0)
        spot[3, 3] = 1e-3
        even = np.ones((7, 7))
        rests = evidence([explained(spot, even)], np.zeros(1, int))
        assert rests.blank == 0 and rests.mean == pytest.approx(np.full((40, 40), 1 / 1600))

    def test_blank_maps_are_counted_and_left_out(self):
        one, none = np.ones((2, 2)), -np.ones((2, 2))
        rests = evidence([explained(one, none), explained(none, none)], np.arange(2))
        assert rests.blank == 0.75 and rests.border.value == pytest.approx(1)
        rests = evidence([explained(none, none)], np.arange(1))
        assert (rests.blank, rests.border, rests.centre) == (1.0, None, None)


class TestChecks:
    """Each rule a little on this side of its limit, and a little on the other."""

    def fired(self, error=0.0, rows=(), border=1.0, blank=0.0, **change) -> set[int]:
        label = np.repeat([0, 1], 50)
        score = change.pop("score", np.where(label == 1, 0.8, 0.2))
        report = sc.evaluation.report(score, label, 0.5, bootstrap=20)
        intervals = {"accuracy": (0.95, 1.0), "auc": (0.9, 1.0)} | change
        report = replace(report, intervals=report.intervals | intervals)
        between = None if border is None else Estimate(border + 0.1, border, border + 0.2)
        rests = Evidence(10, between, between, blank, np.ones((40, 40)))
        found = checks(report, error, rows, rests)
        assert len(found) == 7 and all(check.advice and check.rule for check in found)
        return {k for k, check in enumerate(found) if check.fires}

    def test_none_fires_where_all_is_well(self):
        assert self.fired() == set()

    @pytest.mark.parametrize(
        ("rule", "below", "above"),
        [
            (0, {"auc": (0.501, 0.9)}, {"auc": (0.499, 0.9)}),
            (1, {"accuracy": (0.901, 1.0)}, {"accuracy": (0.899, 1.0)}),
            (3, {"error": 0.099}, {"error": 0.101}),
            (5, {"border": 1.24}, {"border": 1.26}),
            (6, {"blank": 0.05}, {"blank": 0.051}),
        ],
    )
    def test_limits(self, rule, below, above):
        assert self.fired(**below) == set() and self.fired(**above) == {rule}

    @pytest.mark.parametrize(("wrong", "fires"), [(7, set()), (8, {2})])
    def test_one_sided_errors(self, wrong, fires):
        score = np.repeat([0.2, 0.8], 50)
        score[:wrong] = 0.9
        assert self.fired(score=score) == fires

    def test_weak_class_pairs(self):
        strong = ClassPair(("a", "b"), 9, 0.75, 0.5)
        few = ClassPair(("a", "c"), 4, 0.0, 0.5)
        assert self.fired(rows=[strong, few]) == set()
        assert self.fired(rows=[replace(strong, accuracy=0.74)]) == {4}

    def test_maps_that_are_all_blank_say_nothing_of_the_border(self):
        assert self.fired(border=None, blank=1.0) == {6}

    def test_few_pictures_are_told_where_every_pair_is_right(self):
        """18 pictures, each with a pair of either kind: 36 of 36 right is not sure."""
        label = np.repeat([0, 1], 18)
        score = np.where(label == 1, 0.8, 0.2)
        report = sc.evaluation.report(score, label, 0.5, np.tile(np.arange(18), 2))
        low = 0.025 ** (1 / 18)
        rests = Evidence(10, Estimate(1, 1, 1), Estimate(1, 1, 1), 0, np.ones((40, 40)))
        few = checks(report, 0, (), rests)[1]
        assert few.measure == f"accuracy 1.000 [{low:.3f}, 1.000]" and few.fires
        assert f"36 pairs leave the accuracy open by {1 - low:.2f}: judge on more" in few.advice
        many = sc.evaluation.report(np.repeat(score, 3), np.repeat(label, 3), 0.5)
        assert not checks(many, 0, (), rests)[1].fires

    def test_an_order_without_a_fault_may_still_be_chance(self):
        rests = Evidence(10, Estimate(1, 1, 1), Estimate(1, 1, 1), 0, np.ones((40, 40)))
        for anchors, chance in ((5, True), (6, False)):
            label = np.repeat([0, 1], anchors)
            score = np.where(label == 1, 0.8, 0.2)
            report = sc.evaluation.report(score, label, 0.5, np.tile(np.arange(anchors), 2))
            assert checks(report, 0, (), rests)[0].fires == chance


class TestAudit:
    def test_the_numbers_are_those_of_the_library(self, found, net, images, cache):
        pairs = sc.pairs.sample(images, 0)
        report = sc.evaluate(net, pairs, cache=cache, progress=False)
        assert dict(found.report) == dict(report)
        assert found.report.intervals == report.intervals

    def test_the_hardest_pairs_are_those_of_a_plain_search(self, found):
        report, pairs = found.report, found.pairs
        right = (report.score >= report.threshold) == report.label
        assert not right.all()
        gap = np.abs(report.score - report.threshold)
        names = [(pairs.images.items[a], pairs.images.items[b])
                 for a, b in zip(pairs.a, pairs.b, strict=True)]  # fmt: skip
        wrong = sorted(np.flatnonzero(~right), key=lambda k: -gap[k])[:6]
        assert {pair.names for pair in found.wrong} == {names[k] for k in wrong}
        assert found.wrong[0].names == names[wrong[0]]
        assert not any(pair.right for pair in found.wrong)
        rest = sorted(set(range(len(gap))) - set(wrong), key=lambda k: gap[k])[:6]
        assert {pair.names for pair in found.doubtful} == {names[k] for k in rest}

    def test_explanations_are_those_of_the_pair(self, found, net, images):
        pair = found.wrong[0]
        a, b = (images.image(images.items.index(name)) for name in pair.names)
        alone = sc.explain(net, a, b)
        assert pair.explanation.dissimilarity == pytest.approx(alone.dissimilarity, abs=1e-5)
        top = np.abs(alone.raw[0]).max()
        assert np.abs(pair.explanation.raw[0] - alone.raw[0]).max() < 1e-4 * top

    def test_the_record_is_json_and_the_same_again(self, found, net, images, cache):
        record = json.loads(json.dumps(found.record(), allow_nan=False))
        assert (record["format"], record["version"]) == ("siamcam-evaluation", 1)
        assert sum(row["pairs"] for row in record["classes"]) == len(found.pairs)
        again = audit(net, images, cache=cache, progress=False).record()
        assert json.loads(json.dumps(again)) == record


class TestPage:
    def test_tells_every_number_and_every_rule(self, found, tmp_path):
        page = found.to_html(tmp_path / "report.html").read_text("utf-8")
        tags = harmless(page)
        for name, value in found.report:
            assert f"{value:.3f}" in tags.text, name
        for check in found.checks:
            assert check.measure in tags.text and (check.advice in tags.text) == check.fires
        shown = [tag for tag, _ in tags.tags if tag == "img"]
        assert len(shown) == 4 * (len(found.wrong) + len(found.doubtful)) + 2

    def test_names_are_shown_and_do_nothing(self, found, tmp_path):
        images = replace(found.images, name=HOSTILE, notes=(HOSTILE,))
        wrong = tuple(replace(p, names=(HOSTILE, HOSTILE)) for p in found.wrong)
        rows = (ClassPair((HOSTILE, HOSTILE), 9, 0.1, 0.9),)
        bad = replace(found.checks[0], measure=HOSTILE, advice=HOSTILE, fires=True)
        hostile = replace(found, images=images, wrong=wrong, classes=rows, checks=(bad,))
        tags = harmless(hostile.to_html(tmp_path / "report.html").read_text("utf-8"))
        shown = HOSTILE.replace("\udcff", "�")
        assert tags.text.count(shown) >= 2 + 1 + 2 * len(wrong) + 2 + 2
        assert [a["alt"] for _, a in tags.tags if "alt" in a].count(shown) == 2 * len(wrong)

    def test_one_pair_by_another_method(self, tmp_path):
        raw = np.linspace(-1, 1, 16).reshape(4, 4)
        ex = explained(raw, -np.ones((4, 4)))
        page = pair_page(tmp_path / "pair.html", ex, [HOSTILE, "b"], HOSTILE).read_text("utf-8")
        tags = harmless(page)
        alts = [a["alt"] for _, a in tags.tags if "alt" in a]
        assert len(alts) == 6 and sum("blank" in alt for alt in alts) == 1
        assert "factual: what speaks for “similar”" in tags.text

    def test_a_place_that_cannot_be_written_is_told(self, found, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(EvaluationError, match="choose another place"):
            found.to_html(tmp_path / "file" / "report.html")
