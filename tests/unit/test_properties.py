"""Properties that hold of every map, whatever the shapes, weights and images: the definition.

The truth is autograd in float64 on the definition: the gradient of the similarity with respect to
the feature map, averaged over space, times the feature map, summed over channels.

How exact a map can be. All of it is computed in float64 from the stored feature maps, be they
float32 or float64. Rounding moves a unit e by ε a, a = Σ|W||g| + |b|; the direction
v = (e₂ − e₁)/d then by ε ρ/d with ρ = ‖a₁‖ + ‖a₂‖, however it is computed: as embeddings come near
each other (d → 0) digits of v are lost that were never in e. The sigmoid adds a factor of
1 + |w_y| d + |c|. So a map at p is known to a few

    ε · size(p),    size(p) = |s| (1 + |w_y| d + |c|) (ρ/d) ‖Σ_k |W_k||A_k(p)|/Z‖

(at unit length with a/‖e‖ for a, and once more divided by ‖e₁‖). Every pair must keep to that,
near-identical ones included. Only where d itself is rounding, d < 64 ε ρ, no digit of v is left:
there the map must not be larger than a direction of length 1 makes it. And where the map is not
the small rest of large terms, size < 1000 max|M|, its error must be below 1e-12 of its largest
value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import siamcam_lib as sc
from siamcam_lib import gradcam
from siamcam_lib.backbones import IMAGENET_MEAN, IMAGENET_STD
from siamcam_lib.embedder import SiameseEmbedder
from siamcam_lib.explaining import CLOSED_FORMS, directions
from siamcam_lib.explanation import stretch
from siamcam_lib.heads import PooledHead, PooledSeen, TracedSeen

EPSILON = float(np.finfo(np.float64).eps)
FEW = 2


def prop(examples: int):
    return settings(
        max_examples=examples, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip


# --- feature maps as they come --------------------------------------------------------------------


class Fed(nn.Module):
    """A backbone that gives prepared feature maps: the red of `pictures` says which."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, 0, 0, 0].double() * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        return self.maps[(255 * red).round().long().clamp(0, len(self.maps) - 1)]


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (5 + k, 4), (k, 0, 0)) for k in range(count)]


