"""The closed form: equal to autograd and to three independent libraries, and safe at its edges."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import siamcam_lib as sc
from siamcam_lib import gradcam
from siamcam_lib.gradcam import Projected

PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def small_net(
    seed: int = 0,
    *,
    channels: int = 6,
    embed_dim: int = 8,
    normalize: bool = True,
    shift: float = 0.0,
    slope: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> sc.SiameseNet:
    """A network with a one-layer backbone; `shift` moves the bias, so that units go on or off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = sc.SiameseNet(
            nn.Conv2d(3, channels, 3, stride=8), embed_dim, normalize=normalize, image_size=32
        )
        with torch.no_grad():
            net.projection.weight.normal_()
            net.projection.bias.normal_().add_(shift)
            net.output.weight.fill_(slope)
            net.output.bias.fill_(-slope)  # y = ½ at d = 1: far from saturation
    return net.to(dtype).eval()


def images_of(seed: int, batch: int, height: int = 27, width: int = 35) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, batch, 3, height, width, generator=random, dtype=torch.float64)
    return a, b


def maps_of(seed: int, batch: int, channels: int = 6, h: int = 4, w: int = 5) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, h, w, generator=random, dtype=torch.float64)


def closed(net: sc.SiameseNet, A1: Tensor, A2: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return gradcam.pair_maps(net, gradcam.project(net, A1), gradcam.project(net, A2))


def y_of(net: sc.SiameseNet, A1: Tensor, A2: Tensor) -> Tensor:
    """The network's head, by its own public steps."""
    e1, e2 = (net.embed_pooled(A.mean(dim=(2, 3))) for A in (A1, A2))
    return net.dissimilarity(net.distance(e1, e2))


def by_autograd(net: sc.SiameseNet, A1: Tensor, A2: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Equations (1) and (2) to the letter, for 1 − y: each map with the size of its terms."""
    A1, A2 = (A.detach().clone().requires_grad_() for A in (A1, A2))
    gradients = torch.autograd.grad((1 - y_of(net, A1, A2)).sum(), (A1, A2))
    return [equations(G, A.detach()) for G, A in zip(gradients, (A1, A2), strict=True)]


def equations(gradient: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    terms = gradient.mean(dim=(2, 3), keepdim=True) * A  # alpha_k A_k
    return terms.sum(dim=1), terms.abs().sum(dim=1)


def deviation(ours: Tensor, truth: Tensor, size: Tensor) -> float:
    """Largest error of any pair, relative to the largest sum of the terms' sizes in its map."""
    gap = (ours.double() - truth.double()).abs().amax(dim=(1, 2))
    return float((gap / size.double().amax(dim=(1, 2)).clamp_min(1e-300)).max())


def one_dead(net: sc.SiameseNet, *maps: Tensor) -> bool:
    """Whether some pair has all units off in exactly one image."""
    on = [(net.activation(A.mean(dim=(2, 3))) > 0).any(dim=1) for A in maps]
    return bool((on[0] ^ on[1]).any())


# --- equal to autograd ----------------------------------------------------------------------------


class TestAgainstAutograd:
    @PROPERTY
    @given(
        seed=st.integers(0, 10_000),
        batch=st.integers(1, 5),
        channels=st.integers(1, 12),
        embed_dim=st.integers(1, 16),
        height=st.integers(3, 40),
        width=st.integers(3, 40),
        normalize=st.booleans(),
        shift=st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0, 10.0]),
        slope=st.sampled_from([-2.0, 0.3, 1.0, 3.0]),
    )
    def test_through_the_real_forward(
        self, seed, batch, channels, embed_dim, height, width, normalize, shift, slope
    ):
        net = small_net(
            seed, channels=channels, embed_dim=embed_dim, normalize=normalize,
            shift=shift, slope=slope,
        )  # fmt: skip
        kept = []
        hook = net.backbone.register_forward_hook(lambda module, given, output: kept.append(output))
        y = net(*images_of(seed, batch, height, width))
        hook.remove()
        assume(float((y - 0.5).abs().max().detach()) < 0.49)  # 1 - y must not lose digits itself
        (A,) = kept  # the backbone ran once, with both images
        (gradient,) = torch.autograd.grad((1 - y).sum(), A)
        A, halves = A.detach(), (slice(0, batch), slice(batch, None))
        assume(not (normalize and one_dead(net, A[halves[0]], A[halves[1]])))  # see below
        with torch.no_grad():
            e = net.activation(A.mean(dim=(2, 3)))
            away = gradcam.distance(net, *(Projected(A[x], e[x]) for x in halves))
        assume(bool(((away == 0) | (away > 1e-3)).all()))  # near-identical pairs: see below
        found = closed(net, *(A[half] for half in halves))
        for M, half in zip(found, halves, strict=True):
            truth, size = equations(gradient[half], A[half])
            assert M.shape == truth.shape and M.dtype == torch.float64
            assert deviation(M, truth, size) < 1e-12

    @PROPERTY
    @given(
        seed=st.integers(0, 10_000),
        batch=st.integers(1, 4),
        h=st.integers(1, 7),
        w=st.integers(1, 7),
        normalize=st.booleans(),
        shift=st.sampled_from([-1.0, 0.0, 1.0]),
    )
    def test_float32_against_float64(self, seed, batch, h, w, normalize, shift):
        net = small_net(seed, normalize=normalize, shift=shift, dtype=torch.float32)
        exact = copy.deepcopy(net).double()
        A1, A2 = (maps_of(seed + k, batch, h=h, w=w).float() for k in (1, 2))
        with torch.no_grad():
            e = [exact.activation(A.double().mean(dim=(2, 3))) for A in (A1, A2)]
            hidden = [exact.projection(A.double().mean(dim=(2, 3))).abs().min() for A in (A1, A2)]
            length = torch.cat([x.norm(dim=1) for x in e])
            d = exact.distance(*(nn.functional.normalize(x) if normalize else x for x in e))
            relative = d if normalize else d / torch.maximum(*(x.norm(dim=1) for x in e))
            z = exact.output.weight * d + exact.output.bias
        # Well conditioned: no unit within rounding of its switch, no near-equal embeddings, and a
        # slope that does not multiply the rounding of z.
        assume(min(hidden) > 1e-4 and length.min() > 0.2 and relative.min() > 0.3)
        assume(float(z.abs().max()) < 3)
        found = closed(net, A1, A2)
        truths = by_autograd(exact, A1.double(), A2.double())
        # Rounding is relative to all that is added up: over channels, over units, in v itself.
        with torch.no_grad():
            W, s = exact.projection.weight.abs(), gradcam.slope(exact, d).abs() / (h * w)
            n1, n2 = (x.norm(dim=1, keepdim=True) if normalize else 1 for x in e)
            parts = (e[0] / n1 + e[1] / n2) / d[:, None]
        for M, (truth, _), A, x, n in zip(found, truths, (A1, A2), e, (n1, n2), strict=True):
            v = (x > 0) * parts / n
            size = torch.einsum("b,be,ek,bkhw->bhw", s, v, W, A.double().abs())
            assert M.dtype == torch.float32
            assert deviation(M, truth, size) < 1e-6

    @pytest.mark.parametrize("normalize", [False, True])
    def test_relative_to_the_map_itself(self, normalize):
        """No help from a generous scale: relative to the largest value of the true map."""
        net = small_net(3, normalize=normalize, shift=1)
        A1, A2 = maps_of(1, 4), maps_of(2, 4)
        for M, (truth, _) in zip(closed(net, A1, A2), by_autograd(net, A1, A2), strict=True):
            assert deviation(M, truth, truth.abs()) < 1e-12

    @pytest.mark.parametrize("normalize", [False, True])
    def test_gradient_is_constant_over_the_map(self, normalize):
        net = small_net(4, normalize=normalize)
        A1, A2 = (maps_of(k, 3).requires_grad_() for k in (1, 2))
        for G in torch.autograd.grad(y_of(net, A1, A2).sum(), (A1, A2)):
            torch.testing.assert_close(G, G[:, :, :1, :1].expand_as(G), rtol=1e-13, atol=0)

    @pytest.mark.parametrize("normalize", [False, True])
    def test_factual_and_counterfactual_add_up_to_zero(self, normalize):
        net = small_net(5, normalize=normalize)
        A1, A2 = maps_of(1, 3), maps_of(2, 3)
        factual = [(G * 1.0) for G in closed(net, A1, A2)]
        leaves = [A.clone().requires_grad_() for A in (A1, A2)]
        gradients = torch.autograd.grad(y_of(net, *leaves).sum(), leaves)  # of y, not of 1 - y
        for M, G, A in zip(factual, gradients, (A1, A2), strict=True):
            other, size = equations(G, A)
            assert deviation(-M, other, size) < 1e-12
            assert not ((M.relu() > 0) & ((-M).relu() > 0)).any()

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("unit", [0, 3])
    def test_a_unit_that_is_off_says_nothing(self, normalize, unit):
        net = small_net(6, normalize=normalize)
        with torch.no_grad():
            net.projection.bias[unit] = -1e6
        seen = gradcam.project(net, maps_of(1, 3))
        assert (seen.maps[:, unit] == 0).all() and (seen.embedding[:, unit] == 0).all()

    def test_toy_by_hand(self):
        """The chapter's example: M₁ = s/27 (2 yellow − 2 red), M₂ = s/27 (3 red − 4 yellow)."""
        net = small_net(channels=2, embed_dim=3, normalize=False)
        with torch.no_grad():
            net.projection.weight.copy_(torch.tensor([[1, 0], [0, 1], [-2, 1]]))
            net.projection.bias.copy_(torch.tensor([0, 0, 2]))
            net.output.weight.fill_(1), net.output.bias.fill_(0)
        yellow1, red1 = [[0, 4, 0], [4, 20, 4], [0, 4, 0]], [[0, 0, 0], [0, 0, 0], [3, 3, 3]]
        yellow2, red2 = [[6, 6, 0], [6, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 6, 6], [0, 6, 9]]
        A1, A2 = (torch.tensor([x]).double() for x in ((yellow1, red1), (yellow2, red2)))
        M1, M2 = closed(net, A1, A2)
        s = 1 / (2 + 2 * math.cosh(3))
        torch.testing.assert_close(-M1 * 27 / s, 2 * A1[:, 0] - 2 * A1[:, 1])
        torch.testing.assert_close(-M2 * 27 / s, 3 * A2[:, 1] - 4 * A2[:, 0])
        torch.testing.assert_close(-(M1.sum() + M2.sum()) / s, torch.tensor(7 / 3).double())


