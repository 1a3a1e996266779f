"""`Embedder`: any module through one layer, equal to three other libraries, and left as it was."""

from __future__ import annotations

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import siamcam_lib as sc
from siamcam_lib import embedder as parts
from siamcam_lib.embedder import SiameseComparison, SiameseEmbedder, compare_by_gradient
from siamcam_lib.errors import ExplanationError, ImageError
from siamcam_lib.explaining import CLOSED_FORMS
from siamcam_lib.heads import PooledSeen, TracedSeen

K, E, SIDE = 6, 8, 40


def picture(seed: int, height: int = 37, width: int = 52) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


PAIR = [picture(1), picture(2, 60, 33)]


class Body(nn.Module):
    """A convolution called `features`, any head after it, and what the head is made of."""

    def __init__(self, head, seed: int = 0, out: int = E, **extra: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, 5, 3, stride=2)
            self.features = nn.Conv2d(5, K, 3, stride=3)
            self.fc = nn.Linear(K, out)
            nn.init.normal_(self.fc.weight)
            nn.init.normal_(self.fc.bias, std=0.3)
            for name, module in extra.items():
                self.add_module(name, module)
                for p in module.parameters():
                    nn.init.normal_(p)
                for buffer in module.buffers():
                    if buffer.is_floating_point():  # running statistics as after training
                        buffer.uniform_(0.5, 2.0)
        self.head = head
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.features(self.stem(x).relu()))


class GeM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = 3.0

    def forward(self, A: Tensor) -> Tensor:
        return A.clamp_min(1e-6).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)


class AttentionPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, K))
        self.attend = nn.MultiheadAttention(K, 2, batch_first=True)

    def forward(self, A: Tensor) -> Tensor:
        tokens = A.flatten(2).transpose(1, 2)  # (n, Z, K)
        return self.attend(self.query.expand(len(tokens), -1, -1), tokens, tokens)[0][:, 0]


def mean(A: Tensor) -> Tensor:
    return A.mean(dim=(2, 3))


POOLED = {
    "average": lambda: Body(lambda m, A: mean(A)),
    "average, module": lambda: Body(
        lambda m, A: m.pool(A).flatten(1), pool=nn.AdaptiveAvgPool2d(1)
    ),
    "average, linear": lambda: Body(lambda m, A: m.fc(mean(A))),
    "average, linear, ReLU": lambda: Body(lambda m, A: m.act(m.fc(mean(A))), act=nn.ReLU()),
    "average, linear, functional ReLU": lambda: Body(lambda m, A: torch.relu(m.fc(mean(A)))),
    "linear everywhere, average": lambda: Body(
        lambda m, A: m.fc(A.permute(0, 2, 3, 1)).mean(dim=(1, 2))
    ),
    "dropout, linear": lambda: Body(lambda m, A: m.fc(m.drop(mean(A))), drop=nn.Dropout(0.5)),
}
OTHERS = {
    "max pooling": lambda: Body(lambda m, A: m.fc(A.amax(dim=(2, 3)))),
    "max pooling, module": lambda: Body(
        lambda m, A: m.fc(m.pool(A).flatten(1)), pool=nn.AdaptiveMaxPool2d(1)
    ),
    "GeM pooling": lambda: Body(lambda m, A: m.fc(m.pool(A)), pool=GeM()),
    "attention pooling": lambda: Body(lambda m, A: m.fc(m.pool(A)), pool=AttentionPool()),
    "batch normalisation": lambda: Body(lambda m, A: m.norm(m.fc(mean(A))), norm=nn.BatchNorm1d(E)),
    "batch normalisation of the map": lambda: Body(
        lambda m, A: m.fc(mean(m.norm(A).relu())), norm=nn.BatchNorm2d(K)
    ),
    "unit length": lambda: Body(lambda m, A: F.normalize(m.fc(mean(A)), dim=-1)),
    "ReLU in place": lambda: Body(lambda m, A: m.fc(mean(F.relu(A, inplace=True)))),
    "convolution": lambda: Body(lambda m, A: m.fc(mean(m.conv(A).tanh())), conv=nn.Conv2d(K, K, 3)),
}
HEADS = POOLED | OTHERS
CALLABLES = {
    "cosine": "cosine",
    "l2": "l2",
    "clamped": "clamped",
    "custom": lambda e1, e2: 1 - torch.exp(-((e1 - e2) ** 2).mean(dim=-1)),
}


def distances(e1: Tensor, e2: Tensor, comparison: str) -> Tensor:
    """The named comparisons, written a second time."""
    d = ((e1 - e2) ** 2).sum(dim=-1).sqrt()
    if comparison == "l2":
        return d / (1 + d)
    if comparison == "clamped":
        return torch.minimum(d, torch.ones_like(d))
    lengths = (e1**2).sum(dim=-1).sqrt() * (e2**2).sum(dim=-1).sqrt()
    return 0.5 - 0.5 * (e1 * e2).sum(dim=-1) / lengths


class PairScore(nn.Module):
    """A batch of 2B images → (B, 1) dissimilarity: the form in which the libraries take a pair."""

    def __init__(self, module: nn.Module, comparison) -> None:
        super().__init__()
        self.module = module
        named = functools.partial(distances, comparison=comparison)
        self.compare = comparison if callable(comparison) else named

    def forward(self, batch: Tensor) -> Tensor:
        return self.compare(*self.module(batch).chunk(2)).unsqueeze(-1)


def batch_of(seeing: sc.Embedder, images: list[Image.Image]) -> Tensor:
    """What goes into the module, by the stated recipe: resized, to [0, 1], normalised."""
    side = seeing.image_size
    arrays = [np.asarray(x.resize((side, side), Image.Resampling.BICUBIC)) for x in images]
    x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor(
        (0.229, 0.224, 0.225)
    ).view(3, 1, 1)
    return x.to(next(seeing.module.parameters()))


