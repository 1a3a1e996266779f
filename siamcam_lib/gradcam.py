r"""Grad-CAM of a pair in closed form: exact, for both images and both polarities, and nearly free.

Taught in chapter 4 (Grad-CAM maths). With a head that pools and projects, the gradient that
Grad-CAM asks for is constant over the feature map and known without a backward pass. Project each
feature map once, :math:`P_i(p) = D_i W A_i(p) / Z`; then every map of a pair is a product of
:math:`P_i` with a combination of the two embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from siamcam_lib.errors import ExplanationError
from siamcam_lib.model import SiameseNet

SMALLEST_SLOPE = 1e-30
"""Keeps a map's shape where the sigmoid is so saturated that float32 would round its slope to 0."""


@dataclass(frozen=True)
class Projected:
    r"""A batch of images as the head sees them, location by location.

    Attributes:
        maps: :math:`P_i(p) = D_i W A_i(p) / Z`, (B, E, h, w).
        embedding: :math:`e_i = \mathrm{ReLU}(W g_i + b)`, (B, E), before any scaling to unit
            length. It is the sum of `maps` over space, plus the bias of the active units.
    """

    maps: Tensor
    embedding: Tensor


def project(net: SiameseNet, feature_maps: Tensor) -> Projected:
    """Project feature maps A (B, K, h, w) through the head, without pooling them.

    Example:
        >>> net = SiameseNet("resnet18", embed_dim=8, pretrained=False).eval()
        >>> seen = project(net, torch.rand(2, 512, 7, 7))
        >>> seen.maps.shape, seen.embedding.shape
        (torch.Size([2, 8, 7, 7]), torch.Size([2, 8]))
    """
    with torch.no_grad():
        embedding = net.activation(feature_maps.mean(dim=(2, 3)))  # (B, E)
        maps = torch.einsum("ek,bkhw->behw", net.projection.weight, feature_maps)
        active = (embedding > 0).to(maps.dtype)  # D_i
        area = feature_maps.shape[2] * feature_maps.shape[3]  # Z
        return Projected(maps * active[:, :, None, None] / area, embedding)


def along(projected: Projected, direction: Tensor) -> Tensor:
    """⟨P_i(p), v_i⟩ at every location: direction v (B, E) → (B, h, w)."""
    return torch.einsum("behw,be->bhw", projected.maps, direction)


def self_map(projected: Projected) -> Tensor:
    """N_i(p) = ⟨P_i(p), e_i⟩, what makes the image's own embedding long: (B, h, w)."""
    return along(projected, projected.embedding)


def shared_map(projected: Projected, partner: Projected) -> Tensor:
    """S_i(p) = ⟨P_i(p), e_j⟩, what the image has of its partner (Stylianou et al. 2019)."""
    return along(projected, partner.embedding)


def distance(net: SiameseNet, a: Projected, b: Projected) -> Tensor:
    """Distance d of pairs of projected images, (B,)."""
    if not net.normalize:
        return net.distance(a.embedding, b.embedding)
    unit = torch.nn.functional.normalize
    return net.distance(unit(a.embedding, dim=-1), unit(b.embedding, dim=-1))


@torch.no_grad()
def slope(net: SiameseNet, d: Tensor) -> Tensor:
    """Slope of the network's sigmoid at distance d, s = w_y · y (1 − y), (B,) float64."""
    return sigmoid_slope(d, net.output.weight.item(), net.output.bias.item())


def sigmoid_slope(d: Tensor, weight: float, offset: float) -> Tensor:
    """Slope of σ(weight · d + offset) at d, (B,) float64, never zero where `weight` is not.

    Computed from both tails, so that it does not round to zero where y rounds to 1.
    """
    z = weight * d.double() + offset
    s = weight * torch.sigmoid(z) * torch.sigmoid(-z)
    least = math.copysign(SMALLEST_SLOPE, weight) if weight else 0.0
    return torch.where(s.abs() < SMALLEST_SLOPE, least, s)


def approach(e1: Tensor, e2: Tensor, *, unit: bool = False) -> tuple[Tensor, Tensor]:
    r"""Gradients of :math:`-d` with respect to both embeddings: the way that brings them together.

    Plain embeddings: :math:`v_1 = (e_2 - e_1)/d`. Unit length, with
    :math:`\hat e = e/\lVert e \rVert`:
    :math:`v_1 = (\hat e_2 - \cos\,\hat e_1)/(d \lVert e_1 \rVert)`. For equal embeddings there is
    no way to go, and both are zero.

    Args:
        e1: (B, E), before scaling.
        e2: (B, E), before scaling.
        unit: Whether the distance is that of the embeddings scaled to unit length.

    Example:
        >>> v1, v2 = approach(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 5.0]]))
        >>> v1.tolist(), v2.tolist()
        ([[0.0, 1.0]], [[-0.0, -1.0]])
    """
    if not unit:
        step = e2 - e1
        v1 = step / _nonzero(torch.linalg.vector_norm(step, dim=-1, keepdim=True))
        return v1, -v1
    n1, n2 = (_nonzero(torch.linalg.vector_norm(e, dim=-1, keepdim=True)) for e in (e1, e2))
    u1, u2 = e1 / n1, e2 / n2
    step = u2 - u1
    d = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    # û₂ − cos û₁ is the part of û₂ − û₁ across û₁; taken so, nothing cancels as d → 0.
    across1, across2 = (step - u * (u * step).sum(dim=-1, keepdim=True) for u in (u1, u2))
    # Beside an embedding of zero d is 1 whatever the other is: there is no way to go.
    both = e1.any(dim=-1, keepdim=True) & e2.any(dim=-1, keepdim=True)
    return both * across1 / _nonzero(d * n1), both * -across2 / _nonzero(d * n2)


