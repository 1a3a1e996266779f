"""Intervals and comparisons against closed forms, scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import (
    Estimate,
    compare,
    mean_interval,
    over_seeds,
    paired,
    report,
)


def simulated(seed: int, shift: float = 1.0, n: int = 400):
    """Scores of n pairs in n/2 anchors, of two models; the second is better by `shift`."""
    random = np.random.default_rng(seed)
    label = np.arange(n) % 2
    noise = random.normal(size=n)
    scores = [1 / (1 + np.exp(-(2 * label - 1) * k - noise)) for k in (1.0, 1.0 + shift)]
    return [report(s, label, 0.5) for s in scores], np.arange(n) // 2


class TestMeanInterval:
    def test_of_independent_values_it_is_the_normal_one(self):
        values = np.random.default_rng(0).normal(5, 2, 500)
        found = mean_interval(values, resamples=4000)
        half = 1.96 * values.std() / 500**0.5
        assert found.value == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx(
            (values.mean() - half, values.mean() + half), abs=0.1 * half
        )

    def test_copies_of_one_value_are_one_observation(self):
        values = np.random.default_rng(0).normal(size=50)
        alone = mean_interval(values)
        copied = mean_interval(np.repeat(values, 9), np.repeat(np.arange(50), 9))
        assert copied == pytest.approx(alone)
        careless = mean_interval(np.repeat(values, 9))
        assert careless.high - careless.low < 0.5 * (copied.high - copied.low)

    def test_covers_the_truth_about_as_often_as_it_says(self):
        random = np.random.default_rng(1)
        inside = 0
        for _ in range(200):
            found = mean_interval(random.binomial(1, 0.7, 80), resamples=300)
            inside += found.low <= 0.7 <= found.high
        assert 0.88 <= inside / 200 <= 1.0

    @pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf], [[1.0], [2.0]]])
    def test_refuses(self, values):
        with pytest.raises(EvaluationError, match="list of finite numbers"):
            mean_interval(values)

    def test_refuses_clusters_of_another_length(self):
        with pytest.raises(EvaluationError, match="3 values and 2 clusters"):
            mean_interval([1, 2, 3], [0, 1])

    def test_shares_that_are_all_one_leave_doubt(self):
        right, wrong = (mean_interval(np.full(36, end), within=(0, 1)) for end in (1.0, 0.0))
        assert right == pytest.approx((1, 0.025 ** (1 / 36), 1))
        assert wrong == pytest.approx((0, 0, 1 - 0.025 ** (1 / 36)))
        low = mean_interval(np.full(36, 2.5), within=(-2.5, 2.5)).low
        assert low == pytest.approx(-2.5 + 5 * right.low)

    def test_what_counts_are_clusters_and_not_values(self):
        found = mean_interval(np.ones(36), np.arange(36) // 3, within=(0, 1))
        assert found.low == pytest.approx(0.025 ** (1 / 12))

    def test_the_exact_interval_covers_a_share_near_one(self):
        """Where most samples of 20 have no miss, the bootstrap alone would nearly never cover."""
        samples = np.random.default_rng(0).random((400, 20)) < 0.98
        found = [mean_interval(s.astype(float), within=(0, 1), resamples=200) for s in samples]
        alone = [mean_interval(s.astype(float), resamples=200) for s in samples]
        assert np.mean([e.low <= 0.98 <= e.high for e in found]) > 0.95
        assert np.mean([e.low <= 0.98 <= e.high for e in alone]) < 0.5

    @pytest.mark.parametrize("values", [[0, 1, 1, 1], [0.2, 0.2, 0.2], [1, 1, 0.999]])
    def test_within_changes_no_other_interval(self, values):
        assert mean_interval(values, within=(0, 1)) == mean_interval(values)

    def test_values_of_no_known_range_keep_what_the_bootstrap_gives(self):
        assert mean_interval([1, 1, 1]) == Estimate(1, 1, 1)


class TestSide:
    @pytest.mark.parametrize(
        ("low", "high", "decimals", "side"),
        [
            (0.0006, 0.1, 3, 1),
            (0.0004, 0.1, 3, 0),
            (0.0004, 0.1, 4, 1),
            (-0.1, -0.0006, 3, -1),
            (-0.1, -0.0004, 3, 0),
            (-0.1, 0.1, 3, 0),
            (0, 0, 3, 0),
        ],
    )
    def test_agrees_with_what_is_printed(self, low, high, decimals, side):
        assert Estimate((low + high) / 2, low, high).side(decimals) == side
        printed = [float(f"{bound:.{decimals}f}") for bound in (low, high)]
        assert side == (printed[0] > 0) - (printed[1] < 0)


class TestOverSeeds:
    def test_is_student(self):
        values = [0.9, 0.95, 0.91, 0.97, 0.93]
        found = over_seeds(values)
        low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        assert found == pytest.approx((np.mean(values), low, high))

    def test_ends_where_no_mean_can_be(self):
        found = over_seeds([0.9, 1.0, 0.98], within=(0, 1))
        assert found.high == 1 and found.low == over_seeds([0.9, 1.0, 0.98]).low

    def test_equal_values_have_no_spread_also_at_an_end(self):
        assert over_seeds([0.5, 0.5, 0.5]) == Estimate(0.5, 0.5, 0.5)
        assert over_seeds([1.0, 1.0], within=(0, 1)) == Estimate(1, 1, 1)

    @pytest.mark.parametrize("values", [[], [0.9], [0.9, np.nan]])
    def test_refuses(self, values):
        with pytest.raises(EvaluationError, match="two finite numbers"):
            over_seeds(values)


class TestCompare:
    def test_against_its_parts(self):
        (first, second), anchor = simulated(0)
        found = compare(first, second, anchor)
        right = [(r.score >= 0.5) == (r.label == 1) for r in (first, second)]
        assert found.gained == (right[1] & ~right[0]).sum()
        assert found.lost == (right[0] & ~right[1]).sum()
        assert found.accuracy.value == pytest.approx(second.accuracy - first.accuracy)
        aucs = [roc_auc_score(r.label, r.score) for r in (first, second)]
        assert found.auc.value == pytest.approx(aucs[1] - aucs[0])
        table = stats.contingency.crosstab(*right).count
        b, c = table[0, 1], table[1, 0]
        assert found.p == pytest.approx(stats.binomtest(int(b), int(b + c)).pvalue)
        assert found.accuracy.low > 0 and found.auc.low > 0 and found.p < 0.01

    def test_a_model_against_itself(self):
        (first, _), anchor = simulated(1)
        found = compare(first, first, anchor)
        assert (found.gained, found.lost, found.p) == (0, 0, 1.0)
        assert found.accuracy == found.auc == Estimate(0, 0, 0)

    def test_turned_round_it_changes_sign(self):
        (first, second), anchor = simulated(2)
        there, back = compare(first, second, anchor), compare(second, first, anchor)
        assert (there.gained, there.lost, there.p) == (back.lost, back.gained, back.p)
        assert there.accuracy.value == pytest.approx(-back.accuracy.value)

    def test_several_seeds_are_judged_together(self):
        made = [simulated(seed, shift=0.3) for seed in range(3)]
        first, second = zip(*(reports for reports, _ in made), strict=True)
        found = compare(first, second, [anchor for _, anchor in made])
        gains = [b.accuracy - a.accuracy for a, b in zip(first, second, strict=True)]
        assert found.accuracy.value == pytest.approx(np.mean(gains))
        assert found.auc.value == pytest.approx(
            np.mean([b.auc - a.auc for a, b in zip(first, second, strict=True)])
        )
        assert found.auc.low <= found.auc.value <= found.auc.high

    def test_shared_anchors_widen_the_interval(self):
        """The same pictures in every seed are the same pictures, not three times as many."""
        (first, second), anchor = simulated(3, shift=0.3)
        apart = [anchor, anchor + 1000, anchor + 2000]
        wide = compare([first] * 3, [second] * 3, [anchor] * 3).accuracy
        narrow = compare([first] * 3, [second] * 3, apart).accuracy
        assert (narrow.high - narrow.low) < 0.8 * (wide.high - wide.low)

    def test_no_difference_is_seldom_found_sure(self):
        found = [compare(*simulated(seed, shift=0.0)[0]).p for seed in range(20)]
        assert np.mean(np.array(found) < 0.05) <= 0.2

    def test_refuses_other_pairs(self):
        (first, _), anchor = simulated(4)
        other = report(first.score[::-1], first.label[::-1].copy(), 0.5)
        with pytest.raises(EvaluationError, match="same pairs"):
            compare(first, other)
        with pytest.raises(EvaluationError, match="anchor is needed"):
            compare(first, first, anchor[:-1])


class TestPaired:
    def drawn(self, shift: float = 0.3, m: int = 60):
        random = np.random.default_rng(1)
        first = random.normal(size=m)
        return first, first + shift + random.normal(size=m)

    def test_is_the_mean_of_the_differences_and_wilcoxons_test(self):
        first, second = self.drawn()
        found = paired(first, second)
        assert found.difference == mean_interval(second - first)
        assert found.p == stats.wilcoxon(second, first).pvalue

    def test_the_other_way_round(self):
        first, second = self.drawn()
        one, two = paired(first, second), paired(second, first)
        assert two.difference == pytest.approx(
            (-one.difference.value, -one.difference.high, -one.difference.low)
        )
        assert two.p == one.p

    def test_copies_are_no_evidence(self):
        first, second = self.drawn()
        copied = paired(np.repeat(first, 5), np.repeat(second, 5), np.repeat(np.arange(60), 5))
        alone = paired(first, second)
        assert copied.p == pytest.approx(alone.p)
        assert copied.difference == pytest.approx(alone.difference)
        assert paired(np.repeat(first, 5), np.repeat(second, 5)).p < alone.p / 2

    def test_equals_do_not_differ(self):
        first, _ = self.drawn()
        assert paired(first, first) == (Estimate(0, 0, 0), 1)
        # differences that cancel inside each cluster
        assert paired([0, 0, 0, 0], [1, -1, 2, -2], [0, 0, 1, 1]).p == 1

    @pytest.mark.parametrize(
        "first, second", [([1, 2], [1]), ([], []), ([1, np.nan], [1, 2]), ([[1]], [[2]])]
    )
    def test_what_cannot_be_compared(self, first, second):
        with pytest.raises(EvaluationError):
            paired(first, second)

    def test_clusters_of_another_number(self):
        with pytest.raises(EvaluationError, match="3 values and 2 clusters"):
            paired([1, 2, 3], [2, 3, 4], [0, 1])
