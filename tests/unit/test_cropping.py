"""From heatmaps to boxes and cropped data sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import siamcam_lib as sc
from siamcam_lib.cropping import (
    Box,
    SplitGallery,
    box,
    centre_box,
    cropped,
    cropped_split,
    find_boxes,
    mean_maps,
    nearest_partners,
    parts,
    random_box,
    whole,
)
from siamcam_lib.errors import DataError, ExplanationError


class Bright(nn.Module):
    """A backbone of one channel: how red a place is, 8 pixels at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x[:, :1].clamp_min(0), 8)


@pytest.fixture(scope="module")
def images() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=10)


@pytest.fixture(scope="module")
def gallery(images) -> sc.Gallery:
    torch.manual_seed(0)
    net = sc.SiameseNet(Bright(), embed_dim=4, image_size=64).eval()
    with torch.no_grad():
        net.projection.weight.abs_()
    return sc.Gallery.embed(net, images, progress=False)


@pytest.fixture(scope="module")
def seen() -> SplitGallery:
    split = sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
    torch.manual_seed(0)
    return SplitGallery.embed(sc.SiameseNet(Bright(), embed_dim=4, image_size=64), split)


heats = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(0, 1, width=32),
)


class TestBox:
    @settings(deadline=None)
    @given(heats, st.floats(0.05, 0.95), st.floats(0, 1))
    def test_lies_in_the_image_and_is_not_empty(self, heat, threshold, margin):
        left, top, right, bottom = box(heat, threshold, margin)
        height, width = heat.shape
        assert 0 <= left < right <= width and 0 <= top < bottom <= height

    @settings(deadline=None)
    @given(heats, st.floats(0.05, 0.95))
    def test_is_tight(self, heat, threshold):
        """Each of its four edges touches the region: it cannot be made smaller."""
        left, top, right, bottom = box(heat, threshold)
        hot = (heat >= threshold * heat.max())[top:bottom, left:right]
        assert all(edge.any() for edge in (hot[0], hot[-1], hot[:, 0], hot[:, -1]))

    @settings(deadline=None)
    @given(heats, st.integers(-20, 20))
    def test_does_not_depend_on_the_scale(self, heat, power):
        assert box(heat * np.float32(2.0**power)) == box(heat) or heat.max() * 2.0**power < 1e-30

    def test_largest_region_wins_over_the_hottest(self):
        heat = np.zeros((9, 9))
        heat[0, 0], heat[4:8, 4:7] = 1.0, 0.6
        assert box(heat) == (4, 4, 7, 8)
        assert box(heat, threshold=0.7) == (0, 0, 1, 1)

    def test_corners_connect(self):
        assert box(np.eye(5)) == (0, 0, 5, 5)

    def test_margin_widens_and_stops_at_the_edge(self):
        heat = np.zeros((20, 30))
        heat[8:12, 10:20] = 1
        assert box(heat, margin=0.5) == (5, 6, 25, 14)
        assert box(heat, margin=9) == (0, 0, 30, 20)

    def test_a_blank_heatmap_gives_the_whole_image(self):
        assert box(np.zeros((4, 7))) == (0, 0, 7, 4)

    @pytest.mark.parametrize(
        ("heat", "options", "words"),
        [
            (np.zeros((2, 2, 2)), {}, "is \\(H, W\\)"),
            (np.zeros((0, 2)), {}, "is \\(H, W\\)"),
            (np.full((2, 2), np.nan), {}, "finite"),
            (np.full((2, 2), -1.0), {}, "negative"),
            (np.ones((2, 2)), {"threshold": 1}, "between 0 and 1"),
            (np.ones((2, 2)), {"threshold": 0}, "between 0 and 1"),
            (np.ones((2, 2)), {"margin": -0.1}, "margin"),
        ],
    )
    def test_bad_input(self, heat, options, words):
        with pytest.raises(ExplanationError, match=words):
            box(heat, **options)