class Case:
    """A SiameseNet and feature maps of pairs, first images and then second ones."""

    def __init__(self, W, b, A1, A2, unit=False, slope=1.0, offset=0.0, dtype=torch.float64):
        A = torch.cat([A1, A2]).to(dtype)
        net = sc.SiameseNet(Fed(A), len(b), normalize=unit, image_size=4).to(dtype).eval()
        with torch.no_grad():
            net.projection.weight.copy_(W)
            net.projection.bias.copy_(b)
            net.output.weight.fill_(slope)
            net.output.bias.fill_(offset)
        self.net, self.unit, self.count = net, unit, len(A1)
        # what the network really holds, after rounding to its type
        self.A = A.double()
        self.W, self.b = (p.detach().double() for p in net.projection.parameters())
        self.slope, self.offset = net.output.weight.item(), net.output.bias.item()

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        return torch.arange(self.count), torch.arange(self.count, 2 * self.count)

    def raw(self) -> tuple[Tensor, Tensor]:
        """Both maps of every pair, as `sc.explain` makes them before it rounds to float32."""
        seeing = SiameseEmbedder(self.net)
        seen = seeing.see(pictures(2 * self.count))
        first, second = self.halves
        compared = seeing.compare(seen.embedding[first], seen.embedding[second])
        return seen.along(first, compared.v1), seen.along(second, compared.v2)

    def embed(self, A: Tensor) -> Tensor:
        return torch.relu(A.mean(dim=(2, 3)) @ self.W.T + self.b)

    def measure(self, e1: Tensor, e2: Tensor) -> Tensor:
        if self.unit:
            e1, e2 = (F.normalize(e, dim=-1) for e in (e1, e2))
        return torch.linalg.vector_norm(e1 - e2, dim=-1)

    def truth(self) -> tuple[Tensor, Tensor]:
        """The definition, by autograd; the slope of the sigmoid apart, which it rounds to 0."""
        leaf = self.A.clone().requires_grad_()
        first, second = self.halves
        e = self.embed(leaf)
        d = self.measure(e[first], e[second])
        (gradient,) = torch.autograd.grad(-d.sum(), leaf)
        maps = (gradient.mean(dim=(2, 3), keepdim=True) * self.A).sum(dim=1)
        s = self.slopes(d.detach())[:, None, None]
        return s * maps[first], s * maps[second]

    def slopes(self, d: Tensor) -> Tensor:
        found = [true_slope(self.slope, self.offset, x) for x in d.tolist()]
        return torch.tensor(found, dtype=torch.float64)

    def parts(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """d and ρ of each pair, and the largest map a direction of length 1 could make, twice."""
        first, second = self.halves
        g, e = self.A.mean(dim=(2, 3)), self.embed(self.A)
        on = (e > 0).double()
        a = (on * (g.abs() @ self.W.abs().T + self.b.abs())).norm(dim=1)
        P = on[:, :, None, None] * torch.einsum("ek,nkhw->nehw", self.W.abs(), self.A.abs())
        P = P.norm(dim=1) / self.A[0, 0].numel()
        n = e.norm(dim=1)
        n = torch.where(n == 0, 1.0, n) if self.unit else torch.ones_like(n)
        d, rho = self.measure(e[first], e[second]), (a / n)[first] + (a / n)[second]
        factor = self.slopes(d).abs() * (1 + abs(self.slope) * d + abs(self.offset))
        return d, rho, [(factor / n[x])[:, None, None] * P[x] for x in (first, second)]

    def allowed(self) -> list[Tensor]:
        """How far from the truth rounding may bring each map; see above."""
        d, rho, loudest = self.parts()
        lost = FEW * EPSILON * rho / torch.where(d == 0, 1e-300, d)
        lost = torch.where(d <= 64 * EPSILON * rho, 2.0, lost)[:, None, None]
        return [lost * loud + 1e-45 for loud in loudest]

    def on_a_kink(self) -> bool:
        """Whether a unit is so near its switch that rounding decides."""
        g = self.A.mean(dim=(2, 3))
        hidden, a = g @ self.W.T + self.b, g.abs() @ self.W.abs().T + self.b.abs()
        exact = (self.A == 0).flatten(1).all(dim=1, keepdim=True)  # then hidden is b itself
        return bool(((hidden.abs() <= 1e-12 * a) & ~exact).any())


def true_slope(weight: float, offset: float, d: float) -> float:
    """w_y y (1 − y), which the library never lets fall below 1e-30 in size."""
    z = abs(weight * d + offset)
    s = weight * math.exp(-z) / (1 + math.exp(-z)) ** 2
    return s if abs(s) >= 1e-30 or weight == 0 else math.copysign(1e-30, weight)


def check_case(case: Case) -> None:
    for found, truth, room in zip(case.raw(), case.truth(), case.allowed(), strict=True):
        assert found.shape == truth.shape and found.dtype == torch.float64
        assert torch.isfinite(found).all()
        gap, peak = (found - truth).abs(), truth.abs().amax(dim=(1, 2))
        assert bool((gap <= room).all())
        good = room.amax(dim=(1, 2)) < 1e3 * FEW * EPSILON * peak
        assert bool((gap.amax(dim=(1, 2))[good] < 1e-12 * peak[good]).all())


PARTNERS = ("other", "near", "same", "zero", "both zero", "brighter", "moved", "sparse")


def partner(kind: str, A: Tensor, random: torch.Generator, step: float) -> tuple[Tensor, Tensor]:
    B = torch.randn(A.shape, generator=random, dtype=torch.float64)
    return {
        "other": (A, B),
        "near": (A, A + step * B),
        "same": (A, A.clone()),
        "zero": (A, torch.zeros_like(A)),
        "both zero": (torch.zeros_like(A), torch.zeros_like(A)),
        "brighter": (A, (1 + step) * A),
        "moved": (A, A.roll(1, -1).flip(-2)),  # the same mean: d is rounding, or 0
        "sparse": (A.relu(), B.relu() * (B > 1)),
    }[kind]


@st.composite
def cases(draw, dtypes=(torch.float32, torch.float64), partners: Sequence[str] = PARTNERS) -> Case:
    seed = draw(st.integers(0, 2**20))
    random = torch.Generator().manual_seed(seed)
    E, K = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    h, w, count = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 4))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    step = 10.0 ** -draw(st.integers(1, 12))
    kinds = draw(st.lists(st.sampled_from(partners), min_size=count, max_size=count))
    shift = draw(st.sampled_from([-100.0, -1.0, -0.3, 0.0, 0.3, 1.0, 10.0]))  # units off … on
    bright = 10.0 ** draw(st.integers(-3, 3))
    pairs = [partner(kind, normal(1, K, h, w), random, step) for kind in kinds]
    A1, A2 = (bright * torch.cat(x) for x in zip(*pairs, strict=True))
    return Case(
        normal(E, K), 0.5 * normal(E) + shift, A1, A2,
        unit=draw(st.booleans()),
        slope=draw(st.sampled_from([-3.0, 0.2, 1.0, 7.0])),
        offset=draw(st.sampled_from([-800.0, -60.0, -1.0, 0.0, 2.0, 60.0, 800.0])),
        dtype=draw(st.sampled_from(dtypes)),
    )  # fmt: skip


# --- equal to autograd ----------------------------------------------------------------------------


