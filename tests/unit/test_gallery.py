"""`Gallery`: what `sc.explain` says of two images, said of any two of many, looked at once."""

from __future__ import annotations

import functools
import itertools
import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import siamcam_lib as sc
from siamcam_lib import shards
from siamcam_lib.embedder import COMPARISONS, SiameseEmbedder
from siamcam_lib.errors import DataNotFoundError, ExplanationError, GalleryError, ImageError
from siamcam_lib.explaining import CLOSED_FORMS
from siamcam_lib.gallery import Gallery, Tile
from siamcam_lib.shards import TABLE, Shards

K, E, SIDE, N = 6, 8, 40, 7
EPSILON = float(np.finfo(np.float32).eps)


def picture(seed: int) -> Image.Image:
    """Random pixels, each picture of a size of its own."""
    random = np.random.default_rng(seed)
    shape = (*random.integers(20, 60, 2), 3)
    return Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))


PICTURES = [picture(k) for k in range(N)]


class OneByOne(nn.Conv2d):
    """A convolution whose rounding does not depend on an image's place in its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(OneByOne, self).forward(x[i : i + 1]) for i in range(len(x))])


class Body(nn.Module):
    def __init__(self, head, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.features = OneByOne(3, K, 5, stride=6)
            self.fc = nn.Linear(K, E)
            nn.init.normal_(self.fc.weight)
            self.norm = nn.BatchNorm1d(E)
        self.head = head
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.features(x))


def siamese(
    normalize: bool, *, slope: float = 2.0, bias: float = 0.1, seed: int = 0
) -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = OneByOne(3, K, 5, stride=6)
        net = sc.SiameseNet(backbone, E, normalize=normalize, image_size=SIDE)
        with torch.no_grad():
            net.projection.weight.normal_()
            net.projection.bias.normal_().mul_(0.2).add_(bias)
            net.output.weight.fill_(slope)
            net.output.bias.fill_(-0.5)
    return net.eval()


def mean(A: Tensor) -> Tensor:
    return A.mean(dim=(2, 3))


def bent(e1: Tensor, e2: Tensor) -> Tensor:
    """A comparison that is no part of the library."""
    return 1 - torch.exp(-((e1 - e2) ** 2).mean(dim=-1))


HEADS = {
    "pooled": lambda m, A: m.fc(mean(A)),
    "pooled, ReLU": lambda m, A: torch.relu(m.fc(mean(A))),
    "bare": lambda m, A: mean(A),
    "GeM": lambda m, A: m.fc(A.clamp_min(1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)),
    "max": lambda m, A: m.fc(A.amax(dim=(2, 3))),
    "batch normalisation": lambda m, A: m.norm(m.fc(mean(A))),
    "unit length": lambda m, A: F.normalize(m.fc(mean(A)), dim=-1),
}
NETS = {
    "siamese, plain": lambda: siamese(False),
    "siamese, unit length": lambda: siamese(True),
    **{
        f"{head}, {name}": lambda head=head, comparison=comparison: sc.Embedder(
            Body(HEADS[head]), "features", image_size=SIDE, comparison=comparison
        )
        for head in HEADS
        for name, comparison in ((*((c, c) for c in COMPARISONS), ("bent", bent)))
        if head in ("pooled, ReLU", "GeM") or name == "cosine"
    },
}
SOME = ["siamese, plain", "siamese, unit length", "pooled, ReLU, cosine", "GeM, l2", "GeM, bent"]


@functools.cache
def made(name: str) -> Gallery:
    return Gallery.embed(NETS[name](), PICTURES, batch_size=3, progress=False)


@pytest.fixture(params=NETS)
def name(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def check_near(found: np.ndarray, truth: np.ndarray, tolerance: float) -> None:
    assert found.shape == truth.shape and found.dtype == truth.dtype == np.float32
    assert np.isfinite(found).all()
    scale = np.abs(truth).max(initial=0)
    assert np.abs(found - truth).max(initial=0) <= tolerance * scale


@pytest.mark.parametrize("normalize", [False, True])
def test_what_another_head_has_looked_at_is_not_looked_at_again(normalize, monkeypatch):
    looks = sc.features.Looks()
    Gallery.embed(siamese(normalize), PICTURES, looks=looks, progress=False)
    net = siamese(normalize)
    torch.nn.init.normal_(net.projection.weight)
    truth = Gallery.embed(net, PICTURES, progress=False)
    monkeypatch.setattr(net, "look", None)  # whoever looks again, fails
    found = Gallery.embed(net, PICTURES, looks=looks, progress=False)
    check_near(found.embeddings, truth.embeddings, 8 * EPSILON)
    check_near(found.maps(0, N).numpy(), truth.maps(0, N).numpy(), 8 * EPSILON)
    assert found.explain(0, 3).dissimilarity == pytest.approx(truth.explain(0, 3).dissimilarity)


def test_a_damaged_head_is_refused_with_and_without_looks():
    net = siamese(False)
    net.projection.bias.data[0] = torch.nan
    with pytest.raises(ExplanationError, match="damaged"):
        Gallery.embed(net, PICTURES, progress=False)
    with pytest.raises(GalleryError, match="damaged"):
        Gallery.embed(net, PICTURES, looks=sc.features.Looks(), progress=False)


def test_looks_are_of_no_use_to_other_modules():
    looks = sc.features.Looks()
    net = NETS["pooled, cosine"]()
    found = Gallery.embed(net, PICTURES, looks=looks, progress=False)
    check_near(found.embeddings, made("pooled, cosine").embeddings, 8 * EPSILON)
    assert len(looks) == 0


# --- one pair -------------------------------------------------------------------------------------


class TestExplain:
    @pytest.mark.parametrize("method", CLOSED_FORMS)
    def test_is_that_of_the_images(self, name, method):
        """To the rounding of P and e to float32: these pairs are well apart."""
        gal, net = made(name), NETS[name]()
        for i, j in ((0, 1), (4, 2), (5, 6)):
            found = gal.explain(i, j, method=method)
            truth = sc.explain(net, PICTURES[i], PICTURES[j], method=method)
            # 1 − cos θ of nearly parallel embeddings has the rounding of cos θ, which is near 1.
            near_one = EPSILON / 2 if name.endswith(", cosine") else None
            close = pytest.approx(truth.dissimilarity, rel=1e-6, abs=near_one)
            assert found.dissimilarity == close
            assert (found.decision, found.threshold) == (truth.decision, truth.threshold)
            assert (found.method, found.polarity) == (method, "decision")
            for kind in ("raw", "factual", "counterfactual"):
                for side, k in ((0, i), (1, j)):
                    one, two = getattr(found, kind)[side], getattr(truth, kind)[side]
                    if (name, method) == ("unit length, cosine", "self"):
                        # The length of what has length 1 has no gradient: all of it is rounding.
                        scale = float(gal.maps(k, k + 1).abs().max())
                        assert np.abs(one - two).max() <= 1e-6 * scale
                    else:
                        check_near(one, two, 2e-5)

    def test_swapping_swaps_to_the_last_bit(self, name):
        gal = made(name)
        for method in CLOSED_FORMS:
            forth, back = gal.explain(1, 5, method=method), gal.explain(5, 1, method=method)
            assert forth.dissimilarity == back.dissimilarity
            for kind in ("raw", "factual", "counterfactual"):
                one, two = getattr(forth, kind), getattr(back, kind)[::-1]
                assert all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))

    @pytest.mark.parametrize("kind", [k for k in NETS if not k.endswith(", cosine")])
    @pytest.mark.parametrize("method", ["gradcam", "distance"])
    def test_an_image_with_itself_is_blank(self, kind, method):
        gal = made(kind)
        for i in range(N):
            ex = gal.explain(i, i, method=method)
            assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}
        assert gal.explain(3, 3, method="shared").blank != ex.blank

    def test_an_image_with_itself_is_blank_by_cosine(self):
        for kind in (k for k in NETS if k.endswith(", cosine")):
            for i in range(N):
                blank = made(kind).explain(i, i).blank
                assert blank == {"factual": (True, True), "counterfactual": (True, True)}

    @pytest.mark.parametrize("kind", ["siamese, plain", "siamese, unit length", "GeM, l2"])
    def test_an_image_with_itself_is_blank_by_the_method_cosine(self, kind):
        for i in range(N):
            ex = made(kind).explain(i, i, method="cosine")
            assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}

    @pytest.mark.parametrize("polarity", ["decision", "paper"])
    @pytest.mark.parametrize("threshold", [1e-9, 1 - 1e-9])
    def test_polarity_and_threshold(self, polarity, threshold):
        gal, net = made("siamese, plain"), NETS["siamese, plain"]()
        options = {"polarity": polarity, "threshold": threshold}
        found, truth = gal.explain(0, 1, **options), sc.explain(net, *PICTURES[:2], **options)
        assert (found.decision, found.polarity) == (truth.decision, polarity)
        for one, two in zip(found.factual, truth.factual, strict=True):
            check_near(one, two, 2e-5)

    def test_the_threshold_is_that_of_the_network_when_it_was_made(self):
        net = siamese(True)
        net.threshold = 0.123
        gal = Gallery.embed(net, PICTURES[:2], progress=False)
        assert gal.threshold == gal.explain(0, 1).threshold == 0.123

    def test_numpy_whole_numbers_are_indices(self):
        gal = made("siamese, plain")
        for i in (np.int64(1), np.int32(1), np.uint8(1)):
            np.testing.assert_array_equal(gal.explain(i, 2).raw[0], gal.explain(1, 2).raw[0])
            assert gal.correspondence(i, 2).shape == (6, 6, 6, 6)

    def test_pictures_are_read_when_drawn(self, tmp_path):
        paths = []
        for k, image in enumerate(PICTURES[:2]):
            paths.append(tmp_path / f"{k}.png")
            image.save(paths[-1])
        gal = Gallery.embed(siamese(True), paths, progress=False)
        for path in paths:
            path.unlink()
        ex = gal.explain(0, 1)
        assert ex.factual[0].shape == PICTURES[0].size[::-1] and len(ex.images) == 2
        with pytest.raises(DataNotFoundError):
            ex.plot()
        for path, image in zip(paths, PICTURES, strict=False):
            image.save(path)
        assert [x.size for x in ex.images] == [x.size for x in PICTURES[:2]]
        ex.plot()
        ex.save(tmp_path / "out")

    def test_near_identical_images(self):
        """Of embeddings δ apart, float32 keeps ε‖e‖/δ of the direction; no more is lost."""
        net = siamese(False, bias=1.0)
        base = np.asarray(picture(50)).astype(np.int16)
        for step in (1, 4, 16, 64):
            other = base.copy()
            other[5:9, 5:9] = np.clip(other[5:9, 5:9] + step, 0, 255)
            pair = [Image.fromarray(x.astype(np.uint8)) for x in (base, other)]
            gal = Gallery.embed(net, pair, progress=False)
            e1, e2 = gal.embeddings.astype(np.float64)
            assert 0 < np.linalg.norm(e1 - e2)
            allowed = 4 * EPSILON * np.linalg.norm(e1) / np.linalg.norm(e1 - e2) + 2e-6
            for one, two in zip(gal.explain(0, 1).raw, sc.explain(net, *pair).raw, strict=True):
                # of Σ|v||P|, which the map itself may be much smaller than
                size = np.abs(gal.maps(0, 2).numpy()).sum(axis=1).max()
                slope = net.output.weight.item() / 4
                assert np.abs(one - two).max() <= allowed * size * slope
                assert allowed < 0.1  # and this says something


# --- the same picture twice -----------------------------------------------------------------------


class Uneven(nn.Conv2d):
    """Rounds by the place in the batch, as kernels of real backbones do."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(len(x)).view(-1, 1, 1, 1)
        return super().forward(x) * (1 + 2.0**-23 * (place % 3))


