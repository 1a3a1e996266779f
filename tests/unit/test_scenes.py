"""The drawn scenes: same arguments same picture, exact masks, and switches that do as they say."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from siamcam_lib.datasets.scenes import (
    KINDS,
    SceneSource,
    class_names,
    paint,
    pair,
    part_names,
    scenes,
)
from siamcam_lib.errors import DataError

SMALL = 64
EVERY = [(kind, name) for kind in KINDS for name in class_names(kind)]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def assert_exact(scene, size: int) -> None:
    assert scene.image.mode == "RGB"
    assert scene.image.size == (size, size)
    total = np.zeros((size, size), int)
    for name, mask in scene.masks.items():
        assert name in part_names(scene.kind)
        assert mask.shape == (size, size)
        assert mask.dtype == bool
        assert mask.any()
        assert not mask.flags.writeable
        total += mask
    assert total.max() <= 1, "two masks share a pixel"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_class_is_drawn_with_its_deciding_part(kind, name):
    for seed in range(3):
        scene = paint(kind, label=name, seed=seed, size=SMALL)
        assert_exact(scene, SMALL)
        assert class_names(kind)[scene.label] == name
        assert scene.masks["deciding"].sum() > 10
        assert "second" not in scene.masks
        assert pixels(scene.image).std() > 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_scene_has_disjoint_masks_and_repeats_itself(data):
    kind = data.draw(st.sampled_from(KINDS))
    index = st.integers(0, len(class_names(kind)) - 1)
    asked = {
        "label": data.draw(index),
        "seed": data.draw(st.integers(0, 2**62)),
        "size": data.draw(st.integers(32, 80)),
        "second": data.draw(st.none() | index),
        "style": data.draw(st.none() | st.integers(0, 2**62)),
        "shortcut": data.draw(st.none() | index),
        "shared": data.draw(st.none() | st.integers(0, 2**62)),
    }
    scene, again = paint(kind, **asked), paint(kind, **asked)
    assert_exact(scene, asked["size"])
    assert scene.image.tobytes() == again.image.tobytes()
    assert scene.masks.keys() == again.masks.keys()
    assert all(np.array_equal(scene.masks[k], again.masks[k]) for k in scene.masks)
    assert ("shortcut" in scene.masks) == (asked["shortcut"] is not None)
    assert ("shared" in scene.masks) == (asked["shared"] is not None)
    assert scene.labels == tuple(v for v in (asked["label"], asked["second"]) if v is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_label_and_style_each_change_the_picture(kind):
    base = {"label": 0, "seed": 5, "size": SMALL, "style": 1}
    first = paint(kind, **base).image.tobytes()
    for change in ({"label": 1}, {"seed": 6}, {"style": 2}, {"second": 1}, {"shortcut": 0}):
        assert paint(kind, **{**base, **change}).image.tobytes() != first


@pytest.mark.parametrize("kind", KINDS)
def test_the_deciding_mask_lies_on_the_deciding_part(kind):
    """Only the part's own class changes: the pictures differ on the masks more than elsewhere."""
    if kind == "lesions":
        scene = paint(kind, label="Malignant", seed=4, size=96)
        grey = pixels(scene.image).mean(2)
        mask = scene.masks["deciding"]
        around = ~np.any(list(scene.masks.values()), axis=0)
        centre = np.zeros_like(mask)
        centre[24:72, 24:72] = True
        assert grey[mask].mean() < grey[around & centre].mean() - 20
    elif kind == "flowers":
        scene = paint(kind, label="Sunflower", seed=3, style=3, size=96)
        y, x = np.nonzero(scene.masks["deciding"])
        assert 0.2 < y.mean() / 96 < 0.6
        green = pixels(scene.image)[scene.masks["stem"]].mean(0)
        assert green[1] > green[0]
        assert green[1] > green[2]
    else:
        scene = paint(kind, label="Dining-room", seed=3, size=96)
        assert scene.masks["common"].any(), "the dining table is common, its chairs decide"


@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_is_a_picture_wide_give_away(kind):
    images = scenes(kind, 2 * len(class_names(kind)), size=SMALL)
    share = np.mean([images.masks(i)["deciding"].mean() for i in range(len(images))])
    assert 0.02 < share < 0.35


@pytest.mark.parametrize("kind", KINDS)
def test_default_sets_have_the_documented_shape(kind):
    images = scenes(kind)
    assert images.name == f"scenes/{kind}"
    assert images.origin == "scenes"
    assert images.classes == class_names(kind)
    assert len(images) == {"flowers": 400, "lesions": 300, "rooms": 360}[kind]
    assert len(set(images.items)) == len(images)
    assert images.labels.dtype == images.groups.dtype == np.int64
    assert min(images.counts().values()) >= 2
    assert any("drawn" in note for note in images.notes)


def test_rooms_have_a_long_tail_and_lesions_are_balanced():
    counts = sorted(scenes("rooms").counts().values())
    assert counts[-1] > 7 * counts[0]
    assert len(set(scenes("lesions").counts().values())) == 1


