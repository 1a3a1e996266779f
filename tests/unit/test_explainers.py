"""Every explainer keeps the protocol, is what it says of itself, and equals another's work."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pytorch_grad_cam import GradCAMPlusPlus as OtherPlusPlus
from pytorch_grad_cam import LayerCAM as OtherLayerCAM
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

import siamcam_lib as sc
from siamcam_lib import cams, explaining, perturbing
from siamcam_lib.cams import GradientCAM
from siamcam_lib.embedder import Explainable, as_explainable
from siamcam_lib.errors import ExplanationError
from siamcam_lib.explainers.corrrise import correlation
from siamcam_lib.explainers.gradcam_plus_plus import GradCAMPlusPlus
from siamcam_lib.explaining import COSTS, Explainer, Pairs
from siamcam_lib.heads import PooledSeen, TracedSeen

SIDE = 64
NAMES = sc.explainers.names()
SLOW = ("corrrise", "integrated_gradients", "occlusion", "scorecam")  # of those tested here
FEW = {  # settings that make an explainer quick, whichever has them
    "masks": 20, "steps": 4, "channels": 6, "window": 0.25, "stride": 0.25,
    "samples": 40, "segments": 8, "epochs": 1,
}  # fmt: skip


class Body(nn.Module):
    """Two convolutions called `features`: (B, 3, 64, 64) → (B, 12, 8, 8), not negative."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 12, 2, stride=2), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Headed(Body):
    """The same with a head that does not pool."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(12, 9, 3, stride=2)
        self.last = nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self.features(x)).tanh().amax(dim=(2, 3)))


def siamese(normalize: bool) -> sc.SiameseNet:
    net = sc.SiameseNet(Body(), 24, normalize=normalize, image_size=SIDE)
    with torch.no_grad():
        for layer in net.backbone.features[::2]:
            nn.init.normal_(layer.weight, std=0.2)  # so that pictures differ
        net.projection.weight.normal_()
        net.output.weight.fill_(0.7)
    return net.eval()


def resnet() -> nn.Module:
    module = torchvision.models.resnet18()
    module.fc = nn.Linear(512, 8)
    return module.eval()


@functools.cache
def network(kind: str) -> Explainable:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return {
            "unit": lambda: as_explainable(siamese(True)),
            "plain": lambda: as_explainable(siamese(False)),
            "resnet, pooled": lambda: sc.Embedder(resnet(), "layer4", image_size=SIDE),
            "resnet, not pooled": lambda: sc.Embedder(resnet(), "layer3", image_size=SIDE),
            "not pooled": lambda: sc.Embedder(
                Headed().eval(), "features", comparison="l2", image_size=SIDE
            ),
        }[kind]()


KINDS = ("unit", "plain", "resnet, pooled", "resnet, not pooled")


@functools.cache
def scenes() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=20, seed=3)


def looked(kind: str, *rows: tuple[int, int]) -> Pairs:
    """Pairs of scenes by number, in front of a network."""
    lefts, rights = ([scenes().image(i) for i in side] for side in zip(*rows, strict=True))
    return Pairs(network(kind), lefts, rights)


def quick(name: str, **options) -> Explainer:
    """The explainer with few samples, not fitted."""
    settings = inspect.signature(type(sc.explainers.get(name))).parameters
    return sc.explainers.get(name, **{k: v for k, v in FEW.items() if k in settings} | options)


@functools.cache
def ready(name: str, kind: str = "plain") -> Explainer:
    """The same, fitted on a few scenes where it must be."""
    explainer = quick(name)
    if explainer.needs:
        seeing = network(kind)
        explainer.fit(getattr(seeing, "net", seeing), scenes(), seed=0, progress=False)
    return explainer


def check_close(found: Tensor, expected: Tensor, share: float = 1e-4) -> None:
    """Equal to a share of the largest value."""
    expected = torch.as_tensor(expected)
    atol = share * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=atol)


# --- whatever is registered keeps the protocol ----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    def test_says_what_it_is(self, name):
        explainer = quick(name)
        assert explainer.name == name
        for text in (explainer.title, explainer.source, explainer.limits, type(explainer).__doc__):
            assert text.strip()
        assert explainer.cost in COSTS
        assert explainer.needs in ("", "images", "labels")
        for flag in (explainer.signed, explainer.paired, explainer.random):
            assert isinstance(flag, bool)

    @pytest.mark.parametrize("kind", KINDS)
    def test_maps_of_every_network(self, name, kind):
        explainer = ready(name, kind)
        maps = explainer(looked(kind, (0, 1), (2, 3), (1, 2)), seed=1)
        assert maps.shape[:2] == (3, 2) and maps.ndim == 4
        assert maps.dtype == torch.float32 and maps.device.type == "cpu"
        assert not maps.requires_grad and torch.isfinite(maps).all()
        assert maps.flatten(2).any(dim=2).all(), "no map of two different pictures is blank"
        if not explainer.signed:
            assert (maps >= 0).all()

    def test_partner_matters_as_declared(self, name):
        explainer = ready(name)
        one, two = explainer(looked("plain", (0, 1), (0, 2)), seed=1)[:, 0]
        moved = float((one - two).abs().max() / one.abs().max())
        said = f"paired = {explainer.paired}, but with another partner the map moves by {moved:.1g}"
        assert moved > 1e-3 if explainer.paired else moved <= 1e-6, f"{said} of its maximum"

    def test_seed_matters_as_declared(self, name):
        explainer, rows = ready(name), ((0, 1), (2, 3))
        found = explainer(looked("plain", *rows), seed=1)
        assert torch.equal(found, explainer(looked("plain", *rows), seed=1))
        same = torch.equal(found, explainer(looked("plain", *rows), seed=2))
        given = "the same map" if same else "another one"
        said = f"random = {explainer.random}, but another seed gives {given}"
        assert same is not explainer.random, said

    def test_batch_does_not_matter(self, name):
        explainer = ready(name)
        together = explainer(looked("plain", (4, 1), (0, 1), (2, 2), (0, 3)), seed=1)
        for k, row in ((1, (0, 1)), (3, (0, 3))):
            check_close(explainer(looked("plain", row), seed=1)[0], together[k])

    def test_equal_pictures(self, name):
        for kind in ("unit", "plain"):
            [(one, two)] = ready(name, kind)(looked(kind, (2, 2)), seed=1)
            check_close(one, two)

    def test_what_torch_keeps_is_left_alone(self, name):
        explainer, pairs = ready(name), looked("resnet, not pooled", (0, 1))
        module = pairs.seeing.network.train()
        before = copy.deepcopy(module.state_dict())
        drawn = torch.random.get_rng_state()
        try:
            if not explainer.needs:  # which is fitted for another network
                explainer(pairs, seed=1)
                assert all(part.training for part in module.modules())
                assert all(p.requires_grad and p.grad is None for p in module.parameters())
                assert not any(part._forward_hooks for part in module.modules())
                assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
            else:
                explainer(looked("plain", (0, 1)), seed=1)
        finally:
            module.eval()
        assert torch.equal(torch.random.get_rng_state(), drawn)
        assert torch.is_grad_enabled()

    def test_without_gradients_around(self, name):
        explainer = ready(name)
        expected = explainer(looked("plain", (0, 1)), seed=1)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                check_close(explainer(looked("plain", (0, 1)), seed=1), expected)

    def test_through_explain(self, name, capfd):
        seeing = network("plain")
        a, b = scenes().image(0), scenes().image(1).resize((50, 30))
        found = sc.explain(seeing, a, b, method=ready(name))
        assert found.method == name
        assert [m.shape for m in found.factual] == [a.size[::-1], (30, 50)]
        assert all((m >= 0).all() for m in (*found.factual, *found.counterfactual))
        assert capfd.readouterr() == ("", "")


def test_titles_are_distinct():
    titles = [sc.explainers.get(name).title for name in NAMES]
    assert len(set(titles)) == len(titles) >= 16


@pytest.mark.parametrize("name", SLOW)
def test_progress_is_shown_when_asked(name, capfd):
    explainer = quick(name)
    explainer(looked("plain", (0, 1)), progress=True)
    assert explainer.title in capfd.readouterr().err


def one_by_one(name: str) -> bool:
    """Whether each picture of a pair has draws of its own, or none, and nothing is learnt."""
    explainer = sc.explainers.get(name)
    return not explainer.needs and (not explainer.random or name in ("random", "corrrise"))


@pytest.mark.parametrize("name", list(filter(one_by_one, NAMES)))
def test_pictures_change_places_with_their_maps(name):
    maps = ready(name)(looked("unit", (0, 1), (1, 0)), seed=1)
    check_close(maps[0], maps[1].flip(0))


@pytest.mark.parametrize(
    "name, options",
    [
        ("corrrise", {"masks": 0}), ("corrrise", {"keep": 1.0}), ("corrrise", {"fill": "pink"}),
        ("corrrise", {"cells": 2.5}), ("scorecam", {"channels": True}),
        ("integrated_gradients", {"steps": -1}), ("integrated_gradients", {"baseline": "grey"}),
        ("occlusion", {"window": 0}), ("occlusion", {"window": 0.1, "stride": 0.2}),
        ("occlusion", {"stride": "1"}), ("layercam", {"score": "y"}), ("random", {"cells": 0}),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(name, options):
    with pytest.raises(ExplanationError) as told:
        sc.explainers.get(name, **options)
    assert str(list(options.values())[-1]) in str(told.value)


# --- class activation maps ------------------------------------------------------------------------


def both(pairs: Pairs) -> Tensor:
    """The numbers of the two pictures of the first pair."""
    return torch.stack([pairs.first[0], pairs.second[0]])


def torchs(kind: str, rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Feature maps of a pair and the similarity's gradient there, by autograd alone."""
    seeing, pairs = network(kind), looked(kind, rows)
    kept = []
    hook = seeing.target.register_forward_hook(lambda module, given, out: kept.append(out))
    e1, e2 = seeing.embed(pairs.pixels[both(pairs)]).double()
    hook.remove()
    [gradient] = torch.autograd.grad(seeing.similarity(e1[None], e2[None]), kept[0])
    return kept[0].detach(), gradient