class TestSamePictureTwice:
    @pytest.fixture(params=[False, True], ids=["plain", "unit length"])
    def net(self, request):
        net = siamese(request.param)
        uneven = Uneven(3, K, 5, stride=6)
        uneven.load_state_dict(net.backbone.state_dict())
        net.backbone = uneven
        return net

    @pytest.mark.parametrize("batch_size", [2, 3, 32])
    def test_is_blank_as_in_explain(self, net, batch_size):
        images = [*PICTURES[:5], PICTURES[0].copy()]
        assert sc.explain(net, images[0], images[5]).blank["factual"] == (True, True)
        gal = Gallery.embed(net, images, batch_size=batch_size, progress=False)
        assert gal.explain(0, 5).blank["factual"] == (True, True)
        assert (gal.embeddings[0] == gal.embeddings[5]).all()

    def test_is_blank_in_every_tile_and_from_disk(self, net, tmp_path):
        images = [*PICTURES[:3], PICTURES[0].copy()]
        gal = Gallery.embed(net, images, batch_size=2, folder=tmp_path / "g", progress=False)
        (tile,) = gal.all_pairs()
        assert not tile.maps[0, 3].any() and not tile.maps[3, 0].any()
        assert gal.explain(3, 0).blank["factual"] == (True, True)

    def test_with_a_real_backbone(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = sc.SiameseNet("resnet18", 64, pretrained=False, image_size=64)
        images = [*PICTURES[:3], PICTURES[0]]
        ex = Gallery.embed(net, images, batch_size=3, progress=False).explain(0, 3)
        assert ex.blank["factual"] == (True, True)

    def test_where_rounding_is_even(self):
        images = [*PICTURES[:3], PICTURES[0]]
        gal = Gallery.embed(siamese(True), images, batch_size=2, progress=False)
        assert gal.explain(0, 3).blank["factual"] == (True, True)
        assert gal.nearest(0, 1).index.tolist() == [3]
        assert gal.nearest(3, 1).index.tolist() == [0]


# --- all pairs ------------------------------------------------------------------------------------


class TestAllPairs:
    @pytest.mark.parametrize("method", CLOSED_FORMS)
    def test_every_ordered_pair_is_that_of_explain(self, name, method):
        gal = made(name)
        e = torch.from_numpy(gal.embeddings).double()
        P = gal.maps(0, N).double()
        for tile in gal.all_pairs(method, rows=3, columns=4):
            assert isinstance(tile, Tile) and tile.maps.dtype == np.float32
            for i, j in itertools.product(range(N)[tile.rows], range(N)[tile.columns]):
                found = tile.maps[i - tile.rows.start, j - tile.columns.start]
                if i == j:  # has its own tests
                    continue
                truth = gal.explain(i, j, method=method).raw[0]
                if (name, method) != ("unit length, cosine", "self"):  # which is all rounding
                    check_near(found, truth, 1e-4)  # a first look; the next line is the exact bound
                self.within_rounding(gal, method, found, truth, P[i], e[i], e[j])

    @staticmethod
    def within_rounding(gal, method, found, truth, P, e1, e2) -> None:
        """Few ε of what is added up: |own| Σ|P||e₁| + |other| Σ|P||e₂|.

        For the distance that is Σ|P||e|/d: as embeddings come near each other, ε‖e‖/d of the map
        is lost, which is lost already when e is kept in float32.
        """
        comparison = gal._table["settings"]["comparison"]
        scale = 1.0
        if method == "distance" or (method == "gradcam" and comparison != "cosine"):
            ends = (F.normalize(e, dim=0) if gal.unit else e for e in (e1, e2))
            scale = 1 / float(torch.dist(*ends))
        if gal.unit or method == "cosine" or (method == "gradcam" and comparison == "cosine"):
            shortest = min(float(e1.norm()), float(e2.norm()))
            scale = scale / (float(e1.norm()) * shortest)
        terms = scale * torch.einsum("ehw,e->hw", P.abs(), e1.abs() + e2.abs())
        assert (np.abs(found - truth) <= 32 * EPSILON * terms.numpy()).all()

    @pytest.mark.parametrize(
        ("rows", "columns"), [(1, 1), (2, 3), (3, 2), (7, 7), (7, 1), (1, 7), (5, 4), (32, 512)]
    )
    @pytest.mark.parametrize("kind", SOME)
    def test_tiles_cover_every_ordered_pair_once(self, kind, rows, columns):
        gal, seen = made(kind), np.zeros((N, N), int)
        whole = np.full((N, N, 6, 6), np.nan, np.float32)
        for tile in gal.all_pairs(rows=rows, columns=columns):
            r, c = len(range(N)[tile.rows]), len(range(N)[tile.columns])
            assert 0 < r <= rows and 0 < c <= columns
            assert tile.maps.shape == (r, c, 6, 6)
            seen[tile.rows, tile.columns] += 1
            whole[tile.rows, tile.columns] = tile.maps
        assert (seen == 1).all()
        (one,) = gal.all_pairs(rows=N, columns=N)
        np.testing.assert_allclose(whole, one.maps, rtol=1e-4, atol=1e-5 * np.abs(one.maps).max())

    def test_tiles_come_row_by_row(self):
        found = [(t.rows, t.columns) for t in made(SOME[0]).all_pairs(rows=4, columns=5)]
        assert found == [
            (slice(0, 4), slice(0, 5)), (slice(0, 4), slice(5, 7)),
            (slice(4, 7), slice(0, 5)), (slice(4, 7), slice(5, 7)),
        ]  # fmt: skip

    def test_a_tile_belongs_to_who_holds_it(self):
        """Kept tiles are not overwritten by those that follow."""
        kept = list(made(SOME[0]).all_pairs(rows=2, columns=2))
        again = list(made(SOME[0]).all_pairs(rows=2, columns=2))
        assert all(np.array_equal(a.maps, b.maps) for a, b in zip(kept, again, strict=True))
        kept[0].maps[:] = 7
        first = next(iter(made(SOME[0]).all_pairs(rows=2, columns=2)))
        assert np.array_equal(first.maps, again[0].maps)

    @pytest.mark.parametrize("kind", SOME)
    @pytest.mark.parametrize("method", ["gradcam", "distance"])
    def test_the_diagonal_is_blank(self, kind, method):
        for tile in made(kind).all_pairs(method, rows=2, columns=3):
            for i in range(N)[tile.rows]:
                if i in range(N)[tile.columns]:
                    assert not tile.maps[i - tile.rows.start, i - tile.columns.start].any()

    @pytest.mark.parametrize("normalize", [False, True])
    def test_embeddings_of_zero(self, normalize):
        """All units off in some images: nothing is NaN, and explain says the same."""
        net = siamese(normalize)
        with torch.no_grad():
            g = mean(net.feature_maps(net.to_tensor(PICTURES)))
            most = (g @ net.projection.weight.T).amax(dim=1)  # of each image's units, without bias
            net.projection.bias.fill_(-float(most.median()) - 1e-4)
        gal = Gallery.embed(net, PICTURES, progress=False)
        off = ~gal.embeddings.any(axis=1)
        assert off.any() and not off.all()
        (tile,) = gal.all_pairs()
        assert np.isfinite(tile.maps).all() and not tile.maps[off].any()
        for i, j in itertools.product(range(N), repeat=2):
            truth = gal.explain(i, j).raw[0]
            check_near(
                tile.maps[i, j], truth, 1e-3
            )  # embeddings beside zero are small: more is lost
            assert tile.maps[i, j].any() == truth.any()

    @pytest.mark.parametrize("normalize", [False, True])
    def test_a_saturated_sigmoid(self, normalize):
        net = siamese(normalize)
        with torch.no_grad():
            net.output.bias.fill_(60.0)
        gal = Gallery.embed(net, PICTURES, progress=False)
        (tile,) = gal.all_pairs()
        for i, j in itertools.permutations(range(N), 2):
            truth = gal.explain(i, j).raw[0]
            assert truth.any()
            check_near(tile.maps[i, j], truth, 1e-4)

    def test_no_more_than_a_tile_is_held(self, monkeypatch):
        """Rows are read tile by tile, and no array made on the way is larger than its tile."""
        gal, read, largest = made(SOME[0]), made(SOME[0]).maps, []

        def counted(start, stop):
            largest.append(stop - start)
            return read(start, stop)

        monkeypatch.setattr(gal, "maps", counted)
        for _ in gal.all_pairs(rows=2, columns=3):
            pass
        assert largest == [2, 2, 2, 1]  # each block of rows once, not once a tile

    def test_unknown_method(self):
        with pytest.raises(ExplanationError, match="known are gradcam, shared, self"):
            list(made(SOME[0]).all_pairs("saliency"))

    @pytest.mark.parametrize("value", [0, -1, 2.5, "3", None])
    @pytest.mark.parametrize("option", ["rows", "columns"])
    def test_bad_sizes_of_a_tile(self, option, value):
        with pytest.raises(GalleryError, match=f"{option} is a positive whole number, not"):
            list(made(SOME[0]).all_pairs(**{option: value}))


# --- neighbours -----------------------------------------------------------------------------------


def brute_force(gal: Gallery, i: int) -> np.ndarray:
    """Dissimilarity of all images to image `i`; infinite for itself."""
    y = np.full(len(gal), np.inf)
    others = [k for k in range(len(gal)) if k != i]
    e = torch.from_numpy(gal.embeddings).double()
    y[others] = gal.compare(e[[i] * len(others)], e[others]).dissimilarity.numpy()
    return y


class TestNearest:
    @pytest.mark.parametrize("k", [1, 3, N - 1, N, 1000])
    def test_equals_brute_force(self, name, k):
        gal = made(name)
        for i in range(N):
            y = brute_force(gal, i)
            found = gal.nearest(i, k)
            assert len(found.index) == min(k, N - 1) and i not in found.index
            assert len(set(found.index.tolist())) == len(found.index)
            nearest = np.sort(y)[: len(found.index)]
            np.testing.assert_allclose(found.dissimilarity, nearest, rtol=1e-9)
            np.testing.assert_allclose(found.dissimilarity, y[found.index], rtol=1e-12)
            assert found.index.dtype == np.int64 and found.dissimilarity.dtype == np.float64

    def test_of_a_new_image(self, name):
        net = NETS[name]()
        gal = Gallery.embed(net, PICTURES[:5], progress=False)
        for query in (PICTURES[6], np.asarray(PICTURES[6])):
            found = gal.nearest(query, 3)
            truth = [sc.explain(net, PICTURES[6], x).dissimilarity for x in PICTURES[:5]]
            np.testing.assert_allclose(found.dissimilarity, np.sort(truth)[:3], rtol=1e-5)
            np.testing.assert_allclose(found.dissimilarity, np.array(truth)[found.index], rtol=1e-5)

    def test_of_a_new_image_that_is_in_the_gallery(self):
        """As a picture it is looked for among all; as an index it is left out."""
        gal = made("siamese, plain")
        assert gal.nearest(PICTURES[2], 1).index.tolist() == [2]
        assert gal.nearest(PICTURES[2], 99).index.size == N
        assert 2 not in gal.nearest(2, 99).index

    def test_many_duplicates(self):
        """More copies than neighbours asked for: the query itself still does not come back."""
        images = [PICTURES[0]] * 6 + PICTURES[1:4]
        gal = Gallery.embed(siamese(True), images, batch_size=4, progress=False)
        for i in range(6):
            for k in (1, 2, 5, 8):
                found = gal.nearest(i, k)
                assert len(found.index) == k and i not in found.index
                assert (found.index[: min(k, 5)] < 6).all()
                np.testing.assert_allclose(found.dissimilarity[:1], gal.explain(i, i).dissimilarity)

    def test_of_a_comparison_of_ones_own(self):
        """A cosine written by the reader: by L2, the nearest are others."""

        def own_cosine(e1, e2):
            return (1 - F.cosine_similarity(e1, e2, dim=-1)).clamp(0, 2) / 2

        images = [picture(100 + k) for k in range(30)]
        gal = Gallery.embed(
            Body(HEADS["pooled"]), images,
            layer="features", image_size=SIDE, comparison=own_cosine, progress=False,
        )  # fmt: skip
        for i in range(30):
            y = brute_force(gal, i)
            np.testing.assert_allclose(gal.nearest(i, 3).dissimilarity, np.sort(y)[:3], rtol=1e-9)

    def test_of_embeddings_of_zero_by_cosine(self):
        """y = ½ beside an embedding of zero; by distance it would come before y = ¼…½."""

        class Given(nn.Module):
            """Its embeddings are the colours of pictures of one colour."""

            def __init__(self) -> None:
                super().__init__()
                self.features = nn.Identity()

            def forward(self, x: Tensor) -> Tensor:
                return self.features(x).mean(dim=(2, 3))

        colours = [(255, 0, 0), (0, 0, 0), (100, 255, 0), (0, 0, 255)]
        gal = Gallery.embed(
            Given(), [Image.new("RGB", (9, 9), c) for c in colours],
            layer="features", image_size=8, mean=(0, 0, 0), std=(1, 1, 1), progress=False,
        )  # fmt: skip
        y = brute_force(gal, 0)
        assert np.argmin(y) == 2
        assert gal.nearest(0, 1).index.tolist() == [2]

    def test_of_a_network_whose_sigmoid_falls(self):
        gal = Gallery.embed(siamese(True, slope=-2.0), PICTURES, progress=False)
        for i in range(N):
            y = brute_force(gal, i)
            np.testing.assert_allclose(gal.nearest(i, 2).dissimilarity, np.sort(y)[:2], rtol=1e-9)

    def test_of_the_only_image(self):
        gal = Gallery.embed(siamese(True), PICTURES[:1], progress=False)
        assert gal.nearest(0).index.size == gal.nearest(0).dissimilarity.size == 0
        assert gal.nearest(PICTURES[0]).index.tolist() == [0]

    @pytest.mark.parametrize("k", [0, -1, 2.0, "3", None, [1]])
    def test_bad_k(self, k):
        with pytest.raises(GalleryError, match="k is a positive whole number, not"):
            made(SOME[0]).nearest(0, k)

    def test_a_new_image_without_the_network(self, tmp_path):
        gal = Gallery.open(made(SOME[0]).save(tmp_path / "g"))
        assert gal.nearest(0, 2).index.tolist() == made(SOME[0]).nearest(0, 2).index.tolist()
        with pytest.raises(GalleryError, match=r"needs its network: Gallery.open\(folder, net\)"):
            gal.nearest(PICTURES[0])


# --- point to point -------------------------------------------------------------------------------


def rows_of(gal: Gallery) -> tuple[Tensor, Tensor]:
    return gal.maps(0, N).double(), torch.from_numpy(gal.embeddings).double()


class TestCorrespondence:
    def test_is_the_product_of_two_places(self, name):
        gal = made(name)
        P, e = rows_of(gal)
        found = gal.correspondence(1, 4)
        assert found.shape == (6, 6, 6, 6) and found.dtype == np.float32
        for here in ((0, 0), (5, 2), (3, 3)):
            for there in ((0, 5), (4, 4), (2, 0)):
                truth = float(P[1, :, *here] @ P[4, :, *there])
                truth /= float(e[1].norm() * e[4].norm()) if gal.unit else 1.0
                size = float(P[1, :, *here].abs() @ P[4, :, *there].abs())
                size /= float(e[1].norm() * e[4].norm()) if gal.unit else 1.0
                assert abs(found[*here, *there] - truth) <= 8 * EPSILON * size

    def test_the_other_way_round_is_its_transpose(self, name):
        forth, back = made(name).correspondence(1, 4), made(name).correspondence(4, 1)
        check_near(forth, back.transpose(2, 3, 0, 1), 1e-6)

    @pytest.mark.parametrize("kind", ["siamese, plain", "siamese, unit length", "pooled, cosine"])
    def test_sums_to_the_shared_map_but_for_the_bias(self, kind):
        """Σ_q R(p, q) = S₁(p) − ⟨P₁(p), D₂ b⟩, divided by both lengths at unit length."""
        gal, net = made(kind), NETS[kind]()
        layer = net.projection if isinstance(net, sc.SiameseNet) else net.module.fc
        bias = layer.bias.detach().double()
        P, e = rows_of(gal)
        for i, j in ((1, 4), (4, 1), (2, 2)):
            active = (e[j] > 0).double() if isinstance(net, sc.SiameseNet) else 1.0
            without = torch.einsum("ehw,e->hw", P[i], active * bias)
            if gal.unit:
                without /= e[i].norm() * e[j].norm()
            truth = gal.explain(i, j, method="shared").raw[0] - without.numpy()
            found = gal.correspondence(i, j).sum(axis=(2, 3), dtype=np.float64)
            assert without.abs().max() > 0.01 * np.abs(truth).max()  # the bias is there to be seen
            np.testing.assert_allclose(found, truth, rtol=0, atol=5e-6 * np.abs(truth).max())

    @pytest.mark.parametrize("i", [0, 3])
    def test_of_an_embedding_of_zero(self, i):
        net = siamese(True)
        with torch.no_grad():
            net.projection.bias.fill_(-1e6)
        found = Gallery.embed(net, PICTURES[:4], progress=False).correspondence(i, 1)
        assert (found == 0).all()


# --- files ----------------------------------------------------------------------------------------


class Spy:
    """Counts what is read of shards."""

    def __init__(self, monkeypatch) -> None:
        self.bytes, self.calls = 0, []
        read = Shards.read

        def counted(these, kind, start, stop):
            found = read(these, kind, start, stop)
            self.calls.append((kind, start, stop))
            self.bytes += found.nbytes
            return found

        monkeypatch.setattr(Shards, "read", counted)


def on_disk(gal: Gallery, folder, per_shard: int = 3, **options) -> Gallery:
    return Gallery.open(gal.save(folder, per_shard), **options)


class TestFiles:
    @pytest.mark.parametrize("per_shard", [1, 2, 3, 7, 4096])
    def test_map_within_the_bound_of_half_precision(self, name, tmp_path, per_shard):
        """|P̃ − P| ≤ 2⁻¹¹ max|P|, so |M̃(p) − M(p)| ≤ 2⁻¹¹ max|P| ‖v‖₁ for M = ⟨P, v⟩.

        Embeddings are on disk as in memory, in float32, so scores and directions are the same.
        """
        gal = made(name)
        net = NETS[name]()
        stored = on_disk(gal, tmp_path / "g", per_shard, net=net)
        assert len(stored) == N and stored.threshold == gal.threshold
        np.testing.assert_array_equal(stored.embeddings, gal.embeddings)
        P, P_stored = gal.maps(0, N), stored.maps(0, N)
        largest = P.abs().amax(dim=(1, 2, 3))
        assert ((P - P_stored).abs().amax(dim=(1, 2, 3)) <= 2.0**-11 * largest).all()
        assert (P != P_stored).any()
        for i, j in ((0, 1), (2, 3), (6, 0)):
            here, there = gal.explain(i, j), stored.explain(i, j)
            assert here.dissimilarity == there.dissimilarity
            e = torch.from_numpy(gal.embeddings).double()
            compared = gal.compare(e[i : i + 1], e[j : j + 1])
            for side, k, v in ((0, i, compared.v1), (1, j, compared.v2)):
                bound = 2.0**-11 * float(largest[k] * v.abs().sum())
                for kind in ("raw", "factual", "counterfactual"):  # stretching averages: no more
                    gap = np.abs(getattr(here, kind)[side] - getattr(there, kind)[side]).max()
                    assert gap <= bound * (1 + 1e-3)

    def test_scores_neighbours_and_tiles_from_disk(self, name, tmp_path):
        gal = made(name)
        stored = on_disk(gal, tmp_path / "g", net=NETS[name]())
        for i in range(N):
            one, two = gal.nearest(i, 3), stored.nearest(i, 3)
            assert one.index.tolist() == two.index.tolist()
            np.testing.assert_array_equal(one.dissimilarity, two.dissimilarity)
        for a, b in zip(gal.all_pairs(rows=4), stored.all_pairs(rows=4), strict=True):
            np.testing.assert_allclose(a.maps, b.maps, rtol=0, atol=5e-3 * np.abs(a.maps).max())
        check_near(stored.correspondence(1, 2), gal.correspondence(1, 2), 5e-3)

    @pytest.mark.parametrize("batch_size", [1, 3, 32])
    @pytest.mark.parametrize("per_shard", [1, 2, 5, 4096])
    def test_streaming_is_embedding_and_saving(self, tmp_path, batch_size, per_shard):
        net = siamese(True)
        gal = Gallery.embed(net, PICTURES, batch_size=batch_size, progress=False)
        gal.save(tmp_path / "saved", per_shard)
        streamed = Gallery.embed(
            net, PICTURES, folder=tmp_path / "streamed",
            batch_size=batch_size, images_per_shard=per_shard, progress=False,
        )  # fmt: skip
        files = [sorted((tmp_path / x).iterdir()) for x in ("saved", "streamed")]
        assert [p.name for p in files[0]] == [p.name for p in files[1]]
        for saved, written in zip(*files, strict=True):
            if saved.name == TABLE:
                one, two = (json.loads(p.read_text()) for p in (saved, written))
                assert one | {k: two[k] for k in ("contents", "names")} == two
                continue
            one, two = (load_file(p) for p in (saved, written))
            assert all(one[kind].tobytes() == two[kind].tobytes() for kind in shards.KINDS)
        assert repr(streamed) == f"Gallery(7 images, 8 × 6 × 6, in {tmp_path / 'streamed'})"
        assert streamed.image(3).size == PICTURES[3].size  # it still knows its pictures

    def test_saving_again_what_was_opened(self, tmp_path):
        first = on_disk(made("siamese, plain"), tmp_path / "one", 2)
        second = on_disk(first, tmp_path / "two", 5)
        for kind in shards.KINDS:
            np.testing.assert_array_equal(*(g._rows.read(kind, 0, N) for g in (first, second)))

    @pytest.mark.parametrize("kind", ["siamese, plain", "siamese, unit length", "GeM, l2",
                                      "pooled, ReLU, cosine", "GeM, clamped"])  # fmt: skip
    def test_needs_no_network_to_explain(self, kind, tmp_path):
        gal = made(kind)
        stored = on_disk(gal, tmp_path / "g")
        for method in CLOSED_FORMS:
            ex = stored.explain(1, 2, method=method)
            assert ex.dissimilarity == gal.explain(1, 2).dissimilarity
            check_near(ex.raw[0], gal.explain(1, 2, method=method).raw[0], 1e-2)
        assert stored.nearest(1).index.tolist() == gal.nearest(1).index.tolist()
        assert len(list(stored.all_pairs())) == 1

    def test_a_comparison_of_ones_own_needs_the_network(self, tmp_path):
        stored = on_disk(made("GeM, bent"), tmp_path / "g")
        match = r"compares embeddings by .*bent, which is no part of the library; pass its network"
        with pytest.raises(GalleryError, match=match):
            stored.explain(0, 1)
        with pytest.raises(GalleryError, match=match):
            list(stored.all_pairs())
        with pytest.raises(GalleryError, match=match):
            stored.nearest(0)
        assert len(list(stored.all_pairs("shared"))) == 1  # which compares nothing
        again = Gallery.open(tmp_path / "g", NETS["GeM, bent"]())
        check_near(again.explain(0, 1).raw[0], made("GeM, bent").explain(0, 1).raw[0], 1e-2)

    def test_without_images_it_explains_but_does_not_show(self, tmp_path):
        stored = on_disk(made("siamese, plain"), tmp_path / "g")
        ex = stored.explain(0, 1)
        assert [m.shape for m in ex.factual] == [x.size[::-1] for x in PICTURES[:2]]
        assert ex.blank["factual"] == (False, False) and "Explanation(" in repr(ex)
        for show in (lambda: ex.images[0], ex.plot, lambda: ex.save(tmp_path / "x"),
                     lambda: stored.image(0), ex._repr_png_):  # fmt: skip
            with pytest.raises(GalleryError, match=r"opened without its images; Gallery.open\("):
                show()

    def test_with_images_it_shows(self, tmp_path):
        stored = on_disk(made("siamese, plain"), tmp_path / "g", images=PICTURES)
        assert [x.tobytes() for x in stored.explain(4, 2).images] == [
            PICTURES[k].tobytes() for k in (4, 2)
        ]
        stored.explain(4, 2).plot()

    def test_an_image_set(self, tmp_path):
        images = sc.datasets.load("scenes/flowers", n=10)
        net = siamese(True)
        gal = Gallery.embed(net, images, progress=False, folder=tmp_path / "g")
        assert len(gal) == len(images)
        stored = Gallery.open(tmp_path / "g", net, images)
        ex, truth = stored.explain(2, 5), sc.explain(net, images.image(2), images.image(5))
        assert ex.dissimilarity == pytest.approx(truth.dissimilarity, rel=1e-6)
        check_near(ex.raw[1], truth.raw[1], 1e-2)
        ex.plot()

    def test_what_is_read(self, tmp_path, monkeypatch):
        """Opening reads no map; explaining reads the two rows and nothing else."""
        made("siamese, plain").save(tmp_path / "g", 2)
        spy = Spy(monkeypatch)
        gal = Gallery.open(tmp_path / "g", NETS["siamese, plain"]())
        assert len(gal) == N and repr(gal) and gal.threshold and not spy.calls
        gal = Gallery.open(tmp_path / "g", NETS["siamese, plain"](), PICTURES)
        assert {kind for kind, *_ in spy.calls} == {"key"}  # pictures without names are compared
        spy.calls.clear()
        spy.bytes = 0
        gal.explain(1, 6)
        assert {(start, stop) for _, start, stop in spy.calls} == {(1, 2), (6, 7)}
        a_row = E * 36 * 2 + 4 + E * 4 + 2 * 4  # half-precision P, its scale, e, width and height
        assert spy.bytes == 2 * a_row
        spy.bytes = 0
        gal.correspondence(0, 5)
        assert spy.bytes <= 2 * a_row
        spy.calls.clear()
        next(gal.all_pairs(rows=2, columns=3))
        assert all(stop - start <= 2 for kind, start, stop in spy.calls if kind == "maps")
        spy.calls.clear()
        gal.nearest(0)
        assert {kind for kind, *_ in spy.calls} <= {"embedding"}

    def test_rows_that_lie_in_two_shards(self, tmp_path):
        gal = made("siamese, plain")
        stored = on_disk(gal, tmp_path / "g", 3)
        for start, stop in itertools.combinations(range(N + 1), 2):
            found, truth = stored.maps(start, stop), gal.maps(start, stop)
            assert found.shape == truth.shape
            assert float((found - truth).abs().max()) <= 2.0**-11 * float(truth.abs().max())


class TestFileErrors:
    @pytest.fixture
    def folder(self, tmp_path):
        return made("siamese, plain").save(tmp_path / "g", 3)

    def test_another_network(self, folder):
        right = NETS["siamese, plain"]()
        assert len(Gallery.open(folder, right)) == N
        for wrong in (NETS["siamese, unit length"](), siamese(False, seed=1), NETS["GeM, l2"]()):
            with pytest.raises(GalleryError, match="another network, or other settings"):
                Gallery.open(folder, wrong)
        with torch.no_grad():
            right.backbone.weight[0, 0, 0, 0] += 1e-6
        with pytest.raises(GalleryError, match="another network"):
            Gallery.open(folder, right)

    def test_another_layer_or_setting(self, tmp_path):
        body = Body(HEADS["max"])
        options = {"layer": "features", "image_size": SIDE}
        Gallery.embed(body, PICTURES, folder=tmp_path / "g", progress=False, **options)
        assert len(Gallery.open(tmp_path / "g", body, **options)) == N
        for other in ({"image_size": 41}, {"comparison": "l2"}, {"mean": (0, 0, 0)}):
            with pytest.raises(GalleryError, match="other settings"):
                Gallery.open(tmp_path / "g", body, **(options | other))
        with pytest.raises(ExplanationError, match="Say which layer"):
            Gallery.open(tmp_path / "g", body)

    def test_the_same_network_with_a_new_threshold(self, folder):
        net = NETS["siamese, plain"]()
        net.threshold = 0.3
        assert len(Gallery.open(folder, net)) == N

    def test_a_saved_network_is_the_same(self, folder, tmp_path):
        net = NETS["siamese, plain"]()
        net.save(tmp_path / "net.safetensors")
        again = sc.SiameseNet.load(tmp_path / "net.safetensors", OneByOne(3, K, 5, stride=6))
        found = Gallery.open(folder, again).explain(0, 1)
        check_near(found.raw[0], made("siamese, plain").explain(0, 1).raw[0], 1e-2)

    @pytest.mark.parametrize("count", [0, 1, N - 1, N + 1])
    def test_another_number_of_images(self, folder, count):
        images = (PICTURES * 2)[:count]
        with pytest.raises(GalleryError, match=f"holds 7 images, {count} were given"):
            Gallery.open(folder, images=images)

    def test_other_images(self, tmp_path):
        paths = [tmp_path / f"{k}.png" for k in range(N)]
        for path, picture in zip(paths, PICTURES, strict=True):
            picture.save(path)
        gal = Gallery.embed(siamese(True), paths, folder=tmp_path / "g", progress=False)
        gal.save(tmp_path / "again")
        Gallery.embed(siamese(True), paths, progress=False).save(tmp_path / "from memory")
        moved = [shutil.copy(path, tmp_path / f"moved {path.name}") for path in paths]
        for folder in (tmp_path / "g", tmp_path / "again", tmp_path / "from memory"):
            for images in (paths, moved):
                assert Gallery.open(folder, images=images).image(2).size == PICTURES[2].size
                for other in (images[::-1], [*images[:-1], images[0]]):
                    with pytest.raises(GalleryError, match="of other images, or of these in an"):
                        Gallery.open(folder, images=other)

    def test_other_pictures_without_names(self, tmp_path):
        Gallery.embed(siamese(True), PICTURES, folder=tmp_path / "g", progress=False)
        assert Gallery.open(tmp_path / "g", images=PICTURES).image(1).size == PICTURES[1].size
        for other in (PICTURES[::-1], [*PICTURES[:-1], PICTURES[0]]):
            with pytest.raises(GalleryError, match="of other images, or of these in an"):
                Gallery.open(tmp_path / "g", images=other)

    def test_no_gallery(self, tmp_path):
        for place in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(GalleryError, match="There is no gallery in"):
                Gallery.open(place)

    @pytest.mark.parametrize("shard", [0, 1, 2])
    def test_a_damaged_or_missing_shard(self, folder, shard):
        path = folder / f"shard-0000{shard}.safetensors"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(GalleryError, match=f"{path.name} is damaged or missing"):
            Gallery.open(folder)
        path.unlink()
        with pytest.raises(GalleryError, match=f"{path.name} is damaged or missing"):
            Gallery.open(folder)

    def test_a_wrong_table(self, folder):
        (folder / TABLE).write_text("{")
        with pytest.raises(GalleryError, match="gallery.json is damaged"):
            Gallery.open(folder)

    @pytest.mark.parametrize("value", ["x", None, 0, 1, 3, -1])
    def test_a_threshold_that_is_none(self, folder, value):
        table = json.loads((folder / TABLE).read_text()) | {"threshold": value}
        (folder / TABLE).write_text(json.dumps(table))
        with pytest.raises(GalleryError):
            Gallery.open(folder)

    def test_a_folder_that_holds_a_gallery(self, folder):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        net, sizes = NETS["siamese, plain"](), []
        net.backbone.register_forward_hook(lambda m, given, out: sizes.append(len(out)))
        with pytest.raises(GalleryError, match="holds a gallery already"):
            Gallery.embed(net, PICTURES, folder=folder, progress=False)
        assert sizes == []  # before anything is looked at
        for gal in (made("siamese, plain"), Gallery.open(folder)):
            with pytest.raises(GalleryError, match="holds a gallery already"):
                gal.save(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_folder_that_cannot_be_written(self, tmp_path, place):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(GalleryError, match="cannot be written to .*choose another folder"):
            made("siamese, plain").save(tmp_path / place)
        with pytest.raises(GalleryError, match="cannot be written to .*choose another folder"):
            Gallery.embed(siamese(True), PICTURES, folder=tmp_path / place, progress=False)

    def test_a_folder_that_cannot_be_written_is_refused_at_once(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        net, sizes = siamese(True), []
        net.backbone.register_forward_hook(lambda m, given, out: sizes.append(len(out)))
        with pytest.raises(GalleryError):
            Gallery.embed(net, PICTURES, folder=tmp_path / "file", progress=False)
        assert sizes == []

    @pytest.mark.parametrize("value", [0, -1, 2.5, "3", None])
    @pytest.mark.parametrize("option", ["batch_size", "images_per_shard"])
    def test_bad_sizes(self, tmp_path, option, value):
        with pytest.raises(GalleryError, match=f"{option} is a positive whole number, not"):
            Gallery.embed(siamese(True), PICTURES, **{option: value}, progress=False)

    @pytest.mark.parametrize("value", [0, -1, 2.5, "3", None])
    def test_bad_sizes_of_saved_shards(self, tmp_path, value):
        with pytest.raises(GalleryError, match="images_per_shard is a positive whole number, not"):
            made("siamese, plain").save(tmp_path / "g", value)
        assert not (tmp_path / "g").exists()


# --- making one -----------------------------------------------------------------------------------


class TestEmbed:
    def test_sees_every_image_once(self):
        net, sizes = siamese(True), []
        net.backbone.register_forward_hook(lambda m, given, out: sizes.append(len(out)))
        Gallery.embed(net, PICTURES, batch_size=3, progress=False)
        assert sizes == [3, 3, 1]

    def test_leaves_the_network_alone(self):
        net = siamese(True).train()
        net.backbone.weight.requires_grad_(False)
        Gallery.embed(net, PICTURES, progress=False)
        body = Body(HEADS["batch normalisation"]).train()
        Gallery.embed(body, PICTURES, layer="features", image_size=SIDE, progress=False)
        for module in (net, body):
            assert all(m.training for m in module.modules())
            assert all(p.grad is None for p in module.parameters())
            assert not any(m._forward_hooks for m in module.modules())
        assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["backbone.weight"]
        assert all(p.requires_grad for p in body.parameters())

    def test_projected_maps_and_embeddings_are_those_of_one_image(self, name):
        gal, net = made(name), NETS[name]()
        seeing = SiameseEmbedder(net) if isinstance(net, sc.SiameseNet) else net
        for k in (0, 5):
            alone = seeing.see([PICTURES[k]]).project()
            torch.testing.assert_close(gal.maps(k, k + 1), alone.maps, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(gal.embeddings[k], alone.embedding[0], rtol=1e-5, atol=1e-6)

    def test_any_form_of_images(self, tmp_path):
        arrays = np.random.default_rng(0).integers(0, 256, (3, 30, 20, 3), dtype=np.uint8)
        tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255
        paths = []
        for k, x in enumerate(arrays):
            paths.append(str(tmp_path / f"{k}.png"))
            Image.fromarray(x).save(paths[-1])
        truth = Gallery.embed(siamese(True), [Image.fromarray(x) for x in arrays], progress=False)
        for images in (arrays, list(arrays), tuple(tensors), tensors, paths):
            gal = Gallery.embed(siamese(True), images, progress=False)
            np.testing.assert_array_equal(gal.embeddings, truth.embeddings)
            assert gal.image(1).size == (20, 30)

    @pytest.mark.parametrize("images", [[], (), np.zeros((0, 8, 8, 3)), torch.zeros(0, 3, 8, 8)])
    def test_no_image(self, images):
        with pytest.raises(GalleryError, match="at least one image; none was given"):
            Gallery.embed(siamese(True), images, progress=False)

    @pytest.mark.parametrize("images", [None, 3, {1, 2}, iter([]), object(), PICTURES[0]])
    def test_no_list(self, images):
        with pytest.raises(GalleryError, match="Images come as an ImageSet or a list, not as"):
            Gallery.embed(siamese(True), images, progress=False)

    @pytest.mark.parametrize(
        "images",
        [
            "folder", b"bytes", {"a": PICTURES[0]},
            np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8),
        ],
        ids=["text", "bytes", "dict", "array", "tensor"],
    )  # fmt: skip
    def test_one_image_is_no_list(self, images):
        with pytest.raises(GalleryError, match="ImageSet or a list"):
            Gallery.embed(siamese(True), images, progress=False)

    def test_no_image_in_the_list(self):
        with pytest.raises(ImageError):
            Gallery.embed(siamese(True), [PICTURES[0], None], progress=False)
        bad = torch.rand(3, 9, 9)
        bad[0, 0, 0] = float("nan")
        with pytest.raises(ImageError, match="NaN"):
            Gallery.embed(siamese(True), [bad], progress=False)

    def test_no_network(self):
        with pytest.raises(ExplanationError):
            Gallery.embed("net.safetensors", PICTURES, progress=False)
        with pytest.raises(ExplanationError, match="Say which layer"):
            Gallery.embed(Body(HEADS["pooled"]), PICTURES, progress=False)

    @pytest.mark.parametrize("part", ["backbone", "projection"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_damaged_weights(self, part, value):
        net = siamese(True)
        with torch.no_grad():
            getattr(net, part).weight[0].fill_(value)
        with pytest.raises(ExplanationError, match="damaged"):
            Gallery.embed(net, PICTURES, progress=False)

    def test_damaged_weights_of_other_modules(self):
        body = Body(HEADS["max"])
        with torch.no_grad():
            body.fc.weight[0] = float("nan")
        with pytest.raises(ExplanationError, match="not finite"):
            Gallery.embed(body, PICTURES, layer="features", image_size=SIDE, progress=False)

    def test_says_what_it_is(self):
        assert repr(made("siamese, plain")) == "Gallery(7 images, 8 × 6 × 6, in memory)"
        assert len(made("siamese, plain")) == N

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("kind", SOME)
    def test_works_in_any_mode(self, mode, kind):
        net = NETS[kind]()
        with mode():
            gal = Gallery.embed(net, PICTURES, batch_size=3, progress=False)
            ex, tiles = gal.explain(0, 1), list(gal.all_pairs(rows=4))
        assert np.array_equal(ex.raw[0], made(kind).explain(0, 1).raw[0])
        for one, two in zip(tiles, made(kind).all_pairs(rows=4), strict=True):
            assert np.array_equal(one.maps, two.maps)


BAD_INDICES = [
    -1, N, 10**9, True, False, 1.0, "1", None, [1], slice(0, 1), np.float64(1), np.bool_(True)
]  # fmt: skip


class TestIndices:
    @pytest.mark.parametrize("i", BAD_INDICES, ids=repr)
    def test_are_refused(self, i):
        gal = made("siamese, plain")
        match = "There is no image .*; the gallery holds images 0 to 6"
        for call in (
            lambda: gal.explain(i, 0), lambda: gal.explain(0, i), lambda: gal.image(i),
            lambda: gal.correspondence(i, 0), lambda: gal.correspondence(0, i),
        ):  # fmt: skip
            with pytest.raises(GalleryError, match=match):
                call()

    @pytest.mark.parametrize("i", [-1, N, True, False, np.int64(N)])
    def test_are_refused_as_queries(self, i):
        with pytest.raises(GalleryError, match="There is no image"):
            made("siamese, plain").nearest(i)

    @pytest.mark.parametrize("value", ["saliency", None, "Shared"])
    def test_unknown_method_and_polarity(self, value):
        gal = made("siamese, plain")
        with pytest.raises(ExplanationError, match="No closed form is called"):
            gal.explain(0, 1, method=value)
        with pytest.raises(ExplanationError, match="No polarity is called"):
            gal.explain(0, 1, polarity=value)

    @pytest.mark.parametrize("value", [0, 1, -1, 2, float("nan"), "0.5", True])
    def test_threshold(self, value):
        with pytest.raises(ExplanationError, match="strictly between 0 and 1"):
            made("siamese, plain").explain(0, 1, threshold=value)
