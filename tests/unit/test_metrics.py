"""Pair metrics: equal to scikit-learn's under any weights, with intervals that tell the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_score,
    recall_score,
    roc_auc_score,
)

import siamcam_lib as sc
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import metrics as module
from siamcam_lib.evaluation.metrics import METRICS, metrics, report, score_pairs, weighted_auc
from siamcam_lib.features import FeatureCache


def _scored(
    seed: int, m: int = 200, shift: float = 1.0, decimals: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Scores in [0, 1] with many ties, and labels of both kinds."""
    random = np.random.default_rng(seed)
    label = random.permutation(np.arange(m) % 2)
    score = 1 / (1 + np.exp(-random.normal(shift * (2 * label - 1) / 2)))
    return score.round(decimals), label


# --- equal to scikit-learn ----------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "no ties"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_report_equals_scikit_learn(threshold: float, decimals: int) -> None:
    score, label = _scored(seed=1, decimals=decimals)
    judged = (score >= threshold).astype(int)
    found = report(score, label, threshold, bootstrap=10)
    assert found.accuracy == pytest.approx(accuracy_score(label, judged))
    assert found.auc == pytest.approx(roc_auc_score(label, score))
    assert found.precision == pytest.approx(precision_score(label, judged, average="macro"))
    assert found.recall == pytest.approx(recall_score(label, judged, average="macro"))
    assert found.confusion.tolist() == confusion_matrix(label, judged).tolist()


def test_a_judgement_never_made_has_precision_zero() -> None:
    label = np.array([0, 0, 1, 1])
    found = report(np.full(4, 0.9), label, 0.5, bootstrap=10)
    judged = np.ones(4, int)
    expected = precision_score(label, judged, average="macro", zero_division=0)
    assert found.precision == pytest.approx(expected)
    assert found.auc == 0.5  # all tied: a coin


def test_a_score_at_the_threshold_is_judged_dissimilar() -> None:
    found = report(np.array([0.5, 0.5]), np.array([0, 1]), 0.5, bootstrap=10)
    assert found.confusion.tolist() == [[0, 1], [0, 1]]


@settings(deadline=None, max_examples=50)
@given(data=st.data(), m=st.integers(2, 40), r=st.integers(1, 4))
def test_weighted_auc_equals_scikit_learn(data: st.DataObject, m: int, r: int) -> None:
    score = data.draw(arrays(float, m, elements=st.integers(0, 6).map(lambda k: k / 6)))
    label = data.draw(arrays(np.int64, m, elements=st.integers(0, 1)))
    label[:2] = 0, 1
    weight = data.draw(arrays(float, (r, m), elements=st.floats(0, 10)))
    weight[:, :2] += 0.5  # both kinds must weigh something
    found = weighted_auc(score, label == 1, weight)
    expected = [roc_auc_score(label, score, sample_weight=w) for w in weight]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_metrics_under_weights_equal_repeated_pairs() -> None:
    """A weight of three is the pair three times: what the bootstrap relies on."""
    score, label = _scored(seed=2, m=60)
    random = np.random.default_rng(0)
    weight = random.integers(0, 4, size=(5, len(label)))
    found = metrics(score, label, 0.5, weight.astype(float))
    for row, times in enumerate(weight):
        many = report(np.repeat(score, times), np.repeat(label, times), 0.5, bootstrap=1)
        for name in METRICS:
            assert found[name][row] == pytest.approx(getattr(many, name))


def test_a_resample_with_one_kind_of_pair_has_no_auc() -> None:
    score, label = np.array([0.1, 0.9]), np.array([0, 1])
    found = metrics(score, label, 0.5, np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(found["auc"][0]) and found["auc"][1] == 1


# --- the report as a thing ----------------------------------------------------------------------


def test_report_is_read_by_people_and_by_dict() -> None:
    found = report(*_scored(seed=3), threshold=0.5, bootstrap=50)
    assert tuple(dict(found)) == METRICS
    lines = str(found).splitlines()
    assert lines[0] == "200 pairs, dissimilar from 0.500 on"
    assert [line.split()[0] for line in lines[1:]] == list(METRICS)
    for name, value in found:
        low, high = found.intervals[name]
        assert low <= value <= high, name


def test_the_same_seed_gives_the_same_intervals() -> None:
    scored = _scored(seed=4)
    first, again, other = (report(*scored, 0.5, bootstrap=50, seed=s).intervals for s in (7, 7, 8))
    assert first == again != other


# --- intervals ----------------------------------------------------------------------------------


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """95% intervals of the accuracy of pairs whose true accuracy is known to be 0.8."""
    random = np.random.default_rng(0)
    label = np.arange(120) % 2
    covered = 0
    for seed in range(200):
        right = random.random(len(label)) < 0.8
        score = np.where(right == (label == 1), 0.9, 0.1)
        low, high = report(score, label, 0.5, bootstrap=200, seed=seed).intervals["accuracy"]
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_interval_is_as_wide_as_the_binomial_says() -> None:
    label = np.arange(400) % 2
    score = np.where((np.arange(400) % 5 == 0) != (label == 1), 0.9, 0.1)
    found = report(score, label, 0.5, bootstrap=4000)
    low, high = found.intervals["accuracy"]
    p = found.accuracy
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.1)


