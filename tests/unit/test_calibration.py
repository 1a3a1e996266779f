"""Sigmoid and threshold against brute force and against an optimiser of our own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from siamcam_lib.calibration import best_threshold, fit_sigmoid
from siamcam_lib.errors import TrainingError


@st.composite
def scored(draw):
    """Scores with many ties, both labels, positive weights."""
    m = draw(st.integers(2, 30))
    score = draw(st.lists(st.integers(1, 12), min_size=m, max_size=m))
    label = draw(
        st.lists(st.integers(0, 1), min_size=m, max_size=m).filter(lambda x: len({*x}) == 2)
    )
    weight = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=m, max_size=m))
    return np.array(score) / 13, np.array(label), np.array(weight)


def accuracy(threshold, score, label, weight) -> float:
    right = [(s >= threshold) == (k == 1) for s, k in zip(score, label, strict=True)]
    return float(np.dot(right, weight) / weight.sum())


def brute_force(score, label, weight) -> float:
    """The best accuracy of any threshold in (0, 1)."""
    return max(accuracy(t, score, label, weight) for t in np.arange(0.5, 13.5) / 13)


class TestThreshold:
    @settings(max_examples=200, deadline=None)
    @given(scored())
    def test_no_other_threshold_is_more_accurate(self, given):
        found = best_threshold(*given)
        assert 0 < found < 1
        assert accuracy(found, *given) == pytest.approx(brute_force(*given))

    @settings(max_examples=60, deadline=None)
    @given(scored())
    def test_a_monotone_change_of_scores_changes_no_accuracy(self, given):
        score, label, weight = given
        for bend in (np.square, np.sqrt, lambda s: 1 / (1 + np.exp(8 - 16 * s))):
            bent = bend(score)
            found = accuracy(best_threshold(bent, label, weight), bent, label, weight)
            assert found == pytest.approx(brute_force(*given))

    @settings(max_examples=60, deadline=None)
    @given(scored(), st.integers(0, 1000))
    def test_the_order_of_the_pairs_does_not_matter(self, given, seed):
        order = np.random.default_rng(seed).permutation(len(given[0]))
        assert best_threshold(*(x[order] for x in given)) == pytest.approx(best_threshold(*given))

    def test_the_middle_of_the_widest_gap_is_taken(self):
        # 0.15 and 0.65 are equally accurate; the second gap is wider
        score = np.array([0.1, 0.2, 0.4, 0.9])
        assert best_threshold(score, np.array([0, 1, 0, 1]), np.ones(4)) == pytest.approx(0.65)

    def test_weights_decide(self):
        score, label = np.array([0.3, 0.5, 0.7]), np.array([0, 1, 0])
        assert best_threshold(score, label, np.array([1, 5, 1.0])) == pytest.approx(0.4)
        assert best_threshold(score, label, np.array([1, 1, 5.0])) == pytest.approx(0.85)

    @pytest.mark.parametrize("label", [[0, 1], [1, 0]])
    def test_scores_at_the_very_ends_leave_it_inside(self, label):
        assert 0 < best_threshold(np.array([0.0, 1.0]), np.array(label), np.ones(2)) < 1

    @pytest.mark.parametrize("only", [0, 1])
    def test_one_kind_of_pair_is_refused(self, only):
        with pytest.raises(TrainingError, match="similar and dissimilar validation pairs"):
            best_threshold(np.array([0.1, 0.9]), np.full(2, only), np.ones(2))


def pairs(seed: int, m: int = 200):
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, m)
    return random.normal(3 + label, 1.0), label, random.uniform(0.5, 1.5, m)


class TestSigmoid:
    @pytest.mark.parametrize("seed", range(3))
    def test_it_is_the_optimum_of_the_penalised_likelihood(self, seed):
        distance, label, weight = pairs(seed)
        spread = distance.std()

        def objective(x):  # scikit-learn's default: half the squared slope, on scaled distances
            logit = x[0] * distance / spread + x[1]
            loss = np.logaddexp(0, logit) - label * logit
            return (weight * loss).sum() + x[0] ** 2 / 2

        slope, offset = minimize(objective, [0, 0], method="BFGS", tol=1e-8).x
        fitted = fit_sigmoid(distance, label, weight)
        assert fitted.slope == pytest.approx(slope / spread, rel=1e-3)
        assert fitted.offset == pytest.approx(offset, rel=1e-3)
        assert fitted.slope > 0

    def test_the_unit_of_length_does_not_matter(self):
        distance, label, weight = pairs(0)
        metres, miles = (
            fit_sigmoid(distance, label, weight),
            fit_sigmoid(distance / 1609, label, weight),
        )
        assert miles.slope / 1609 == pytest.approx(metres.slope, rel=1e-4)
        assert miles.offset == pytest.approx(metres.offset, rel=1e-4)

    def test_a_weight_of_two_is_a_pair_counted_twice(self):
        distance, label, _ = pairs(1, 60)
        weight = np.where(np.arange(60) % 3 == 0, 2.0, 1.0)
        twice = np.repeat(np.arange(60), weight.astype(int))
        weighted = fit_sigmoid(distance, label, weight)
        # the same spread on both sides, so that the same problem is solved
        scale = distance[twice].std() / distance.std()
        repeated = fit_sigmoid(distance[twice], label[twice], np.ones(len(twice)))
        assert weighted.slope == pytest.approx(repeated.slope, rel=0.01 + abs(scale - 1))
        assert weighted.offset == pytest.approx(repeated.offset, rel=0.01 + abs(scale - 1))

    @pytest.mark.parametrize("value", [0.0, 0.7])
    def test_collapsed_embeddings_are_told(self, value):
        with pytest.raises(TrainingError, match="collapsed"):
            fit_sigmoid(np.full(4, value), np.array([0, 1, 0, 1]), np.ones(4))

    def test_distances_that_are_no_numbers_are_refused(self):
        with pytest.raises(TrainingError):
            fit_sigmoid(np.array([0.1, np.nan]), np.array([0, 1]), np.ones(2))

    def test_one_kind_of_pair_is_refused(self):
        with pytest.raises(TrainingError, match="only one kind"):
            fit_sigmoid(np.array([0.1, 0.2]), np.zeros(2, int), np.ones(2))