@pytest.mark.parametrize("kind", [*KINDS, "not pooled"])
def test_gradient_at_every_place_is_autograds(kind):
    pairs = looked(kind, (0, 1), (0, 2), (3, 0))
    assert isinstance(pairs.seen, TracedSeen if "not" in kind else PooledSeen)
    rows, _ = pairs.one_sided
    v = torch.cat([pairs.compared.v1, pairs.compared.v2])
    found = cams.gradients(pairs.seen, rows, v)
    for k, row in enumerate(((0, 1), (0, 2), (3, 0))):
        check_close(found[[k, k + 3]], torchs(kind, row)[1])


@pytest.mark.parametrize("kind", KINDS[:3])
def test_xgradcam_behind_a_head_that_pools_is_gradcam(kind):
    pairs = looked(kind, (0, 1), (2, 3), (1, 1))
    truth = sc.explainers.get("gradcam")(pairs)
    check_close(sc.explainers.get("xgradcam")(pairs), truth, 2.4e-7)
    assert truth[:2].any() and not truth[2].any()


def test_xgradcam_by_its_formula():
    A, G = torchs("not pooled", (0, 1))
    weights = (G * A).sum(dim=(2, 3)) / A.sum(dim=(2, 3)).clamp_min(1e-12)
    truth = torch.einsum("mk,mkhw->mhw", weights, A)
    assert float(G.std(dim=(2, 3)).max()) > 0.1 * float(G.abs().max()), "places must differ"
    check_close(sc.explainers.get("xgradcam")(looked("not pooled", (0, 1)))[0], truth)