# --- equal to other libraries ---------------------------------------------------------------------


class _AsBatch(nn.Module):
    """The pair as one batch of 2B, as hooking libraries need it: scores (B, 2) of y and 1 − y."""

    def __init__(self, net: sc.SiameseNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, both: Tensor) -> Tensor:
        y = self.net(*both.chunk(2))
        return torch.stack([y, 1 - y], dim=1)


class _CalledTwice(_AsBatch):
    def forward(self, both: Tensor) -> Tensor:
        e1, e2 = (self.net.embed(x) for x in both.chunk(2))
        y = self.net.dissimilarity(self.net.distance(e1, e2))
        return torch.stack([y, 1 - y], dim=1)


@pytest.fixture(params=[False, True], ids=["plain", "unit length"])
def subject(request):
    """A network with a small convolutional backbone, three pairs as one batch, and our maps."""
    torch.manual_seed(7)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()
    )
    net = sc.SiameseNet(backbone, 10, normalize=request.param, image_size=33).double().eval()
    with torch.no_grad():
        net.projection.weight.normal_()
        net.output.bias.fill_(-0.5)
    both = torch.cat(images_of(8, 3, 33, 33))
    with torch.no_grad():
        A = net.feature_maps(both)
    ours = torch.cat(closed(net, A[:3], A[3:]))
    assert all((m > 0).any() and (m < 0).any() for m in ours)  # both signs are there to compare
    return net, both, ours


