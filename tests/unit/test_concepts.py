"""Concepts: recurring things in feature maps, and what each is worth in a pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import nn

import siamcam_lib as sc
from siamcam_lib.concepts import (
    Concepts,
    HeldFeatures,
    agreement,
    auc_without,
    feature_maps,
    find,
    mark,
    part_auc,
    share_of_similarity,
    share_on,
    shuffled_direction,
    strongest,
)
from siamcam_lib.errors import ExplanationError


class Patches(nn.Module):
    """A backbone of twelve channels: random colours, rectified, eight pixels at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 12, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.mix(x))


@pytest.fixture(scope="module")
def images() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/rooms", n=20, size=64)


@pytest.fixture(scope="module", params=[True, False], ids=["unit", "plain"])
def net(request) -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet(Patches(), embed_dim=8, image_size=64, normalize=request.param).eval()


@pytest.fixture(scope="module")
def maps(net, images) -> torch.Tensor:
    return feature_maps(net, images).float()


def random_concepts(k: int = 3, channels: int = 6, seed: int = 0) -> Concepts:
    h = torch.rand(k, channels, generator=torch.Generator().manual_seed(seed)) + 0.01
    return Concepts(h / h.norm(dim=1, keepdim=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_strengths_are_the_non_negative_least_squares_solution(seed, k):
    concepts = random_concepts(k, 7, seed)
    maps = torch.rand(2, 7, 2, 3, generator=torch.Generator().manual_seed(seed + 1))
    found = concepts.strengths(maps)
    for image, row, column in np.ndindex(2, 2, 3):
        place = maps[image, :, row, column].double().numpy()
        h = concepts.components.T.double().numpy()
        best, missed = nnls(h, place)
        ours = found[image, :, row, column].double().numpy()
        assert ours.min() >= 0
        assert np.linalg.norm(h @ ours - place) <= missed + 1e-3
        np.testing.assert_allclose(ours, best, atol=0.02)  # flat where concepts are nearly alike


def test_planted_concepts_are_found():
    planted = torch.zeros(3, 9)
    planted[0, :3] = planted[1, 3:6] = planted[2, 6:] = 1 / np.sqrt(3)
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(60, 3, 3, 3, generator=generator) * (
        torch.rand(60, 3, 3, 3, generator=generator) < 0.4
    )
    found = find(torch.einsum("nchw,ck->nkhw", there, planted), k=3)
    assert agreement(Concepts(planted), found).min() > 0.99


def test_finding_is_reproducible(maps):
    np.testing.assert_array_equal(find(maps, 3, 1).components, find(maps, 3, 1).components)


def test_what_is_taken_out_is_gone_and_the_rest_stays():
    concepts, maps = random_concepts(4, 8), torch.rand(3, 8, 4, 4)
    before = concepts.strengths(maps)
    after = concepts.strengths(concepts.without(maps, [1, 3]))
    np.testing.assert_allclose(after[:, [1, 3]], 0, atol=1e-3)
    np.testing.assert_allclose(after[:, [0, 2]], before[:, [0, 2]], atol=3e-3)
    np.testing.assert_array_equal(concepts.without(maps, []), maps)


def test_parts_add_up_to_the_embedding(net, maps):
    parts = find(maps, 3).parts(net, maps)
    assert parts.shape == (20, 5, 8)
    expected = net.embed_pooled(maps.mean((2, 3))).detach()
    np.testing.assert_allclose(parts.sum(1), expected, atol=1e-5)


def test_shares_add_up_to_the_similarity_exactly(net, maps):
    parts = find(maps, 3).parts(net, maps)
    shares = share_of_similarity(parts[:10], parts[10:])
    e = parts.sum(1)
    np.testing.assert_allclose(shares.sum((1, 2)), (e[:10] * e[10:]).sum(1), rtol=1e-12)
    if net.normalize:
        d = net.distance(*net.embed_pooled(maps.mean((2, 3))).detach().split(10))
        np.testing.assert_allclose(shares.sum((1, 2)), 1 - d**2 / 2, atol=1e-5)


def test_row_sums_are_the_shares_of_the_shared_map(net, maps):
    concepts = find(maps, 3)
    parts = concepts.parts(net, maps)
    rows = share_of_similarity(parts[:1], parts[1:2]).sum(2)[0]
    seen = sc.gradcam.project(net, maps[:2])
    if net.normalize:
        lengths = seen.embedding.norm(dim=1, keepdim=True)
        seen = sc.gradcam.Projected(seen.maps / lengths[:, :, None, None], seen.embedding / lengths)
    a, b = (sc.gradcam.Projected(seen.maps[[i]], seen.embedding[[i]]) for i in (0, 1))
    whole = sc.gradcam.shared_map(a, b).sum()
    np.testing.assert_allclose(rows[:-1].sum(), whole, rtol=1e-4, atol=1e-6)  # all but the bias


def test_taking_a_concept_out_of_maps_and_of_pooled_features_is_the_same(net, maps):
    concepts = find(maps, 3)
    pooled, strengths = maps.mean((2, 3)), concepts.strengths(maps).mean((2, 3))
    direct = concepts.without(maps, [1]).mean((2, 3))
    by_mean = pooled - strengths[:, [1]] * concepts.components[1]
    np.testing.assert_allclose(direct, by_mean, atol=1e-5)


def test_auc_without_begins_with_nothing_taken_out(net, maps, images):
    concepts = find(maps, 3)
    pooled, strengths = maps.mean((2, 3)), concepts.strengths(maps).mean((2, 3))
    found = auc_without(net, images, concepts, pooled, strengths)
    assert found.shape == (4,)
    assert found[0] == part_auc(net, images, pooled)
    changed = pooled - strengths[:, [2]] * concepts.components[2]
    assert found[3] == part_auc(net, images, changed)


def test_held_features_stand_in_for_the_cache(net, images):
    rows = torch.rand(20, 12)
    held = HeldFeatures(net, images, {"plain": rows})
    some = images.subset([4, 2])
    found = sc.features.pooled_features(net, some, cache=held, progress=False)
    np.testing.assert_array_equal(found, rows[[4, 2]])
    mirrored = sc.features.pooled_features(net, some, view="mirrored", cache=held, progress=False)
    assert mirrored.shape == (2, 12)  # computed, and held from now on
    with pytest.raises(ExplanationError, match="19"):
        HeldFeatures(net, images, {"plain": rows[:19]})


def test_feature_maps_average_to_the_pooled_features(net, images, maps):
    held = HeldFeatures(net, images, {})
    for view in ("plain", "mirrored"):
        pooled = sc.features.pooled_features(net, images, view=view, cache=held, progress=False)
        seen = feature_maps(net, images, mirrored=view == "mirrored", batch_size=7)
        np.testing.assert_allclose(seen.float().mean((2, 3)), pooled, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("mirrored", [False, True])
def test_feature_maps_leave_their_pooled_features_in_the_cache(
    net, images, tmp_path, monkeypatch, mirrored
):
    monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path))
    feature_maps(net, images, mirrored=mirrored, batch_size=7)
    view = sc.features.VIEWS[mirrored]
    truth = sc.features.pooled_features(
        net, images, view=view, cache=HeldFeatures(net, images, {}), progress=False
    )
    monkeypatch.setattr(net, "look", None)  # whoever looks again, fails
    kept = sc.features.pooled_features(net, images, view=view, progress=False)
    torch.testing.assert_close(kept, truth, rtol=1e-5, atol=1e-6)


def test_share_on_a_region():
    strengths = torch.zeros(1, 2, 2, 2)
    strengths[0, 0, 0, 0] = 3.0
    strengths[0, 0, 1, 1] = 1.0
    cover = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(share_on(strengths, cover), [0.75, 0.0])


def test_strongest_takes_one_picture_a_group():
    strength = torch.tensor([5.0, 1.0, 4.0, 3.0]).view(4, 1, 1)
    assert strongest(strength, np.array([7, 7, 7, 2]), 5).tolist() == [0, 3]


def test_a_mark_is_of_the_pictures_in_their_order(images):
    assert mark(images, [1, 2]) == mark(images, np.array([1, 2]))
    assert (
        len({mark(images, [1, 2]), mark(images, [2, 1]), mark(images.subset(range(9)), [1, 2])})
        == 3
    )


def test_a_shuffled_direction_has_the_same_numbers():
    concepts = random_concepts(3, 50)
    other = shuffled_direction(concepts, 1, seed=3)
    np.testing.assert_array_equal(np.sort(other), np.sort(concepts.components[1]))
    assert not torch.equal(other, concepts.components[1])


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.strengths(torch.rand(2, 5, 3, 3)),
        lambda c: c.strengths(torch.full((2, 6, 3, 3), torch.nan)),
        lambda c: c.without(torch.rand(2, 6, 3, 3), [3]),
        lambda c: c.without(torch.rand(2, 6, 3, 3), [-1]),
        lambda c: agreement(c, random_concepts(2)),
        lambda c: find(-torch.ones(2, 6, 3, 3), 2),
        lambda c: find(torch.rand(2, 6, 3, 3), 7),
        lambda c: find(torch.rand(2, 6), 2),
    ],
)
def test_what_cannot_be_done_is_refused(ask):
    with pytest.raises(ExplanationError):
        ask(random_concepts())