def near_enough(module: nn.Module) -> nn.Module:
    """Weights so small that the distance stays below 1, where `clamped` has a gradient."""
    with torch.no_grad():
        module.fc.weight.mul_(0.02)
        module.fc.bias.mul_(0.02)
    return module


def ours(module: nn.Module, comparison, images=None) -> Tensor:
    """Raw maps of the similarity of a pair, (2, h, w) float64, as `sc.explain` makes them."""
    seeing = sc.Embedder(module, "features", comparison=comparison, image_size=SIDE)
    seen = seeing.see(PAIR if images is None else images)
    first, second = torch.arange(len(seen.maps)).chunk(2)
    compared = seeing.compare(seen.embedding[first], seen.embedding[second])
    return torch.cat([seen.along(first, compared.v1), seen.along(second, compared.v2)])


# --- equal to other libraries ---------------------------------------------------------------------


@pytest.fixture(params=CALLABLES)
def comparison(request):
    return CALLABLES[request.param]


@pytest.fixture(params=HEADS)
def module(request):
    module = HEADS[request.param]().double()
    if request.param == "ReLU in place":
        # Two of the libraries read the map after the ReLU has overwritten it; ours does not. They
        # get the same module with a ReLU of its own memory.
        module.apart = Body(lambda m, A: m.fc(mean(F.relu(A)))).double()
        near_enough(module.apart)
    # unit length and the bare average cannot be brought near by small weights, and need not
    return module if request.param in ("unit length", "average") else near_enough(module)


class TestAgainstOtherLibraries:
    def score(self, module, comparison) -> tuple[PairScore, Tensor, Tensor]:
        seeing = sc.Embedder(module, "features", image_size=SIDE)
        batch = batch_of(seeing, PAIR)
        raw = ours(module, comparison)
        assert raw.dtype == torch.float64
        if comparison != "clamped":
            assert (raw != 0).flatten(1).any(dim=1).all()
        module = getattr(module, "apart", module)
        return PairScore(module, comparison), batch, raw

    def test_captum(self, module, comparison):
        captum = pytest.importorskip("captum.attr")
        score, batch, raw = self.score(module, comparison)
        found = captum.LayerGradCam(score, score.module.features).attribute(batch, target=0)
        check_close(-raw, found[:, 0].detach())

    def test_torchcam(self, module, comparison):
        methods = pytest.importorskip("torchcam.methods")
        score, batch, raw = self.score(module, comparison)
        with methods.GradCAM(score, score.module.features) as extractor:
            (found,) = extractor(0, score(batch), normalized=False)
        check_close((-raw).relu(), found)

    def test_pytorch_grad_cam(self, module, comparison):
        pytest.importorskip("pytorch_grad_cam")
        from pytorch_grad_cam import GradCAM

        score, batch, raw = self.score(module, comparison)
        with GradCAM(score, [score.module.features]) as cam:
            cam(batch, [lambda output: output.sum()])
            kept = cam.activations_and_grads
            found = cam.get_cam_image(
                batch, score.module.features, None,
                kept.activations[0].detach().numpy(), kept.gradients[0].detach().numpy(),
            )  # fmt: skip
        check_close(-raw, torch.from_numpy(found))


def check_close(found: Tensor, truth: Tensor, tolerance: float = 1e-10) -> None:
    scale = max(float(truth.abs().max()), 1e-30)
    assert found.shape == truth.shape
    assert float((found - truth).abs().max()) <= tolerance * scale


def test_clamped_really_was_compared_on_both_sides_of_the_clamp():
    assert (ours(near_enough(HEADS["average, linear"]()), "clamped") != 0).any()
    with torch.no_grad():
        far = HEADS["average, linear"]()
        far.fc.weight.mul_(10)
    assert (ours(far, "clamped") == 0).all()  # as the docstring says: blank from 1 on


@pytest.mark.parametrize("name", HEADS)
def test_explain_stretches_these_maps(name):
    """`sc.explain` on the module is the same, in float32, and both pictures keep their size."""
    module = HEADS[name]()
    ex = sc.explain(module, *PAIR, layer="features", image_size=SIDE)
    raw = ours(module, "cosine").float()
    for i in (0, 1):
        np.testing.assert_allclose(ex.raw[i], raw[i], rtol=0, atol=2e-7 * np.abs(ex.raw[i]).max())
    assert [m.shape for m in ex.factual] == [(37, 52), (60, 33)]
    assert ex.threshold == 0.5 and 0 <= ex.dissimilarity <= 1


@pytest.mark.parametrize("name", HEADS)
def test_float32_is_float64_but_for_rounding(name):
    module = HEADS[name]()
    check_close(ours(module, "cosine"), ours(copy.deepcopy(module).double(), "cosine"), 1e-5)