def raw(method, A: Tensor, G: Tensor) -> Tensor:
    """The map of a method of pytorch-grad-cam before it is scaled."""
    layer = nn.Conv2d(1, 1, 1)
    with method(layer, [layer]) as cam:
        found = cam.get_cam_image(None, layer, None, A.double().numpy(), G.double().numpy(), False)
    return torch.from_numpy(np.maximum(found, 0))


@pytest.mark.parametrize("kind", ["unit", "resnet, not pooled", "not pooled"])
def test_layercam_is_that_of_another_library(kind):
    A, G = torchs(kind, (0, 1))
    pairs = looked(kind, (0, 1))
    similar, dissimilar = raw(OtherLayerCAM, A, G), raw(OtherLayerCAM, A, -G)
    for score, truth in (
        ("similarity", similar), ("dissimilarity", -dissimilar), ("both", similar - dissimilar)
    ):  # fmt: skip
        check_close(sc.explainers.get("layercam", score=score)(pairs)[0], truth)


def test_layercam_equals_the_whole_of_the_other_library():
    """Hooks, targets, scaling and all, on the network itself."""
    seeing, pairs = network("unit"), looked("unit", (0, 1))
    e = pairs.seen.embedding

    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = seeing.net

        def forward(self, x: Tensor) -> Tensor:
            return seeing.embed(x)

    targets = [
        lambda own, j=j: seeing.similarity(own[None].double(), e[j : j + 1])[0] for j in (1, 0)
    ]
    with OtherLayerCAM(Embeds(), [seeing.target]) as cam:
        truth = cam(pairs.pixels[both(pairs)], targets)
    [found] = sc.explainers.get("layercam", score="similarity")(pairs)
    full = F.interpolate(found[None], size=(SIDE, SIDE), mode="bilinear")[0]
    low, high = (getattr(full, f"a{end}")(dim=(1, 2))[:, None, None] for end in ("min", "max"))
    np.testing.assert_allclose((full - low) / (high - low), truth, atol=1e-4)


def test_layercam_of_both_scores_is_gradient_times_activation():
    A, G = torchs("not pooled", (0, 1))
    check_close(sc.explainers.get("layercam")(looked("not pooled", (0, 1)))[0], (G * A).sum(dim=1))
    pairs = looked("plain", (0, 1))  # which behind a head that pools is Grad-CAM
    check_close(sc.explainers.get("layercam")(pairs), sc.explainers.get("gradcam")(pairs))


def test_gradcam_plus_plus_is_that_of_another_library():
    draw = torch.Generator().manual_seed(0)
    A = torch.rand(4, 5, 3, 6, generator=draw).double()
    G = 10 * torch.randn(A.shape, generator=draw).double()  # its constant of 1e-6 is nothing here
    check_close(GradCAMPlusPlus().one_way(A, G), raw(OtherPlusPlus, A, G), 1e-6)


