"""Retrieval measures: equal to scikit-learn, to pytorch-metric-learning and to a plain loop."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score

import siamcam_lib as sc
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import mean_interval
from siamcam_lib.evaluation import retrieval as found_by
from siamcam_lib.evaluation.retrieval import by_chance, measures

KS = (1, 2, 5)
NAMES = ["Recall@1", "Recall@2", "Recall@5", "mAP", "mAP@R"]


def collection(seed: int, n: int = 60, classes: int = 4, dim: int = 3):
    """Embeddings of classes that overlap, and their labels; every class has several images."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) % classes)
    return random.normal(size=(n, dim)) + 0.8 * random.normal(size=(classes, dim))[labels], labels


def by_hand(e, labels, groups, ks=KS):
    """The definitions, one query and one rank at a time: measure → {query: value}."""
    found = {name: {} for name in [*(f"Recall@{k}" for k in ks), "mAP", "mAP@R"]}
    for i in range(len(e)):
        others = [j for j in range(len(e)) if groups[j] != groups[i]]
        others.sort(key=lambda j: (np.linalg.norm(e[i] - e[j]), labels[j] == labels[i]))
        right = [labels[j] == labels[i] for j in others]
        if not any(right):
            continue
        precisions = [sum(right[: p + 1]) / (p + 1) if r else 0 for p, r in enumerate(right)]
        for k in ks:
            found[f"Recall@{k}"][i] = float(any(right[:k]))
        found["mAP"][i] = sum(precisions) / sum(right)
        found["mAP@R"][i] = sum(precisions[: sum(right)]) / sum(right)
    return found


# --- equal to others -----------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True], ids=["each alone", "groups"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definitions_written_as_a_loop(seed: int, grouped: bool) -> None:
    e, labels = collection(seed)
    groups = np.arange(60) // 3 if grouped else np.arange(60)
    found = found_by(e, labels, groups, ks=KS, bootstrap=10)
    expected = by_hand(e, labels, groups)
    assert list(found.values) == list(expected) == NAMES
    for name, of_query in expected.items():
        assert found.query.tolist() == list(of_query)
        np.testing.assert_allclose(found.values[name], list(of_query.values()), atol=1e-12)
        assert found[name].value == pytest.approx(np.mean(list(of_query.values())))


def test_mean_average_precision_equals_scikit_learn() -> None:
    e, labels = collection(7)
    found = found_by(e, labels, bootstrap=10)
    for i in range(len(e)):
        others = np.delete(np.arange(len(e)), i)
        score = -np.linalg.norm(e[others] - e[i], axis=1)
        expected = average_precision_score(labels[others] == labels[i], score)
        assert found.values["mAP"][i] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_metric_learning(seed: int) -> None:
    e, labels = collection(seed, n=80, classes=5)
    wanted = ("precision_at_1", "mean_average_precision", "mean_average_precision_at_r")
    theirs = AccuracyCalculator(include=wanted, k=len(e) - 1, device=torch.device("cpu"))
    expected = theirs.get_accuracy(torch.from_numpy(e).float(), torch.from_numpy(labels))
    found = found_by(e, labels, bootstrap=10)
    # they search in single precision
    assert found["Recall@1"].value == pytest.approx(expected["precision_at_1"], abs=1e-6)
    assert found["mAP"].value == pytest.approx(expected["mean_average_precision"], abs=1e-5)
    assert found["mAP@R"].value == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-5)


def test_the_nearest_images_are_those_of_the_gallery() -> None:
    images = sc.datasets.load("scenes/flowers", n=30)
    net = sc.SiameseNet(image_size=64)
    gallery = sc.Gallery.embed(net, images, progress=False)
    unit = torch.nn.functional.normalize(torch.from_numpy(gallery.embeddings))
    found = found_by(unit, images.labels, bootstrap=10)
    first = [gallery.nearest(i, k=1).index[0] for i in range(len(images))]
    right = images.labels[first] == images.labels
    assert found.values["Recall@1"].tolist() == right.astype(float).tolist()


