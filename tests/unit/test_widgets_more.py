"""The Python half of the explorers of thresholds, losses, steps and crops."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from ipywidgets.embed import dependency_state
from PIL import Image

import siamcam_lib as sc
from siamcam_lib.errors import DataError, EvaluationError, ExplanationError, ImageError
from siamcam_lib.evaluation import metrics
from siamcam_lib.widgets import Explorer
from siamcam_lib.widgets.base import size
from siamcam_lib.widgets.crop import crop_explorer
from siamcam_lib.widgets.loss import loss_explorer
from siamcam_lib.widgets.steps import steps_explorer
from siamcam_lib.widgets.threshold import CANDIDATES, spread, threshold_explorer

TYPES = {
    "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "float16": "<f2", "float32": "<f4", "float64": "<f8",
}  # fmt: skip
KINDS = ("threshold", "loss", "steps", "crop")


def unpacked(array: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), TYPES[array["kind"]])


def a_report(pairs, seed=0) -> sc.Report:
    score = np.random.default_rng(seed).random(len(pairs))
    return metrics.report(score, pairs.label, 0.43, bootstrap=5)


@pytest.fixture(scope="module")
def images() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=20)


@pytest.fixture(scope="module")
def pairs(images) -> sc.pairs.PairSet:
    return sc.pairs.sample(images, seed=0)


@pytest.fixture(scope="module")
def net() -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet(image_size=96)


@pytest.fixture(scope="module")
def explorers(images, pairs, net) -> dict[str, Explorer]:
    return {
        "threshold": threshold_explorer(a_report(pairs), pairs),
        "loss": loss_explorer(),
        "steps": steps_explorer(net, images.image(0), images.image(1)),
        "crop": crop_explorer(images.subset(range(3)), [np.eye(4), np.ones((2, 3)), -np.eye(3)]),
    }


@pytest.mark.parametrize("kind", KINDS)
class TestEvery:
    def test_fits_into_a_page(self, explorers, kind):
        state = dependency_state([explorers[kind]], drop_defaults=False)
        assert len(json.dumps(state, default=str)) < 3_000_000

    def test_controls_begin_as_the_view_does_and_are_named(self, explorers, kind):
        for trait, control in explorers[kind].controls.items():
            linked = "index" if control.has_trait("index") else "value"
            assert getattr(control, linked) == getattr(explorers[kind].view, trait)
            assert control.description

    def test_a_picture_stands_where_no_script_may_run(self, explorers, kind):
        data, about = explorers[kind]._repr_mimebundle_()
        assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width > 300
        assert about["image/png"]["alt"] == explorers[kind].about
        assert data["text/plain"] == repr(explorers[kind]) and "0x" not in data["text/plain"]

    def test_code_asks_nobody_and_depends_on_nothing(self, explorers, kind):
        code = explorers[kind].view._esm + explorers[kind].view._css
        assert not re.search(r"https?:|\bimport\b|\bfetch\b|XMLHttpRequest|@import", code)
        assert code.count("export default") == 1 and len(code) < 40_000

    def test_one_file_that_names_no_other(self, explorers, kind, tmp_path):
        text = explorers[kind].to_html(tmp_path / "page.html").read_text("utf-8")
        assert not re.search(r"\b(?:src|href)=(?!\"data:)|https?://|@import|\bimport\b", text)


class TestThreshold:
    def test_scores_travel_exactly(self, pairs):
        report = a_report(pairs)
        data = threshold_explorer(report).view.data
        assert unpacked(data["score"]).tolist() == report.score.tolist()
        assert unpacked(data["label"]).tolist() == report.label.tolist()
        assert np.sum(data["bars"]) == len(pairs) and data["candidates"] == []

    @pytest.mark.parametrize("threshold", [0.391415, 0.5, 0.07, 0.0, 1.0, 1.3, -0.2])
    def test_the_slider_passes_through_the_threshold(self, threshold):
        report = metrics.report([0.1, 0.9], [0, 1], threshold, bootstrap=2)
        explorer = threshold_explorer(report)
        slider = explorer.controls["threshold"]
        assert slider.value == explorer.view.threshold == threshold
        steps = (threshold - slider.min) / slider.step
        assert abs(steps - round(steps)) < 1e-9
        assert slider.min <= threshold <= slider.max

    def test_candidates_are_pairs_of_the_report(self, pairs):
        report = a_report(pairs)
        data = threshold_explorer(report, pairs).view.data
        assert len(data["candidates"]) == CANDIDATES
        for pair in data["candidates"]:
            k = pair["pair"]
            assert (pair["a"], pair["b"], pair["label"]) == (pairs.a[k], pairs.b[k], pairs.label[k])
            assert pair["score"] == report.score[k]
            assert {pair["a"], pair["b"]} <= set(data["pictures"])
        assert size(data) < 200_000

    def test_candidates_are_spread_over_the_scores_of_each_kind(self):
        random = np.random.default_rng(0)
        label = random.integers(0, 2, 3000)
        score = random.beta(1 + label * 6, 7 - label * 6)
        chosen = spread(score, label, 24)
        assert len(set(chosen)) == 24 and (np.diff(score[chosen]) >= 0).all()
        for side in (0, 1):
            every = score[label == side]
            mine = np.sort([score[k] for k in chosen if label[k] == side])
            assert len(mine) == 12
            assert (mine[0], mine[-1]) == (every.min(), every.max())
            assert np.diff(mine).max() < 2 * np.ptp(every) / 11

    def test_few_pairs_are_all_shown(self):
        assert sorted(spread(np.array([0.2, 0.2, 0.9]), np.array([0, 1, 1]))) == [0, 1, 2]

    def test_pairs_of_another_report_are_refused(self, images, pairs):
        with pytest.raises(EvaluationError, match="not those; give the pairs that sc.evaluate"):
            threshold_explorer(a_report(pairs), sc.pairs.sample(images.subset(range(15)), seed=1))

    def test_scores_that_are_no_dissimilarities_are_refused(self):
        report = metrics.report([0.5, 1.5], [0, 1], 0.7, bootstrap=2)
        with pytest.raises(EvaluationError, match=r"between 0.5 and 1.5"):
            threshold_explorer(report)

    def test_more_scores_than_a_page_holds_are_refused(self):
        score = np.linspace(0, 1, 260_000)
        report = metrics.report(score, np.arange(260_000) % 2, 0.5, bootstrap=1)
        with pytest.raises(EvaluationError, match="on fewer pairs"):
            threshold_explorer(report)


class TestLoss:
    @pytest.mark.parametrize("wrong", [
        {"points": []}, {"points": [(2.6, 0)]}, {"points": [(-0.1, 0)]}, {"points": [(1, 2)]},
        {"margin": 0}, {"margin": 2.6}, {"slope": 0}, {"slope": -1}, {"slope": float("nan")},
    ])  # fmt: skip
    def test_wrong_settings_are_refused(self, wrong):
        with pytest.raises(EvaluationError):
            loss_explorer(**wrong)

    def test_settings_arrive(self):
        view = loss_explorer([(0.5, 1)], margin=1.5, slope=1, offset=0).view
        assert view.margin == 1.5 and view.data["points"] == [(0.5, 1)]
        assert (view.data["slope"], view.data["offset"]) == (1, 0)


class TestSteps:
    @pytest.mark.parametrize("channels", [5, 512, 5000])
    def test_what_travels_adds_up_to_the_map(self, images, net, channels):
        pair = images.image(0), images.image(1)
        ex = sc.explain(net, *pair)
        data = steps_explorer(net, *pair, channels=channels).view.data
        for side, raw in zip(data["sides"], ex.raw, strict=True):
            count = len(side["channels"])
            assert count == min(channels, side["active"]) < data["count"] == 1280
            assert len(side["weights"]) == count + (side["active"] > count)
            maps = unpacked(side["maps"]).reshape(-1, *data["shape"]).astype(float)
            scale = np.array(side["peaks"]) * side["weights"]
            assert np.abs(maps).max() == 1
            found = np.tensordot(scale, maps, 1)
            assert np.abs(found - raw).max() < 1e-3 * np.abs(raw).max()
            strength = np.abs(side["weights"][:count])
            assert (np.diff(strength) <= 0).all()

    def test_any_module_is_taken_apart(self, images):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 5, stride=4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        pair = images.image(0), images.image(1)
        explorer = steps_explorer(module, *pair, layer="0", image_size=32)
        assert explorer.controls["channels"].max == 6
        assert explorer.about == "Grad-CAM step by step, 6 channels"

    def test_wrong_input_is_refused(self, images, net):
        pair = images.image(0), images.image(1)
        for channels in (0, 2.5, -1):
            with pytest.raises(ExplanationError, match="positive whole number"):
                steps_explorer(net, *pair, channels=channels)
        with pytest.raises(ExplanationError, match="layer"):
            steps_explorer(net, *pair, layer="stem")
        with pytest.raises(ImageError):
            steps_explorer(net, pair[0], np.zeros((4, 4, 7)))

    def test_more_channels_than_a_page_holds_are_refused(self, images):
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 200, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        with pytest.raises(ExplanationError, match=r"show fewer: channels=\d+"):
            steps_explorer(module, images.image(0), images.image(1), layer="0", image_size=96)


class TestCrop:
    def test_names_and_maps_arrive(self, images):
        maps = [np.arange(6.0).reshape(2, 3) - 1, np.eye(2)]
        explorer = crop_explorer(images.subset([3, 4]), maps)
        first = explorer.view.data["images"][0]
        assert first["shape"] == [2, 3] and unpacked(first["map"]).tolist() == [-1, 0, 1, 2, 3, 4]
        assert first["name"] == f"{images.classes[images.labels[3]]} 0"
        assert explorer.controls["image"].options[0] == (first["name"], 0)

    @pytest.mark.parametrize("wrong", [
        {"heatmaps": []}, {"heatmaps": [np.eye(2)] * 2}, {"names": []}, {"images": []},
    ])  # fmt: skip
    def test_one_of_each_is_needed(self, wrong):
        good = {"images": [Image.new("RGB", (9, 9))], "heatmaps": [np.eye(2)]}
        with pytest.raises(DataError, match="one of each"):
            crop_explorer(**(good | wrong))

    @pytest.mark.parametrize("wrong", [
        {"threshold": 0}, {"threshold": 1}, {"margin": -0.1}, {"margin": 0.6},
        {"heatmaps": [np.ones(3)]}, {"heatmaps": [np.full((2, 2), np.nan)]},
        {"heatmaps": [np.ones((0, 2))]},
    ])  # fmt: skip
    def test_wrong_settings_are_refused(self, wrong):
        good = {"images": [Image.new("RGB", (9, 9))], "heatmaps": [np.eye(2)]}
        with pytest.raises(ExplanationError):
            crop_explorer(**(good | wrong))

    def test_more_pictures_than_a_page_holds_are_refused(self):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
        with pytest.raises(DataError, match=r"give about \d+ of them"):
            crop_explorer([noise] * 100, [np.eye(3)] * 100)