@pytest.mark.parametrize(("target", "sign"), [(0, -1), (1, 1)], ids=["y", "1 − y"])
class TestAgainstOtherLibraries:
    def test_captum(self, subject, target, sign):
        captum = pytest.importorskip("captum.attr")
        net, both, ours = subject
        model = _AsBatch(net)
        found = captum.LayerGradCam(model, net.backbone[-1]).attribute(both, target=target)
        torch.testing.assert_close(found[:, 0].detach(), sign * ours, rtol=1e-9, atol=1e-13)

    def test_torchcam(self, subject, target, sign):
        methods = pytest.importorskip("torchcam.methods")
        net, both, ours = subject
        model = _AsBatch(net)
        with methods.GradCAM(model, net.backbone[-1]) as extractor:
            (found,) = extractor(target, model(both), normalized=False)
        torch.testing.assert_close(found, (sign * ours).relu(), rtol=1e-9, atol=1e-13)

    def test_pytorch_grad_cam(self, subject, target, sign):
        pytest.importorskip("pytorch_grad_cam")
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.image import scale_cam_image

        net, both, ours = subject
        with GradCAM(_AsBatch(net), [net.backbone[-1]]) as cam:
            shown = cam(both, [lambda scores: scores[target]] * 3)
            kept = cam.activations_and_grads
            raw = cam.get_cam_image(
                both, net.backbone[-1], None,
                kept.activations[0].detach().numpy(), kept.gradients[0].detach().numpy(),
            )  # fmt: skip
        np.testing.assert_allclose(raw, sign * ours.numpy(), rtol=1e-9, atol=1e-13)
        # it scales twice: each layer's map, and the mean over layers
        expected = scale_cam_image(scale_cam_image((sign * ours).relu().numpy(), (33, 33)))
        np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_a_layer_called_twice_gives_one_image_to_a_hook(subject):
    """The trap that `forward` avoids by sending both images through as one batch."""
    captum = pytest.importorskip("captum.attr")
    net, both, ours = subject
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = captum.LayerGradCam(_CalledTwice(net), net.backbone[-1]).attribute(both, target=1)
    assert len(found) == 3 and len(ours) == 6  # three maps are missing, and nobody said so