def test_pairs_of_one_anchor_are_resampled_together() -> None:
    """Ten copies of each pair hold no more information than one: the interval must say so."""
    score, label = _scored(seed=5, m=60)
    times = 10
    many = np.repeat(score, times), np.repeat(label, times), 0.5
    once = report(score, label, 0.5, bootstrap=2000).intervals
    naive = report(*many, bootstrap=2000).intervals
    clustered = report(*many, np.repeat(np.arange(60), times), bootstrap=2000).intervals
    for name in METRICS:
        width = {key: np.ptp(found[name]) for key, found in
                 (("once", once), ("naive", naive), ("clustered", clustered))}  # fmt: skip
        assert width["clustered"] > 2 * width["naive"], name
        assert width["clustered"] == pytest.approx(width["once"], rel=0.15), name


@pytest.mark.parametrize("anchors", [36, 18, 4])
@pytest.mark.parametrize("right", [True, False])
def test_what_is_perfect_has_the_exact_interval(anchors: int, right: bool) -> None:
    """36 of 36, in 36, 18 or 4 anchors of which each has pairs of both kinds but for 36."""
    label = np.repeat([0, 1], 18)
    score = np.where(label == right, 0.9, 0.1)
    found = report(score, label, 0.5, np.arange(36) % anchors)
    bound = 0.025 ** (1 / anchors)
    of_rarer = 0.025 ** (1 / min(anchors, 18))
    for name, value in found:
        expected = bound if name == "accuracy" else of_rarer
        interval = (expected, 1) if right else (0, 1 - expected)
        assert value == right and found.intervals[name] == pytest.approx(interval), name
    assert found.intervals["accuracy"] == pytest.approx(
        stats.binomtest(anchors if right else 0, anchors).proportion_ci(method="exact")
    )


def test_the_rarer_kind_bounds_what_needs_both() -> None:
    label = np.repeat([0, 1], [30, 6])
    anchor = np.concatenate([np.arange(30), [0, 0, 1, 1, 2, 2]])  # three have a dissimilar pair
    found = report(np.where(label == 1, 0.9, 0.1), label, 0.5, anchor, bootstrap=500).intervals
    assert found["accuracy"][0] == pytest.approx(0.025 ** (1 / 30))
    assert found["auc"] == found["recall"] == pytest.approx((0.025 ** (1 / 3), 1))


def test_an_auc_of_one_at_a_threshold_that_errs() -> None:
    label = np.repeat([0, 1], 10)
    score = np.where(label == 1, 0.9, 0.6)  # the order is right, half of the decisions is wrong
    found = report(score, label, 0.5, np.arange(20) % 10)
    assert found.auc == 1 and found.intervals["auc"] == pytest.approx((0.025 ** (1 / 10), 1))
    assert found.intervals["accuracy"] == (0.5, 0.5)  # one in each anchor, whichever are drawn


def test_intervals_that_have_a_width_are_those_of_the_bootstrap() -> None:
    """As they were before perfect metrics got an exact one: plain quantiles of the resamples."""
    for seed, shift in ((6, 1.0), (7, 2.0), (8, -2.0)):
        score, label = _scored(seed=seed, m=40, shift=shift)
        cluster = np.arange(40) // 2
        found = report(score, label, 0.5, cluster, bootstrap=300, seed=seed).intervals
        random = np.random.default_rng(seed)
        drawn = random.multinomial(20, np.full(20, 1 / 20), size=300)[:, cluster].astype(float)
        for name, values in metrics(score, label, 0.5, drawn).items():
            low, high = np.nanquantile(values, [0.025, 0.975])
            assert low < high and found[name] == (low, high), name


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("only", [0, 1])
def test_one_kind_of_pair_is_refused(only: int) -> None:
    with pytest.raises(EvaluationError, match=rf"similar \(0\) and dissimilar \(1\).*\[{only}\]"):
        report(np.array([0.1, 0.9]), np.array([only, only]), 0.5)