class TestAgainstAutograd:
    @prop(300)
    @given(case=cases())
    def test_any_network_and_any_images(self, case):
        assume(not case.on_a_kink())
        check_case(case)

    @prop(120)
    @given(
        data=st.data(), E=st.integers(1, 4), K=st.integers(1, 3), h=st.integers(1, 3),
        w=st.integers(1, 3), count=st.integers(1, 2), unit=st.booleans(),
    )  # fmt: skip
    def test_small_whole_numbers(self, data, E, K, h, w, count, unit):
        """Ties, zeros and cancellations that random numbers never have."""

        def whole(*shape: int) -> Tensor:
            drawn = hnp.arrays(np.int64, shape, elements=st.integers(-3, 3))
            return torch.from_numpy(data.draw(drawn)).double()

        case = Case(whole(E, K), whole(E), whole(count, K, h, w), whole(count, K, h, w), unit)
        assume(not case.on_a_kink())
        check_case(case)

    @pytest.mark.parametrize("unit", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_ordinary_pairs_to_twelve_digits(self, unit, dtype):
        """Relative to the map's own largest value, without any condition."""
        random = torch.Generator().manual_seed(5)
        W, b, A1, A2 = (
            torch.randn(*shape, generator=random, dtype=torch.float64)
            for shape in ((32, 16), (32,), (50, 16, 7, 7), (50, 16, 7, 7))
        )
        case = Case(W, b, A1, A2, unit, 1.5, -0.5, dtype)
        for found, truth in zip(case.raw(), case.truth(), strict=True):
            peak = truth.abs().amax(dim=(1, 2))
            assert float(((found - truth).abs().amax(dim=(1, 2)) / peak).max()) < 1e-12

    @prop(40)
    @given(case=cases(partners=("other", "near", "zero", "same")))
    def test_what_explain_returns(self, case):
        """The same in float32: within 1e-6 of the largest value, where float64 is that exact."""
        assume(not case.on_a_kink())
        images = pictures(2 * case.count)
        found = sc.explain(case.net, images[: case.count], images[case.count :])
        for side, (truth, rooms) in enumerate(zip(case.truth(), case.allowed(), strict=True)):
            for ex, M, room in zip(found, truth.numpy(), rooms.numpy(), strict=True):
                allowed = 1e-6 * np.abs(M).max() + room + 1e-38
                assert ex.raw[side].dtype == np.float32
                assert (np.abs(ex.raw[side] - M) <= allowed).all()

    def test_equal_feature_maps_are_blank(self):
        """Two pictures that are one to the network, such as grey ones of two sizes."""
        for seed in range(4):
            random = torch.Generator().manual_seed(seed)
            shapes = ((256, 1280), (256,), (3, 1280, 2, 2))
            W, b, A = (torch.randn(*shape, generator=random) for shape in shapes)
            assert all((M == 0).all() for M in Case(W, b + 1, A, A.clone(), seed % 2 == 0).raw())

    @prop(60)
    @given(case=cases(partners=("both zero",)))
    def test_two_empty_feature_maps_are_blank(self, case):
        assert all((M == 0).all() for M in case.raw())
        images = pictures(2 * case.count)
        for ex in sc.explain(case.net, images[: case.count], images[case.count :]):
            assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}
            assert ex.top == 0

    @prop(60)
    @given(case=cases(partners=("other",)), method=st.sampled_from(["gradcam", "distance"]))
    def test_one_picture_twice_is_blank(self, case, method):
        """Looked at once, it has one embedding: exactly zero, whatever the network."""
        image = pictures(1)[0]
        for ex in sc.explain(case.net, [image] * 2, [image.copy()] * 2, method=method):
            assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}
            assert all((M == 0).all() for M in ex.raw) and ex.top == 0

    @pytest.mark.parametrize("unit", [False, True])
    @pytest.mark.parametrize("k", range(1, 15))
    def test_near_identical_pairs_against_eighty_bits(self, unit, k):
        """The truth itself is exact here, so the loss is ours alone; and it is as foretold."""
        random = np.random.default_rng(k)
        W, A = random.random((9, 6)), random.random((6, 3, 4))
        b, B = random.random(9), A + 10.0**-k * random.normal(size=A.shape)
        case = Case(*(torch.from_numpy(x) for x in (W, b, A[None], B[None])), unit, 1.0, -0.1)
        W, b, A, B = (x.astype(np.longdouble) for x in (W, b, A, B))
        e1, e2 = (W @ x.mean(axis=(1, 2)) + b for x in (A, B))  # every unit is on
        n1, n2 = (np.sqrt(e @ e) if unit else np.longdouble(1) for e in (e1, e2))
        u1, u2 = e1 / n1, e2 / n2
        d = np.sqrt((u1 - u2) @ (u1 - u2))
        v = (u2 - (u1 @ u2) * u1) / (d * n1) if unit else (e2 - e1) / d
        z = d + np.longdouble(case.offset)
        s = 1 / (2 + np.exp(z) + np.exp(-z))
        truth = s * np.einsum("e,ek,khw->hw", v, W, A) / 12
        gap = np.abs(case.raw()[0][0].numpy() - truth)
        assert (gap <= case.allowed()[0][0].numpy()).all()
        if k < 11:  # and the rest is a map, not noise
            assert gap.max() < 1e-4 * np.abs(truth).max()


# --- any other head, any comparison ---------------------------------------------------------------


