"""Maps against planted truth: hand-computed, against scikit-learn and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import average_precision, blank, energy, pointing
from siamcam_lib.evaluation.ordering import ranks, rounded, stretched
from siamcam_lib.explanation import stretch

MEASURES = [energy, pointing, average_precision]


def drawn(m: int = 90, size: tuple[int, int] = (5, 4), full: tuple[int, int] = (12, 17)):
    """More signed maps than go through at once, and a mask for each."""
    random = np.random.default_rng(0)
    masks = random.random((m, *full)) < 0.3
    masks[:, 2, 3] = True
    return torch.from_numpy(random.normal(size=(m, *size))).float(), masks


class TestStretched:
    @pytest.mark.parametrize("size", [(17, 12), (4, 5), (3, 2)])
    def test_as_explain_does_one_by_one(self, size):
        maps, _ = drawn()
        found = stretched(maps.view(9, 10, 5, 4), size[::-1])
        for k in (0, 37, 89):
            np.testing.assert_array_equal(found.view(90, *size[::-1])[k], stretch(maps[k], size))

    def test_a_flat_map_stays_flat(self):
        full = stretched(torch.full((1, 7, 7), 0.1), (50, 61))
        assert len(full.unique()) > 1, "else there would be nothing to round"
        assert rounded(full).unique().tolist() == [1e6]

    def test_a_blank_map_is_zero(self):
        assert not rounded(torch.zeros(2, 3, 3)).any()


class TestRanks:
    def test_by_a_loop(self):
        maps, _ = drawn(5)
        for own, map_ in zip(ranks(maps), maps, strict=True):
            order = sorted(range(20), key=lambda k: -float(map_.flatten()[k]))
            assert own.flatten()[order].tolist() == list(range(20))

    def test_equals_come_in_an_order_of_their_own(self):
        blank_ = torch.zeros(2, 20, 20)
        one, two = ranks(blank_, seed=1)
        assert torch.equal(one, two) and not torch.equal(one, ranks(blank_[0], seed=2))
        assert one.flatten().sort().values.tolist() == list(range(400))
        assert abs(np.corrcoef(one.flatten(), np.arange(400))[0, 1]) < 0.2

    def test_greater_stays_before_equal(self):
        maps = torch.tensor([[0.0, 1.0, 0.0, 2.0]])
        assert ranks(maps)[0, [3, 1]].tolist() == [0, 1]


class TestEnergy:
    def test_by_hand(self):
        maps = torch.tensor([[[2.0, -8.0], [1.0, 1.0]], [[-1.0, -1.0], [0.0, -3.0]]])
        masks = np.array([[[True, True], [False, False]]] * 2)
        assert energy(maps, masks).tolist() == [0.5, 0.0]

    def test_by_a_loop_before_any_relu(self):
        maps, masks = drawn()
        truth = []
        for map_, mask in zip(maps, masks, strict=True):
            full = np.maximum(stretch(map_, (17, 12)), 0).astype(float)
            truth.append(full[mask].sum() / full.sum())
        np.testing.assert_allclose(energy(maps, masks), truth, rtol=1e-12)

    def test_an_even_map_has_the_share_of_the_mask(self):
        _, masks = drawn()
        found = energy(torch.full((90, 7, 7), 0.1), masks)
        np.testing.assert_allclose(found, masks.mean(axis=(1, 2)), rtol=1e-6)


class TestPointing:
    def test_by_a_loop(self):
        maps, masks = drawn()
        truth = []
        for map_, mask in zip(maps, masks, strict=True):
            full = stretch(map_, (17, 12))
            top = full >= full.max() * (1 - 1e-7)  # at a border several pixels share the maximum
            truth.append(mask[top].mean())
        assert 0.1 < np.mean(truth) < 0.9
        np.testing.assert_allclose(pointing(maps, masks), truth)

    def test_pixels_that_share_the_maximum_share_the_hit(self):
        maps = torch.tensor([[[5.0, 5.0, 5.0, 1.0]]])
        assert pointing(maps, np.array([[[True, False, False, True]]])) == pytest.approx([1 / 3])

    @pytest.mark.parametrize("tolerance, hit", [(0, 0), (1.4, 0), (1.5, 1), (9, 1)])
    def test_tolerance_is_a_distance(self, tolerance, hit):
        mask, map_ = np.zeros((1, 5, 5), bool), torch.zeros(1, 5, 5)
        mask[0, 2, 2], map_[0, 3, 3] = True, 1
        assert pointing(map_, mask, tolerance=tolerance).tolist() == [hit]

    @pytest.mark.parametrize("value", [0.0, -1.0])
    def test_a_blank_map_points_nowhere(self, value):
        assert pointing(torch.full((1, 2, 2), value), np.ones((1, 4, 4), bool)).tolist() == [0]

    def test_negative_tolerance(self):
        with pytest.raises(EvaluationError, match="-1"):
            pointing(torch.ones(1, 2, 2), np.ones((1, 2, 2), bool), tolerance=-1)


class TestAveragePrecision:
    @pytest.mark.parametrize("levels", [None, 1, 2, 5])
    def test_is_that_of_scikit_learn(self, levels):
        maps, masks = drawn(size=(12, 17))
        if levels:  # many equal values
            maps = (maps * levels).round() / levels
        truth = [
            average_precision_score(mask.ravel(), map_.double().numpy().ravel())
            for map_, mask in zip(maps, masks, strict=True)
        ]
        np.testing.assert_allclose(average_precision(maps, masks), truth, rtol=1e-5)

    def test_of_a_stretched_map(self):
        maps, masks = drawn(4)
        truth = [
            average_precision_score(mask.ravel(), rounded(stretched(map_, (12, 17))).ravel())
            for map_, mask in zip(maps, masks, strict=True)
        ]
        np.testing.assert_allclose(average_precision(maps, masks), truth, rtol=1e-5)

    def test_blank_is_the_share_of_the_mask(self):
        _, masks = drawn(3)
        found = average_precision(torch.zeros(3, 2, 2), masks)
        np.testing.assert_allclose(found, masks.mean(axis=(1, 2)))

    def test_contrast_does_not_matter(self):
        maps, masks = drawn(6, (12, 17))
        np.testing.assert_allclose(
            average_precision(maps**3, masks), average_precision(maps, masks), rtol=0.02
        )
        assert (energy(maps**3, masks) != energy(maps, masks)).all()


def test_blank_by_hand():
    maps = torch.zeros(2, 2, 3, 3)
    maps[0, 1, 1, 1], maps[1, 0] = 1e-9, -1
    assert blank(maps).tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("measure", MEASURES)
class TestAll:
    def test_pairs_of_maps(self, measure):
        maps, masks = drawn()
        found = measure(maps.view(45, 2, 5, 4), torch.from_numpy(masks).view(45, 2, 12, 17))
        assert found.shape == (45, 2) and found.dtype == np.float64
        np.testing.assert_array_equal(found.ravel(), measure(maps, masks))
        sides = np.ascontiguousarray(masks.reshape(45, 2, 12, 17).swapaxes(0, 1)).swapaxes(0, 1)
        np.testing.assert_array_equal(found, measure(maps.view(45, 2, 5, 4), sides))

    def test_the_mask_itself_is_perfect_and_scale_does_not_matter(self, measure):
        maps, masks = drawn()
        assert measure(torch.from_numpy(masks).float(), masks).tolist() == [1.0] * 90
        np.testing.assert_allclose(measure(maps * 64, masks), measure(maps, masks), rtol=1e-12)

    @pytest.mark.parametrize(
        "maps, masks, told",
        [
            (torch.ones(2, 3, 3), np.ones((3, 9, 9), bool), "(3, 9, 9)"),
            (torch.ones(2, 3, 3), np.ones((2, 9, 9)), "float64"),
            (torch.ones(2, 3, 3), np.zeros((2, 9, 9), bool), "2 masks"),
            (torch.full((2, 3, 3), torch.nan), np.ones((2, 9, 9), bool), "not finite"),
            (torch.ones(3), np.ones((2, 9, 9), bool), "(3,)"),
            (torch.ones(0, 3, 3), np.ones((0, 9, 9), bool), "(0, 3, 3)"),
        ],
    )
    def test_what_cannot_be_measured_is_told(self, measure, maps, masks, told):
        with pytest.raises(EvaluationError) as error:
            measure(maps, masks)
        assert told in str(error.value)
