"""The league is what its parts say, one by one; what fails is told by name."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import siamcam_lib as sc
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import (
    MEASURES,
    Measure,
    area,
    deletion,
    energy,
    league,
    mean_interval,
    of_another,
    planted,
)
from siamcam_lib.evaluation.ordering import stretched
from siamcam_lib.explaining import Explainer, Pairs

SIDE = 32
QUICK = {name: MEASURES[name] for name in ("deletion", "blank")}


class Counted(Explainer):
    """Ones, and how often they were asked for."""

    title = source = cost = "counted"

    def __init__(self) -> None:
        self.asked = 0

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        self.asked += 1
        return torch.ones(len(pairs), 2, 3, 3)


class Broken(Counted):
    """It cannot."""

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        raise RuntimeError("no ink")


@functools.cache
def some_pairs(count: int = 3) -> Pairs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
        net = sc.SiameseNet(body, 6, image_size=SIDE).eval()
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        for _ in range(2 * count)
    ]
    return Pairs(as_explainable(net), images[:count], images[count:])


def test_values_and_summary_are_those_of_the_parts():
    pairs, chosen = some_pairs(), QUICK | planted("corner", corner())
    found = league(["shared", "gradcam"], pairs, chosen, progress=False)
    assert list(found.values.columns) == ["explainer", "measure", "pair", "value"]
    assert len(found.values) == 2 * len(chosen) * 3 and len(found.summary) == 2 * len(chosen)
    for name in ("shared", "gradcam"):
        maps = sc.explainers.get(name)(pairs)
        for measure, truth in (
            ("deletion", area(deletion(pairs, maps))),
            ("energy on corner", energy(maps, corner()).mean(axis=1)),
        ):
            rows = found.values.query("explainer == @name and measure == @measure")
            assert rows.pair.tolist() == [0, 1, 2]
            np.testing.assert_array_equal(rows.value, truth)
            [row] = found.summary.query("explainer == @name and measure == @measure").itertuples()
            assert (row.mean, row.low, row.high) == mean_interval(truth)
            assert row.higher == (measure != "deletion") and row.seconds >= 0


def corner() -> np.ndarray:
    masks = np.zeros((3, 2, SIDE, SIDE), bool)
    masks[..., :8, :8] = True
    return masks


def test_every_default_measure_gives_a_value_a_pair():
    found = league(["shared", "random", "edges"], some_pairs(), progress=False)
    assert set(found.summary.measure) == set(MEASURES)
    assert np.isfinite(found.values.value).all() and not found.summary.isna().any().any()
    table = found.summary.pivot(index="measure", columns="explainer", values="mean")
    assert table.loc["randomised", "edges"] == pytest.approx(1)
    assert table.loc["randomised", "shared"] < 0.99
    assert table.loc["continuity", "random"] > table.loc["continuity", "edges"]


def test_what_explains_again_draws_the_same_again():
    asked = {name: MEASURES[name] for name in ("randomised", "continuity")}
    (one, two) = (league(["random"], some_pairs(), asked, seed=s, progress=False) for s in (0, 7))
    for found in (one, two):  # it does not depend on the network, so it stays as it is
        means = found.summary.set_index("measure")["mean"]
        assert means["randomised"] == pytest.approx(1)
    assert not one.values.equals(two.values)


def test_a_map_is_made_once():
    explainer = Counted()
    league({"ones": explainer}, some_pairs(), QUICK | planted("corner", corner()), progress=False)
    assert explainer.asked == 1
    again = {name: MEASURES[name] for name in ("continuity", "max_sensitivity", "randomised")}
    league({"ones": explainer}, some_pairs(), again, progress=False)
    assert explainer.asked == 2 + 1 + 4 + 2


def test_clusters_widen_the_interval():
    pairs, chosen = some_pairs(), {"deletion": MEASURES["deletion"]}
    [alone] = league(["shared"], pairs, chosen, progress=False).summary.itertuples()
    [tied] = league(
        ["shared"], pairs, chosen, cluster=np.zeros(3), progress=False
    ).summary.itertuples()
    assert tied.low == pytest.approx(tied.high) == pytest.approx(tied.mean)
    assert alone.low < alone.mean < alone.high


def test_two_settings_of_one_method():
    both = {f"occlusion {w}": sc.explainers.get("occlusion", window=w, stride=w)
            for w in (0.25, 0.5)}  # fmt: skip
    found = league(both, some_pairs(), QUICK, progress=False)
    assert found.summary.explainer.unique().tolist() == list(both)
    with pytest.raises(EvaluationError, match="'occlusion'"):
        league(both.values(), some_pairs(), QUICK, progress=False)


def test_what_fails_is_told_by_name():
    pairs = some_pairs()
    with pytest.raises(EvaluationError, match="'ink' failed: no ink"):
        league({"ink": Broken()}, pairs, QUICK, progress=False)
    wrong = {"odd": Measure("odd", True, lambda pairs, maps: np.ones(2))}
    with pytest.raises(EvaluationError, match=r"'odd' of the explainer 'shared' failed.*\(2,\)"):
        league(["shared"], pairs, wrong, progress=False)
    nan = {"nan": Measure("nan", True, lambda pairs, maps: np.full(3, np.nan))}
    with pytest.raises(EvaluationError, match="'nan' of the explainer 'shared'.*not finite"):
        league(["shared"], pairs, nan, progress=False)
    with pytest.raises(EvaluationError, match="'explainlfs' failed: .*fit"):
        league(["explainlfs"], pairs, QUICK, progress=False)
    with pytest.raises(EvaluationError, match="0 and 2"):
        league([], pairs, QUICK)
    with pytest.raises(EvaluationError, match="1 and 0"):
        league(["shared"], pairs, {})


def test_shares_that_are_perfect_in_few_pairs_are_not_sure():
    """Three pairs of even maps: their maximum is everywhere, so in a mask of everything."""
    chosen = planted("all", np.ones((3, 2, SIDE, SIDE), bool))
    found = league({"ones": Counted()}, some_pairs(), chosen, progress=False)
    rows = found.summary.set_index("measure")[["mean", "low", "high"]]
    for name in ("energy on all", "pointing on all"):
        assert rows.loc[name].tolist() == pytest.approx([1, 0.025 ** (1 / 3), 1])
    pairs = judged((0, 1), (2, 3), similar=[True, True])
    [row] = league({"ones": Counted()}, pairs, {"blank": MEASURES["blank"]}).summary.itertuples()
    assert (row.mean, row.low, row.high) == pytest.approx((0, 0, 1 - 0.025**0.5))


class Spots(Explainer):
    """In both maps of pair k nothing but place k."""

    title = source = cost = "spots"

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        return torch.eye(len(pairs), 16).view(-1, 1, 4, 4).expand(-1, 2, -1, -1)


def judged(*ends: tuple[int, int], similar: list[bool]) -> Pairs:
    """Pairs of numbered pictures, judged as is said."""
    images = [
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        for k in range(1 + max(map(max, ends)))
    ]
    net = some_pairs().seeing.network
    pairs = Pairs(net, *([images[k] for k in side] for side in zip(*ends, strict=True)))
    y = torch.where(torch.tensor(similar), -0.1, 0.1).double() + pairs.seeing.threshold
    vars(pairs)["compared"] = replace(pairs.compared, dissimilarity=y)
    return pairs


@pytest.mark.parametrize(
    ("ends", "similar", "whose"),
    [
        # the next one, and the first after the last
        ([(0, 1), (2, 3), (4, 5)], [True, True, True], [1, 2, 0]),
        # the next one that is judged alike, and any if there is none
        ([(0, 1), (2, 3), (4, 5), (6, 7)], [True, False, True, True], [2, 2, 3, 0]),
        # none that shows one of its own pictures, on whichever side
        ([(0, 1), (2, 0), (3, 4), (1, 5)], [True, True, True, True], [2, 2, 3, 1]),
    ],
)
def test_another_pairs_maps_are_those_of_the_next_that_could_be_its(ends, similar, whose):
    place = Measure("place", True, lambda p, maps: maps[:, 1].flatten(1).argmax(dim=1).numpy())
    both = {"own": place, "another's": of_another(place)}
    found = league({"spots": Spots()}, judged(*ends, similar=similar), both, progress=False)
    own, others = (found.values.query("measure == @name").value.tolist() for name in both)
    assert own == list(range(len(ends))) and others == whose


def test_another_pairs_maps_find_what_stands_in_one_place():
    """Parts at their own places are found by the own map alone, a part in a corner by any."""
    pairs = judged((0, 1), (2, 3), (4, 5), similar=[True] * 3)
    moving = stretched(Spots()(pairs), (SIDE, SIDE)) > 0.5
    measures = planted("moving", moving) | planted("still", moving[:1].expand(3, -1, -1, -1))
    controls = {f"{name}, another's": of_another(own) for name, own in measures.items()}
    assert all(own.title == f"{measures[name[:-11]].title}, another's" and own.within == (0, 1)
               for name, own in controls.items())  # fmt: skip
    means = league({"spots": Spots()}, pairs, measures | controls, progress=False).summary
    means = means.set_index("measure")["mean"]
    assert means["pointing on moving"] == 1 and means["pointing on moving, another's"] == 0
    still = league({"ones": Counted()}, pairs, measures | controls, progress=False).summary
    still = still.set_index("measure")["mean"]
    assert still["energy on still"] == still["energy on still, another's"] > 0


def test_another_pairs_maps_where_there_are_none():
    blank = {"blank": of_another(MEASURES["blank"])}
    pairs = judged((0, 1), (1, 2), similar=[True, True])
    with pytest.raises(EvaluationError, match="Pair 0 of 2 has no other pair without its pictures"):
        league({"ones": Counted()}, pairs, blank, progress=False)
    with pytest.raises(EvaluationError, match="explains changed pictures again"):
        of_another(MEASURES["continuity"])


def test_progress_names_the_explainer(capfd):
    league(["shared"], some_pairs(), QUICK)
    assert "shared" in capfd.readouterr().err
    league(["shared"], some_pairs(), QUICK, progress=False)
    assert capfd.readouterr() == ("", "")