def test_rooms_of_one_flat_form_a_group_with_several_classes():
    images = scenes("rooms")
    sizes = np.bincount(images.groups)
    assert sizes.min() >= 1
    assert sizes.max() <= 6
    assert (sizes > 1).mean() > 0.5
    mixed = [len(set(images.labels[images.groups == g])) > 1 for g in np.flatnonzero(sizes > 1)]
    assert np.mean(mixed) > 0.5


def test_rooms_of_one_flat_share_their_colours():
    def wall(style: int, seed: int) -> np.ndarray:
        scene = paint("rooms", label="Bedroom", seed=seed, style=style, size=SMALL)
        free = ~np.any(list(scene.masks.values()), axis=0)
        strip = np.zeros_like(free)
        strip[16:28, 16:48] = True
        return np.median(pixels(scene.image)[free & strip], axis=0)

    one = np.array([wall(1, s) for s in range(6)])
    many = np.array([wall(s, s) for s in range(6)])
    assert one.std(0).mean() < 0.7 * many.std(0).mean()


@pytest.mark.parametrize("kind", ["flowers", "lesions"])
def test_other_scenes_are_their_own_group(kind):
    images = scenes(kind, 20)
    assert len(set(images.groups.tolist())) == len(images)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), n=st.integers(14, 500), seed=st.integers(0, 2**40))
def test_any_number_of_scenes_is_shared_out_exactly(kind, n, seed):
    images = scenes(kind, n, seed=seed)
    assert len(images) == n == sum(images.counts().values())
    assert min(images.counts().values()) >= 2
    assert images.groups.shape == (n,)


def test_a_picture_does_not_depend_on_the_number_of_pictures():
    few, many = scenes("flowers", 20, size=SMALL), scenes("flowers", 60, size=SMALL)
    common = set(few.items) & set(many.items)
    assert len(common) == 20
    for name in list(common)[:3]:
        assert few.source.digest(name) == many.source.digest(name)


@pytest.mark.parametrize(("strength", "kind"), [(0.0, "flowers"), (0.7, "lesions"), (1.0, "rooms")])
def test_the_shortcut_has_the_strength_it_was_given(strength, kind):
    images = scenes(kind, 600, size=32, shortcut=strength)
    marks = np.array([images.source._recipe(item)[6] for item in images.items])
    chance = strength + (1 - strength) / len(images.classes)
    assert np.mean(marks == images.labels) == pytest.approx(chance, abs=0.06)