def test_a_pretrained_backbone_by_name():
    """The book's own backbone as an ordinary module: what `SiameseNet` says, and captum."""
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)  # of the projection
    net = sc.SiameseNet(image_size=64).double().eval()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.projection = net.backbone, net.projection

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.projection(self.backbone(x).mean(dim=(2, 3))))

    def judged(e1: Tensor, e2: Tensor) -> Tensor:
        return torch.sigmoid(net.distance(F.normalize(e1, dim=-1), F.normalize(e2, dim=-1)))

    plain = Plain().eval()
    options = {"comparison": judged, "image_size": 64}
    options |= {"mean": net.mean.flatten().tolist(), "std": net.std.flatten().tolist()}
    seeing = sc.Embedder(plain, "backbone", **options)
    assert isinstance(seeing.see(PAIR), PooledSeen)
    by_module, by_net = sc.explain(seeing, *PAIR), sc.explain(net, *PAIR)
    assert by_module.dissimilarity == pytest.approx(by_net.dissimilarity, rel=1e-6)
    batch = (net.to_tensor(PAIR) - net.mean) / net.std
    found = captum.LayerGradCam(PairScore(plain, judged), plain.backbone).attribute(batch, target=0)
    for i in (0, 1):
        scale = np.abs(by_net.raw[i]).max()
        np.testing.assert_allclose(by_module.raw[i], by_net.raw[i], rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(by_net.raw[i], -found[i, 0].detach(), rtol=0, atol=1e-6 * scale)


def test_a_residual_network_by_the_name_of_its_layer():
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.resnet18().eval()
    with torch.no_grad():  # as after training: statistics of a normal size
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(std=0.1), m.running_var.uniform_(0.5, 1.5)
    seeing = sc.Embedder(module, "layer4", image_size=64)
    assert isinstance(seeing.see(PAIR), PooledSeen)
    inner = sc.explain(module, *PAIR, layer="layer3.1.conv2", image_size=64)
    assert inner.raw[0].shape == (4, 4)
    double = copy.deepcopy(module).double()
    batch = batch_of(sc.Embedder(double, "layer4", image_size=64), PAIR)
    kept = []
    hook = double.layer3[1].conv2.register_forward_hook(lambda m, given, out: kept.append(out))
    y = PairScore(double, "cosine")(batch)
    hook.remove()
    (gradient,) = torch.autograd.grad(1 - y.sum(), kept[0])
    truth = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1)
    for raw, expected in zip(inner.raw, truth, strict=True):
        np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


# --- the closed form, and when it is taken --------------------------------------------------------


class TestClosedForm:
    @pytest.mark.parametrize("name", POOLED)
    def test_is_taken_where_the_head_pools(self, name):
        seeing = sc.Embedder(POOLED[name](), "features", image_size=SIDE)
        assert isinstance(seeing.see(PAIR), PooledSeen)

    @pytest.mark.parametrize("name", OTHERS)
    def test_is_not_taken_elsewhere(self, name):
        seeing = sc.Embedder(OTHERS[name](), "features", image_size=SIDE)
        assert isinstance(seeing.see(PAIR), TracedSeen)

    @pytest.mark.parametrize("name", HEADS)
    def test_embedding_is_the_modules_own(self, name):
        module = HEADS[name]()
        seeing = sc.Embedder(module, "features", image_size=SIDE)
        with torch.no_grad():
            expected = module(batch_of(seeing, PAIR))
        found = seeing.see(PAIR).embedding.float()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    BETRAYED_LATE = {
        "functional ReLU, all units on": (lambda m, A: torch.relu(m.fc(mean(A))), {}),
        "ReLU module, all units on": (lambda m, A: m.act(m.fc(mean(A))), {"act": nn.ReLU()}),
        "maximum of a flat map": (lambda m, A: A.amax(dim=(2, 3)), {}),
        "adaptive maximum of a flat map": (
            lambda m, A: F.adaptive_max_pool2d(A, 1).flatten(1), {}
        ),
    }  # fmt: skip

    @pytest.mark.parametrize("name", BETRAYED_LATE)
    def test_is_not_believed_for_other_images(self, name):
        """A grey picture cannot tell a ReLU from none, nor a maximum from a mean; others can."""
        head, extra = self.BETRAYED_LATE[name]
        module, calm = Body(head, **extra), [Image.new("RGB", (30, 30), "grey")] * 2
        seeing = sc.Embedder(module, "features", image_size=SIDE)
        with torch.no_grad():
            module.stem.weight.mul_(8)
            A = module.features(module.stem(batch_of(seeing, calm)).relu())
            module.fc.bias.copy_(0.1 - module.fc.weight @ mean(A)[0])  # all units on, just so
            expected = module(batch_of(seeing, PAIR))
        seeing.see(calm)
        found = seeing.see(PAIR)
        torch.testing.assert_close(found.embedding.float(), expected, rtol=1e-3, atol=1e-3)
        fresh = sc.Embedder(module, "features", image_size=SIDE).see(PAIR)
        every, v = torch.arange(2), torch.ones_like(found.embedding)
        check_close(found.along(every, v), fresh.along(every, v), 1e-3)

    def test_a_layer_put_in_later_is_seen(self):
        module = POOLED["average, linear"]()
        seeing = sc.Embedder(module, "features", image_size=SIDE)
        seeing.see(PAIR)
        module.fc = POOLED["average, linear"]().fc
        nn.init.normal_(module.fc.weight, std=3)
        with torch.no_grad():
            expected = module(batch_of(seeing, PAIR))
        found = seeing.see(PAIR).embedding
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)

    def test_weights_trained_in_place_are_seen(self):
        module = POOLED["average, linear"]()
        seeing = sc.Embedder(module, "features", image_size=SIDE)
        before = seeing.see(PAIR).embedding
        with torch.no_grad():
            module.fc.weight.mul_(2)
            expected = module(batch_of(seeing, PAIR))
        found = seeing.see(PAIR).embedding
        assert not torch.equal(found, before)
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["tanh", "batch normalisation, as made"])
    def test_a_nearly_linear_head_is_not_taken_for_a_linear_one(self, name):
        heads = {
            "tanh": lambda m, A: torch.tanh(m.fc(mean(A))),
            # a factor of 1/√(1 + 1e-3)
            "batch normalisation, as made": lambda m, A: F.batch_norm(
                m.fc(mean(A)), torch.zeros(E).to(A), torch.ones(E).to(A), eps=1e-3
            ),
        }
        module = Body(heads[name])
        with torch.no_grad():
            module.fc.weight.mul_(3e-3), module.fc.bias.mul_(3e-3)
        module.double()
        raw = ours(module, "l2")
        seeing = sc.Embedder(module, "features", image_size=SIDE)
        kept = []
        hook = module.features.register_forward_hook(lambda m, given, out: kept.append(out))
        y = PairScore(module, "l2")(batch_of(seeing, PAIR))
        hook.remove()
        (gradient,) = torch.autograd.grad(-y.sum(), kept[0])
        truth = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1)
        check_close(raw, truth, 1e-6)

    @pytest.mark.parametrize("units", [4, 7, 10])
    def test_a_unit_just_below_its_switch_is_off(self, units):
        """Its value is hardly wrong without the ReLU, its gradient is: no unit may go untried."""
        module = Body(lambda m, A: torch.relu(m.fc(mean(A))), out=units).double()
        off = (units - 1) // 3
        seeing = sc.Embedder(module, "features", image_size=SIDE)
        with torch.no_grad():
            module.fc.bias.add_(20)  # all other units are on
            g = mean(module.features(module.stem(batch_of(seeing, PAIR)).relu()))
            module.fc.bias[off] = -(g @ module.fc.weight[off]).max() - 1e-6
            assert (module(batch_of(seeing, PAIR)) == 0).sum() == 2
        nearest = PAIR[int((g @ module.fc.weight[off]).argmax())]  # 1e-6 below, of about 20
        v = nn.functional.one_hot(torch.tensor([off]), units).double()
        assert (seeing.see([nearest]).along(torch.arange(1), v) == 0).all()

    def test_a_linear_layer_that_is_not_the_last_word(self):
        """Linear runs, its output is changed by plain arithmetic: no closed form."""
        module = Body(lambda m, A: m.fc(mean(A)) ** 2)
        assert isinstance(sc.Embedder(module, "features", image_size=SIDE).see(PAIR), TracedSeen)

    def test_a_linear_layer_on_the_flattened_map(self):
        module = Body(lambda m, A: m.flat(A.flatten(1)), flat=nn.Linear(K * 36, E))
        assert isinstance(sc.Embedder(module, "features", image_size=SIDE).see(PAIR), TracedSeen)

    def test_modules_beside_the_head_do_not_matter(self):
        """A classifier that runs after the embedding was made is no part of the embedding."""
        module = Body(lambda m, A: (m.aux(mean(A)), m.fc(mean(A)))[1], aux=nn.Linear(K, 3))
        found = ours(module, "cosine")
        plain = Body(lambda m, A: m.fc(mean(A)))
        plain.load_state_dict({k: v for k, v in module.state_dict().items() if "aux" not in k})
        check_close(found, ours(plain, "cosine"), 1e-5)