# --- chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "relevant"), [(1, 1), (4, 1), (5, 2), (6, 3), (6, 6)])
def test_chance_is_the_mean_over_every_order(n: int, relevant: int) -> None:
    orders = set(permutations([True] * relevant + [False] * (n - relevant)))
    every = measures(np.array(sorted(orders)), ks=KS)
    chance = by_chance(n, relevant, ks=KS)
    assert list(chance) == list(every) == NAMES
    for name, values in every.items():
        assert float(chance[name]) == pytest.approx(values.mean()), name


def test_chance_is_that_of_the_images_each_query_can_find() -> None:
    e, labels = collection(3, n=40)
    groups = np.arange(40) // 2
    found = found_by(e, labels, groups, ks=(1,), bootstrap=10)
    per_query = [
        (labels[groups != groups[i]] == labels[i]).sum() / (groups != groups[i]).sum()
        for i in found.query
    ]
    assert found.chance["Recall@1"] == pytest.approx(np.mean(per_query))


def test_chance_of_large_collections_is_finite() -> None:
    chance = by_chance(np.array([1e6]), np.array([10.0]))
    assert chance["Recall@10"] == pytest.approx(1e-4, rel=0.01)
    assert all(np.isfinite(value).all() for value in chance.values())


# --- who finds whom ------------------------------------------------------------------------------


def test_a_copy_in_the_own_group_is_not_found() -> None:
    e = np.array([[0.0], [0.0], [5.0], [0.1], [9.0]])
    labels = [0, 0, 0, 1, 1]
    alone = found_by(e, labels, ks=(1,), bootstrap=10)
    together = found_by(e, labels, groups=[7, 7, 8, 9, 10], ks=(1,), bootstrap=10)
    assert alone.values["Recall@1"][0] == 1.0
    assert together.values["Recall@1"][0] == 0.0
    assert together.values["mAP"][0] == pytest.approx(1 / 2)  # second of three


def test_an_embedding_that_is_the_same_for_everything_finds_nothing() -> None:
    labels = np.repeat([0, 1], 10)
    found = found_by(np.ones((20, 4)), labels, ks=(1, 5), bootstrap=10)
    assert found["Recall@1"].value == found["Recall@5"].value == 0.0
    assert found["mAP"].value < found.chance["mAP"]


def test_queries_that_nobody_can_answer_are_left_out_and_counted() -> None:
    e = np.arange(5.0)[:, None]
    found = found_by(e, [0, 0, 1, 2, 2], groups=[0, 1, 2, 3, 3], ks=(1,), bootstrap=10)
    assert found.query.tolist() == [0, 1] and found.left_out == 3
    assert found.label.tolist() == [0, 0]


def test_chosen_queries_get_the_answers_they_get_among_all() -> None:
    e, labels = collection(5)
    every, some = found_by(e, labels, bootstrap=10), [50, 3, 17]
    chosen = found_by(e, labels, queries=some, bootstrap=10)
    assert chosen.query.tolist() == some
    for name, values in chosen.values.items():
        assert values.tolist() == every.values[name][some].tolist()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    e, labels = collection(5)
    whole = found_by(e, labels, bootstrap=10)
    module = __import__("importlib").import_module("siamcam_lib.evaluation.retrieval")
    monkeypatch.setattr(module, "DISTANCES", 7 * len(e))
    parts = found_by(e, labels, bootstrap=10)
    assert parts.chance == pytest.approx(whole.chance)
    for name, values in parts.values.items():
        assert values.tolist() == whole.values[name].tolist()


# --- properties ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 10), n=st.integers(6, 40))
def test_only_the_order_of_distances_counts(seed: int, scale: float, n: int) -> None:
    e, labels = collection(seed, n=n, classes=3)
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    shuffled = random.permutation(n)
    one = found_by(e, labels, ks=KS, bootstrap=2)
    other = found_by((scale * e @ turn + 1)[shuffled], labels[shuffled], ks=KS, bootstrap=2)
    for name in NAMES:
        expected = one.values[name][shuffled]
        np.testing.assert_allclose(other.values[name], expected, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 20))