def test_the_mark_looks_the_same_for_one_class_and_not_for_another():
    def under_the_mark(label: int, shortcut: int) -> np.ndarray:
        scene = paint("lesions", label=label, seed=9, size=96, shortcut=shortcut)
        return pixels(scene.image)[scene.masks["shortcut"]]

    assert np.array_equal(under_the_mark(0, 1), under_the_mark(1, 1))
    assert not np.array_equal(under_the_mark(0, 0), under_the_mark(0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_mark_the_rest_of_the_picture_is_the_same(kind):
    bare = paint(kind, label=0, seed=2, size=SMALL)
    marked = paint(kind, label=0, seed=2, size=SMALL, shortcut=1)
    differs = (pixels(bare.image) != pixels(marked.image)).any(2)
    grown = np.zeros_like(differs)
    y, x = np.nonzero(marked.masks["shortcut"])
    grown[max(0, y.min() - 2) : y.max() + 3, max(0, x.min() - 2) : x.max() + 3] = True
    assert differs.any()
    assert not (differs & ~grown).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_shared_part_has_the_same_pixels_in_both_pictures(kind, seed):
    a, b = pair(kind, seed, label_a=0, label_b=1, size=96, shared_part=True)
    assert np.array_equal(a.masks["shared"], b.masks["shared"])
    mask = a.masks["shared"]
    assert mask.sum() > 40
    assert np.array_equal(pixels(a.image)[mask], pixels(b.image)[mask])
    assert not np.array_equal(pixels(a.image)[~mask], pixels(b.image)[~mask])


@pytest.mark.parametrize("kind", KINDS)
def test_two_parts_give_one_common_and_one_private_class(kind):
    for seed in range(4):
        a, b = pair(kind, seed, label_a=1, label_b=1, size=SMALL, two_parts=True)
        for scene in (a, b):
            assert_exact(scene, SMALL)
            assert {"deciding", "second"} <= scene.masks.keys()
            assert scene.labels == (1, scene.second)
        assert a.second != 1
        assert b.second != a.second
        if len(class_names(kind)) > 2:
            assert b.second != 1


def test_second_parts_can_be_asked_for():
    a, b = pair(
        "flowers",
        0,
        label_a="Rose",
        label_b="Tulip",
        second_a="Tulip",
        second_b="Daisy",
        size=SMALL,
    )
    names = class_names("flowers")
    assert [names[i] for i in (*a.labels, *b.labels)] == ["Rose", "Tulip", "Tulip", "Daisy"]


def test_the_place_does_not_tell_which_part_decides():
    left = []
    for seed in range(12):
        scene = paint("flowers", label=0, second=1, seed=seed, size=SMALL)
        x = [np.nonzero(scene.masks[p])[1].mean() for p in ("deciding", "second")]
        left.append(x[0] < x[1])
    assert 2 <= sum(left) <= 10


def test_sets_of_two_parts_carry_the_second_class():
    images = scenes("rooms", 20, size=SMALL, two_parts=True)
    for i in range(5):
        scene = images.source.scene(images.items[i])
        assert scene.label == images.labels[i]
        assert scene.second is not None
        assert scene.second != scene.label


def test_sets_with_a_shared_part_share_it():
    images = scenes("flowers", 12, size=SMALL, shared_part=True)
    masks = [images.masks(i)["shared"] for i in (0, 11)]
    assert np.array_equal(*masks)
    a, b = (pixels(images.image(i))[masks[0]] for i in (0, 11))
    assert np.array_equal(a, b)


def test_a_set_is_read_as_the_protocol_says_and_survives_pickling():
    images = scenes("rooms", 20, size=SMALL, shortcut=0.5)
    again = pickle.loads(pickle.dumps(images))
    assert again.fingerprint() == images.fingerprint()
    assert again.image(3).tobytes() == images.image(3).tobytes()
    assert isinstance(again.source, SceneSource)
    assert len(images.digest(0)) == 64
    cut = images.subset([3, 1])
    assert cut.image(0).tobytes() == images.image(3).tobytes()


def test_what_is_handed_out_can_be_changed_without_harm():
    images = scenes("flowers", 12, size=SMALL)
    first = images.image(0)
    before = first.tobytes()
    first.paste((0, 0, 0), (0, 0, SMALL, SMALL))
    images.masks(0).clear()
    assert images.image(0).tobytes() == before
    assert images.masks(0)


@pytest.mark.parametrize(
    "change",
    [{"size": 65}, {"seed": 1}, {"shortcut": 0.0}, {"shared_part": True}, {"two_parts": True}],
)
def test_digest_changes_with_each_parameter(change):
    plain, other = (
        scenes("flowers", 12, size=SMALL),
        scenes("flowers", 12, **{"size": SMALL, **change}),
    )
    assert plain.digest(0) != other.digest(0)
    assert plain.fingerprint() != other.fingerprint()


def test_digest_changes_if_and_only_if_the_picture_does():
    full, half = (scenes("lesions", 40, size=SMALL, shortcut=s) for s in (1.0, 0.3))
    seen = set()
    for i in range(12):
        alike = full.image(i).tobytes() == half.image(i).tobytes()
        assert (full.digest(i) == half.digest(i)) == alike
        seen.add(alike)
    assert seen == {True, False}
    assert scenes("lesions", 40, size=SMALL, shortcut=1.0).fingerprint() == full.fingerprint()
    assert len({full.digest(i) for i in range(40)}) == 40


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"kind": "cars"}, "flowers"),
        ({"kind": 3}, "kind"),
        ({"n": 5}, "at least 10"),
        ({"n": 20.5}, "whole number"),
        ({"n": True}, "whole number"),
        ({"size": 8}, "32"),
        ({"size": 5000}, "2048"),
        ({"size": "big"}, "size"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"shortcut": 1.2}, "strength"),
        ({"shortcut": float("nan")}, "strength"),
        ({"shortcut": "yes"}, "strength"),
    ],
)
def test_bad_sets_are_refused(asked, word):
    with pytest.raises(DataError, match=word):
        scenes(**{"kind": "flowers", **asked})


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"label": "Orchid"}, "Daisy, Dandelion"),
        ({"label": 5}, "0 to 4"),
        ({"label": True}, "label"),
        ({"second": -1}, "second"),
        ({"shortcut": 9}, "shortcut"),
        ({"shared": -2}, "shared"),
        ({"style": 0.5}, "style"),
        ({"seed": None}, "seed"),
    ],
)
def test_bad_scenes_are_refused(asked, word):
    with pytest.raises(DataError, match=word):
        paint("flowers", **{"label": 0, "seed": 0, "size": SMALL, **asked})


@pytest.mark.parametrize("item", ["", "Rose", "Orchid/0001", "Rose/x", "Rose/1/2", "../Rose/0001"])
def test_unknown_items_are_refused(item):
    source = scenes("flowers", 10, size=SMALL).source
    for ask in (source.image, source.masks, source.digest):
        with pytest.raises(DataError, match="Daisy/0003"):
            ask(item)


def test_bad_pairs_are_refused():
    with pytest.raises(DataError, match="label_b"):
        pair("flowers", 0, label_a=0, label_b="Orchid")
    with pytest.raises(DataError, match="strength"):
        pair("flowers", 0, label_a=0, label_b=0, shortcut=2)