def test_labels_that_are_no_labels_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"\[0, 1, 2\]"):
        report(np.array([0.1, 0.5, 0.9]), np.array([0, 1, 2]), 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_and_counted(bad: float) -> None:
    score = np.array([0.1, bad, bad, 0.9])
    with pytest.raises(EvaluationError, match="2 of 4 scores are not finite"):
        report(score, np.array([0, 0, 1, 1]), 0.5)


def test_errors_are_caught_as_the_library_s_and_as_python_s() -> None:
    for kind in (sc.errors.SiamcamError, ValueError):
        with pytest.raises(kind):
            report(np.array([0.5]), np.array([0]), 0.5)


# --- a network ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet("resnet18", embed_dim=8, pretrained=False, image_size=32).eval()


@pytest.fixture(scope="module")
def pairs() -> sc.pairs.sampling.PairSet:
    return sc.pairs.sample(sc.datasets.load("scenes/flowers", n=12), seed=0)


class _CountingBackbone(torch.nn.Module):
    """Counts the images that go through it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.inner(x)


def test_evaluate_embeds_each_image_once(net, pairs, tmp_path, monkeypatch) -> None:
    counting = _CountingBackbone(net.backbone)
    monkeypatch.setitem(net._modules, "backbone", counting)
    cache = FeatureCache(tmp_path / "features.sqlite")
    first = sc.evaluate(net, pairs, bootstrap=20, cache=cache, progress=False)
    assert counting.seen == len(pairs.images) == 12
    again = sc.evaluate(net, pairs, bootstrap=20, cache=cache, progress=False)
    assert counting.seen == 12  # the second time they come from the cache
    assert dict(again) == dict(first) and again.intervals == first.intervals


def test_scores_are_those_of_the_network_s_own_forward(net, pairs, tmp_path) -> None:
    score = score_pairs(
        net, pairs, cache=FeatureCache(tmp_path / "features.sqlite"), progress=False
    )
    chosen = [0, 5, 17]
    a, b = (
        net.to_tensor([pairs.images.image(int(i)) for i in side[chosen]])
        for side in (pairs.a, pairs.b)
    )
    with torch.inference_mode():
        expected = net(a, b).numpy()
    np.testing.assert_allclose(score[chosen], expected, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 5, 12, 24, 100])
def test_scores_do_not_depend_on_the_blocks(net, pairs, tmp_path, monkeypatch, size) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    whole = score_pairs(net, pairs, cache=cache, progress=False)
    laid_out = []

    def distance(e1: torch.Tensor, e2: torch.Tensor) -> torch.Tensor:
        laid_out.append(len(e1))
        return sc.SiameseNet.distance(e1, e2)

    monkeypatch.setattr(module, "PAIRS_AT_ONCE", size)
    monkeypatch.setattr(net, "distance", distance)
    found = score_pairs(net, pairs, cache=cache, progress=False)
    assert max(laid_out) == min(size, 24) and sum(laid_out) == len(pairs) == 24
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_no_pairs_have_no_scores(net, pairs, tmp_path) -> None:
    none = sc.pairs.PairSet(pairs.images, pairs.a[:0], pairs.b[:0], pairs.label[:0])
    cache = FeatureCache(tmp_path / "features.sqlite")
    assert score_pairs(net, none, cache=cache, progress=False).shape == (0,)


class _Single(torch.Tensor):
    """A tensor on a device without float64, as Apple's is."""

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_scores_ask_no_device_for_float64(net, pairs, tmp_path, monkeypatch) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    expected = score_pairs(net, pairs, cache=cache, progress=False)
    known = net.dissimilarity
    monkeypatch.setattr(net, "dissimilarity", lambda d: known(d).as_subclass(_Single))
    assert (score_pairs(net, pairs, cache=cache, progress=False) == expected).all()


def test_evaluate_uses_the_network_s_threshold(net, pairs, tmp_path, monkeypatch) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    score = score_pairs(net, pairs, cache=cache, progress=False)
    before = net.threshold
    try:
        for threshold in (before, float(np.median(score))):
            net.threshold = threshold
            found = sc.evaluate(net, pairs, bootstrap=20, cache=cache, progress=False)
            assert found.threshold == threshold
            assert found.accuracy == np.mean((score >= threshold) == pairs.label)
    finally:
        net.threshold = before


def test_a_damaged_network_is_refused(pairs, tmp_path) -> None:
    torch.manual_seed(0)
    broken = sc.SiameseNet("resnet18", embed_dim=8, pretrained=False, image_size=32).eval()
    with torch.no_grad():
        broken.projection.weight.fill_(torch.nan)
    cache = FeatureCache(tmp_path / "features.sqlite")
    with pytest.raises(EvaluationError, match="not finite"):
        sc.evaluate(broken, pairs, cache=cache, progress=False)
