"""Maps of moved pictures, noisy pictures and forgetful networks: known answers, loops, captum."""

from __future__ import annotations

import copy
import functools

import captum.metrics
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn

import siamcam_lib as sc
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import EvaluationError, ExplanationError
from siamcam_lib.evaluation import agreement, continuity, max_sensitivity, randomised_layers
from siamcam_lib.evaluation.robustness import (
    changed,
    layers_from_the_top,
    rank_correlation,
    relative_change,
)
from siamcam_lib.explaining import Explainer, Pairs

SIDE = 32


class Brightness(Explainer):
    """The pictures themselves, each pixel less a half: a map that follows its picture exactly."""

    title = source = cost = "brightness"

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        grey = pairs.pixels.mean(dim=1) - 0.5
        return torch.stack([grey[pairs.first], grey[pairs.second]], dim=1)


class Constant(Brightness):
    """The same map whatever is seen."""

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        return torch.arange(9.0).view(1, 1, 3, 3).expand(len(pairs), 2, -1, -1)


class Blank(Brightness):
    """Nothing of the pictures given at first, everything of any other."""

    def __init__(self, known: Tensor) -> None:
        self.known = known

    def maps(self, pairs: Pairs, *, seed: int = 0, progress: bool = False) -> Tensor:
        return super().maps(pairs) * (pairs.pixels is not self.known)


def body() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
    )  # fmt: skip


@functools.cache
def some_pairs(count: int = 4) -> Pairs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = sc.SiameseNet(body(), 7, normalize=False, image_size=SIDE).eval()
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)).resize(
            (SIDE, SIDE)
        )
        for _ in range(2 * count)
    ]
    return Pairs(as_explainable(net), images[:count], images[count:])


GRADCAM = sc.explainers.get("gradcam")


class TestContinuity:
    def test_a_map_that_follows_its_picture(self):
        found = continuity(Brightness(), some_pairs(), shifts=(0, 4, -8, 31))
        np.testing.assert_allclose(found.followed, 0, atol=1e-6)
        assert not found.still[:, 0].any() and (found.still[:, 1:] > 0.2).all()

    def test_a_map_that_stays(self):
        found = continuity(Constant(), some_pairs(), shifts=(4, -8))
        assert not found.still.any() and (found.followed > 0.01).all()

    @pytest.mark.parametrize("shift", [3, -5])
    def test_pictures_are_mirrored_at_the_border(self, shift):
        seen = []

        class Keeps(Brightness):
            def maps(self, pairs: Pairs, **options) -> Tensor:
                seen.append(pairs.pixels)
                return super().maps(pairs)

        pairs = some_pairs()
        continuity(Keeps(), pairs, shifts=(shift,))
        before, after = (x.numpy() for x in seen)
        wide = np.pad(before, [(0, 0)] * 3 + [(8, 8)], mode="reflect")
        np.testing.assert_array_equal(after, wide[..., 8 - shift : 8 - shift + SIDE])

    def test_by_a_loop(self):
        pairs, shift = some_pairs(), 8
        found = continuity(GRADCAM, pairs, shifts=(shift,))
        here = GRADCAM(pairs)
        moved = np.pad(pairs.pixels.numpy(), [(0, 0)] * 3 + [(shift, 0)], mode="reflect")
        there = GRADCAM(changed(pairs, torch.from_numpy(moved[..., :SIDE].copy())))
        for k in range(len(pairs)):
            truth = np.linalg.norm((here[k] - there[k]).ravel()) / np.linalg.norm(here[k].ravel())
            assert found.still[k, 0] == pytest.approx(truth, rel=1e-5)
        assert (found.still > 0.05).all() and (found.still != found.followed).all()

    def test_maps_that_are_there_are_not_made_again(self):
        pairs = some_pairs()
        maps = GRADCAM(pairs)
        found, again = continuity(GRADCAM, pairs, maps), continuity(GRADCAM, pairs)
        np.testing.assert_array_equal(found.still, again.still)
        twice = continuity(GRADCAM, pairs, 2 * maps)
        assert (twice.still[:, 1:] != found.still[:, 1:]).all()

    def test_the_pairs_are_left_as_they_were(self):
        pairs = some_pairs()
        before = pairs.pixels.clone(), pairs.seen.embedding.clone()
        continuity(GRADCAM, pairs)
        max_sensitivity(GRADCAM, pairs, samples=1)
        randomised_layers(GRADCAM, pairs, stages=1)
        assert torch.equal(pairs.pixels, before[0])
        assert torch.equal(pairs.seen.embedding, before[1])

    @pytest.mark.parametrize("shift", [32, -40, 1.5, True])
    def test_shifts_that_cannot_be(self, shift):
        with pytest.raises(EvaluationError, match=str(shift)):
            continuity(GRADCAM, some_pairs(), shifts=(0, shift))


