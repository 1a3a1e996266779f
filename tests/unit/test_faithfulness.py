"""Hiding and showing: against loops, captum, and a network that looks at one corner only."""

from __future__ import annotations

import functools

import captum.metrics
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import siamcam_lib as sc
from siamcam_lib import perturbing
from siamcam_lib.errors import EvaluationError, ExplanationError
from siamcam_lib.evaluation import (
    area,
    change,
    deletion,
    for_decision,
    infidelity,
    insertion,
    paired,
    road,
    selectivity,
)
from siamcam_lib.evaluation import faithfulness as measures
from siamcam_lib.explaining import Pairs
from siamcam_lib.explanation import stretch

SIDE, CORNER = 24, 12
CURVES = {
    "deletion": deletion,
    "insertion": insertion,
    "selectivity": functools.partial(selectivity, patch=4, steps=6),
    "road": functools.partial(road, shares=(0.1, 0.3)),
}


class Looker(nn.Module):
    """Embeds the upper left quarter of a picture, a little blurred, and counts the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(3)
        self.looks = 0

    def forward(self, x: Tensor) -> Tensor:
        self.looks += len(x)
        return self.features(x)[:, :, :4, :4].flatten(1)


def picture(seed: int, corner: int | None = None) -> Image.Image:
    """Coarse noise; the corner may come from another seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    if corner is not None:
        coarse[:2, :2] = np.random.default_rng(corner).integers(0, 256, (2, 2, 3), np.uint8)
    return Image.fromarray(coarse.repeat(6, 0).repeat(6, 1))


def pairs_of(count: int = 6) -> Pairs:
    """Pairs with equal corners, judged similar, and as many with different ones."""
    net = Looker()
    seeing = sc.Embedder(
        net, "features", comparison="l2", image_size=SIDE, mean=(0,) * 3, std=(0.25,) * 3,
        threshold=0.6,
    )  # fmt: skip
    lefts = [picture(k, corner=100 + k) for k in range(2 * count)]
    rights = [picture(50 + k, corner=100 + k if k < count else 200 + k) for k in range(2 * count)]
    return Pairs(seeing, lefts, rights)


@functools.cache
def corner_pairs() -> Pairs:
    return pairs_of()


def truth(pairs: Pairs) -> Tensor:
    """The corner, and nothing else, decides: for similarity or against it."""
    maps = torch.zeros(len(pairs), 2, SIDE, SIDE)
    maps[:, :, :CORNER, :CORNER] = 1
    return for_decision(pairs, maps)


def noise(pairs: Pairs, size: int = 5) -> Tensor:
    return torch.randn(len(pairs), 2, size, size, generator=torch.Generator().manual_seed(3))


def decision(pairs: Pairs, k: int, first: Tensor, second: Tensor) -> float:
    """Score of the decision on pair k, with these pictures in the place of its own."""
    s = float(pairs.score(pairs.embed(first[None]), pairs.embed(second[None])))
    return s if float(pairs.similarity[k]) > 1 - pairs.seeing.threshold else 1 - s


def test_the_pairs_are_of_both_kinds():
    pairs = corner_pairs()
    judged = (pairs.compared.dissimilarity < pairs.seeing.threshold).tolist()
    assert judged == [True] * 6 + [False] * 6


# --- against loops --------------------------------------------------------------------------------


def by_loop(pairs: Pairs, maps: Tensor, steps: int, fill: str, hide: bool) -> np.ndarray:
    """Deletion or insertion: one picture, one step at a time."""
    filling = perturbing.fill(pairs.pixels, fill)
    curves = np.zeros((len(pairs), 2, steps + 1))
    for k in range(len(pairs)):
        ends = [int(pairs.first[k]), int(pairs.second[k])]
        for side, i in enumerate(ends):
            evidence = stretch(for_decision(pairs, maps)[k, side], (SIDE, SIDE)).ravel()
            order = np.argsort(-evidence, kind="stable")
            for step in range(steps + 1):
                top = np.zeros(SIDE * SIDE, bool)
                top[order[: round(step * SIDE * SIDE / steps)]] = True
                keep = torch.from_numpy(top.reshape(SIDE, SIDE) ^ hide)
                shown = [pairs.pixels[j] for j in ends]
                shown[side] = torch.where(keep, pairs.pixels[i], filling[i])
                curves[k, side, step] = decision(pairs, k, *shown)
    return curves.mean(axis=1)


