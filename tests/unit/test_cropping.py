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
    box,
    centre_box,
    cropped,
    find_boxes,
    nearest_partners,
    random_box,
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