class TestMaxSensitivity:
    def test_is_captums(self):
        pairs, samples, radius = some_pairs(), 5, 0.05
        found = max_sensitivity(GRADCAM, pairs, radius=radius, samples=samples, seed=2)
        draw = torch.Generator().manual_seed(2)
        drawn = [torch.rand(pairs.pixels.shape, generator=draw) for _ in range(samples)]
        noise = torch.stack([(2 * x - 1) * radius for x in drawn], dim=1)  # (n, samples, 3, S, S)

        def perturb(given: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            return tuple(
                (x + noise[i].flatten(0, 1)).clamp(0, 1)
                for x, i in zip(given, (pairs.first, pairs.second), strict=True)
            )

        def explained(given: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            other = changed(pairs, torch.cat(given))
            other.first, other.second = torch.arange(2 * len(given[0])).chunk(2)
            return tuple(GRADCAM(other).unbind(dim=1))

        truth = captum.metrics.sensitivity_max(
            explained,
            (pairs.pixels[pairs.first], pairs.pixels[pairs.second]),
            perturb,
            n_perturb_samples=samples,
        )
        np.testing.assert_allclose(found, truth, rtol=1e-3)
        assert found.std() > 0

    def test_more_noise_moves_more(self):
        little, much = (max_sensitivity(Brightness(), some_pairs(), radius=r) for r in (0.01, 0.2))
        assert (0 < little).all() and (5 * little < much).all()

    def test_more_samples_are_never_less(self):
        one, many = (max_sensitivity(GRADCAM, some_pairs(), samples=n) for n in (1, 6))
        assert (one <= many).all() and (one < many).any()

    def test_a_map_that_stays(self):
        assert max_sensitivity(Constant(), some_pairs()).tolist() == [0] * 4

    def test_a_blank_map_that_is_blank_no_more_has_changed_wholly(self):
        pairs = some_pairs()
        assert max_sensitivity(Blank(pairs.pixels), pairs).tolist() == [1] * 4
        assert continuity(Blank(pairs.pixels), pairs, shifts=(4,)).still.tolist() == [[1]] * 4

    @pytest.mark.parametrize("options", [{"radius": 0}, {"radius": 1.0}, {"samples": 0}])
    def test_settings_that_cannot_be(self, options):
        with pytest.raises(ExplanationError, match=next(iter(options))):
            max_sensitivity(GRADCAM, some_pairs(), **options)


class TestRandomisedLayers:
    def test_edges_do_not_depend_on_the_network(self):
        found = randomised_layers(sc.explainers.get("edges"), some_pairs(), stages=3)
        np.testing.assert_allclose(found, np.ones((4, 3)), atol=1e-12)

    def test_gradcam_does(self):
        found = randomised_layers(GRADCAM, some_pairs(), stages=4)
        assert found.shape == (4, 4) and (found < 0.99).all()
        assert abs(found[:, -1].mean()) < 0.6

    def test_the_network_is_left_as_it_was(self):
        pairs = some_pairs()
        before = copy.deepcopy(pairs.seeing.network.state_dict())
        drawn = torch.random.get_rng_state()
        randomised_layers(GRADCAM, pairs)
        after = pairs.seeing.network.state_dict()
        assert all(torch.equal(before[name], value) for name, value in after.items())
        assert not any(m._forward_hooks for m in pairs.seeing.network.modules())
        assert torch.equal(torch.random.get_rng_state(), drawn)

    def test_from_the_top_down_and_cumulatively(self):
        pairs, given = some_pairs(), []

        class Keeps(Constant):
            def maps(self, pairs: Pairs, **options) -> Tensor:
                given.append(copy.deepcopy(pairs.seeing.network.state_dict()))
                return super().maps(pairs)

        maps = Constant()(pairs)
        randomised_layers(Keeps(), pairs, maps, stages=4)
        first = pairs.seeing.network.state_dict()
        weights = ["projection.weight", "backbone.3.weight", "backbone.1.weight",
                   "backbone.0.weight"]  # fmt: skip
        assert len(given) == 4
        for stage, state in enumerate(given, start=1):
            same = [torch.equal(state[name], first[name]) for name in weights]
            if "backbone.1.weight" in weights[:stage]:
                same[2] = False  # batch norm begins with ones, which have no deviation
            assert same == [False] * stage + [True] * (4 - stage)
            if stage > 1:
                assert torch.equal(state["projection.weight"], given[0]["projection.weight"])
        assert all(torch.equal(state["output.weight"], first["output.weight"]) for state in given)
        drawn, trained = given[-1]["projection.weight"], first["projection.weight"]
        assert float(drawn.std()) == pytest.approx(float(trained.std()), rel=0.5)

    def test_a_seed_gives_the_same_again(self):
        one, same, other = (randomised_layers(GRADCAM, some_pairs(), seed=k) for k in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert (one != other).any()

    def test_of_another_network(self):
        net = nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        seeing = sc.Embedder(net.eval(), "0", image_size=SIDE)
        pairs = changed(some_pairs(), some_pairs().pixels, seeing)
        assert [type(m) for m in layers_from_the_top(seeing, pairs.pixels[:1])] == [
            nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.Conv2d
        ]  # fmt: skip
        assert (randomised_layers(GRADCAM, pairs, stages=2) < 0.99).all()

    def test_more_stages_than_layers(self):
        with pytest.raises(EvaluationError, match="4 layers"):
            randomised_layers(GRADCAM, some_pairs(), stages=5)

    def test_progress_is_shown_when_asked(self, capfd):
        randomised_layers(GRADCAM, some_pairs(), stages=1, progress=True)
        assert "randomised" in capfd.readouterr().err


class TestAgreement:
    def maps(self, m: int = 6, size: int = 9) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(0)
        first = torch.randn(m, 2, size, size, generator=draw)
        return first, first + torch.randn(m, 2, size, size, generator=draw)

    def test_correlation_is_scipys(self):
        first, second = (maps.mul(2).round() for maps in self.maps())  # with equal values
        found = agreement(first, second)
        assert found.correlation.shape == found.overlap.shape == (6, 2)
        for k in np.ndindex(6, 2):
            truth = stats.spearmanr(first[k].ravel(), second[k].ravel()).statistic
            assert found.correlation[k] == pytest.approx(truth, abs=1e-6)

    def test_overlap_by_a_loop(self):
        first, second = self.maps()
        found = agreement(first, second, share=0.2).overlap
        for k in np.ndindex(6, 2):
            tops = [set(m[k].flatten().argsort(descending=True)[:16].tolist())
                    for m in (first, second)]  # fmt: skip
            assert found[k] == pytest.approx(len(tops[0] & tops[1]) / 16)
        assert 0.2 < found.mean() < 0.9

    def test_unrelated_maps_agree_by_chance(self):
        draw = torch.Generator().manual_seed(0)
        found = agreement(*torch.randn(2, 300, 20, 20, generator=draw))
        assert abs(found.correlation.mean()) < 0.01
        assert found.overlap.mean() == pytest.approx(0.1, abs=0.01)

    def test_the_coarser_is_stretched(self):
        first, _ = self.maps()
        fine = torch.nn.functional.interpolate(first, size=(36, 27), mode="bilinear")
        found = agreement(first, fine)
        np.testing.assert_allclose(found.correlation, 1, atol=1e-9)
        assert found.overlap.tolist() == [[1, 1]] * 6

    def test_scale_does_not_matter_and_sign_does(self):
        first, second = self.maps()
        one, same = agreement(first, second), agreement(0.01 * first, second * 50)
        np.testing.assert_allclose(one.correlation, same.correlation, atol=1e-9)
        np.testing.assert_allclose(agreement(first, -second).correlation, -one.correlation)

    def test_sets_of_different_size(self):
        with pytest.raises(EvaluationError, match="6, 2"):
            agreement(self.maps()[0], self.maps()[1][:5])


def test_correlation_of_maps_with_one_value():
    flat, other = torch.full((1, 3, 3), 0.1), torch.arange(9.0).view(1, 3, 3)
    assert rank_correlation(flat, 0 * flat).tolist() == [1]
    assert rank_correlation(flat, other).tolist() == rank_correlation(other, flat).tolist() == [0]


def test_relative_change_by_hand():
    maps = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    moved = torch.tensor([[[3.0, 3.0]], [[0.0, 0.0]], [[0.0, 9.0]]])
    assert relative_change(maps, moved).tolist() == [0.2, 0, 1]