def test_the_backbone_sees_a_pair_as_one_batch():
    net, sizes = small_net(), []
    net.backbone.register_forward_hook(lambda module, given, output: sizes.append(len(output)))
    net(*images_of(0, 3))
    assert sizes == [6]


# --- sums and symmetries --------------------------------------------------------------------------


class TestCompleteness:
    @PROPERTY
    @given(seed=st.integers(0, 10_000), shift=st.sampled_from([-1.0, 0.0, 1.0, 5.0]))
    def test_projected_map_sums_to_the_embedding_less_its_bias(self, seed, shift):
        net = small_net(seed, shift=shift)
        seen = gradcam.project(net, maps_of(seed, 3))
        active = (seen.embedding > 0).double()
        expected = seen.embedding - active * net.projection.bias.detach()
        torch.testing.assert_close(seen.maps.sum(dim=(2, 3)), expected, rtol=1e-11, atol=1e-12)

    @PROPERTY
    @given(seed=st.integers(0, 10_000), shift=st.sampled_from([-1.0, 0.0, 1.0, 5.0]))
    def test_plain_maps_share_out_the_distance(self, seed, shift):
        net = small_net(seed, normalize=False, shift=shift)
        A1, A2 = maps_of(seed, 3), maps_of(seed + 1, 3)
        M1, M2 = closed(net, A1, A2)
        with torch.no_grad():
            e1, e2 = (net.activation(A.mean(dim=(2, 3))) for A in (A1, A2))
            d = net.distance(e1, e2)
            assume(float(d.min()) > 1e-6)
            u = (e1 - e2) / d[:, None]
            bias = (u * ((e1 > 0).double() - (e2 > 0).double())) @ net.projection.bias
            expected = -gradcam.slope(net, d) * (d - bias)
        size = M1.abs().sum(dim=(1, 2)) + M2.abs().sum(dim=(1, 2))
        gap = (M1.sum(dim=(1, 2)) + M2.sum(dim=(1, 2)) - expected).abs()
        assert bool((gap <= 1e-12 * (size + expected.abs())).all())

    @PROPERTY
    @given(seed=st.integers(0, 10_000), shift=st.sampled_from([0.0, 1.0, 5.0]))
    def test_unit_length_maps_sum_to_the_bias_alone(self, seed, shift):
        net = small_net(seed, normalize=True, shift=shift)
        A1, A2 = maps_of(seed, 3), maps_of(seed + 1, 3)
        assume(not one_dead(net, A1, A2))
        seen = [gradcam.project(net, A) for A in (A1, A2)]
        with torch.no_grad():
            s = gradcam.slope(net, gradcam.distance(net, *seen))
            directions = gradcam.approach(*(x.embedding for x in seen), unit=net.normalize)
            for M, v, x in zip(gradcam.pair_maps(net, *seen), directions, seen, strict=True):
                expected = -s * (((x.embedding > 0) * v) @ net.projection.bias)
                gap = (M.sum(dim=(1, 2)) - expected).abs()
                assert bool(
                    (gap <= 1e-11 * (M.abs().sum(dim=(1, 2)) + expected.abs()) + 1e-15).all()
                )

    @PROPERTY
    @given(seed=st.integers(0, 10_000))
    def test_plain_map_is_shared_minus_self(self, seed):
        net = small_net(seed, normalize=False)
        a, b = (gradcam.project(net, maps_of(seed + k, 3)) for k in (0, 1))
        with torch.no_grad():
            d = gradcam.distance(net, a, b)
            assume(float(d.min()) > 1e-3)
            factor = (gradcam.slope(net, d) / d)[:, None, None]
            found = gradcam.pair_maps(net, a, b)
        for M, one, two in ((found[0], a, b), (found[1], b, a)):
            expected = factor * (gradcam.shared_map(one, two) - gradcam.self_map(one))
            size = factor.abs() * gradcam.self_map(one).abs().amax(dim=(1, 2), keepdim=True)
            assert deviation(M, expected, size.expand_as(M) + M.abs()) < 1e-10


