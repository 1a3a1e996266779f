"""Maps counted from what everybody has, and their sharpening by a second look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import siamcam_lib as sc
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.typical import typical

SIDE = 64


@pytest.fixture(scope="module")
def images():
    return sc.datasets.load("scenes/flowers", n=12, size=SIDE)


@pytest.fixture(scope="module", params=[True, False], ids=["unit length", "plain"])
def net(request):
    torch.manual_seed(3)
    made = sc.SiameseNet("resnet18", 16, pretrained=False, image_size=SIDE,
                         normalize=request.param)  # fmt: skip
    return made.eval()


@pytest.fixture(scope="module")
def pairs(net, images):
    lefts, rights = ([images.image(k) for k in rows] for rows in ((0, 3, 5), (1, 7, 5)))
    return sc.explainers.Pairs(net, lefts, rights)


def looked(net, pictures):
    """Embeddings and projected maps of each picture as they are compared, one by one."""
    found = []
    for picture in pictures:
        seen = as_explainable(net).see([picture])
        length = seen.embedding.norm() if net.normalize else torch.tensor(1.0)
        found.append((seen.embedding[0] / length, seen.project().maps[0].double() / length))
    return found


def means(net, images):
    """Mean embedding, and Z times the mean projected place, over all pictures of a set."""
    all_ = looked(net, [images.image(k) for k in range(len(images))])
    places = [maps.mean(dim=(1, 2)) * maps[0].numel() for _, maps in all_]
    return torch.stack([e for e, _ in all_]).mean(0), torch.stack(places).mean(0)


def test_typical_is_the_mean_over_pictures_and_places(net, images):
    found = typical(net, images, progress=False)
    embedding, place = means(net, images)
    torch.testing.assert_close(found.embedding, embedding, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.place, place, rtol=1e-4, atol=1e-6)


def test_typical_needs_a_picture(net, images):
    with pytest.raises(ExplanationError, match="at least one training picture"):
        typical(net, images.subset([]), progress=False)


def test_centred_map_is_its_formula(net, images, pairs):
    explainer = sc.explainers.get("centred").fit(net, images, progress=False)
    found = explainer(pairs)
    embedding, place = means(net, images)
    for row, couple in zip(found, ((0, 1), (3, 7), (5, 5)), strict=True):
        (e1, P1), (e2, P2) = looked(net, [images.image(k) for k in couple])
        for own, P, other in ((row[0], P1, e2), (row[1], P2, e1)):
            centred = P - place[:, None, None] / P[0].numel()
            wanted = torch.einsum("ehw,e->hw", centred, other - embedding)
            torch.testing.assert_close(own.double(), wanted, rtol=1e-3, atol=1e-6)


def test_equal_pictures_get_no_blank_map(net, images, pairs):
    found = sc.explainers.get("centred").fit(net, images, progress=False)(pairs)
    assert not sc.explainers.get("gradcam")(pairs)[2].any()
    assert found[2].abs().max() > 0
    torch.testing.assert_close(found[2, 0], found[2, 1])


def test_two_scales_have_the_signs_of_the_first_look(net, images, pairs):
    coarse = sc.explainers.get("centred").fit(net, images, progress=False)(pairs)
    sharp = sc.explainers.get("two_scale").fit(net, images, progress=False)(pairs)
    assert sharp.shape[-1] == 2 * coarse.shape[-1]
    large = interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    clear = large.abs() > 1e-4 * large.abs().max()
    assert clear.any()
    assert torch.equal(sharp.sign()[clear], large.sign()[clear])


def test_at_one_scale_a_place_weighs_as_far_as_it_is_from_the_mean(net, images, pairs):
    found = sc.explainers.get("two_scale", scale=1).fit(net, images, progress=False)(pairs)
    coarse = sc.explainers.get("centred").fit(net, images, progress=False)(pairs)
    _, place = means(net, images)
    [(_, P)] = looked(net, [images.image(0)])
    far = ((P * P[0].numel() - place[:, None, None]) ** 2).sum(dim=0)
    np.testing.assert_allclose(found[0, 0], coarse[0, 0] * far, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["centred", "two_scale"])
def test_another_network_is_refused(net, images, pairs, name):
    other = sc.SiameseNet("resnet18", 16, pretrained=False, image_size=SIDE)
    explainer = sc.explainers.get(name).fit(other, images, progress=False)
    with pytest.raises(ExplanationError, match="fitted with another network"):
        explainer(pairs)


@pytest.mark.parametrize("scale", [0, -1, 1.5, True, "2"])
def test_a_scale_is_a_whole_number(scale):
    with pytest.raises(ExplanationError, match="scale"):
        sc.explainers.get("two_scale", scale=scale)


def test_every_explainer_is_made_ready_with_what_two_of_them_need_learnt_once(net, images, pairs):
    ready = sc.explainers.every(net, images, sc.explainers.QUICK, seed=5, progress=False)
    assert list(ready) == sc.explainers.names()
    assert ready["utkin"].decoder is ready["explainlfs"].decoder
    assert ready["two_scale"].average is ready["centred"].average
    assert ready["occlusion"].stride == sc.explainers.QUICK["stride"]
    own = sc.explainers.get("two_scale").fit(net, images, progress=False)
    torch.testing.assert_close(ready["two_scale"](pairs), own(pairs), rtol=0, atol=0)


def test_an_average_of_another_network_is_refused(net, images):
    average = typical(sc.SiameseNet("resnet18", 16, pretrained=False, image_size=SIDE), images)
    with pytest.raises(ExplanationError, match="another network"):
        sc.explainers.get("two_scale", average=average).fit(net, images)