def test_gradcam_plus_plus_is_its_definition():
    """Weights from the second and third derivatives of exp(S), equation 10, by autograd."""
    A = torch.rand(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    G = torch.randn(A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    flat = A.flatten()
    alpha = torch.empty_like(flat)
    for k in range(len(flat)):
        at = flat[k].clone().requires_grad_()
        y = torch.exp((torch.cat([flat[:k], at[None], flat[k + 1 :]]) * G.flatten()).sum())
        one = torch.autograd.grad(y, at, create_graph=True)[0]
        two = torch.autograd.grad(one, at, create_graph=True)[0]
        three = torch.autograd.grad(two, at)[0]
        alpha[k] = (two / (2 * two + A.flatten(1).sum(1)[k // 4] * three)).detach()
    weights = (alpha.view_as(A) * G.relu()).sum(dim=(1, 2))
    assert (G > 0).flatten(1).any(dim=1).all()
    truth = torch.einsum("k,khw->hw", weights, A).relu()
    check_close(GradCAMPlusPlus().one_way(A[None], G[None])[0], truth, 1e-12)


def test_gradcam_plus_plus_of_a_pair():
    A, G = (x.double() for x in torchs("resnet, not pooled", (0, 1)))
    truth = []
    for sign in (1, -1):
        alpha = 1 / (2 + sign * G * A.sum(dim=(2, 3), keepdim=True))
        weights = (alpha * (sign * G).relu()).sum(dim=(2, 3))
        truth.append(torch.einsum("mk,mkhw->mhw", weights, A).relu())
    pairs = looked("resnet, not pooled", (0, 1))
    check_close(sc.explainers.get("gradcam_plus_plus")(pairs)[0], truth[0] - truth[1])
    check_close(sc.explainers.get("gradcam_plus_plus", score="similarity")(pairs)[0], truth[0])


@pytest.mark.parametrize("kind", ["plain", "not pooled"])
def test_scorecam_by_a_loop(kind):
    pairs = looked(kind, (0, 1))
    e, maps = pairs.seen.embedding, pairs.seen.maps
    found = sc.explainers.get("scorecam", channels=5)(pairs)[0]
    for own, other, map_ in ((0, 1, found[0]), (1, 0, found[1])):
        spread = [float(channel.std()) for channel in maps[own]]
        chosen = sorted(range(len(spread)), key=lambda k: -spread[k])[:5]
        whole, changes = float(pairs.score(e[[own]], e[[other]])), []
        for k in chosen:
            A = maps[own, k]
            mask = (A - A.min()) / (A.max() - A.min())
            mask = F.interpolate(mask[None, None], size=(SIDE, SIDE), mode="bilinear")[0]
            darkened = pairs.embed((pairs.pixels[own] * mask)[None])
            changes.append(float(pairs.score(darkened, e[[other]])) - whole)
        assert max(changes) - min(changes) > 1e-3
        changes = np.array(changes)
        weights = [np.exp(sign * changes) / np.exp(sign * changes).sum() for sign in (1, -1)]
        truth = sum(
            (w - v) * maps[own, k].numpy() for w, v, k in zip(*weights, chosen, strict=True)
        )
        check_close(map_, torch.from_numpy(truth))


def test_scorecam_takes_all_channels_where_there_are_few():
    pairs = looked("plain", (0, 1))
    maps = [sc.explainers.get("scorecam", channels=n)(pairs) for n in (12, 64, 11)]
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])


# --- products of feature maps ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unit", "plain"])
@pytest.mark.parametrize("squared", [False, True])
def test_point_to_point_by_a_loop(kind, squared):
    pairs = looked(kind, (0, 1))
    net, A, e = pairs.seeing.net, pairs.seen.maps.numpy(), pairs.seen.embedding.numpy()
    W = net.projection.weight.detach().numpy()
    P = []
    for a, own in zip(A, e, strict=True):
        at = {p: (W @ a[:, p[0], p[1]]) * (own > 0) / 64 for p in np.ndindex(8, 8)}
        P.append({p: x / (np.linalg.norm(own) if kind == "unit" else 1) for p, x in at.items()})
    found = sc.explainers.get("point_to_point", squared=squared)(pairs)[0]
    for own, other, map_ in ((0, 1, found[0]), (1, 0, found[1])):
        truth = np.zeros((8, 8))
        for p in np.ndindex(8, 8):
            truth[p] = max(0, max(P[own][p] @ P[other][q] for q in np.ndindex(8, 8)))
        check_close(map_, torch.from_numpy(truth**2 if squared else truth))


@pytest.mark.parametrize("kind", ["unit", "not pooled"])
def test_fam_by_its_formula(kind):
    pairs = looked(kind, (0, 1))
    A = pairs.seen.maps.double().numpy()
    g = A.mean(axis=(2, 3))
    weights = g[0] * g[1] / np.linalg.norm(g[0]) / np.linalg.norm(g[1])
    cosine = float(F.cosine_similarity(*torch.from_numpy(g), dim=0))
    assert weights.sum() == pytest.approx(cosine, rel=1e-12) and 0 < cosine < 1
    truth = (weights[:, None, None] * A).sum(axis=1)
    check_close(sc.explainers.get("fam")(pairs)[0], torch.from_numpy(truth), 1e-6)


def test_fam_of_a_blank_feature_map_is_blank():
    module = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU())
    nn.init.constant_(module[0].bias, -1e3)
    net = sc.SiameseNet(module, 3, image_size=32)
    pairs = Pairs(as_explainable(net), [scenes().image(0)], [scenes().image(1)])
    assert not sc.explainers.get("fam")(pairs).any()


# --- pictures painted over ------------------------------------------------------------------------


class TestFill:
    picture = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))

    def test_black(self):
        assert not perturbing.fill(self.picture, "black").any()

    def test_mean_keeps_the_colour(self):
        filled = perturbing.fill(self.picture, "mean")
        truth = self.picture.numpy().mean(axis=(2, 3))
        np.testing.assert_allclose(filled.numpy().mean(axis=(2, 3)), truth, rtol=1e-5)
        assert float(filled.std(dim=(2, 3)).max()) < 1e-6

    def test_blur_is_scipys(self):
        filled = perturbing.fill(self.picture, "blur")[1, 2].numpy()
        truth = ndimage.gaussian_filter(
            self.picture[1, 2].double().numpy(), perturbing.BLUR * 40, mode="mirror", radius=6
        )
        np.testing.assert_allclose(filled, truth, atol=1e-6)
        assert filled.std() < 0.3 * float(self.picture[1, 2].std())

    @pytest.mark.parametrize("side", [1, 2, 5])
    @pytest.mark.parametrize("kind", perturbing.FILLS)
    def test_small_pictures(self, kind, side):
        picture = torch.rand(3, side, side)
        filled = perturbing.fill(picture, kind)
        assert filled.shape == picture.shape and torch.isfinite(filled).all()
        filled += 1  # a picture of its own
        assert float(picture.max()) <= 1

    def test_unknown(self):
        with pytest.raises(ExplanationError, match="'noise'.*mean, blur, black"):
            perturbing.fill(self.picture, "noise")


