"""Studies over seeds: the same as the steps by hand, on the same pairs, and comparable."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

import siamcam_lib as sc
from siamcam_lib.cache import FeatureCache
from siamcam_lib.cropping import centre_box, cropped
from siamcam_lib.errors import EvaluationError, PairError

QUICK = sc.Recipe(2, 32, steps=2)


@pytest.fixture(scope="module")
def images():
    return sc.datasets.load("scenes/flowers", n=100)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return FeatureCache(tmp_path_factory.mktemp("cache") / "features.sqlite")


def net():
    return sc.SiameseNet(image_size=64)


@pytest.fixture(scope="module")
def made(images, cache):
    return sc.study(images, range(3, 5), net=net, recipe=QUICK, cache=cache)


def middle(split, seed):
    """Every picture cut to its middle."""
    parts = {}
    for name in ("train", "val", "test"):
        part = getattr(split, name)
        boxes = [centre_box(part.image(i).size, 0.5) for i in range(len(part))]
        parts[name] = cropped(part, boxes)
    return sc.pairs.Split(**parts)


def test_a_run_is_the_steps_by_hand(images, cache, made):
    split = sc.pairs.split(images, 4)
    pairs = sc.pairs.sample(split.test, 4)
    model = net()
    fit = sc.fit(model, split, 4, recipe=QUICK, cache=cache, progress=False)
    report = sc.evaluate(model, pairs, seed=4, cache=cache, progress=False)
    run = made[4]
    assert run.split.test.items == split.test.items
    np.testing.assert_array_equal(run.pairs.b, pairs.b)
    np.testing.assert_array_equal(run.report.score, report.score)
    assert run.report.intervals == report.intervals
    assert run.fit.threshold == fit.threshold == run.report.threshold == run.net.threshold
    assert run.anchors == [split.test.items[i] for i in pairs.a]


def test_its_table_and_intervals(made):
    table = made.table()
    assert list(table.columns) == ["seed 3", "seed 4"] and made.seeds == (3, 4)
    assert table.loc["auc", "seed 4"] == made[4].report.auc
    estimate = made.estimates()["accuracy"]
    assert estimate == sc.evaluation.over_seeds(table.loc["accuracy"], (0, 1))
    assert made.seconds == pytest.approx(sum(run.seconds for run in made.runs))


def test_prepared_parts_are_judged_on_the_same_pairs(images, cache, made):
    other = sc.study(images, range(3, 5), net=net, prepare=middle, recipe=QUICK, cache=cache)
    for run, whole in zip(other.runs, made.runs, strict=True):
        np.testing.assert_array_equal(run.pairs.a, whole.pairs.a)
        np.testing.assert_array_equal(run.pairs.b, whole.pairs.b)
        assert run.pairs.images.image(0).size < whole.pairs.images.image(0).size
        assert run.split.train.image(0).size < whole.split.train.image(0).size
    found = other.against(made)
    gains = other.table().loc["accuracy"] - made.table().loc["accuracy"]
    assert found.accuracy.value == pytest.approx(gains.mean())
    changed = [r.score != w.score for r, w in zip(
        [x.report for x in other.runs], [x.report for x in made.runs], strict=True)]  # fmt: skip
    assert np.concatenate(changed).any()


def test_each_seed_keeps_its_checkpoints_apart(images, cache, made, tmp_path):
    options = {"net": net, "recipe": QUICK, "cache": cache, "folder": tmp_path / "kept"}
    again = [sc.study(images, range(3, 5), **options) for _ in range(2)]  # the second takes them up
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["seed-3", "seed-4"]
    for study in again:
        assert study.table().equals(made.table())
    assert [run.fit.resumed_at for run in again[1].runs] == [2, 2]


def test_ungrouped_splits_are_passed_on(images, cache):
    made = sc.study(images, [0], net=net, recipe=QUICK, cache=cache, grouped=False)
    split = sc.pairs.split(images, 0, grouped=False)
    assert made[0].split.test.items == split.test.items


def test_a_leak_can_be_trained_with_and_is_still_seen(cache):
    rooms = sc.datasets.load("scenes/rooms", n=200)
    with pytest.raises(sc.errors.PairError):
        sc.fit(net(), sc.pairs.split(rooms, 0, grouped=False), recipe=QUICK, cache=cache)
    run = sc.study(rooms, [0], net=net, recipe=QUICK, cache=cache, grouped=False)[0]
    assert set(run.split.train.groups) & set(run.split.test.groups)


def test_refuses(images, cache, made):
    with pytest.raises(EvaluationError, match="at least one seed"):
        sc.study(images, [], net=net)
    with pytest.raises(EvaluationError, match="Seed 0 is not in this study"):
        made[0]
    alone = replace(made, runs=made.runs[:1])
    with pytest.raises(EvaluationError, match="cannot be compared"):
        alone.against(made)

    run = made[3]
    others = replace(run.pairs, b=np.roll(run.pairs.b, 2))
    moved = replace(made, runs=(replace(run, pairs=others), made[4]))
    with pytest.raises(EvaluationError, match="judge other pairs in seed 3"):
        moved.against(made)

    def fewer(split, seed):
        return replace(split, test=split.test.subset(range(5)))

    with pytest.raises(EvaluationError, match="none may be added or left out"):
        sc.study(images, [0], net=net, prepare=fewer, recipe=QUICK, cache=cache)


def test_each_split_is_made_once_and_never_anothers(monkeypatch):
    module, asked = sys.modules["siamcam_lib.studies"], []
    monkeypatch.setattr(module, "_splits", {})

    def split(images, seed, *, grouped):
        asked.append((images.name, seed, grouped))
        return sc.pairs.split(images, seed, grouped=grouped)

    monkeypatch.setattr(module, "split", split)
    rooms = sc.datasets.load("scenes/rooms", n=200)
    turned = replace(rooms, labels=np.roll(rooms.labels, 1))
    kinds = [(rooms, 0, True), (rooms, 1, True), (rooms, 0, False), (turned, 0, True)]
    found = [module._split(*kind) for kind in kinds * 2]
    assert len(asked) == 4
    for (images, seed, grouped), parts, again in zip(kinds, found[:4], found[4:], strict=True):
        truth = sc.pairs.split(images, seed, grouped=grouped)
        assert parts is again
        assert (parts.train.items, parts.test.items) == (truth.train.items, truth.test.items)
        np.testing.assert_array_equal(parts.train.labels, truth.train.labels)


def test_what_one_seed_cannot_split_is_told_before_any_training(monkeypatch):
    """Thirteen images a class are enough for some seeds."""
    images = sc.datasets.load("scenes/flowers", n=100)
    few = np.concatenate([np.flatnonzero(images.labels == label)[:13] for label in (0, 1)])
    module = sys.modules["siamcam_lib.studies"]
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("a training has begun"))
    with pytest.raises(PairError, match="13 of 'Dandelion'.* With seed 3 the"):
        sc.study(images.subset(few), (2, 4, 3))