# --- the backbone ---------------------------------------------------------------------------------


class _Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise AssertionError("the backbone was differentiated")


class Undifferentiated(nn.Conv2d):
    """A convolution whose output must never be asked for a gradient of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return _Refuses.apply(super().forward(x))


def guarded(head, **extra: nn.Module) -> Body:
    module = Body(head, **extra)
    stem = Undifferentiated(3, 5, 3, stride=2)
    stem.load_state_dict(module.stem.state_dict())
    module.stem = stem
    return module.eval()


class TestBackbone:
    @pytest.mark.parametrize("name", ["average, linear, ReLU", "GeM pooling", "unit length"])
    def test_is_never_differentiated(self, name):
        plain = HEADS[name]()
        extra = {k: m for k, m in plain.named_children() if k in ("act", "pool")}
        module = guarded(plain.head, **extra)
        module.load_state_dict(plain.state_dict())
        y = PairScore(module, "cosine")(torch.rand(2, 3, SIDE, SIDE))
        with pytest.raises(AssertionError, match="differentiated"):  # the guard works
            y.sum().backward()
        module.zero_grad()
        for method in CLOSED_FORMS:
            sc.explain(module, *PAIR, layer="features", image_size=SIDE, method=method)
        gal = sc.Gallery.embed(module, PAIR, layer="features", image_size=SIDE, progress=False)
        gal.explain(0, 1)

    @pytest.mark.parametrize("name", ["average, linear", "max pooling"])
    def test_builds_no_graph(self, name):
        module, kept = HEADS[name](), []
        module.stem.register_forward_hook(lambda m, given, out: kept.append(out.requires_grad))
        sc.explain(module, *PAIR, layer="features", image_size=SIDE)
        assert kept == [False]

    @pytest.mark.parametrize("name", HEADS)
    def test_sees_each_image_once(self, name):
        module, sizes = HEADS[name](), []
        module.stem.register_forward_hook(lambda m, given, out: sizes.append(len(out)))
        images, options = [picture(k) for k in range(3)], {"image_size": SIDE, "comparison": "l2"}
        sc.explain(module, images, [PAIR[0]] * 3, layer="features", **options)
        assert sizes == [3]  # picture(1) is PAIR[0]: six places, three pictures

    def test_of_many_pairs_sees_each_image_once(self):
        """More pairs than go through together: other pieces, no image twice, nothing else said."""
        module, sizes = HEADS["GeM pooling"](), []
        module.stem.register_forward_hook(lambda m, given, out: sizes.append(len(out)))
        lefts, rights = ([picture(100 * s + k, 9, 9) for k in range(18)] for s in (1, 2))
        found = sc.explain(module, lefts, rights, layer="features", image_size=SIDE)
        assert len(found) == 18 and sum(sizes) == 36
        for k in (0, 15, 16, 17):
            alone = sc.explain(module, lefts[k], rights[k], layer="features", image_size=SIDE)
            for i in (0, 1):
                check_close(torch.tensor(found[k].raw[i]), torch.tensor(alone.raw[i]), 1e-4)


# --- the module is left as it was -----------------------------------------------------------------


def state(module: nn.Module) -> list:
    """All that a look could leave behind."""
    return [
        [m.training for m in module.modules()],
        [(n, p.requires_grad, None if p.grad is None else p.grad.clone()) for n, p in
         module.named_parameters()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
         for m in module.modules()],
    ]  # fmt: skip


def lively_module() -> Body:
    """Dropout and batch normalisation in the head, half the weights frozen, one with a gradient."""
    module = Body(
        lambda m, A: m.fc(m.drop(m.norm(A).mean(dim=(2, 3)))),
        norm=nn.BatchNorm2d(K), drop=nn.Dropout(0.5),
    )  # fmt: skip
    module.stem.requires_grad_(False)
    module.train()
    module.norm.eval()
    module.fc.register_forward_hook(lambda *_: None)
    module.fc.bias.grad = torch.ones(E)
    return module


class TestModuleIsLeftAlone:
    def look(self, module, **options):
        return sc.explain(module, *PAIR, layer="features", image_size=SIDE, **options)

    def test_after_success(self):
        module = lively_module()
        before, weights = state(module), copy.deepcopy(module.state_dict())
        self.look(module)
        after = state(module)
        assert before[0] == after[0] and before[2] == after[2]
        for one, two in zip(before[1], after[1], strict=True):
            assert one[:2] == two[:2]
            assert one[2] is two[2] is None or torch.equal(one[2], two[2])
        for name, value in module.state_dict().items():  # batch statistics included
            assert torch.equal(value, weights[name])
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()

    @pytest.mark.parametrize(
        "fail",
        [RuntimeError("inside"), ZeroDivisionError("inside"), KeyboardInterrupt()],
        ids=["RuntimeError", "ZeroDivisionError", "KeyboardInterrupt"],
    )
    @pytest.mark.parametrize("place", ["before", "after"])
    def test_after_a_failure_inside(self, fail, place):
        module = lively_module()

        def raises(*_):
            raise fail

        (module.stem if place == "before" else module.drop).register_forward_hook(raises)
        before = state(module)
        with pytest.raises((ExplanationError, type(fail))):
            self.look(module)
        after = state(module)
        assert before[0] == after[0] and before[2] == after[2]
        assert [x[:2] for x in before[1]] == [x[:2] for x in after[1]]
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize(
        "head", [lambda m, A: (m.fc(mean(A)),), lambda m, A: A, lambda m, A: None]
    )
    def test_after_a_refusal(self, head):
        module = Body(head).train()
        before = state(module)
        with pytest.raises(ExplanationError):
            self.look(module)
        assert state(module) == before

    def test_explained_in_evaluation_mode(self):
        module = lively_module()
        train = self.look(module)
        module.eval()
        calm = self.look(module)
        for i in (0, 1):
            assert np.array_equal(train.raw[i], calm.raw[i])

    @pytest.mark.parametrize("name", HEADS)
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_works_in_any_mode(self, name, mode):
        module = HEADS[name]()
        expected = self.look(module)
        with mode():
            found = self.look(module)
        assert found.dissimilarity == expected.dissimilarity
        for kind in ("raw", "factual", "counterfactual"):
            for one, two in zip(getattr(found, kind), getattr(expected, kind), strict=True):
                assert np.array_equal(one, two)

    def test_can_be_trained_afterwards(self):
        module = HEADS["max pooling"]().train()
        self.look(module)
        module(torch.rand(2, 3, SIDE, SIDE)).sum().backward()
        assert module.stem.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.SiLU(True)])
    def test_an_activation_in_place_right_after_the_layer(self, act):
        module = Body(lambda m, A: m.fc(mean(m.act(A))), act=act).double()
        outside = Body(lambda m, A: m.fc(mean(m.act(A))), act=type(act)()).double()
        outside.load_state_dict(module.state_dict())
        assert torch.equal(ours(module, "cosine"), ours(outside, "cosine"))
        found = sc.Embedder(module, "features", image_size=SIDE).see(PAIR)
        assert (found.maps < 0).any()  # the layer's own output, as it was before the activation


# --- comparing ------------------------------------------------------------------------------------


def embeddings(m: int, seed: int = 0, width: int = 5) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, m, width, generator=random, dtype=torch.float64))


class TestComparisons:
    @pytest.mark.parametrize("name", parts.COMPARISONS)
    def test_values_and_gradients(self, name):
        e1, e2 = (0.2 * e for e in embeddings(20))
        found = compare_by_gradient(parts.COMPARISONS[name], e1, e2)
        first, second = (e.clone().requires_grad_() for e in (e1, e2))
        y = distances(first, second, name)
        g1, g2 = torch.autograd.grad(-y.sum(), (first, second))
        for one, two in ((found.dissimilarity, y.detach()), (found.v1, g1), (found.v2, g2)):
            assert one.dtype == torch.float64 and not one.requires_grad
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("name", parts.COMPARISONS)
    def test_swapping_swaps(self, name):
        e1, e2 = embeddings(20)
        compare = parts.COMPARISONS[name]
        forth, back = (compare_by_gradient(compare, *x) for x in ((e1, e2), (e2, e1)))
        assert torch.equal(forth.dissimilarity, back.dissimilarity)
        assert torch.equal(forth.v1, back.v2) and torch.equal(forth.v2, back.v1)

    def test_l2_and_clamped_of_equal_embeddings(self):
        e, _ = embeddings(50)
        for name in ("l2", "clamped"):
            found = compare_by_gradient(parts.COMPARISONS[name], e, e.clone())
            assert (found.dissimilarity == 0).all()
            assert (found.v1 == 0).all() and (found.v2 == 0).all()

    @pytest.mark.parametrize("factor", [1.0, 3.0, -2.0])
    def test_cosine_of_embeddings_on_one_line(self, factor):
        """Identical pictures must be explainable by the comparison that is the default."""
        for seed in range(200):
            e, _ = embeddings(1, seed, 16)
            found = compare_by_gradient(parts.cosine, e, factor * e)
            assert 0 <= float(found.dissimilarity) <= 1
            assert float(found.dissimilarity) == pytest.approx(0 if factor > 0 else 1, abs=1e-15)

    @pytest.mark.parametrize("name", ["average, linear", "GeM pooling", "unit length"])
    def test_identical_pictures_are_blank(self, name):
        for seed in range(30):
            module = HEADS[name]()
            nn.init.normal_(module.fc.weight, generator=torch.Generator().manual_seed(seed))
            image = picture(seed)
            ex = sc.explain(module, image, image.copy(), layer="features", image_size=SIDE)
            assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}

    @pytest.mark.parametrize("name", ["l2", "clamped", "custom"])
    def test_identical_pictures_are_blank_with_others(self, name):
        for head in HEADS.values():
            ex = sc.explain(
                head(), PAIR[0], PAIR[0].copy(),
                layer="features", image_size=SIDE, comparison=CALLABLES[name],
            )  # fmt: skip
            assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}
            assert ex.dissimilarity == 0

    def test_a_root_without_a_gradient_at_equal_embeddings(self):
        """The trap: √(Σ(a−b)²) has a NaN gradient at 0. Equal pairs are blank, others unharmed."""

        def rooted(e1, e2):
            d = ((e1 - e2) ** 2).sum(dim=-1).sqrt()
            return d / (1 + d)

        e1, e2 = embeddings(4)
        e2[1] = e1[1]
        first = e1.clone().requires_grad_()
        (trap,) = torch.autograd.grad(rooted(first, e2).sum(), first)
        assert torch.isnan(trap[1]).all()
        found, truth = (compare_by_gradient(f, e1, e2) for f in (rooted, parts.l2))
        assert (found.v1[1] == 0).all() and (found.v2[1] == 0).all()
        torch.testing.assert_close(found.v1, truth.v1)
        ex = sc.explain(
            HEADS["max pooling"](), [PAIR[0]] * 2, [PAIR[0], PAIR[1]],
            layer="features", image_size=SIDE, comparison=rooted,
        )  # fmt: skip
        assert ex[0].blank["factual"] == (True, True) and ex[1].blank["factual"] == (False, False)

    def test_a_gradient_that_is_not_finite_where_the_embeddings_differ(self):
        def bad(e1, e2):  # 0 in the first coordinate, where the root has no slope
            return ((e1 - e2)[:, 0].abs().sqrt() / 100).clamp(max=1)

        e1, e2 = embeddings(2)
        e2[0, 0] = e1[0, 0]
        with pytest.raises(ExplanationError, match="gradient of the comparison is not finite"):
            compare_by_gradient(bad, e1, e2)

    @pytest.mark.parametrize(
        ("comparison", "words"),
        [
            (lambda a, b: (a - b).norm(dim=-1) + 1.0, r"outside \[0, 1\]"),
            (lambda a, b: -(a - b).norm(dim=-1), r"outside \[0, 1\]"),
            (lambda a, b: (a - b).norm(dim=-1) * float("nan"), r"outside \[0, 1\]"),
            (lambda a, b: (a - b).norm(), r"returned \(\); expected"),
            (lambda a, b: ((a - b) ** 2).tanh(), r"returned \(1, 8\); expected"),
            (lambda a, b: (a - b).norm(dim=-1, keepdim=True).tanh(), r"returned \(1, 1\)"),
            (lambda a, b: 0.5, "returned float"),
            (lambda a, b: None, "returned NoneType"),
            (lambda a, b: [0.5] * len(a), "returned list"),
            (lambda a, b: torch.full((len(a),), 0.5), "no gradient"),
            (lambda a, b: (a - b).norm(dim=-1).detach().tanh(), "no gradient"),
            (lambda a, b: a.norm(dim=-1).tanh(), "no gradient"),
        ],
    )
    def test_a_comparison_that_is_none(self, comparison, words):
        with pytest.raises(ExplanationError, match=words):
            sc.explain(
                HEADS["average, linear"](), *PAIR,
                layer="features", image_size=SIDE, comparison=comparison,
            )  # fmt: skip

    @pytest.mark.parametrize("unit", [False, True])
    def test_a_siamese_comparison_needs_no_network(self, unit):
        net = sc.SiameseNet(nn.Conv2d(3, 4, 3, stride=8), E, normalize=unit, image_size=SIDE)
        with torch.no_grad():
            net.output.weight.fill_(2.5), net.output.bias.fill_(-0.7)
        seeing = SiameseEmbedder(net)
        e1, e2 = (e.abs() for e in embeddings(6, width=E))
        found = SiameseComparison(unit, 2.5, net.output.bias.item())(e1, e2)
        with torch.no_grad():
            u1, u2 = (F.normalize(e, dim=-1) if unit else e for e in (e1, e2))
            y = copy.deepcopy(net).double().dissimilarity(net.distance(u1, u2))
        torch.testing.assert_close(found.dissimilarity, y, rtol=1e-6, atol=0)
        again = seeing.compare(e1, e2)
        assert torch.equal(again.v1, found.v1) and torch.equal(again.v2, found.v2)


# --- bad input ------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A vision transformer in small: tokens (B, N, C), no map anywhere after the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, stride=8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.patch(x).flatten(2).transpose(1, 2)).mean(dim=1)


class Twice(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(mean(self.features(self.stem(x)) + self.features(self.stem(x.flip(-1)))))


class TestErrors:
    def look(self, module=None, a=None, b=None, **options):
        options = {"layer": "features", "image_size": SIDE} | options
        module = HEADS["average, linear"]() if module is None else module
        a, b = PAIR[0] if a is None else a, PAIR[1] if b is None else b
        return sc.explain(module, a, b, **options)

    @pytest.mark.parametrize(
        ("layer", "words"),
        [
            ("feature", "no layer 'feature'. Did you mean 'features'"),
            ("Features", "no layer 'Features'. Did you mean 'features'"),
            ("stm", "Did you mean 'stem'"),
            ("zzzzzz", "It has 'stem', 'features', 'fc'"),
            ("", "no layer ''. It has"),
            (3, "no layer 3"),
            ("fc.0", "no layer 'fc.0'"),
        ],
    )
    def test_layer_that_does_not_exist(self, layer, words):
        with pytest.raises(ExplanationError, match=words):
            self.look(layer=layer)

    def test_layer_left_out(self):
        with pytest.raises(ExplanationError, match="Say which layer of the Body .*'stem', 'feat"):
            self.look(layer=None)

    def test_layer_for_a_network_that_knows_its_own(self):
        net = sc.SiameseNet(nn.Conv2d(3, 4, 3, stride=8), E, image_size=SIDE)
        with pytest.raises(ExplanationError, match="layer cannot be chosen for a SiameseNet"):
            sc.explain(net, *PAIR, layer="backbone")
        with pytest.raises(ExplanationError, match="comparison, mean cannot be chosen for a Siam"):
            sc.explain(net, *PAIR, comparison="cosine", mean=(0, 0, 0))
        seeing = sc.Embedder(HEADS["average"](), "features")
        with pytest.raises(ExplanationError, match="layer, std cannot be chosen for a Embedder"):
            sc.explain(seeing, *PAIR, layer="stem", std=(1, 1, 1))

    @pytest.mark.parametrize("layer", ["fc", "pool"])
    def test_layer_with_no_map(self, layer):
        module = Body(lambda m, A: m.fc(m.pool(A)), pool=GeM())
        with pytest.raises(ExplanationError, match=rf"'{layer}' gives \(2, \d\), no feature map"):
            self.look(module, layer=layer)

    def test_tokens_are_no_map(self):
        module = Tokens().eval()
        with pytest.raises(ExplanationError, match=r"gives \(2, 25, 8\), no feature map"):
            self.look(module, layer="block")
        # the layer before the tokens has one
        assert self.look(module, layer="patch").raw[0].shape == (5, 5)

    def test_layer_with_a_tuple(self):
        class Two(nn.Module):
            def forward(self, A):
                return A, A

        module = Body(lambda m, A: m.fc(mean(m.two(A)[0])), two=Two())
        with pytest.raises(ExplanationError, match="'two' gives tuple, no feature map"):
            self.look(module, layer="two")

    def test_layer_with_whole_numbers(self):
        class Rounded(nn.Module):
            def forward(self, A):
                return (8 * A).round().long()

        module = Body(lambda m, A: m.fc(mean(m.whole(A).float())), whole=Rounded())
        with pytest.raises(ExplanationError):
            self.look(module, layer="whole")

    def test_layer_called_twice(self):
        module = Twice(None).eval()
        with pytest.raises(ExplanationError, match="'features' ran 2 times in one pass"):
            self.look(module)

    def test_layer_that_never_runs(self):
        module = Body(lambda m, A: m.fc(mean(A)), spare=nn.Conv2d(K, K, 1))
        with pytest.raises(ExplanationError, match="'spare' ran 0 times"):
            self.look(module, layer="spare")

    @pytest.mark.parametrize(
        ("head", "words"),
        [
            (lambda m, A: (m.fc(mean(A)), A), "returns tuple, no embedding"),
            (lambda m, A: [m.fc(mean(A))], "returns list, no embedding"),
            (lambda m, A: {"embedding": m.fc(mean(A))}, "returns dict, no embedding"),
            (lambda m, A: None, "returns NoneType, no embedding"),
            (lambda m, A: A, r"returns \(2, 6, 6, 6\), no embedding"),
            (lambda m, A: mean(A)[:, :, None, None], r"returns \(2, 6, 1, 1\), no embedding"),
            (lambda m, A: mean(A)[:, 0], r"returns \(2,\), no embedding"),
            (lambda m, A: m.fc(mean(A))[:1], r"returns \(1, 8\), no embedding"),
            (lambda m, A: m.fc(mean(A)).sum(), r"returns \(\), no embedding"),
        ],
    )
    def test_no_embedding(self, head, words):
        with pytest.raises(ExplanationError, match=words) as error:
            self.look(Body(head))
        assert "wrap it in a module" in str(error.value)

    @pytest.mark.parametrize("name", HEADS)
    @pytest.mark.parametrize("part", ["stem", "features"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_damaged_weights(self, name, part, value):
        module = HEADS[name]()
        with torch.no_grad():
            getattr(module, part).weight.fill_(value)
        with pytest.raises(ExplanationError, match="not finite"):
            self.look(module)

    def test_an_embedding_cut_from_the_layer(self):
        def cut(m, A):
            with torch.no_grad():
                return m.fc(mean(A))

        for head in (cut, lambda m, A: m.fc(mean(A.detach())), lambda m, A: torch.rand(len(A), 3)):
            with pytest.raises(ExplanationError, match=r"does not depend on the layer 'features'"):
                self.look(Body(head))

    def test_a_whole_forward_without_gradients(self):
        class Frozen(Body):
            @torch.no_grad()
            def forward(self, x):
                return super().forward(x)

        with pytest.raises(ExplanationError, match=r"outside any torch.no_grad\(\)"):
            self.look(Frozen(lambda m, A: m.fc(mean(A))))

    def test_a_head_that_cannot_be_differentiated(self):
        """What a ReLU keeps for its gradient is overwritten: such a module cannot be trained."""
        module = Body(lambda m, A: m.fc(mean(torch.relu(A).mul_(2))))
        with pytest.raises(ExplanationError, match="differentiated"):
            self.look(module)

    def test_a_module_for_other_images(self):
        grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(
            ExplanationError, match=r"does not take one batch of images \(2, 3, 40, 40\)"
        ):
            self.look(grey, layer="0")

    def test_images_too_small_for_the_module(self):
        with pytest.raises(ExplanationError, match="set image_size"):
            self.look(image_size=2)

    @pytest.mark.parametrize("value", [0, -1, 2.5, "40", None, float("nan")])
    def test_image_size(self, value):
        with pytest.raises(ExplanationError, match="image_size is a positive whole number"):
            self.look(image_size=value)

    @pytest.mark.parametrize("value", ["euclid", "", None, 3, "Cosine"])
    def test_unknown_comparison(self, value):
        with pytest.raises(ExplanationError, match="known are cosine, l2, clamped, or pass"):
            self.look(comparison=value)

    @pytest.mark.parametrize("value", ["saliency", "", None, 3, "Shared", "grad-cam"])
    def test_unknown_method(self, value):
        with pytest.raises(ExplanationError, match="Known are .*gradcam.*shared"):
            self.look(method=value)

    @pytest.mark.parametrize("value", [0, 1, -0.5, 2, float("nan"), "0.5", None, True, [0.5]])
    def test_threshold_of_an_embedder(self, value):
        with pytest.raises(ExplanationError, match="strictly between 0 and 1"):
            sc.Embedder(HEADS["average"](), "features", threshold=value)

    def test_threshold_is_the_pairs_default(self):
        seeing = sc.Embedder(HEADS["average"](), "features", threshold=0.123, image_size=SIDE)
        assert sc.explain(seeing, *PAIR).threshold == 0.123
        assert sc.explain(seeing, *PAIR, threshold=0.9).threshold == 0.9

    @pytest.mark.parametrize("value", [(0.5, 0.5), (), "mean", None, 0.5, [[0.1, 0.2, 0.3]] * 2])
    @pytest.mark.parametrize("option", ["mean", "std"])
    def test_mean_and_std(self, option, value):
        with pytest.raises(ExplanationError, match=option):
            self.look(**{option: value})

    def test_std_of_zero(self):
        with pytest.raises(ExplanationError, match="std is positive"):
            self.look(std=(1, 0, 1))

    @pytest.mark.parametrize("net", [None, "model.pt", 3, torch.zeros(3), object(), nn.Module])
    def test_no_network(self, net):
        with pytest.raises(ExplanationError, match="SiameseNet or another torch.nn.Module"):
            sc.explain(net, *PAIR, layer="features")
        with pytest.raises(ExplanationError, match="must be a torch.nn.Module"):
            sc.Embedder(net, "features")

    def test_tensor_with_nan(self):
        bad = torch.rand(3, 20, 20)
        bad[0, 0, 0] = float("nan")
        with pytest.raises(ImageError, match="NaN"):
            self.look(a=bad)

    @pytest.mark.parametrize("channels", [2, 5])
    def test_wrong_channel_counts(self, channels):
        with pytest.raises(ImageError, match=rf"\({channels}, 20, 20\) is no picture"):
            self.look(b=torch.rand(channels, 20, 20))

    def test_empty_batch(self):
        with pytest.raises(ExplanationError, match="at least one; 0 and 0"):
            sc.explain(HEADS["average"](), [], [], layer="features")

    def test_sizes_may_differ(self):
        lefts = [picture(1, 5, 90), picture(2, 64, 64)]
        rights = [picture(3, 90, 5), picture(4, 7, 8)]
        for ex, a, b in zip(self.look(a=lefts, b=rights), lefts, rights, strict=True):
            for kind in (ex.factual, ex.counterfactual):
                assert [m.shape[::-1] for m in kind] == [a.size, b.size]
            assert [m.shape for m in ex.raw] == [(6, 6)] * 2

    def test_says_what_it_is(self):
        seeing = sc.Embedder(HEADS["average"](), "features", comparison="l2", image_size=32)
        assert repr(seeing) == "Embedder(Body, 'features', l2, 32 px)"


class TestDigest:
    def test_repeats_and_follows_what_matters(self):
        def digest(change=lambda m: None, **options) -> str:
            module = HEADS["batch normalisation"]()
            with torch.no_grad():
                change(module)
            options = {"layer": "features", "image_size": SIDE} | options
            return sc.Embedder(module, **options).digest()

        found = [
            digest(),
            digest(lambda m: m.fc.weight[0, 0].add_(1e-6)),
            digest(lambda m: m.norm.running_var[0].add_(1e-6)),
            digest(lambda m: m.double()),
            digest(layer="stem"),
            digest(image_size=41),
            digest(mean=(0, 0, 0)),
            digest(std=(1, 1, 1)),
            digest(comparison="l2"),
        ]
        assert len(set(found)) == len(found)
        assert digest() == found[0] == digest(threshold=0.3)
        assert digest(lambda m: m.train()) == digest(lambda m: m.requires_grad_(False)) == found[0]

    def test_of_a_siamese_network(self):
        net = sc.SiameseNet(nn.Conv2d(3, 4, 3, stride=8), E, image_size=SIDE)
        before = SiameseEmbedder(net).digest()
        assert SiameseEmbedder(copy.deepcopy(net)).digest() == before
        with torch.no_grad():
            net.projection.bias[0] += 1
        assert SiameseEmbedder(net).digest() != before

    def test_of_a_siamese_network_whose_threshold_was_calibrated(self):
        """Neither an embedding nor a map depends on the threshold."""
        net = sc.SiameseNet(nn.Conv2d(3, 4, 3, stride=8), E, image_size=SIDE)
        before = SiameseEmbedder(net).digest()
        net.threshold = 0.3
        assert SiameseEmbedder(net).digest() == before

    def test_of_the_same_weights_in_another_architecture(self):
        digests = set()
        for stride, padding in ((2, 0), (3, 0), (3, 1)):
            module = HEADS["average, linear"]()
            module.features.stride, module.features.padding = (stride,) * 2, (padding,) * 2
            digests.add(sc.Embedder(module, "features", image_size=SIDE).digest())
        assert len(digests) == 3


def test_no_warnings():
    """Nothing of what is normal may warn: not the batched gradients, not the hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for head in HEADS.values():
            module = head()
            ex = sc.explain(module, *PAIR, layer="features", image_size=SIDE)
            assert np.isfinite(ex.dissimilarity)
            sc.Embedder(module, "features", image_size=SIDE).see(PAIR).project()