class TestSymmetry:
    @PROPERTY
    @given(
        seed=st.integers(0, 10_000),
        normalize=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float64]),
    )
    def test_swapping_the_images_swaps_the_maps_exactly(self, seed, normalize, dtype):
        net = small_net(seed, normalize=normalize, dtype=dtype)
        A1, A2 = (maps_of(seed + k, 3).to(dtype) for k in (0, 1))
        forth, back = closed(net, A1, A2), closed(net, A2, A1)
        assert torch.equal(forth[0], back[1]) and torch.equal(forth[1], back[0])

    @pytest.mark.parametrize("normalize", [False, True])
    def test_a_batch_is_its_pairs(self, normalize):
        net = small_net(1, normalize=normalize)
        A1, A2 = maps_of(1, 5), maps_of(2, 5)
        together = closed(net, A1, A2)
        for k in range(5):
            for whole, alone in zip(
                together, closed(net, A1[k : k + 1], A2[k : k + 1]), strict=True
            ):
                torch.testing.assert_close(whole[k], alone[0], rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("factor", [1e-3, 7.0])
    def test_unit_length_ignores_brightness_of_the_features(self, normalize, factor):
        """Scaling A₁ scales e₁ where no bias is in the way; unit length then sees no difference."""
        net = small_net(2, normalize=normalize)
        with torch.no_grad():
            net.projection.bias.zero_()
        A1, A2 = maps_of(1, 2), maps_of(2, 2)
        before, after = closed(net, A1, A2)[0], closed(net, factor * A1, A2)[0]
        same = torch.allclose(before, after, rtol=1e-9, atol=1e-15)
        assert same == normalize

    def test_moving_the_places_moves_the_map(self):
        net = small_net(3)
        A1, A2 = maps_of(1, 2), maps_of(2, 2)
        rolled = closed(net, A1.roll((1, 2), (2, 3)), A2)[0]
        torch.testing.assert_close(rolled, closed(net, A1, A2)[0].roll((1, 2), (1, 2)))


# --- the parts ------------------------------------------------------------------------------------


class TestProject:
    def test_shapes_and_types(self):
        net = small_net(dtype=torch.float32)
        seen = gradcam.project(net, maps_of(0, 2, h=3, w=9).float())
        assert seen.maps.shape == (2, 8, 3, 9) and seen.embedding.shape == (2, 8)
        assert seen.maps.dtype == seen.embedding.dtype == torch.float32

    def test_embedding_is_the_networks_own_before_scaling(self):
        net, A = small_net(1), maps_of(1, 4)
        seen = gradcam.project(net, A)
        assert torch.equal(seen.embedding, net.activation(A.mean(dim=(2, 3))))
        torch.testing.assert_close(
            nn.functional.normalize(seen.embedding), net.embed_pooled(A.mean(dim=(2, 3)))
        )

    def test_builds_no_graph_and_leaves_its_input_alone(self):
        net = small_net()
        A = maps_of(0, 2).requires_grad_()
        before = A.detach().clone()
        seen = gradcam.project(net, A)
        assert not seen.maps.requires_grad and not seen.embedding.requires_grad
        assert torch.equal(A.detach(), before) and A.grad is None

    def test_one_place_is_enough(self):
        net = small_net(2, normalize=False)
        A1, A2 = maps_of(1, 1, h=1, w=1), maps_of(2, 1, h=1, w=1)
        for M, (truth, size) in zip(closed(net, A1, A2), by_autograd(net, A1, A2), strict=True):
            assert M.shape == (1, 1, 1) and deviation(M, truth, size) < 1e-12

    def test_along_is_linear(self):
        seen = gradcam.project(small_net(), maps_of(0, 3))
        v, w = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).double()
        torch.testing.assert_close(
            gradcam.along(seen, 2 * v - w), 2 * gradcam.along(seen, v) - gradcam.along(seen, w)
        )

    def test_self_and_shared_by_loops(self):
        a, b = (gradcam.project(small_net(), maps_of(k, 2)) for k in (0, 1))
        for pair in range(2):
            for p, q in np.ndindex(4, 5):
                here = a.maps[pair, :, p, q]
                torch.testing.assert_close(
                    gradcam.self_map(a)[pair, p, q], here @ a.embedding[pair]
                )
                torch.testing.assert_close(
                    gradcam.shared_map(a, b)[pair, p, q], here @ b.embedding[pair]
                )


