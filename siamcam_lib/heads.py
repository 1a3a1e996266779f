r"""What lies between a feature map and an embedding, and its gradient.

Taught in chapter 4 (Grad-CAM maths). Grad-CAM asks how the embedding moves with each channel of
the feature map. Where the head averages over space and projects, the answer is a matrix product;
for any other head it is a backward pass through the head alone. The backbone is never
differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from siamcam_lib.errors import ExplanationError
from siamcam_lib.gradcam import Projected


@dataclass(frozen=True)
class PooledHead:
    r"""A head that averages over space, projects, and may rectify: e = ReLU(W g + b).

    Attributes:
        weight: W, (E, K); None for the identity.
        bias: b, (E,); None for zero.
        relu: Whether there is a ReLU.

    Example:
        >>> head = PooledHead(torch.eye(3)[:2], torch.zeros(2))
        >>> head.embed(torch.ones(5, 3, 7, 7)).shape
        torch.Size([5, 2])
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    relu: bool = True

    @cached_property
    def exact_weight(self) -> Tensor | None:
        """W in float64, or None."""
        return None if self.weight is None else self.weight.double()

    def embed(self, maps: Tensor) -> Tensor:
        """Embeddings of feature maps (n, K, h, w): (n, E) float64."""
        pooled = maps.mean(dim=(2, 3), dtype=torch.float64)
        if self.exact_weight is not None:
            # A product of matrices rounds by the row; what is equal must stay equal.
            distinct, place = torch.unique(pooled, dim=0, return_inverse=True)
            pooled = (distinct @ self.exact_weight.T)[place]
        if self.bias is not None:
            pooled = pooled + self.bias.double()
        return pooled.relu() if self.relu else pooled


class Seen:
    """A batch of images after one look; maps of any direction in embedding space are asked of it.

    Attributes:
        maps: A, the feature maps, (n, K, h, w), on the CPU.
        embedding: e, (n, E) float64, on the CPU.
    """

    maps: Tensor
    embedding: Tensor

    def weights(self, rows: Tensor, v: Tensor) -> Tensor:
        r"""Grad-CAM's channel weights: the mean over space of :math:`\partial\langle v,e\rangle/\partial A`.

        Args:
            rows: Which images, (m,); one may come more than once.
            v: A direction for each, (m, E).

        Returns:
            (m, K) float64.
        """  # noqa: E501
        raise NotImplementedError

    def along(self, rows: Tensor, v: Tensor) -> Tensor:
        """Signed maps ⟨P(p), v⟩ of the images `rows` along directions `v`: (m, h, w) float64."""
        # Weighting the K channels first costs E times less than projecting every location.
        return torch.einsum("mk,mkhw->mhw", self.weights(rows, v), self.maps[rows].double())

    def project(self) -> Projected:
        """P and e of every image, float32, for whoever asks for many directions."""
        raise NotImplementedError


@dataclass(frozen=True)
class PooledSeen(Seen):
    """Seen through a `PooledHead`: the closed form."""

    maps: Tensor
    head: PooledHead
    embedding: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedding", self.head.embed(self.maps))

    def weights(self, rows: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        active = v * (self.embedding[rows] > 0) if self.head.relu else v  # D v
        area = self.maps.shape[2] * self.maps.shape[3]
        exact = self.head.exact_weight
        return (active if exact is None else active @ exact) / area

    def project(self) -> Projected:  # noqa: D102
        maps = self.maps.float()
        if self.head.weight is not None:
            maps = torch.einsum("ek,nkhw->nehw", self.head.weight.float(), maps)
        if self.head.relu:
            maps = maps * (self.embedding > 0)[:, :, None, None]
        return Projected(maps / (maps.shape[2] * maps.shape[3]), self.embedding.float())


@dataclass(frozen=True)
class TracedSeen(Seen):
    """Seen through any other head: its graph is kept, and walked backwards as often as needed.

    A head in float32 is differentiated in float32: its maps are exact to some 10⁻⁶ of their
    largest value, where those of the closed form, whose head is float64, keep 10⁻⁷.

    Attributes:
        leaf: The feature maps as the graph knows them, (n, K, h, w), requiring gradients.
        output: The head's output, (n, E), on the graph.
    """

    leaf: Tensor
    output: Tensor

    @property
    def maps(self) -> Tensor:  # type: ignore[override]  # noqa: D102
        return self.leaf.detach().cpu()

    @property
    def embedding(self) -> Tensor:  # type: ignore[override]  # noqa: D102
        return self.output.detach().cpu().double()

    def weights(self, rows: Tensor, v: Tensor) -> Tensor:  # noqa: D102
        found = torch.zeros(len(rows), self.leaf.shape[1], dtype=torch.float64)
        left = list(range(len(rows)))
        while left:  # one backward pass serves every image once
            turn = list({int(rows[k]): k for k in reversed(left)}.values())
            direction = torch.zeros_like(self.output)
            direction[rows[turn]] = v[turn].to(direction)
            gradient = self._pull(direction)
            found[turn] = gradient[rows[turn]].cpu().double().mean(dim=(2, 3))
            left = sorted(set(left) - set(turn))
        return found

    def project(self, at_once: int = 16) -> Projected:
        r"""P of every image: each unit's gradient, averaged over space, times the feature map."""
        maps, size = self.leaf.detach(), self.output.shape[1]
        parts = []
        for units in torch.arange(size, device=maps.device).split(at_once):
            # (u, n, E): ask for unit u of every image; images do not mix in evaluation mode
            wanted = torch.nn.functional.one_hot(units, size).to(self.output)
            wanted = wanted[:, None].expand(-1, len(maps), -1)
            gradient = self._pull(wanted, is_grads_batched=True)
            parts.append(torch.einsum("unk,nkhw->nuhw", gradient.mean(dim=(3, 4)), maps))
        return Projected(torch.cat(parts, dim=1).float().cpu(), self.embedding.float())

    def _pull(self, direction: Tensor, **options: bool) -> Tensor:
        try:
            return torch.autograd.grad(
                self.output, self.leaf, direction, retain_graph=True, **options
            )[0]
        except RuntimeError as error:
            raise ExplanationError(
                f"The network cannot be differentiated after its layer ({error}); replace what "
                "changes tensors in place there, or name a later layer."
            ) from error