def test_measures_lie_in_their_bounds(seed: int, n: int, q: int) -> None:
    hit = np.random.default_rng(seed).random((q, n)) < 0.3
    hit[:, -1] |= ~hit.any(axis=1)
    found = measures(hit, ks=KS)
    assert (found["Recall@1"] <= found["Recall@2"]).all()
    assert (found["Recall@2"] <= found["Recall@5"]).all()
    assert (found["mAP@R"] <= found["mAP"] + 1e-12).all()
    assert (found["mAP"] > 0).all() and (found["mAP"] <= 1 + 1e-12).all()
    perfect = measures(np.sort(hit, axis=1)[:, ::-1], ks=KS)
    assert all((values == 1).all() for values in perfect.values())


# --- intervals and words -------------------------------------------------------------------------


def test_the_interval_draws_queries_of_one_group_together() -> None:
    e, labels = collection(1)
    groups = np.arange(60) // 3
    found = found_by(e, labels, groups, bootstrap=200, seed=5)
    expected = mean_interval(found.values["mAP"], groups[found.query], resamples=200, seed=5)
    assert found["mAP"] == expected
    assert expected.low < expected.value < expected.high


def test_what_is_always_found_in_few_queries_is_not_sure() -> None:
    e = np.array([[0.0], [0.1], [1.0], [1.1]])
    found = found_by(e, [0, 0, 1, 1], ks=(1,))
    assert found["Recall@1"] == pytest.approx((1, 0.025 ** (1 / 4), 1))
    tied = found_by(np.repeat(e, 2, axis=0), [0] * 4 + [1] * 4, [0, 1, 0, 1, 2, 3, 2, 3], ks=(1,))
    assert tied["mAP"] == pytest.approx((1, 0.025 ** (1 / 4), 1))  # eight queries of four groups


def test_says_itself_in_a_table() -> None:
    e, labels = collection(2)
    found = found_by(e, labels, bootstrap=20)
    lines = str(found).splitlines()
    assert lines[0] == "60 queries, 0 left out"
    assert [line.split()[0] for line in lines[1:]] == list(dict(found))
    assert dict(found)["mAP"] == found["mAP"].value


E = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("given", "named", "told"),
    [
        ((E, [0, 0, 1]), {}, "One label and one group"),
        ((E, [0, 0, 1, 1], [0]), {}, "One label and one group"),
        ((E[:, 0], [0, 0, 1, 1]), {}, "One label and one group"),
        ((E[:0], []), {}, "One label and one group"),
        ((np.full((4, 2), np.nan), [0, 0, 1, 1]), {}, "not finite"),
        ((E, [0, 1, 2, 3]), {}, "No query has another image"),
        ((E, [0, 0, 1, 1], [0, 0, 1, 1]), {}, "No query has another image"),
        ((E, [0, 0, 1, 1]), {"ks": (0,)}, "positive whole numbers"),
        ((E, [0, 0, 1, 1]), {"ks": ()}, "positive whole numbers"),
        ((E, [0, 0, 1, 1]), {"ks": (1.5,)}, "positive whole numbers"),
        ((E, [0, 0, 1, 1]), {"queries": [4]}, "positions of images"),
        ((E, [0, 0, 1, 1]), {"queries": []}, "positions of images"),
    ],
)
def test_refuses_what_cannot_be_measured(given, named, told) -> None:
    with pytest.raises(EvaluationError, match=told):
        found_by(*given, **named)


def test_queries_may_be_a_mask() -> None:
    e, labels = collection(5)
    asked = labels == 1
    found, expected = (
        found_by(e, labels, queries=queries, bootstrap=10)
        for queries in (asked, np.flatnonzero(asked))
    )
    assert found.query.tolist() == expected.query.tolist() == np.flatnonzero(asked).tolist()


@pytest.mark.parametrize(
    "queries", [[1.9], [True, False], np.zeros(60, bool), ["1"], 3, [], [60]], ids=str
)
def test_queries_that_are_no_positions_are_told(queries) -> None:
    e, labels = collection(5)
    with pytest.raises(EvaluationError, match="positions of images, 0 to 59, .* or 60 booleans"):
        found_by(e, labels, queries=queries, bootstrap=10)