@pytest.mark.parametrize("normalize", [False, True])
def test_distance_and_score_are_those_of_forward(normalize):
    net = small_net(1, normalize=normalize)
    a, b = images_of(2, 4)
    with torch.no_grad():
        seen = [gradcam.project(net, net.feature_maps(x)) for x in (a, b)]
        y = net.dissimilarity(gradcam.distance(net, *seen))
        torch.testing.assert_close(y, net(a, b), rtol=1e-12, atol=0)


class TestSlope:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("weight", [-3.0, 0.5, 1.0, 12.0])
    def test_is_the_derivative_of_y(self, weight, dtype):
        net = small_net(slope=weight, dtype=dtype)
        d = torch.linspace(0, 5, 41, dtype=dtype)
        z = weight * d.double() - weight
        expected = weight / (2 + 2 * torch.cosh(z))  # y (1 − y), written without y
        found = gradcam.slope(net, d)
        assert found.shape == (41,) and found.dtype == torch.float64
        torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=1e-30)

    @pytest.mark.parametrize("weight", [-1.0, 1.0])
    @pytest.mark.parametrize("z", [-1e6, -1000.0, -100.0, -20.0, 20.0, 100.0, 1000.0, 1e6])
    def test_never_rounds_to_zero(self, weight, z):
        net = small_net(slope=weight, dtype=torch.float32)
        d = torch.tensor([z / weight + 1], dtype=torch.float32)
        found = gradcam.slope(net, d).detach()
        assert torch.isfinite(found).all() and float(found * weight) >= 1e-30
        if abs(z) < 60:  # the true value, where autograd in float32 gives 0 for z = 20
            torch.testing.assert_close(
                found, torch.tensor([weight / (2 + 2 * math.cosh(z))]).double(), rtol=1e-4, atol=0
            )

    def test_float32_autograd_does_round_to_zero(self):
        """Why the library does not use y (1 − y): the trap itself."""
        z = torch.tensor([20.0, 100.0], requires_grad=True)
        (gradient,) = torch.autograd.grad(torch.sigmoid(z).sum(), z)
        assert gradient.tolist() == [0.0, 0.0]

    def test_an_output_without_weight_explains_nothing(self):
        net = small_net(slope=0.0)
        assert gradcam.slope(net, torch.ones(2)).tolist() == [0.0, 0.0]
        assert all((M == 0).all() for M in closed(net, maps_of(1, 2), maps_of(2, 2)))