class TestControls:
    @settings(deadline=None)
    @given(st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1))
    def test_have_the_area_that_was_asked_for(self, width, height, area):
        middle = centre_box((width, height), area)
        free = random_box((width, height), area, np.random.default_rng(0))
        assert middle.size == free.size
        for one in (middle, free):
            assert 0 <= one.left < one.right <= width and 0 <= one.top < one.bottom <= height
        w, h = middle.size
        assert abs(w - width * area**0.5) <= 1 and abs(h - height * area**0.5) <= 1

    def test_random_boxes_reach_everywhere(self):
        random = np.random.default_rng(0)
        lefts = {random_box((10, 10), 0.25, random).left for _ in range(200)}
        assert lefts == set(range(6))

    @pytest.mark.parametrize("area", [0, -1, 1.5])
    def test_area_is_a_share(self, area):
        with pytest.raises(ExplanationError, match="share"):
            centre_box((10, 10), area)


class TestFindBoxes:
    @pytest.mark.parametrize("method", ["gradcam", "shared"])
    def test_one_partner_is_its_explanation(self, gallery, method):
        partners = (np.arange(10)[:, None] + 1) % 10
        found = find_boxes(gallery, partners, method=method)
        for i in range(10):
            ex = gallery.explain(i, (i + 1) % 10, method=method)
            for_similar = ex.factual if ex.decision == "similar" else ex.counterfactual
            assert found[i] == box(for_similar[0])

    def test_several_partners_are_averaged(self, gallery):
        partners = np.array([[(i + 1) % 10, (i + 2) % 10] for i in range(10)])
        twice = find_boxes(gallery, partners[:, [0, 0]], method="shared")
        assert twice == find_boxes(gallery, partners[:, :1], method="shared")
        assert find_boxes(gallery, partners) == find_boxes(gallery, partners[:, ::-1])

    def test_boxes_fit_their_images(self, gallery, images):
        for i, found in enumerate(find_boxes(gallery, nearest_partners(gallery, np.arange(10)))):
            width, height = images.image(i).size
            assert 0 <= found.left < found.right <= width
            assert 0 <= found.top < found.bottom <= height

    @pytest.mark.parametrize("shape", [(10,), (9, 1), (10, 0)])
    def test_partners_of_the_wrong_shape(self, gallery, shape):
        with pytest.raises(ExplanationError, match="row for each image"):
            find_boxes(gallery, np.zeros(shape, int))

    @pytest.mark.parametrize("method", ["gradcam", "shared", "distance"])
    def test_mean_maps_are_the_mean_of_the_maps(self, gallery, method):
        partners = np.array([[(i + s) % 10 for s in (1, 2, 5)] for i in range(10)])
        found = mean_maps(gallery, partners, method=method)
        for i, others in enumerate(partners):
            each = [gallery.explain(i, int(j), method=method).raw[0] for j in others]
            expected = np.mean(each, axis=0)
            np.testing.assert_allclose(found[i], expected, atol=1e-5 * np.abs(expected).max())

    def test_partners_that_are_no_images(self, gallery):
        with pytest.raises(ExplanationError, match="from 0 to 9"):
            mean_maps(gallery, np.full((10, 1), 10))
        with pytest.raises(ExplanationError, match="from 0 to 9"):
            mean_maps(gallery, np.full((10, 1), -1))

    def test_unknown_method(self, gallery):
        with pytest.raises(ExplanationError, match="nothing"):
            find_boxes(gallery, np.zeros((10, 1), int), method="nothing")


class TestNearestPartners:
    def test_by_brute_force(self, gallery):
        among = np.array([0, 2, 3, 5, 8])
        found = nearest_partners(gallery, among, k=3)
        unit = gallery.embeddings / np.linalg.norm(gallery.embeddings, axis=1, keepdims=True)
        for i in range(10):
            allowed = [j for j in among if j != i]
            d = [np.linalg.norm(unit[i] - unit[j]) for j in allowed]
            assert set(found[i]) <= set(allowed) and len(set(found[i])) == 3
            mine = [np.linalg.norm(unit[i] - unit[j]) for j in found[i]]
            np.testing.assert_allclose(mine, np.sort(d)[:3], atol=1e-5)

    def test_too_few(self, gallery):
        with pytest.raises(ExplanationError, match="fewer than there are"):
            nearest_partners(gallery, np.array([1, 2]), k=2)

    def test_by_label(self, gallery):
        labels = np.arange(10) % 2
        found = nearest_partners(gallery, np.arange(8), k=2, labels=labels)
        assert (labels[found] == labels[:, None]).all()
        for label in (0, 1):
            among = np.flatnonzero(labels[:8] == label)
            free = nearest_partners(gallery, among, k=2)
            np.testing.assert_array_equal(found[labels == label], free[labels == label])

    def test_too_few_of_a_class(self, gallery):
        with pytest.raises(ExplanationError, match="of class 1"):
            nearest_partners(gallery, np.arange(10), k=2, labels=(np.arange(10) > 7).astype(int))
        with pytest.raises(ExplanationError, match="as many labels"):
            nearest_partners(gallery, np.arange(10), k=2, labels=np.zeros(9))