COMBINATIONS = ("shared", "self", "cosine", "distance")
"""Maps that need no sigmoid: each is ``own`` times the self map plus ``other`` times the shared."""


@dataclass(frozen=True)
class Relation:
    """How embeddings lie to each other: the four numbers that every map of a pair needs.

    Attributes:
        n1: Length of the embedding of the image whose map is wanted.
        n2: Length of its partner's.
        cos: Cosine of the angle between them.
        d: Distance of the two as they are compared; exactly 0 where they are equal.
    """

    n1: Tensor
    n2: Tensor
    cos: Tensor
    d: Tensor


def relation(e1: Tensor, e2: Tensor, unit: bool = False) -> Relation:
    """Relation of pairs of embeddings, (m, E) twice; `unit`: compared at unit length."""
    n1, n2 = (torch.linalg.vector_norm(e, dim=-1) for e in (e1, e2))
    u1, u2 = e1 / _nonzero(n1)[:, None], e2 / _nonzero(n2)[:, None]
    step = u1 - u2 if unit else e1 - e2
    return Relation(n1, n2, (u1 * u2).sum(-1), torch.linalg.vector_norm(step, dim=-1))


def relation_table(e1: Tensor, e2: Tensor, unit: bool = False) -> Relation:
    """Relation of every one of (r, E) to every one of (c, E): tensors that broadcast to (r, c)."""
    n1, n2 = (torch.linalg.vector_norm(e, dim=-1) for e in (e1, e2))
    u1, u2 = e1 / _nonzero(n1)[:, None], e2 / _nonzero(n2)[:, None]
    ends = (u1, u2) if unit else (e1, e2)
    # By differences: the quicker way by products is wrong where embeddings are near each other.
    d = torch.cdist(*ends, compute_mode="donot_use_mm_for_euclid_dist")
    return Relation(n1[:, None], n2[None, :], u1 @ u2.T, d)


def coefficients(method: str, how: Relation, unit: bool = False) -> tuple[Tensor, Tensor]:
    r"""Every map of a pair is two products added up: :math:`M_1 = own \cdot N_1 + other \cdot S_1`.

    ============ =================================== ========================================
    method       own                                 other
    ============ =================================== ========================================
    ``shared``   0                                   1
    ``self``     1                                   0
    ``distance`` :math:`-1/d`                        :math:`1/d`
    ``cosine``   :math:`-\cos / \lVert e_1 \rVert^2` :math:`1/\lVert e_1\rVert\lVert e_2\rVert`
    ============ =================================== ========================================

    The distance map is what is left of the shared map once the self map is taken away, so what
    both images have equally cancels in it; in the cosine map it is damped only. ``shared`` is the
    map of Stylianou et al. (2019, doi:10.1109/WACV.2019.00220) taken through the head.

    Args:
        method: One of `COMBINATIONS`.
        how: From `relation` or `relation_table`.
        unit: The network scales embeddings to unit length: the same table with
            :math:`P_1/\lVert e_1\rVert` and :math:`e/\lVert e\rVert` in the place of P and e.

    Returns:
        ``own`` and ``other``, of the relation's shape.

    Raises:
        ExplanationError: if there is no such method.

    Example:
        >>> how = relation(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
        >>> [c.item() for c in coefficients("distance", how)]
        [-0.25, 0.25]
    """
    n1, n2, d = _nonzero(how.n1), _nonzero(how.n2), _nonzero(how.d)
    differ = how.d > 0  # of equal embeddings the two products cancel, and are left out
    if method == "cosine":
        return -how.cos * differ / n1**2, differ / (n1 * n2)
    one = torch.ones_like(how.d)
    own, other = (one / n1**2, one / (n1 * n2)) if unit else (one, one)
    if method == "shared":
        return torch.zeros_like(own), other
    if method == "self":
        return own, torch.zeros_like(other)
    if method == "distance":
        return -own * differ / d, other * differ / d
    raise ExplanationError(
        f"No map of a pair is called {method!r}; known are {', '.join(COMBINATIONS)}. Another "
        "closed form overrides `ClosedForm.maps` and takes its maps from `pairs.seen.along`."
    )


@torch.no_grad()
def pair_maps(net: SiameseNet, a: Projected, b: Projected) -> tuple[Tensor, Tensor]:
    r"""Signed Grad-CAM maps of the similarity 1 − y, for both images of each pair.

    With plain embeddings this is :math:`(s/d)(S_i - N_i)`, what the image shares with its partner
    less what it holds itself; the map of y is exactly its negative. Equation (1) and (2) of
    Livieris et al. (2023, doi:10.3390/jimaging9100224), before the ReLU.

    Args:
        net: Gives the sigmoid's slope and the kind of embedding.
        a: First images, projected.
        b: Second images, projected; as many.

    Returns:
        Two (B, h, w) maps at feature resolution; positive speaks for similarity.

    Example:
        >>> net = SiameseNet("resnet18", embed_dim=8, pretrained=False).eval()
        >>> seen = project(net, torch.rand(1, 512, 7, 7))
        >>> [bool((m == 0).all()) for m in pair_maps(net, seen, seen)]  # identical: blank
        [True, True]
    """
    s = slope(net, distance(net, a, b))
    v1, v2 = approach(a.embedding, b.embedding, unit=net.normalize)
    scale = s.to(v1.dtype)[:, None, None]
    return scale * along(a, v1), scale * along(b, v2)


def _nonzero(x: Tensor) -> Tensor:
    """1 where x is 0: what is divided by it is 0 there too."""
    return torch.where(x == 0, torch.ones_like(x), x)