class TestApproach:
    @PROPERTY
    @given(seed=st.integers(0, 10_000), normalize=st.booleans(), width=st.integers(1, 20))
    def test_is_minus_the_gradient_of_the_distance(self, seed, normalize, width):
        random = torch.Generator().manual_seed(seed)
        drawn = torch.rand(2, 3, width, generator=random, dtype=torch.float64)
        e1, e2 = (x.clone().requires_grad_() for x in drawn)
        net = small_net(normalize=normalize)
        scaled = [nn.functional.normalize(x) if normalize else x for x in (e1, e2)]
        d = net.distance(*scaled)
        assume(float(d.min().detach()) > 1e-3)
        truth = torch.autograd.grad(-d.sum(), (e1, e2))
        for v, t in zip(
            gradcam.approach(e1.detach(), e2.detach(), unit=net.normalize), truth, strict=True
        ):
            torch.testing.assert_close(v, t, rtol=1e-11, atol=1e-12 * float(t.abs().max()))

    def test_unit_length_directions_are_sideways(self):
        e1, e2 = torch.rand(2, 50, 8, generator=torch.Generator().manual_seed(0)).double()
        for v, e in zip(gradcam.approach(e1, e2, unit=True), (e1, e2), strict=True):
            assert float((v * e).sum(dim=1).abs().max()) < 1e-14

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize(
        ("dtype", "steps"),
        [(torch.float64, 10.0 ** -np.arange(1, 13)), (torch.float32, 10.0 ** -np.arange(1, 6))],
        ids=["float64", "float32"],
    )
    def test_near_identical_embeddings(self, dtype, steps, normalize):
        """Against 80-bit arithmetic: the error grows as ε/δ, as it must, and no faster."""
        random = np.random.default_rng(1)
        e1, way = random.random(12) + 0.1, random.normal(size=12)
        net = small_net(normalize=normalize)
        epsilon = torch.finfo(dtype).eps
        for step in steps:
            given = [torch.tensor(e, dtype=dtype)[None] for e in (e1, e1 + step * way)]
            a, b = (x[0].double().numpy().astype(np.longdouble) for x in given)
            if normalize:
                n = np.sqrt(a @ a)
                a, b = a / n, b / np.sqrt(b @ b)
                d = np.sqrt((b - a) @ (b - a))
                truth = (b - (a @ b) * a) / (d * n)
            else:
                truth = (b - a) / np.sqrt((b - a) @ (b - a))
            found = gradcam.approach(*given, unit=net.normalize)[0][0].double().numpy()
            gap = np.abs(found - truth).max() / np.abs(truth).max()
            assert gap < 30 * epsilon / step

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equal_embeddings_have_no_way_to_go(self, normalize, dtype):
        e = torch.rand(4, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
        e[1] = 0
        for v in gradcam.approach(e, e.clone(), unit=normalize):
            assert v.dtype == dtype and (v == 0).all()


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestEdges:
    def test_identical_images_give_blank_maps(self, normalize, dtype):
        net = small_net(1, normalize=normalize, dtype=dtype)
        A = maps_of(1, 3).to(dtype)
        assert all((M == 0).all() for M in closed(net, A, A.clone()))

    def test_identical_images_disturb_no_other_pair(self, normalize, dtype):
        net = small_net(1, normalize=normalize, dtype=dtype)
        A1, A2 = maps_of(1, 3).to(dtype), maps_of(2, 3).to(dtype)
        A2[1] = A1[1]
        for M, alone in zip(closed(net, A1, A2), closed(net, A1[2:], A2[2:]), strict=True):
            assert torch.isfinite(M).all() and (M[1] == 0).all()
            torch.testing.assert_close(M[2], alone[0])
            assert (M[0] != 0).any()

    def test_forward_has_a_zero_gradient_at_identical_images(self, normalize, dtype):
        net = small_net(1, normalize=normalize, dtype=dtype)
        x = images_of(1, 2)[0].to(dtype)
        y = net(x.requires_grad_(), x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert (gradient == 0).all()

    @pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6, 1e-12])
    def test_near_identical_images_give_finite_maps(self, normalize, dtype, size):
        net = small_net(1, normalize=normalize, dtype=dtype)
        A = maps_of(1, 3).to(dtype)
        for M in closed(net, A, A + size * maps_of(2, 3).to(dtype)):
            assert torch.isfinite(M).all()
            # |v| is 1 or 1/‖e‖: a map cannot grow however close the images are
            seen = gradcam.project(net, A)
            length = seen.embedding.norm(dim=1).clamp_min(1e-3) if normalize else torch.ones(3)
            bound = seen.maps.norm(dim=1).amax(dim=(1, 2)) / length
            assert bool((M.abs().amax(dim=(1, 2)) <= 0.25 * 1.01 * bound + size).all())

    def test_zero_feature_maps(self, normalize, dtype):
        net = small_net(1, normalize=normalize, dtype=dtype)
        nothing = torch.zeros(2, 6, 4, 5, dtype=dtype)
        M1, M2 = closed(net, nothing, maps_of(2, 2).to(dtype))
        assert (M1 == 0).all() and torch.isfinite(M2).all()

    def test_all_units_off_in_both_images(self, normalize, dtype):
        net = small_net(1, normalize=normalize, shift=-1e3, dtype=dtype)
        assert all(
            (M == 0).all() for M in closed(net, maps_of(1, 2).to(dtype), maps_of(2, 2).to(dtype))
        )

    @pytest.mark.parametrize("z", [-1000.0, -50.0, 50.0, 1000.0])
    def test_a_saturated_sigmoid_keeps_the_shape_of_the_maps(self, normalize, dtype, z):
        net = small_net(1, normalize=normalize, dtype=dtype)
        A1, A2 = maps_of(1, 2).to(dtype), maps_of(2, 2).to(dtype)
        calm = closed(net, A1, A2)
        with torch.no_grad():
            net.output.bias.fill_(z)
        for before, after in zip(calm, closed(net, A1, A2), strict=True):
            before, after = (
                x.double() / x.double().abs().amax(dim=(1, 2), keepdim=True)
                for x in (before, after)
            )
            torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)

    def test_one_blank_image_with_plain_embeddings(self, normalize, dtype):
        """All units off in one image: its own map is blank, whatever its partner is."""
        net = small_net(1, normalize=normalize, dtype=dtype)
        A1, A2 = _one_off(net, dtype)
        assert (closed(net, A1, A2)[0] == 0).all()