@pytest.mark.parametrize("fill", perturbing.FILLS)
@pytest.mark.parametrize("measure, hide", [(deletion, True), (insertion, False)])
def test_deletion_and_insertion_by_a_loop(measure, hide, fill):
    pairs = corner_pairs()
    maps = torch.randn(12, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = measure(pairs, maps, steps=7, fill=fill)
    assert found.shape == (12, 8) and found.dtype == np.float64
    np.testing.assert_allclose(found, by_loop(pairs, maps, 7, fill, hide), atol=1e-6)
    assert found.std(axis=1).min() > 1e-3


@pytest.mark.parametrize("patch", [4, 5, 7])
def test_selectivity_by_a_loop(patch):
    pairs, steps = corner_pairs(), 4
    maps = noise(pairs)
    filling = perturbing.fill(pairs.pixels, "mean")
    expected = np.zeros((12, steps + 1))
    for k in range(12):
        ends, hidden = [int(pairs.first[k]), int(pairs.second[k])], []
        for side in (0, 1):
            evidence = stretch(for_decision(pairs, maps)[k, side], (SIDE, SIDE))
            starts = [(y, x) for y in range(0, SIDE, patch) for x in range(0, SIDE, patch)]
            starts.sort(
                key=lambda at: -evidence[at[0] : at[0] + patch, at[1] : at[1] + patch].sum()
            )
            hidden.append(starts[:steps])
        for step in range(steps + 1):
            covered = [pairs.pixels[i].clone() for i in ends]
            for side, i in enumerate(ends):
                for y, x in hidden[side][:step]:
                    area_ = np.s_[:, y : y + patch, x : x + patch]
                    covered[side][area_] = filling[i][area_]
            a, b = (pairs.pixels[i] for i in ends)
            if k < 6:  # judged similar: one picture
                both = decision(pairs, k, covered[0], b), decision(pairs, k, a, covered[1])
                expected[k, step] = np.mean(both)
            else:
                expected[k, step] = decision(pairs, k, *covered)
    found = selectivity(pairs, maps, patch=patch, steps=steps)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(
        selectivity(pairs, maps, patch=patch, steps=steps, every=2), found[:, ::2]
    )


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_road_is_the_librarys_imputation():
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    pairs = corner_pairs()
    maps = torch.randn(12, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = road(pairs, maps, shares=(0.25,), noise=0)
    for k in (0, 11):
        ends, scores = [pairs.pixels[int(i[k])] for i in (pairs.first, pairs.second)], []
        for side in (0, 1):
            evidence = for_decision(pairs, maps)[k, side]
            keep = (evidence < evidence.flatten().sort().values[-144]).float()
            shown = list(ends)
            shown[side] = NoisyLinearImputer(0)(ends[side], keep)
            scores.append(decision(pairs, k, *shown))
        assert found[k, 1] == pytest.approx(np.mean(scores), abs=1e-6)


def test_the_noise_of_road_comes_from_its_seed_alone():
    pairs, found = corner_pairs(), []
    maps = torch.randn(12, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for around, seed in ((1, 0), (2, 0), (2, 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(around)
            found.append(road(pairs, maps, shares=(0.2,), seed=seed))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[1] != found[2]).any()


def test_road_smooths_over_what_it_removes():
    """What is missing in a flat picture comes back as it was."""
    flat = Image.new("RGB", (SIDE, SIDE), (90, 120, 30))
    pairs = Pairs(corner_pairs().seeing, [flat, picture(1)], [flat, picture(2)])
    found = road(pairs, truth(pairs), shares=(0.2,), noise=0)
    assert change(found)[0, 1] == pytest.approx(0, abs=1e-4) and abs(change(found)[1, 1]) > 0.01


# --- the network that looks at one corner ---------------------------------------------------------


def better(one: np.ndarray, two: np.ndarray) -> float:
    """Lower end of the interval of how much larger the first is."""
    return paired(two, one).difference.low


@pytest.mark.parametrize("judged", ["similar", "dissimilar"])
@pytest.mark.parametrize("name", list(CURVES))
def test_the_true_map_beats_random_and_reversed_maps(name, judged):
    pairs = corner_pairs()
    part = slice(0, 6) if judged == "similar" else slice(6, 12)
    sign = 1 if name == "insertion" else -1
    true, chance, worst = (
        sign * area(CURVES[name](pairs, maps))[part]
        for maps in (truth(pairs), torch.zeros(12, 2, 5, 5), -truth(pairs))
    )
    assert better(true, chance) > 0
    assert better(chance, worst) > 0 or (name == "selectivity" and better(true, worst) > 0)
    smooth = sc.explainers.get("random", cells=4)(pairs)
    assert better(true, sign * area(CURVES[name](pairs, smooth))[part]) > 0


def test_what_the_network_does_not_see_changes_nothing():
    pairs = corner_pairs()
    found = deletion(pairs, -truth(pairs), steps=4)  # the corner goes last
    np.testing.assert_allclose(change(found)[:, :4], 0, atol=1e-6)
    assert (abs(change(found)[:, 4]) > 1e-3).all()


def test_the_true_map_is_the_more_faithful():
    pairs = corner_pairs()
    options = {"samples": 64, "side": 0.3}
    maps = torch.zeros(12, 2, SIDE, SIDE)
    maps[:, :, :CORNER, :CORNER] = 1
    true, other = infidelity(pairs, maps, **options), infidelity(pairs, noise(pairs), **options)
    blank = infidelity(pairs, torch.zeros_like(maps), **options)
    assert (true[:6] < other[:6]).all() and (true <= blank).all() and (other <= blank).all()


# --- infidelity -----------------------------------------------------------------------------------


def test_infidelity_is_captums():
    pairs, samples, side = corner_pairs(), 9, 0.4
    maps = noise(pairs, 7)
    corners, _ = measures._squares(pairs, side, samples, "mean", 5)
    width = round(side * SIDE)
    masks = torch.zeros(24, samples, SIDE, SIDE)
    for k in range(24):
        for n, (y, x) in enumerate(corners[k].tolist()):
            masks[k, n, y : y + width, x : x + width] = 1
    assert masks.flatten(2).sum(dim=2).unique().tolist() == [width**2]
    assert masks.flatten(2).unique(dim=1).shape[1] == samples
    masks = [m.flatten(0, 1)[:, None].expand(-1, 3, -1, -1) for m in masks.chunk(2)]
    filling = perturbing.fill(pairs.pixels, "mean")
    ends = pairs.first, pairs.second
    grey = [filling[i].repeat_interleave(samples, 0) for i in ends]
    rows = [stretch(m, (SIDE, SIDE)) for m in maps.flatten(0, 1)]
    full = torch.from_numpy(np.stack(rows)).view(12, 2, 1, SIDE, SIDE)
    # A map speaks of a place; captum sums over colours, of which each gets a third.
    attributions = tuple((full[:, k] / 3).expand(-1, 3, -1, -1) for k in (0, 1))

    def perturb(given: tuple[Tensor, Tensor]) -> tuple:
        left = [torch.where(m > 0, f, x) for m, f, x in zip(masks, grey, given, strict=True)]
        return tuple(masks), tuple(left)

    for scaled in (True, False):
        expected = captum.metrics.infidelity(
            lambda a, b: pairs.score(pairs.embed(a), pairs.embed(b)),
            perturb,
            tuple(pairs.pixels[i] for i in ends),
            attributions,
            n_perturb_samples=samples,
            normalize=scaled,
        )
        found = infidelity(pairs, maps, side=side, samples=samples, scaled=scaled, seed=5)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    scores = infidelity(pairs, maps, side=side, samples=samples)
    np.testing.assert_allclose(
        infidelity(pairs, maps * -20, side=side, samples=samples), scores, rtol=1e-5
    )


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CURVES, "infidelity"])
class TestEvery:
    def measure(self, name):
        return {**CURVES, "infidelity": infidelity}[name]

    def test_batch_does_not_matter_and_randomness_is_seeded(self, name):
        whole, measure = corner_pairs(), self.measure(name)
        maps = noise(whole)
        found = measure(whole, maps, seed=4)
        np.testing.assert_array_equal(measure(whole, maps, seed=4), found)
        for k in (2, 9):
            images = [
                Image.fromarray((whole.pixels[i[k]] * 255).round().byte().permute(1, 2, 0).numpy())
                for i in (whole.first, whole.second)
            ]
            alone = Pairs(whole.seeing, images[:1], images[1:])
            np.testing.assert_allclose(measure(alone, maps[[k]], seed=4)[0], found[k], atol=1e-6)

    def test_torchs_generator_is_left_alone(self, name):
        before = torch.random.get_rng_state()
        self.measure(name)(corner_pairs(), noise(corner_pairs()))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_maps_of_another_shape_are_refused(self, name):
        pairs = corner_pairs()
        for maps in (torch.ones(12, 5, 5), torch.ones(11, 2, 5, 5), torch.ones(12, 3, 5, 5)):
            with pytest.raises(EvaluationError, match=r"\(12, 2, h, w\)"):
                self.measure(name)(pairs, maps)
        with pytest.raises(EvaluationError, match="not finite"):
            self.measure(name)(pairs, torch.full((12, 2, 5, 5), torch.nan))


@pytest.mark.parametrize("name", list(CURVES))
def test_curves_begin_and_end_where_they_must(name):
    pairs = corner_pairs()
    found = CURVES[name](pairs, noise(pairs))
    unchanged = [decision(pairs, k, *(pairs.pixels[i[k]] for i in (pairs.first, pairs.second)))
                 for k in range(12)]  # fmt: skip
    start = found[:, -1 if name == "insertion" else 0]
    np.testing.assert_allclose(start, unchanged, atol=1e-6)
    assert ((found >= 0) & (found <= 1)).all()


def test_how_often_the_network_looks():
    pairs = pairs_of(3)
    net = pairs.seeing.network
    assert pairs.seen and pairs.compared
    maps = noise(pairs)

    def looks(measure, **options) -> int:
        before = net.looks
        measure(pairs, maps, **options)
        return net.looks - before

    n, sides = len(pairs.pixels), 2 * len(pairs)
    assert looks(deletion, steps=10) == 9 * sides + n, "and once at what is wholly hidden"
    assert looks(deletion, steps=10) == looks(insertion, steps=10) == 9 * sides
    assert looks(selectivity, patch=4, steps=20, every=4) == 5 * sides
    assert looks(road, shares=(0.1, 0.2, 0.4)) == 3 * sides
    assert looks(infidelity, samples=8) == 8 * sides
    assert looks(infidelity, samples=8) == 0, "the squares are the same for all maps"


@pytest.mark.parametrize(
    "measure, options, told",
    [
        (deletion, {"steps": 0}, "steps"),
        (deletion, {"steps": 1}, "at least 2"),
        (insertion, {"fill": "pink"}, "pink"),
        (selectivity, {"steps": 26, "patch": 5}, "25 patches"),
        (selectivity, {"every": 3}, "multiple"),
        (selectivity, {"patch": 0}, "patch"),
        (road, {"shares": ()}, "at least one"),
        (road, {"shares": (1.0,)}, "1.0"),
        (infidelity, {"side": 0}, "side"),
        (infidelity, {"samples": 0}, "samples"),
    ],
)
def test_settings_that_cannot_be_are_refused(measure, options, told):
    with pytest.raises((EvaluationError, ExplanationError)) as error:
        measure(corner_pairs(), noise(corner_pairs()), **options)
    assert told in str(error.value)


def test_area_is_the_mean_height():
    x = np.linspace(0, 1, 101)
    np.testing.assert_allclose(
        area(np.stack([x, x**2, np.ones(101)])), [1 / 2, 1 / 3, 1], atol=1e-4
    )