def lengths(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


class Module(nn.Module):
    """Prepared feature maps through any head."""

    def __init__(self, A: Tensor, head: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            K = A.shape[1]
            self.features, self.fc = Fed(A), nn.Linear(K, 7)
            self.query, self.norm = nn.Parameter(torch.randn(K)), nn.BatchNorm1d(7)
            nn.init.normal_(self.fc.weight), nn.init.normal_(self.norm.weight, 1, 0.2)
            self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 2)
        self.head = head
        self.to(A.dtype).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.features(x))

    def after(self, A: Tensor) -> Tensor:
        match self.head:
            case "average":
                return self.fc(A.mean(dim=(2, 3)))
            case "rectified":
                return self.fc(A.mean(dim=(2, 3))).relu()
            case "max":
                return self.fc(A.amax(dim=(2, 3)))
            case "gem":
                return self.fc(A.abs().clamp_min(1e-3).pow(3).mean(dim=(2, 3)).pow(1 / 3))
            case "attention":
                tokens = A.flatten(2)
                weights = torch.einsum("nkz,k->nz", tokens, self.query).softmax(dim=-1)
                return self.fc(torch.einsum("nkz,nz->nk", tokens, weights))
            case "batch norm":
                return self.norm(self.fc(A.mean(dim=(2, 3))))
            case "unit length":
                return F.normalize(self.fc(A.mean(dim=(2, 3))), dim=-1)


HEADS = ("average", "rectified", "max", "gem", "attention", "batch norm", "unit length")
COMPARISONS = {
    "cosine": lambda a, b: 0.5 - 0.5 * (a * b).sum(-1) / (lengths(a) * lengths(b)),
    "l2": lambda a, b: 1 - 1 / (1 + lengths(a - b)),
    "clamped": lambda a, b: torch.where(lengths(a - b) < 1, lengths(a - b), 1.0),
    "bent": lambda a, b: 1 - torch.exp(-((a - b) ** 2).mean(-1)),
}


