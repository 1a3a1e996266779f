"""The mean over pictures: from pooled features what a look at every map gives."""

from __future__ import annotations

import pytest
import torch

import siamcam_lib as sc
from siamcam_lib.embedder import as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.typical import _from_looks, typical


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path))


@pytest.fixture(params=[True, False], ids=["unit", "plain"])
def net(request) -> sc.SiameseNet:
    torch.manual_seed(5)
    made = sc.SiameseNet("resnet18", 24, pretrained=False, image_size=64, normalize=request.param)
    torch.nn.init.normal_(made.projection.bias, std=0.3)  # it must not be counted
    return made.eval()


@pytest.fixture(scope="module")
def images() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=20, size=64)


def test_pooled_features_and_looks_give_the_same(net, images):
    found = typical(net, images, progress=False)
    embedding, place = (
        part.mean(dim=0) for part in _from_looks(as_explainable(net), images, False)
    )
    assert 0 < (found.place == 0).sum() < len(found.place)  # some units are never active
    for one, other in ((found.embedding, embedding), (found.place, place)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(other.abs().max()))


def test_known_features_are_not_computed_again(net, images, monkeypatch):
    sc.features.pooled_features(net, images, progress=False)
    looked = []
    monkeypatch.setattr(net, "look", looked.append)
    found = typical(net, images, progress=False)
    assert found.embedding.shape == (net.config["embed_dim"],) and looked == []


def test_a_damaged_network_is_refused(net, images):
    net.projection.weight.data[0, 0] = torch.nan
    with pytest.raises(ExplanationError, match="not finite"):
        typical(net, images, progress=False)