def _one_off(net: sc.SiameseNet, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Feature maps of a pair with no unit on in the first image, some in the second."""
    with torch.no_grad():
        net.projection.bias.fill_(-0.1)
    A1, A2 = torch.zeros(1, 6, 4, 5, dtype=dtype), 3 * maps_of(2, 1).to(dtype)
    assert one_dead(net, A1, A2)
    return A1, A2


def test_one_embedding_of_zero_plain():
    net = small_net(1, normalize=False)
    A1, A2 = _one_off(net, torch.float64)
    for M, (truth, size) in zip(closed(net, A1, A2), by_autograd(net, A1, A2), strict=True):
        assert deviation(M, truth, size) < 1e-12
    assert (closed(net, A1, A2)[1] != 0).any()


def test_one_embedding_of_zero_unit_length():
    """ê₁ = 0 leaves d = ‖ê₂‖ = 1 whatever e₂ is: no gradient, so both maps are blank."""
    net = small_net(1, normalize=True)
    A1, A2 = _one_off(net, torch.float64)
    for truth, _ in by_autograd(net, A1, A2):
        assert float(truth.abs().max()) < 1e-15
    for M in closed(net, A1, A2):
        assert float(M.abs().max()) < 1e-15


def test_one_embedding_of_zero_unit_length_is_blank_in_float32():
    e2 = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    for v in gradcam.approach(torch.zeros(50, 8), e2, unit=True):
        assert (v == 0).all()


def test_one_unit_on_unit_length():
    """ê₁ = (0, 1, 0, …) stays where it is however long e₁ is: its map is blank, and exactly so."""
    net = small_net(1, normalize=True, dtype=torch.float32)
    e2 = torch.rand(200, 8, generator=torch.Generator().manual_seed(1))
    e1 = torch.zeros(200, 8)
    e1[:, 1] = torch.linspace(0.1, 5, 200)
    v1, _ = gradcam.approach(e1, e2, unit=net.normalize)
    assert (v1[:, 1] == 0).all()


def test_maps_of_an_untrained_network_carry_no_graph():
    """`fit` freezes the weights; before it, maps could not be turned into arrays."""
    net = small_net()
    a, b = (gradcam.project(net, maps_of(k, 1)) for k in (1, 2))
    assert not any(M.requires_grad for M in gradcam.pair_maps(net, a, b))


# --- the ways others measure a distance, at distance zero -----------------------------------------


class TestTrapsOfTheDistance:
    @staticmethod
    def gradient(distance) -> list[float]:
        e = torch.ones(1, 2, requires_grad=True)
        distance(e, torch.ones(1, 2)).sum().backward()
        return e.grad[0].tolist()

    def test_root_of_squares_is_not_a_number(self):
        found = self.gradient(lambda a, b: ((a - b) ** 2).sum(dim=-1).sqrt())
        assert all(math.isnan(x) for x in found)

    def test_pairwise_distance_points_anywhere(self):
        found = self.gradient(nn.functional.pairwise_distance)
        assert found == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-4)

    def test_pairwise_distance_is_not_symmetric(self):
        a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[1e-3, 0.0]])
        forth, back = (nn.functional.pairwise_distance(*x) for x in ((a, b), (b, a)))
        assert not torch.equal(forth, back)
        assert torch.equal(sc.SiameseNet.distance(a, b), sc.SiameseNet.distance(b, a))

    def test_ours_is_zero(self):
        assert self.gradient(sc.SiameseNet.distance) == [0.0, 0.0]