def test_cover_by_a_loop():
    draw = torch.Generator().manual_seed(0)
    pixels, filling = torch.rand(2, 5, 3, 6, 6, generator=draw)
    masks = torch.rand(5, 6, 6, generator=draw)
    found = perturbing.cover(pixels, masks, filling)
    for m, y, x in itertools.product(range(5), range(6), range(6)):
        w = float(masks[m, y, x])
        truth = w * pixels[m, :, y, x] + (1 - w) * filling[m, :, y, x]
        torch.testing.assert_close(found[m, :, y, x], truth)
    one = perturbing.cover(pixels[2], masks, filling[2])
    torch.testing.assert_close(one[2], found[2])
    assert one.shape == found.shape


def test_embed_covered_holds_few_pictures_at_a_time():
    sizes = []

    def embed(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return pixels.mean(dim=(2, 3))

    masks = torch.rand(150, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = perturbing.embed_covered(embed, picture, masks, torch.zeros(3, 8, 8))
    truth = torch.einsum("chw,mhw->mc", picture, masks) / 64
    torch.testing.assert_close(found, truth)
    assert max(sizes) <= perturbing.AT_ONCE and sum(sizes) == 150


class TestMasks:
    def draw(self, count: int, side: int = 30, cells: int = 4, keep: float = 0.5) -> Tensor:
        draw = torch.Generator().manual_seed(5)
        return perturbing.random_masks(count, side, cells=cells, keep=keep, generator=draw)

    def test_are_grids_enlarged_and_shifted(self):
        masks, draw = self.draw(6), torch.Generator().manual_seed(5)
        grids = (torch.rand(6, 5, 5, generator=draw) < 0.5).float().numpy()
        shift = torch.rand(2, 6, 1, generator=draw)[..., 0].double().numpy()
        at = (np.arange(30) + 0.5) * 4 / 30 - 0.5
        for m in range(6):
            y, x = np.meshgrid(at + shift[0, m], at + shift[1, m], indexing="ij")
            truth = ndimage.map_coordinates(grids[m], [y, x], order=1, mode="nearest")
            np.testing.assert_allclose(masks[m], truth, atol=1e-5)

    @pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
    def test_keep_what_they_should(self, keep):
        masks = self.draw(2000, keep=keep)
        assert ((masks >= 0) & (masks <= 1)).all()
        np.testing.assert_allclose(masks.mean(dim=0), keep, atol=0.06)
        assert (masks.std(dim=0) > 0.1).all()

    def test_one_generator_one_set(self):
        assert torch.equal(self.draw(5), self.draw(5))
        assert len(torch.unique(self.draw(50), dim=0)) == 50


@pytest.mark.parametrize("fill", perturbing.FILLS)
def test_occlusion_by_a_loop(fill):
    pairs = looked("plain", (0, 1))
    e, side, window, stride = pairs.seen.embedding, SIDE, 13, 8
    found = sc.explainers.get("occlusion", window=13 / 64, stride=1 / 8, fill=fill)(pairs)[0]
    starts = list(range(0, side - window + stride, stride))  # the last may reach over the border
    for own, other, map_ in ((0, 1, found[0]), (1, 0, found[1])):
        whole = float(pairs.score(e[[own]], e[[other]]))
        filling = perturbing.fill(pairs.pixels[own], fill)
        total, times = np.zeros((side, side)), np.zeros((side, side))
        for y, x in itertools.product(starts, starts):
            changed = pairs.pixels[own].clone()
            place = (slice(y, y + window), slice(x, x + window))
            changed[:, *place] = filling[:, *place]
            loss = whole - float(pairs.score(pairs.embed(changed[None]), e[[other]]))
            total[place] += loss
            times[place] += 1
        assert times.min() >= 1
        check_close(map_, torch.from_numpy(total / times), 1e-3)


def test_a_partner_is_never_embedded_again(monkeypatch):
    pairs = looked("plain", (0, 1))
    pairs.seen, pairs.compared  # noqa: B018 - look before counting
    first = pairs.pixels[0]
    seen = []
    monkeypatch.setattr(
        pairs, "embed", lambda pixels: seen.append(pixels.clone()) or Pairs.embed(pairs, pixels)
    )
    sc.explainers.get("corrrise", masks=10)(pairs)
    sc.explainers.get("occlusion", window=0.5, stride=0.5)(pairs)
    assert sum(map(len, seen)) == 2 * 10 + 2 * (4 + 1)  # captum looks at the whole picture too
    whole = sum(bool(torch.equal(p, first)) for part in seen for p in part)
    assert whole <= 1


@pytest.mark.parametrize("kind", ["plain", "unit"])
def test_corrrise_is_numpys_correlation(kind):
    pairs = looked(kind, (0, 1))
    found = sc.explainers.get("corrrise", masks=40, cells=5, keep=0.6, fill="mean")(pairs, seed=9)
    e = pairs.seen.embedding
    for own, seed, map_ in zip((0, 1), pairs.seeds(9), found[0], strict=True):
        masks = perturbing.random_masks(
            40, SIDE, cells=5, keep=0.6, generator=torch.Generator().manual_seed(seed)
        )
        filling = perturbing.fill(pairs.pixels[own], "mean")
        scores = [
            float(
                pairs.score(
                    pairs.embed((m * pairs.pixels[own] + (1 - m) * filling)[None]), e[[1 - own]]
                )
            )
            for m in masks
        ]
        for y, x in ((0, 0), (5, 60), (33, 31), (63, 63)):
            truth = np.corrcoef(masks[:, y, x].double(), scores)[0, 1]
            assert float(map_[y, x]) == pytest.approx(truth, abs=2e-4)
        assert map_.min() < -0.1 and map_.max() > 0.1


class TestCorrelation:
    masks = torch.rand(50, 3, 4, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_scale_does_not_matter(self, scale):
        scores = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found = correlation(self.masks, scores * scale)
        for y, x in np.ndindex(3, 4):
            truth = np.corrcoef(self.masks[:, y, x], scores)[0, 1]
            assert float(found[y, x]) == pytest.approx(truth, abs=1e-6)

    def test_what_is_constant_correlates_with_nothing(self):
        constant = torch.full((50,), 0.7, dtype=torch.float64)
        assert not correlation(self.masks, constant).any()
        assert not correlation(self.masks, constant + 1e-9 * self.masks[:, 0, 0]).any()
        still = self.masks.clone()
        still[:, 1, 1] = 0.25
        found = correlation(still, torch.rand(50, dtype=torch.float64))
        assert float(found[1, 1]) == 0 and (found != 0).sum() == 11

    def test_perfect(self):
        found = correlation(self.masks, self.masks[:, 2, 3].double())
        assert float(found[2, 3]) == pytest.approx(1, abs=1e-6) and (found <= 1).all()
        assert float(correlation(self.masks, -self.masks[:, 2, 3])[2, 3]) == pytest.approx(-1)


# --- integrated gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", perturbing.FILLS)
@pytest.mark.parametrize("kind", ["unit", "plain", "not pooled"])
def test_integrated_gradients_are_complete(kind, baseline):
    pairs = looked(kind, (0, 1), (2, 0), (3, 1), (4, 2))
    maps = sc.explainers.get("integrated_gradients", steps=256, baseline=baseline)(pairs).double()
    blank = pairs.embed(perturbing.fill(pairs.pixels, baseline))
    gained = pairs.similarity - pairs.score(blank[pairs.first], blank[pairs.second])
    found, size = maps.sum(dim=(1, 2, 3)), maps.abs().sum(dim=(1, 2, 3))
    assert (gained.abs() > 0.01 * size).any(), "there must be something to add up"
    assert ((found - gained).abs() <= 5e-4 * size).all()


def test_integrated_gradients_of_a_linear_score():
    """Where the score is linear in the pixels, the gradient times the way is exact in one step."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 2, 4, stride=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x).mean(dim=(2, 3))

    def comparison(e1: Tensor, e2: Tensor) -> Tensor:
        return 0.5 + 0.05 * (e1[:, 0] - 2 * e2[:, 1])

    torch.manual_seed(0)
    seeing = sc.Embedder(
        Linear(), "features", comparison=comparison, image_size=16, mean=(0, 0, 0), std=(1, 1, 1)
    )
    pairs = Pairs(seeing, [scenes().image(0)], [scenes().image(1)])
    [(one, two)] = sc.explainers.get("integrated_gradients", steps=1)(pairs)
    weight = seeing.module.features.weight.detach().double()
    for map_, channel, factor, pixels in ((one, 0, -0.05, 0), (two, 1, 0.1, 1)):
        slope = weight[channel].repeat(1, 4, 4) * factor / 16
        check_close(map_, (slope * pairs.pixels[pixels].double()).sum(dim=0))


def test_integrated_gradients_of_equal_pictures_are_blank():
    maps = quick("integrated_gradients")(looked("plain", (1, 1), (1, 2)))
    assert not maps[0].any() and maps[1].any()


# --- controls -------------------------------------------------------------------------------------


def test_random_maps_are_normal_and_independent():
    pairs = looked("plain", (0, 1), (2, 3))
    draws = torch.stack([sc.explainers.get("random", cells=5)(pairs, seed=s) for s in range(300)])
    assert draws.shape == (300, 2, 2, 5, 5)
    assert abs(float(draws.mean())) < 0.03 and float(draws.std()) == pytest.approx(1, abs=0.03)
    table = np.corrcoef(draws.flatten(1).T.numpy())
    assert np.abs(table - np.eye(100)).max() < 0.3


def test_edges_lie_where_the_brightness_changes():
    half = np.zeros((SIDE, SIDE, 3), np.uint8)
    half[:, SIDE // 2 :] = 200
    grey = np.full((SIDE, SIDE, 3), 90, np.uint8)
    pairs = Pairs(network("plain"), [Image.fromarray(half)], [Image.fromarray(grey)])
    [(edge, none)] = sc.explainers.get("edges")(pairs)
    assert float(none.max()) < 1e-6
    across = edge[10]
    assert set(torch.nonzero(across > 0.5 * across.max()).flatten().tolist()) == {31, 32}
    assert not across[:30].any() and not across[34:].any()


# --- planted truth --------------------------------------------------------------------------------


class Corner(nn.Module):
    """A network that looks at the colour of the upper left sixteenth of the picture only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.zeros(1, 1, SIDE, SIDE))
        self.window[..., : SIDE // 4, : SIDE // 4] = 1
        self.features = nn.Identity()
        self.scale = nn.Parameter(torch.tensor(16.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(F.avg_pool2d(x * self.window, 8))
        return (self.scale * x.mean(dim=(2, 3))).tanh()


def painted(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """Noise, with one colour in the corner."""
    values = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    values[: SIDE // 4, : SIDE // 4] = colour
    return Image.fromarray(values)


NOTHING_OF_THE_NETWORK = {"edges": "the picture alone", "random": "nothing at all"}
ELSEWHERE = NOTHING_OF_THE_NETWORK | {  # what need not lie on what alone decides, and why
    "explainlfs": "its decoder paints the noise around it too",
    "utkin": "its decoder paints the noise around it too",
    "lime": "its pieces of noise are larger than that",
    "kernel_shap": "its pieces of noise are larger than that",
    "centred": "it takes off what a picture shares with all others, here much of it",
    "two_scale": "it looks at twice the size too, which this network does not take",
}
NO_SIGN = NOTHING_OF_THE_NETWORK | {  # what need not be lower where two pictures differ, and why
    "self": "it does not know the partner",
    "tummala": "both pictures' own maps",
    "explainlfs": "how much changes, not which way",
    "utkin": "how much changes, not which way",
    "two_scale": "see above",
}
LEAST = {"corrrise": 0.5, "occlusion": 0.7, "integrated_gradients": 0.999}
"""Share of a map's power on what alone decides, for most 0.99: what hides blurs its border."""
SHARP = {"corrrise": {"masks": 400}, "occlusion": {"window": 1 / 8, "stride": 1 / 16}}


@functools.cache
def corner() -> Explainable:
    return sc.Embedder(
        Corner(), "features", comparison="l2", image_size=SIDE, mean=(0, 0, 0), std=(1, 1, 1)
    )


@functools.cache
def ready_for_corner(name: str) -> Explainer:
    explainer = sc.explainers.get(name, **SHARP.get(name, {}))
    return explainer.fit(corner(), scenes(), progress=False) if explainer.needs else explainer


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_what_alone_decides_is_found(name):
    """An explainer is held to it unless `ELSEWHERE` says why it cannot be."""
    red, blue = painted((230, 60, 30), 0), painted((40, 90, 210), 1)
    pairs = Pairs(corner(), [red, red], [blue, painted((200, 90, 60), 2)])
    maps, least = ready_for_corner(name)(pairs, seed=0), LEAST.get(name, 0.99)
    power = F.interpolate(maps, size=(SIDE, SIDE), mode="nearest").square()
    inside = power[..., : SIDE // 4, : SIDE // 4].sum(dim=(2, 3)) / power.sum(dim=(2, 3))
    assert (inside >= least).all(), inside
    place = power.flatten(2).argmax(dim=2)
    assert (place // SIDE < SIDE // 4).all() and (place % SIDE < SIDE // 4).all()


def first_only(e1: Tensor, e2: Tensor) -> Tensor:
    """A comparison that is not symmetric: it does not look at the second picture."""
    return e1.sum(dim=1).sigmoid() + 0 * e2.sum(dim=1)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if sc.explainers.get(n).cost in ("gradients", "perturbations")]
)
def test_a_picture_keeps_its_place_in_the_comparison(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        seeing = sc.Embedder(Headed().eval(), "features", comparison=first_only, image_size=SIDE)
    maps = ready(name)(Pairs(seeing, [scenes().image(0)], [scenes().image(1)]), seed=0)
    seen, ignored = maps.abs().flatten(2).sum(dim=2)[0]
    assert seen > 0
    assert ignored <= 0.02 * seen


def test_a_closed_form_that_nobody_knows_is_refused_not_guessed():
    class Mine(explaining.ClosedForm):
        name, title, source, limits = "mine", "Mine", "nobody", "none"

    with pytest.raises(ExplanationError, match="'mine'.*known are shared, self.*overrides"):
        Mine()(looked("plain", (0, 1)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", r"holds 0 subclasses of Explainer \(none\); it needs exactly one"),
     ("class Base(Explainer): ...\nclass Own(Base): ...", r"holds 2 subclasses .*Base, Own"),
     ("class Own(Explainer): ...", "Own of explainers/mine.py does not say its 'title'")],
)  # fmt: skip
def test_a_file_that_is_no_explainer_says_what_it_lacks(text, message, monkeypatch, tmp_path):
    source = f"from siamcam_lib.explaining import Explainer\n{text}\n"
    (tmp_path / "mine.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(sc.explainers, "__path__", [*sc.explainers.__path__, str(tmp_path)])
    try:
        with pytest.raises(ExplanationError, match=message):
            sc.explainers.get("mine")
    finally:
        sys.modules.pop("siamcam_lib.explainers.mine", None)


ALIKE, UNLIKE = (
    [(230, 60, 30), (225, 64, 30)],
    [(230, 60, 30), (0, 0, 0)],
)
NOT_BELOW_0 = {  # what says 0 where two pictures differ: their maps have no other side
    "cosine", "fam", "point_to_point", "shared",
}  # fmt: skip


def in_the_corner(name: str, colours: list[tuple[int, int, int]]) -> Tensor:
    """The first map of two pictures that have these colours where alone the network looks."""
    pairs = Pairs(corner(), *([painted(colour, k)] for k, colour in enumerate(colours)))
    maps = F.interpolate(ready_for_corner(name)(pairs, seed=0), size=(SIDE, SIDE), mode="nearest")
    return maps[0, 0, 2 : SIDE // 4 - 2, 2 : SIDE // 4 - 2]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_SIGN])
def test_what_sets_a_pair_apart_is_lower_than_what_brings_it_nearer(name):
    """One corner decides. An explainer is held to it unless `NO_SIGN` says why it cannot be."""
    alike, unlike = in_the_corner(name, ALIKE), in_the_corner(name, UNLIKE)
    assert alike.mean() > unlike.mean()
    if name == "lime":  # its ridge shrinks what a piece is worth
        assert abs(unlike.mean()) < 0.1 * alike.mean()
    elif name in NOT_BELOW_0:
        assert (unlike == 0).all()
    else:
        assert sc.explainers.get(name).signed
        assert (unlike < 0).all()


def test_to_hide_what_brings_a_pair_nearer_makes_it_less_alike():
    explainer = sc.explainers.get("occlusion", fill="black")
    for colours, sign in ((ALIKE, 1), (UNLIKE, -1)):
        pairs = Pairs(corner(), *([painted(colour, k)] for k, colour in enumerate(colours)))
        assert (sign * explainer(pairs)[0, 0, 2 : SIDE // 4 - 2, 2 : SIDE // 4 - 2] > 0).all()
    assert (in_the_corner("corrrise", ALIKE) > 0).all()


def test_evidence_for_one_score_that_is_below_0_is_refused():
    class Own(GradientCAM):
        name, title, source, limits = "own", "Own", "nobody", "none"

        def one_way(self, maps, gradient):
            return (maps * gradient).sum(dim=1)

    own = Own()
    with pytest.raises(ExplanationError, match="one_way gave values below 0.* end with a ReLU"):
        own(looked("plain", (0, 1)))
