"""Hiding parts of pictures."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from PIL import Image

import siamcam_lib as sc
from siamcam_lib.errors import DataError
from siamcam_lib.hiding import centre, changed, hidden


@pytest.fixture(scope="module")
def images() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/lesions", n=10)


@pytest.mark.parametrize("area", [0, 0.2, 0.5, 0.8, 1])
@pytest.mark.parametrize("size", [(40, 20), (21, 33)])
def test_the_centre_has_the_area_asked_for(size, area):
    mask = centre(size, area)
    assert mask.shape == size[::-1] and abs(mask.mean() - area) < 1 / mask.size
    if 0.1 < area < 0.7:
        assert mask[size[1] // 2, size[0] // 2] and not mask[0, 0]


def test_an_impossible_area_is_refused():
    with pytest.raises(DataError, match="share"):
        centre((4, 4), 1.5)


def test_what_is_hidden_leaves_no_trace():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    mask = np.zeros((6, 8), bool)
    mask[2:5, 3:6] = True
    other = pixels.copy()
    other[mask] = 255 - other[mask]
    one, two = (np.array(hidden(Image.fromarray(p), mask)) for p in (pixels, other))
    np.testing.assert_array_equal(one, two)  # whatever was there
    np.testing.assert_array_equal(one[~mask], pixels[~mask])
    np.testing.assert_array_equal(one[mask][0], np.round(pixels[~mask].mean(axis=0)))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(DataError, match="agree"):
        hidden(Image.new("RGB", (4, 4)), np.ones((3, 4), bool))


def without(picture, masks, area):
    return hidden(picture, centre(picture.size, area))


def test_a_changed_set_differs_in_its_pictures_alone(images):
    less = changed(images, functools.partial(without, area=0.5))
    assert less.items == images.items and less.origin == images.origin
    np.testing.assert_array_equal(less.labels, images.labels)
    assert less.masks(0).keys() == images.masks(0).keys()
    mask = centre((224, 224), 0.5)
    before, after = (np.array(x.image(3)) for x in (images, less))
    assert (before != after)[mask].any() and not (before != after)[~mask].any()


def test_the_digest_tells_the_change(images):
    half, again, fifth = (
        changed(images, functools.partial(without, area=area)) for area in (0.5, 0.5, 0.2)
    )
    assert half.digest(0) == again.digest(0)
    assert len({images.digest(0), half.digest(0), fifth.digest(0), half.digest(1)}) == 4


def test_a_change_of_size_is_refused(images):
    with pytest.raises(DataError, match="same size"):
        changed(images, lambda picture, masks: picture.resize((9, 9))).image(0)