class TestCroppedSplit:
    def test_parts_keep_their_pictures_and_get_their_boxes(self):
        split = sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
        everyone, where = whole(split), parts(split)
        boxes = [Box(i, 0, i + 20, 30) for i in range(100)]
        cut = cropped_split(split, boxes)
        for name in ("train", "val", "test"):
            before, after, place = getattr(split, name), getattr(cut, name), getattr(where, name)
            assert before.items == after.items == everyone.items[place]
            np.testing.assert_array_equal(everyone.labels[place], after.labels)
            np.testing.assert_array_equal(everyone.groups[place], after.groups)
            pixels = np.asarray(before.image(0))[:30, place.start : place.start + 20]
            np.testing.assert_array_equal(np.asarray(after.image(0)), pixels)

    def test_one_box_for_each(self):
        split = sc.pairs.split(sc.datasets.load("scenes/flowers", n=100), seed=0)
        with pytest.raises(DataError, match="one for each"):
            cropped_split(split, [Box(0, 0, 9, 9)] * 99)


class TestSplitGallery:
    def test_partners_come_from_the_training_part(self, seen):
        free, own = seen.partners(k=3), seen.partners(k=3, by_label=True)
        assert max(free.max(), own.max()) < seen.parts.train.stop
        labels = seen.images.labels
        assert (labels[own] == labels[:, None]).all() and (labels[free] != labels[:, None]).any()

    def test_two_splits_share_what_was_looked_at(self, seen):
        looks, images = sc.features.Looks(), sc.datasets.load("scenes/flowers", n=100)
        torch.manual_seed(0)
        net = sc.SiameseNet(Bright(), embed_dim=4, image_size=64)
        for seed in (1, 0):
            again = SplitGallery.embed(net, sc.pairs.split(images, seed), looks=looks)
        assert len(looks) == 100
        np.testing.assert_allclose(again.gallery.embeddings, seen.gallery.embeddings, rtol=1e-5)

    def test_kept(self, seen):
        boxes = [Box(0, 0, 112, 56)] * 100
        assert set(seen.sizes) == {(224, 224)}
        np.testing.assert_allclose(seen.kept(boxes), 0.125)


class TestCropped:
    def test_pictures_and_masks_are_cut_alike(self, images):
        boxes = [Box(5 + i, 3, 60 + i, 70) for i in range(10)]
        cut = cropped(images, boxes)
        for i in (0, 9):
            whole = np.asarray(images.image(i))
            np.testing.assert_array_equal(np.asarray(cut.image(i)), whole[3:70, 5 + i : 60 + i])
            for part, mask in images.masks(i).items():
                np.testing.assert_array_equal(cut.masks(i)[part], mask[3:70, 5 + i : 60 + i])

    def test_labels_groups_and_origin_stay(self, images):
        cut = cropped(images, [Box(0, 0, 9, 9)] * 10, name="mine")
        np.testing.assert_array_equal(cut.labels, images.labels)
        np.testing.assert_array_equal(cut.groups, images.groups)
        assert (cut.name, cut.origin) == ("mine", images.origin)

    def test_another_box_is_another_picture_for_the_cache(self, images):
        one = cropped(images, [Box(0, 0, 9, 9)] * 10)
        two = cropped(images, [Box(0, 0, 9, 8)] * 10)
        assert len({images.digest(0), one.digest(0), two.digest(0)}) == 3
        assert one.digest(0) == cropped(images, [Box(0, 0, 9, 9)] * 10).digest(0)

    def test_can_be_split(self):
        whole = sc.datasets.load("scenes/flowers", n=100)
        parts = sc.pairs.split(cropped(whole, [Box(0, 0, 40, 40)] * 100), seed=0)
        assert {part.image(0).size for part in (parts.train, parts.test)} == {(40, 40)}

    def test_one_box_for_each(self, images):
        with pytest.raises(DataError, match="one for each"):
            cropped(images, [Box(0, 0, 9, 9)])