@prop(250)
@given(
    seed=st.integers(0, 2**20), head=st.sampled_from(HEADS),
    name=st.sampled_from(list(COMPARISONS)),
    K=st.integers(1, 8), h=st.integers(1, 5), w=st.integers(1, 5), count=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_any_head_and_any_comparison(seed, head, name, K, h, w, count, dtype):
    random = torch.Generator().manual_seed(seed)
    A = torch.randn(2 * count, K, h, w, generator=random, dtype=torch.float64).to(dtype)
    module = Module(A, head, seed)
    seeing = sc.Embedder(
        module, "features", image_size=4, comparison=COMPARISONS[name] if name == "bent" else name
    )
    seen = seeing.see(pictures(2 * count))
    assert isinstance(seen, PooledSeen) or head not in ("average", "rectified")
    first, second = torch.arange(2 * count).chunk(2)
    compared = seeing.compare(seen.embedding[first], seen.embedding[second])
    found = torch.cat([seen.along(first, compared.v1), seen.along(second, compared.v2)])

    exact, leaf = Module(A, head, seed).double(), A.double().requires_grad_()
    e = exact.after(leaf)
    n, d = lengths(e.detach()), lengths((e[first] - e[second]).detach())
    assume(bool((n > 1e-2).all()) and bool((d / torch.maximum(n[first], n[second]) > 0.1).all()))
    if head == "unit length":  # unit vectors of float32 know nothing about smaller angles
        assume(bool((lengths(exact.fc(A.double().mean(dim=(2, 3)))) > 0.3).all()))
    y = COMPARISONS[name](e[first], e[second])
    (gradient,) = torch.autograd.grad(-y.sum(), leaf)
    terms = gradient.mean(dim=(2, 3), keepdim=True) * A.double()
    truth, peak = terms.sum(dim=1), terms.sum(dim=1).abs().amax(dim=(1, 2))
    torch.testing.assert_close(compared.dissimilarity, y.detach(), rtol=1e-5, atol=1e-6)
    scale = gradient.mean(dim=(2, 3)).norm(dim=1) * A.double().norm(dim=1).amax(dim=(1, 2))
    good = (peak > 0.05 * scale) & (scale > 1e-6)
    gap = (found - truth).abs().amax(dim=(1, 2))
    if dtype == torch.float64:
        assert bool((gap[good] < 1e-12 * peak[good]).all())
        assert bool((gap <= 1e-12 * scale + 1e-18).all())
    else:
        # A head that is no `PooledHead` is differentiated in its own precision.
        tolerance = 1e-6 if isinstance(seen, PooledSeen) else 2e-5
        assert bool((gap[good] < tolerance * peak[good]).all())


# --- swapping -------------------------------------------------------------------------------------


class TestSwapping:
    @prop(100)
    @given(case=cases())
    def test_swaps_the_maps_to_the_last_bit(self, case):
        seeing, (first, second) = SiameseEmbedder(case.net), case.halves
        seen = seeing.see(pictures(2 * case.count))
        e = seen.embedding
        for method in CLOSED_FORMS:
            forth, back = seeing.compare(e[first], e[second]), seeing.compare(e[second], e[first])
            assert torch.equal(forth.dissimilarity, back.dissimilarity)
            v = directions(method, forth, e[first], e[second], case.unit)
            u = directions(method, back, e[second], e[first], case.unit)
            assert torch.equal(v[0], u[1]) and torch.equal(v[1], u[0])
            for rows, one, two in ((first, v[0], u[1]), (second, v[1], u[0])):
                assert torch.equal(seen.along(rows, one), seen.along(rows, two))

    @pytest.mark.parametrize("method", CLOSED_FORMS)
    @pytest.mark.parametrize("kind", ["plain", "unit length", "average", "max", "attention"])
    def test_of_explain(self, kind, method):
        """With a backbone that sees one image at a time; a real one rounds by the place."""

        class Alone(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([F.conv2d(row[None], kernel, stride=2) for row in x])

        class OneByOne(Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([self.after(row[None]) for row in self.features(x)])

        random = torch.Generator().manual_seed(1)
        kernel = torch.randn(6, 3, 3, 3, generator=random)
        if kind in ("plain", "unit length"):
            net = sc.SiameseNet(Alone(), 7, normalize=kind == "unit length", image_size=16)
            options = {}
        else:
            net = OneByOne(torch.zeros(1, 6, 1, 1), kind, 0)
            net.features = Alone()
            options = {"layer": "features", "image_size": 16, "comparison": "l2"}
        shape = (20, 30, 3)
        images = [
            Image.fromarray(np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8))
            for k in range(4)
        ]
        for a, b in ((images[:1], images[1:2]), (images[:2], images[2:]), (images[:3], images[1:])):
            forth = sc.explain(net, a, b, method=method, **options)
            back = sc.explain(net, b, a, method=method, **options)
            for one, two in zip(forth, back, strict=True):
                assert one.dissimilarity == two.dissimilarity
                for part in ("raw", "factual", "counterfactual"):
                    pair = zip(getattr(one, part), getattr(two, part)[::-1], strict=True)
                    assert all(np.array_equal(x, y) for x, y in pair)


# --- sums -----------------------------------------------------------------------------------------


class TestCompleteness:
    @prop(150)
    @given(case=cases(partners=("other", "near", "zero", "sparse", "brighter")))
    def test_plain_maps_share_out_the_distance(self, case):
        """ΣM₁ + ΣM₂ = −s (d − uᵀ(D₁ − D₂)b) for the similarity; shown without the bias, s d."""
        assume(not case.unit and not case.on_a_kink())
        (first, second), e = case.halves, case.embed(case.A)
        e1, e2 = e[first], e[second]
        d = case.measure(e1, e2)
        assume(bool((d > 0).all()))
        u = (e1 - e2) / d[:, None]
        on = ((e1 > 0).double() - (e2 > 0).double()) * case.b
        expected = -case.slopes(d) * (d - (u * on).sum(dim=1))
        total = sum(M.sum(dim=(1, 2)) for M in case.raw())
        room = sum(x.sum(dim=(1, 2)) for x in case.allowed())
        assert bool(((total - expected).abs() <= room + FEW * EPSILON * expected.abs()).all())

    @prop(150)
    @given(case=cases(partners=("other", "zero", "sparse", "moved")))
    def test_every_map_along_any_direction(self, case):
        """Σ_p ⟨P(p), v⟩ = ⟨e − D b, v⟩: nothing is lost between the map and the embedding."""
        seen = SiameseEmbedder(case.net).see(pictures(2 * case.count))
        e = seen.embedding
        v = torch.randn(e.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        every = torch.arange(len(e))
        total = seen.along(every, v).sum(dim=(1, 2))
        expected = ((e - (e > 0) * case.b) * v).sum(dim=1)
        size = (case.A.abs().mean(dim=(2, 3)) @ case.W.abs().T + case.b.abs()).norm(dim=1)
        gap = (total - expected).abs()
        assert bool((gap <= 4 * FEW * EPSILON * size * v.norm(dim=1)).all())

    def test_other_heads_need_not_be_complete(self):
        """What the maps of maximum pooling add up to is not the embedding; nobody promises it."""
        A = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        seen = sc.Embedder(Module(A, "max", 0), "features", image_size=4).see(pictures(1))
        v = torch.ones(1, 7).double()
        total = float(seen.along(torch.arange(1), v).sum())
        bias = Module(A, "max", 0).fc.bias.detach()
        assert abs(total - float((seen.embedding - bias).sum())) > 0.1


# --- every method is its definition ---------------------------------------------------------------


def by_definition(method: str, case_unit: bool, e1: Tensor, e2: Tensor) -> Tensor:
    """The scalar whose gradient with respect to e₁ is the direction of the first map."""
    n1 = lengths(e1).detach()[:, None]
    other, itself = e2.detach(), e1.detach()
    if case_unit and method != "cosine":  # P₁/‖e₁‖ and e/‖e‖ in the place of P and e
        e1, other, itself = e1 / n1, other / lengths(other)[:, None], itself / n1
    shared, own = (e1 * other).sum(-1), (e1 * itself).sum(-1)
    match method:
        case "shared":
            return shared
        case "self":
            return own
        case "distance":
            return (shared - own) / lengths(other - itself)
        case "cosine":
            return F.cosine_similarity(e1, other, dim=-1)


class TestMethods:
    @prop(150)
    @given(
        seed=st.integers(0, 2**20), kind=st.sampled_from(["siamese", *HEADS]), unit=st.booleans(),
        method=st.sampled_from(gradcam.COMBINATIONS), count=st.integers(1, 3),
    )  # fmt: skip
    def test_is_its_definition_by_autograd(self, seed, kind, unit, method, count):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        A = normal(2 * count, 5, 3, 4)
        first, second = torch.arange(2 * count).chunk(2)
        if kind == "siamese":
            case = Case(normal(7, 5), normal(7) + 0.3, A[first], A[second], unit)
            seeing, embed = SiameseEmbedder(case.net), case.embed
        else:
            unit, module = False, Module(A, kind, seed)
            seeing = sc.Embedder(module, "features", image_size=4, comparison="l2")
            embed = module.after
        seen = seeing.see(pictures(2 * count))
        e = seen.embedding
        d = lengths(F.normalize(e[first], dim=-1) - F.normalize(e[second], dim=-1))
        assume(bool((lengths(e) > 1e-2).all()) and bool((d > 1e-2).all()))
        v1, v2 = directions(method, seeing.compare(e[first], e[second]), e[first], e[second], unit)

        leaf = A.clone().requires_grad_()
        e = embed(leaf)
        scalar = by_definition(method, unit, e[first], e[second]).sum()
        scalar = scalar + by_definition(method, unit, e[second], e[first]).sum()
        (gradient,) = torch.autograd.grad(scalar, leaf)
        terms = gradient.mean(dim=(2, 3), keepdim=True) * A
        found = torch.cat([seen.along(first, v1), seen.along(second, v2)])
        # of what is added up before it may cancel: v has a component along e, and P along v
        P = seen.project().maps.double().abs()
        P = torch.einsum("nehw,ne->nhw", P, torch.cat([v1, v2]).abs())
        size = torch.maximum(P, terms.abs().sum(dim=1)).amax(dim=(1, 2))
        gap = (found - terms.sum(dim=1)).abs().amax(dim=(1, 2))
        assert bool((gap <= 1e-12 * size * (1 + 1 / d.min())).all())

    @prop(100)
    @given(case=cases(dtypes=(torch.float64,), partners=("other", "near", "zero", "sparse")))
    def test_every_map_is_made_of_two_by_explicit_sums(self, case):
        """N₁(p) = Σ_e P_e(p) e₁_e and S₁(p) = Σ_e P_e(p) e₂_e; every method adds them up."""
        seeing, first = SiameseEmbedder(case.net), case.halves[0]
        seen = seeing.see(pictures(2 * case.count))
        every = seen.embedding
        for k in range(case.count):
            i, j = k, case.count + k
            e1, e2 = every[i], every[j]
            n1, n2 = float(e1.norm()) or 1.0, float(e2.norm()) or 1.0
            P = torch.zeros(len(e1), *case.A.shape[2:]).double()
            for unit in range(len(e1)):
                if e1[unit] > 0:
                    for channel in range(case.A.shape[1]):
                        P[unit] += case.W[unit, channel] * case.A[i, channel]
            P /= case.A.shape[2] * case.A.shape[3]
            N = sum(P[u] * e1[u] for u in range(len(e1)))
            S = sum(P[u] * e2[u] for u in range(len(e1)))
            rooms = sum(P[u].abs() * (e1[u] + e2[u]) for u in range(len(e1)))
            cos = float(e1 @ e2) / (n1 * n2)
            cosine, rest = S / (n1 * n2) - cos * N / n1**2, rooms * (1 / n1 + 1 / n2) / n1
            d = float(case.measure(e1, e2))
            if case.unit:
                S, N, rooms = S / (n1 * n2), N / n1**2, rest
            wanted = {"shared": S, "self": N, "cosine": cosine}
            if d > 0:
                wanted["distance"] = (S - N) / d
            room = {"shared": rooms, "self": rooms, "cosine": rest, "distance": rooms / (d or 1)}
            compared = seeing.compare(e1[None], e2[None])
            for method, truth in wanted.items():
                v, _ = directions(method, compared, e1[None], e2[None], case.unit)
                found = seen.along(first[k : k + 1], v)[0]
                W = torch.einsum("ek,khw->hw", case.W.abs(), case.A[i].abs()) * float(v.abs().max())
                allowed = FEW * EPSILON * (4 * room[method] + W)
                assert bool(((found - truth).abs() <= allowed).all()), method

    @prop(100)
    @given(case=cases(partners=("other", "near", "zero", "sparse", "brighter")))
    def test_distance_is_shared_less_self(self, case):
        """d · distance = shared − self, at unit length too; and at d = 0 it is blank."""
        seeing, (first, second) = SiameseEmbedder(case.net), case.halves
        seen = seeing.see(pictures(2 * case.count))
        e1, e2 = seen.embedding[first], seen.embedding[second]
        compared = seeing.compare(e1, e2)
        found = {
            method: [seen.along(rows, v) for rows, v in
                     zip(case.halves, directions(method, compared, e1, e2, case.unit), strict=True)]
            for method in gradcam.COMBINATIONS
        }  # fmt: skip
        d = gradcam.relation(e1, e2, case.unit).d[:, None, None]
        for side in (0, 1):
            shared, own, distance = (found[m][side] for m in ("shared", "self", "distance"))
            difference = torch.where(d == 0, 0, shared - own)
            rows = case.halves[side]
            n = lengths(seen.embedding[rows]).amax() if not case.unit else torch.ones(())
            size = torch.einsum("ek,nkhw->nhw", case.W.abs(), case.A[rows].abs()) * n
            if case.unit:
                size = size / torch.where(lengths(seen.embedding[rows]) == 0, 1, lengths(
                    seen.embedding[rows]))[:, None, None]  # fmt: skip
            assert bool(((d * distance - difference).abs() <= 4 * FEW * EPSILON * size).all())

    @prop(80)
    @given(case=cases(partners=("other", "near", "zero", "sparse")))
    def test_gradcam_of_a_siamese_network_is_one_of_the_combinations(self, case):
        """Plain: s times distance. Unit length: s/d times cosine."""
        assume(not case.on_a_kink())
        seeing, (first, second) = SiameseEmbedder(case.net), case.halves
        e = seeing.see(pictures(2 * case.count)).embedding
        e1, e2 = e[first], e[second]
        d = case.measure(e1, e2)
        assume(bool((d > 1e-3).all()))
        compared, s = seeing.compare(e1, e2), case.slopes(d)
        method, factor = ("cosine", s / d) if case.unit else ("distance", s)
        found = directions(method, compared, e1, e2, case.unit)
        shortest = torch.minimum(lengths(e1), lengths(e2))
        longest = torch.maximum(lengths(e1), lengths(e2))
        # e₂/‖e₁‖‖e₂‖ − cos e₁/‖e₁‖² is the rest of terms of 1/‖e₁‖; (e₂ − e₁)/d of ‖e‖/d
        size = 1 / torch.where(shortest == 0, 1.0, shortest) if case.unit else (1 + longest) / d
        room = FEW * EPSILON * size * (1 + abs(case.slope) * d + abs(case.offset)) / d.clamp(max=1)
        for v, own in zip(found, (compared.v1, compared.v2), strict=True):
            gap = (factor[:, None] * v - own).abs()
            assert bool((gap <= (factor.abs() * room)[:, None] + 1e-45).all())

    @pytest.mark.parametrize("unit", [False, True])
    def test_the_cosine_map_of_identical_pictures_is_blank(self, unit):
        """Its truth is 0; what is left of rounding must not be stretched to a heatmap."""
        for seed in range(20):
            random = torch.Generator().manual_seed(seed)
            W, b, A = (torch.randn(*s, generator=random) for s in ((7, 5), (7,), (1, 5, 3, 4)))
            case = Case(W, b + 1, A, A, unit)
            image = Image.new("RGB", (9, 9))
            ex = sc.explain(case.net, image, image.copy(), method="cosine")
            assert ex.blank == {"factual": (True, True), "counterfactual": (True, True)}

    @prop(60)
    @given(
        seed=st.integers(0, 2**20), rows=st.integers(1, 5), columns=st.integers(1, 5),
        E=st.integers(1, 9), unit=st.booleans(), method=st.sampled_from(gradcam.COMBINATIONS),
    )  # fmt: skip
    def test_the_table_is_its_pairs(self, seed, rows, columns, E, unit, method):
        """All pairs at once are every pair by itself, equal and zero embeddings among them."""
        random = torch.Generator().manual_seed(seed)
        e1, e2 = (torch.randn(n, E, generator=random).double().relu() for n in (rows, columns))
        e2[0] = e1[0]
        table = gradcam.relation_table(e1, e2, unit)
        own, other = gradcam.coefficients(method, table, unit)
        assert own.shape == other.shape == table.d.shape == (rows, columns)
        for i in range(rows):
            for j in range(columns):
                how = gradcam.relation(e1[i : i + 1], e2[j : j + 1], unit)
                assert (how.d == 0) == (table.d[i, j] == 0)
                alone = gradcam.coefficients(method, how, unit)
                for one, two in zip(alone, (own, other), strict=True):
                    torch.testing.assert_close(two[i, j], one[0], rtol=1e-9, atol=1e-12)
        assert table.d[0, 0] == 0


# --- one signed map -------------------------------------------------------------------------------


class TestTwoHalvesOfOneMap:
    @prop(100)
    @given(
        case=cases(partners=("other", "near", "same", "zero")),
        method=st.sampled_from(CLOSED_FORMS), polarity=st.sampled_from(["decision", "paper"]),
        threshold=st.sampled_from([1e-300, 0.25, 0.5, 1 - 1e-16]),
    )  # fmt: skip
    def test_factual_less_counterfactual_is_the_stretched_map(
        self, case, method, polarity, threshold
    ):
        """So what speaks for the one decision and for the other add up to zero, to the last bit."""
        images = pictures(2 * case.count)
        found = sc.explain(
            case.net, images[: case.count], images[case.count :],
            method=method, polarity=polarity, threshold=threshold,
        )  # fmt: skip
        for ex in found:
            assert ex.decision == ("dissimilar" if ex.dissimilarity >= threshold else "similar")
            for_similar = polarity == "decision" and ex.decision == "similar"
            for image, raw, f, c in zip(
                ex.images, ex.raw, ex.factual, ex.counterfactual, strict=True
            ):
                full = stretch(torch.from_numpy(raw), image.size)
                assert np.array_equal(f - c, full if for_similar else -full)
                assert np.array_equal(f + c, np.abs(full))
                assert (f >= 0).all() and (c >= 0).all() and not (f * c).any()

    @pytest.mark.parametrize("method", CLOSED_FORMS)
    @pytest.mark.parametrize("head", HEADS)
    def test_decision_and_paper_share_one_raw_map(self, method, head):
        A = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(3))
        seeing = sc.Embedder(Module(A, head, 0), "features", image_size=4, comparison="l2")
        y = sc.explain(seeing, *pictures(2)).dissimilarity
        for threshold, swapped in ((y / 2, False), ((1 + y) / 2, True)):
            ours, paper = (
                sc.explain(seeing, *pictures(2), method=method, polarity=p, threshold=threshold)
                for p in ("decision", "paper")
            )
            other = (paper.counterfactual, paper.factual)[:: 1 if swapped else -1]
            for i in (0, 1):
                assert np.array_equal(ours.raw[i], paper.raw[i])
                assert np.array_equal(ours.factual[i], other[0][i])
                assert np.array_equal(ours.counterfactual[i], other[1][i])
                assert ours.factual[i].any() or ours.counterfactual[i].any()


# --- batches and scales ---------------------------------------------------------------------------


class TestBatches:
    @prop(80)
    @given(case=cases(partners=("other", "near", "zero", "same")))
    def test_a_batch_is_its_pairs(self, case):
        """No pair is disturbed by another: not by blank ones, nor by a saturated sigmoid."""
        assume(not case.on_a_kink())
        whole, rooms = case.raw(), case.allowed()
        for k in range(case.count):
            A1, A2 = case.A[k : k + 1], case.A[case.count + k : case.count + k + 1]
            alone = Case(case.W, case.b, A1, A2, case.unit, case.slope, case.offset)
            for one, all_of, room in zip(alone.raw(), whole, rooms, strict=True):
                assert bool(((one[0] - all_of[k]).abs() <= 2 * room[k]).all())

    @prop(60)
    @given(
        seed=st.integers(0, 2**20), relu=st.booleans(), identity=st.booleans(),
        n=st.integers(1, 6), asked=st.integers(0, 9),
    )  # fmt: skip
    def test_rows_in_any_order_and_number(self, seed, relu, identity, n, asked):
        random = torch.Generator().manual_seed(seed)
        A = torch.randn(n, 4, 3, 2, generator=random)
        W, b = torch.randn(6, 4, generator=random), torch.randn(6, generator=random)
        head = PooledHead(relu=relu) if identity else PooledHead(W, b, relu)
        closed = PooledSeen(A, head)
        rows = torch.randint(n, (asked,), generator=random)
        v = torch.randn(asked, closed.embedding.shape[1], generator=random).double()
        leaf = A.double().requires_grad_()
        g = leaf.mean(dim=(2, 3))
        output = g if identity else g @ W.double().T + b.double()
        graph = TracedSeen(leaf, output.relu() if relu else output)
        assert closed.along(rows, v).shape == (asked, 3, 2)
        found, truth = closed.along(rows, v), graph.along(rows, v)
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-12)

    @prop(60)
    @given(case=cases(partners=("other",)), factor=st.sampled_from([2.0**-20, 0.5, 4.0, 2.0**20]))
    def test_brightness_without_a_bias(self, case, factor):
        """b = 0: A → cA makes e → ce. Powers of two round nothing: true to the last bit."""
        b = torch.zeros_like(case.b)
        (first, second), options = case.halves, {"slope": 1.0, "offset": 0.0}
        dim, bright = (
            SiameseEmbedder(
                Case(case.W, b, c * case.A[first], c * case.A[second], case.unit, **options).net
            ).see(pictures(2 * case.count))
            for c in (1.0, factor)
        )
        assert torch.equal(bright.embedding, factor * dim.embedding)
        for method in ("shared", "self", "distance", "cosine"):
            maps = []
            for seen in (dim, bright):
                e1, e2 = seen.embedding[first], seen.embedding[second]
                v, _ = directions(method, None, e1, e2, case.unit)
                maps.append(seen.along(first, v))
            power = {"shared": 2, "self": 2, "distance": 1, "cosine": 0}[method]
            assert torch.equal(maps[1], maps[0] * factor ** (0 if case.unit else power))
