"""`Embedder`: any network that embeds images, made ready to be explained.

Taught in chapter 4 (Grad-CAM maths). A `SiameseNet` knows its feature map, its head and its
decision; of any other module these are found out, or said, here.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from siamcam_lib import backbones, gradcam
from siamcam_lib.backbones import IMAGENET_MEAN, IMAGENET_STD, evaluating
from siamcam_lib.errors import ExplanationError
from siamcam_lib.heads import PooledHead, PooledSeen, Seen, TracedSeen
from siamcam_lib.model import AT_ONCE, SiameseNet, squares

Comparison = Callable[[Tensor, Tensor], Tensor]
ROUNDING = 1e-6  # how far from [0, 1] a dissimilarity may be by rounding
UNCALIBRATED = 0.25
"""Threshold on (1 − cos)/2 of ImageNet features: vectors at 60° to each other. On 160 pictures each
of the paper's flowers, skin and rooms the best is 0.31, 0.21 and 0.24; this one judges 60, 55 and
64% of pairs rightly, half of them being similar."""


def cosine(e1: Tensor, e2: Tensor) -> Tensor:
    """(1 − cos)/2, in [0, 1]: (B, E) twice → (B,)."""
    return (1 - torch.nn.functional.cosine_similarity(e1, e2, dim=-1)) / 2


def l2(e1: Tensor, e2: Tensor) -> Tensor:
    """d/(1 + d), in [0, 1), so that similarity is the customary 1/(1 + d): (B, E) twice → (B,)."""
    d = torch.linalg.vector_norm(e1 - e2, dim=-1)
    return d / (1 + d)


def clamped(e1: Tensor, e2: Tensor) -> Tensor:
    """min(d, 1), as in the code published with the paper: no gradient, and a blank map, from 1 on.

    (B, E) twice → (B,).
    """
    return torch.linalg.vector_norm(e1 - e2, dim=-1).clamp(max=1)


COMPARISONS: dict[str, Comparison] = {"cosine": cosine, "l2": l2, "clamped": clamped}


@dataclass(frozen=True)
class Compared:
    """Pairs of embeddings, judged.

    Attributes:
        dissimilarity: y, (m,) float64 in [0, 1].
        v1: The way that brings the first embedding nearer: the gradient of the similarity 1 − y
            with respect to it, (m, E) float64.
        v2: The same for the second.
    """

    dissimilarity: Tensor
    v1: Tensor
    v2: Tensor


class Explainable(ABC):
    """What explanations ask of a network; implemented for `SiameseNet` and for any module.

    Attributes:
        network: The module with all weights.
        target: The part of it whose output is the feature map that is explained.
        image_size: Side in pixels of the squares the network looks at.
        threshold: Dissimilarity from which a pair is judged dissimilar.
        unit: Whether embeddings are scaled to unit length before they are compared.
        settings: What a stored gallery must know to compare its embeddings again.
    """

    network: nn.Module
    target: nn.Module
    image_size: int
    threshold: float
    unit: bool
    settings: dict[str, Any]

    def see(self, images: Sequence[Image.Image]) -> Seen:
        """Look at RGB pictures, each once, in evaluation mode."""
        return self.look(squares(images, self.image_size))

    @abstractmethod
    def look(self, pixels: Tensor) -> Seen:
        """Look at pictures (n, 3, S, S) in [0, 1], each once, in evaluation mode."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings of pictures (n, 3, H, W) in [0, 1], differentiable: (n, E), before scaling.

        In evaluation mode, and on whatever device the network is.
        """

    def embed_all(self, pixels: Tensor) -> Tensor:
        """`embed` of any number of pictures, without gradients and a few at a time."""
        with torch.inference_mode():
            return torch.cat([self.embed(part) for part in pixels.split(AT_ONCE)])

    @abstractmethod
    def similarity(self, e1: Tensor, e2: Tensor) -> Tensor:
        """1 − y of pairs of embeddings of `embed`, differentiable: (m, E) twice → (m,)."""

    @abstractmethod
    def compare(self, e1: Tensor, e2: Tensor) -> Compared:
        """Judge pairs of embeddings as `Seen.embedding` gives them, (m, E) float64."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all that an embedding and a map depend on besides the image."""


class SiameseEmbedder(Explainable):
    """A `SiameseNet`: everything in closed form."""

    def __init__(self, net: SiameseNet) -> None:
        self.net = self.network = net
        self.target = net.backbone
        self.image_size, self.threshold, self.unit = net.image_size, net.threshold, net.normalize
        self.settings = {
            "comparison": "siamese",
            "unit": net.normalize,
            "slope": float(net.output.weight.detach()),
            "offset": float(net.output.bias.detach()),
        }

    def look(self, pixels: Tensor) -> PooledSeen:  # noqa: D102
        net = self.net
        weight, bias = (p.detach().cpu() for p in net.projection.parameters())
        with evaluating(net), torch.inference_mode():
            maps = net.look(pixels.to(net.device)).cpu()
            seen = PooledSeen(maps, PooledHead(weight, bias))
        if not torch.isfinite(seen.embedding).all():
            raise ExplanationError(
                "The network's embedding is not finite; its weights are damaged. Load or train it "
                "again."
            )
        return seen

    def embed(self, pixels: Tensor) -> Tensor:  # noqa: D102
        net = self.net
        with evaluating(net):
            return net.activation(net.feature_maps(pixels.to(net.device)).mean(dim=(2, 3)))

    def embed_all(self, pixels: Tensor) -> Tensor:  # noqa: D102
        net = self.net
        with evaluating(net), torch.inference_mode():
            return net.activation(net.look(pixels.to(net.device)).mean(dim=(2, 3)))

    @property
    def _comparison(self) -> SiameseComparison:
        return SiameseComparison(**_without(self.settings, "comparison"))

    def similarity(self, e1: Tensor, e2: Tensor) -> Tensor:  # noqa: D102
        return self._comparison.similarity(e1, e2)

    def compare(self, e1: Tensor, e2: Tensor) -> Compared:  # noqa: D102
        return self._comparison(e1, e2)

    def digest(self) -> str:  # noqa: D102
        return _digest(self.net, f"siamese {self.net.config}")


@dataclass(frozen=True)
class SiameseComparison:
    """How a `SiameseNet` compares: y = σ(slope · d + offset), by numbers alone."""

    unit: bool
    slope: float
    offset: float

    @torch.no_grad()
    def __call__(self, e1: Tensor, e2: Tensor) -> Compared:
        """Judge pairs of embeddings (m, E) float64, before any scaling to unit length."""
        d = self._distance(e1, e2)
        s = gradcam.sigmoid_slope(d, self.slope, self.offset)[:, None]
        v1, v2 = gradcam.approach(e1, e2, unit=self.unit)
        return Compared(torch.sigmoid(self.slope * d + self.offset), s * v1, s * v2)

    def similarity(self, e1: Tensor, e2: Tensor) -> Tensor:
        """1 − y, differentiable: (m, E) twice → (m,)."""
        return torch.sigmoid(-(self.slope * self._distance(e1, e2) + self.offset))

    def _distance(self, e1: Tensor, e2: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize
        u1, u2 = (unit(e1, dim=-1), unit(e2, dim=-1)) if self.unit else (e1, e2)
        return torch.linalg.vector_norm(u1 - u2, dim=-1)


class Embedder(Explainable):
    """Any module that maps images (B, 3, H, W) to embeddings (B, E), seen through one layer.

    Where everything after the layer is an average over space, with or without a linear layer and
    a ReLU, its maps have the closed form; this is tried on every batch and taken only where it
    agrees. Any other head is differentiated, the head alone.

    Args:
        module: The network; used in evaluation mode and left as it was.
        layer: Name, as in ``module.named_modules()``, of the layer whose output (B, K, h, w) is
            explained: usually the last with a spatial extent.
        comparison: How two embeddings become a dissimilarity in [0, 1]: a name in `COMPARISONS`
            or a differentiable function (B, E), (B, E) → (B,).
        image_size: Images are resized to this many pixels, square.
        mean: Subtracted from each channel of images in [0, 1]; ImageNet's by default.
        std: What each channel is divided by then.
        threshold: Dissimilarity from which a pair is judged dissimilar; calibrate it on pairs
            that are not tested on.

    Raises:
        ExplanationError: if the module is none, the layer does not exist, or a setting is wrong.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18()
        >>> model.fc = nn.Identity()
        >>> Embedder(model, "layer4", image_size=64)
        Embedder(ResNet, 'layer4', cosine, 64 px)
    """

    unit = False

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        *,
        comparison: str | Comparison = "cosine",
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        threshold: float = 0.5,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ExplanationError(
                f"The network must be a torch.nn.Module, not {type(module).__name__}."
            )
        if not (callable(comparison) or comparison in COMPARISONS):
            raise ExplanationError(
                f"No comparison is called {comparison!r}; known are {', '.join(COMPARISONS)}, or "
                "pass a function of two tensors of embeddings (B, E)."
            )
        if not isinstance(image_size, int) or image_size < 1:
            raise ExplanationError(f"image_size is a positive whole number, not {image_size!r}.")
        self.module, self.layer, self.image_size = module, layer, image_size
        self.network, self.target = module, find_layer(module, layer)
        self.threshold = check_threshold(threshold)
        if isinstance(comparison, str):
            self.comparison, name = COMPARISONS[comparison], comparison
        else:
            self.comparison, name = comparison, _function_name(comparison)
        self.settings = {"comparison": name}
        self.mean, self.std = _per_channel("mean", mean), _per_channel("std", std)
        if not (self.std > 0).all():
            raise ExplanationError(f"std is positive in every channel; {std!r} was given.")

    @classmethod
    def imagenet(
        cls,
        backbone: str = "efficientnet_lite0",
        *,
        threshold: float = UNCALIBRATED,
        **options: Any,
    ) -> Embedder:
        """Pooled ImageNet features compared by their angle: ready before any training.

        Its maps and the order of its scores mean something. Its decision means little: the
        threshold is a convention, calibrated on no one's pairs.

        Args:
            backbone: A name, as in `siamcam_lib.backbones.create`.
            threshold: Dissimilarity from which a pair is judged dissimilar.
            options: ``image_size`` and ``comparison``, as above.

        Raises:
            ModelError: if there is no such backbone or its weights cannot be had.

        Example:
            >>> Embedder.imagenet(image_size=96).threshold
            0.25
        """
        found = backbones.create(backbone)
        pooled = nn.Sequential(found.module, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return cls(pooled, "0", mean=found.mean, std=found.std, threshold=threshold, **options)

    def __repr__(self) -> str:
        kind = type(self.module).__name__
        return (
            f"Embedder({kind}, {self.layer!r}, {self.settings['comparison']}, {self.image_size} px)"
        )

    def look(self, pixels: Tensor) -> Seen:  # noqa: D102
        # A graph that began outside inference mode must be followed there too.
        with evaluating(self.module), torch.inference_mode(False), torch.enable_grad():
            return _pooled(*self._traced(pixels))

    def embed(self, pixels: Tensor) -> Tensor:  # noqa: D102
        like = next(self.module.parameters(), torch.zeros(()))
        with evaluating(self.module):
            return self.module(((pixels - self.mean) / self.std).to(like))

    def similarity(self, e1: Tensor, e2: Tensor) -> Tensor:  # noqa: D102
        return 1 - self.comparison(e1, e2)

    def _traced(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[nn.Module]]:
        """The layer's output as a leaf, the embedding on its graph, the modules run in between."""
        like = next(self.module.parameters(), torch.zeros(()))
        batch = (pixels - self.mean) / self.std
        leaves: list[Any] = []
        after: list[nn.Module] = []

        def cut(module: nn.Module, given: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or output.ndim != 4:
                leaves.append(output)
                return output
            leaves.append(output.detach().clone().requires_grad_(True))
            return leaves[-1].clone()  # so that a ReLU may work in place

        def note(module: nn.Module, given: Any, output: Any) -> None:
            if leaves and module is not self.target:
                after.append(module)

        ends = [m for m in self.module.modules() if not list(m.children())]
        hooks = [self.target.register_forward_hook(cut)]
        hooks += [m.register_forward_hook(note) for m in ends]
        try:
            with _needs_no_gradient(self.module):
                output = self.module(batch.to(like))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ExplanationError(
                f"The network does not take one batch of images {tuple(batch.shape)} ({error}); "
                "set image_size, or wrap it in a module that takes just that."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        self._check(leaves, output, len(pixels))
        inside = set(self.target.modules())
        return leaves[0], output, [m for m in after if m not in inside]

    def _check(self, leaves: list[Any], output: Any, count: int) -> None:
        if len(leaves) != 1:
            raise ExplanationError(
                f"The layer {self.layer!r} ran {len(leaves)} times in one pass; name one that "
                "runs exactly once."
            )
        (leaf,) = leaves
        if not isinstance(leaf, Tensor) or leaf.ndim != 4 or not leaf.is_floating_point():
            raise ExplanationError(
                f"The layer {self.layer!r} gives {_shape(leaf)}, no feature map (B, K, h, w); "
                "name a convolutional layer before the pooling."
            )
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count:
            raise ExplanationError(
                f"The network returns {_shape(output)}, no embedding (B, E); wrap it in a module "
                "that returns one vector an image."
            )
        if not torch.isfinite(output).all():
            raise ExplanationError(
                "The network's embedding is not finite; its weights are damaged, or it needs "
                "another normalisation (mean, std)."
            )
        if not output.requires_grad:
            raise ExplanationError(
                f"The embedding does not depend on the layer {self.layer!r} differentiably; name "
                "a layer that the embedding is computed from, outside any torch.no_grad()."
            )

    def compare(self, e1: Tensor, e2: Tensor) -> Compared:  # noqa: D102
        return compare_by_gradient(self.comparison, e1, e2)

    def digest(self) -> str:  # noqa: D102
        scale = f"{self.mean.flatten().tolist()} {self.std.flatten().tolist()}"
        return _digest(self.module, f"{self.layer} {self.image_size} {scale} {self.settings}")


def compare_by_gradient(comparison: Comparison, e1: Tensor, e2: Tensor) -> Compared:
    """Judge pairs with any differentiable comparison; gradients go to the two embeddings only.

    Raises:
        ExplanationError: if it gives no dissimilarity in [0, 1] for each pair, or one that cannot
            be differentiated.
    """
    with torch.inference_mode(False), torch.enable_grad():
        first, second = (e.clone().requires_grad_(True) for e in (e1, e2))
        y = comparison(first, second)
        if not isinstance(y, Tensor) or y.shape != e1.shape[:1]:
            raise ExplanationError(
                f"The comparison returned {_shape(y)}; expected one dissimilarity for each of "
                f"{len(e1)} pairs, ({len(e1)},)."
            )
        if not (torch.isfinite(y).all() and (y >= -ROUNDING).all() and (y <= 1 + ROUNDING).all()):
            raise ExplanationError(
                "The comparison returned values outside [0, 1]; squash the distance first, "
                "d/(1 + d) for example."
            )
        try:
            gradients = torch.autograd.grad(-y.sum(), (first, second))
        except RuntimeError as error:
            raise ExplanationError(f"The comparison has no gradient ({error}).") from error
    equal = (e1 == e2).all(dim=-1, keepdim=True)  # there is no way to bring equals nearer
    v1, v2 = (torch.where(equal, 0, g) for g in gradients)
    if not (torch.isfinite(v1).all() and torch.isfinite(v2).all()):
        raise ExplanationError(
            "The gradient of the comparison is not finite; it must be differentiable wherever the "
            "two embeddings differ."
        )
    return Compared(y.detach().clamp(0, 1), v1, v2)


def as_explainable(net: Any, layer: str | None = None, **options: Any) -> Explainable:
    """The network as explanations need it.

    Args:
        net: A `SiameseNet`, an `Embedder`, or any other module, with its `layer`.
        layer: See `Embedder`; only for other modules.
        options: Passed on to `Embedder`.

    Raises:
        ExplanationError: if it is no network, or the layer is missing or superfluous.
    """
    if isinstance(net, SiameseNet | Explainable):
        if layer is not None or options:
            given = ", ".join(["layer"] * (layer is not None) + sorted(options))
            raise ExplanationError(
                f"{given} cannot be chosen for a {type(net).__name__}, which knows its own."
            )
        return SiameseEmbedder(net) if isinstance(net, SiameseNet) else net
    if not isinstance(net, nn.Module):
        raise ExplanationError(
            "The first argument is the network, a SiameseNet or another torch.nn.Module, not "
            f"{type(net).__name__}; SiameseNet.load(path) reads one from a file."
        )
    if layer is None:
        raise ExplanationError(
            f"Say which layer of the {type(net).__name__} gives the feature map: "
            f"layer='…', one of {_some(n for n, _ in net.named_children())}."
        )
    return Embedder(net, layer, **options)


def check_threshold(value: Any) -> float:
    """`value` itself, if it is a threshold.

    Raises:
        ExplanationError: if it does not lie strictly between 0 and 1.
    """
    if isinstance(value, Real) and 0 < float(value) < 1:
        return float(value)
    raise ExplanationError(
        f"A threshold lies strictly between 0 and 1, not at {value!r}; it is compared with the "
        "dissimilarity."
    )


def find_layer(module: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`.

    Raises:
        ExplanationError: if there is none; the message names the nearest.
    """
    named = dict(module.named_modules())
    named.pop("", None)
    if layer in named:
        return named[layer]
    near = difflib.get_close_matches(str(layer), named, n=3)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ExplanationError(
        f"The network has no layer {layer!r}. {hint or 'It has ' + _some(named) + '.'}"
    )


def _pooled(leaf: Tensor, output: Tensor, after: list[nn.Module]) -> Seen:
    """In closed form if the head pools and projects: guessed from what ran, kept if it agrees."""
    traced = TracedSeen(leaf, output)
    silent = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
    rest = [m for m in after if not isinstance(m, silent)]
    if [type(m) for m in rest] not in ([], [nn.Linear], [nn.Linear, nn.ReLU]):
        return traced
    weight = bias = None
    if rest and isinstance(linear := rest[0], nn.Linear):
        weight = linear.weight.detach().cpu()
        bias = None if linear.bias is None else linear.bias.detach().cpu()
    shape = (leaf.shape[1],) * 2 if weight is None else weight.shape
    if shape != (output.shape[1], leaf.shape[1]):
        return traced
    maps, every = leaf.detach().cpu(), torch.arange(len(leaf))
    v = torch.linspace(1, 2, output.shape[1], dtype=torch.float64).expand(len(leaf), -1)
    truth = traced.embedding, traced.weights(every, v)
    for relu in (False, True):
        guess = PooledSeen(maps, PooledHead(weight, bias, relu))
        found = guess.embedding, guess.weights(every, v)
        if all(_agree(*both, output.dtype) for both in zip(found, truth, strict=True)):
            return guess
    return traced


def _per_channel(name: str, values: Any) -> Tensor:
    """Three finite numbers, (3, 1, 1)."""
    try:
        found = torch.tensor([float(x) for x in values])
    except (TypeError, ValueError):
        found = torch.tensor([])
    if found.shape != (3,) or not torch.isfinite(found).all():
        raise ExplanationError(f"{name} is three numbers, one for each of RGB, not {values!r}.")
    return found.view(3, 1, 1)


def _agree(found: Tensor, truth: Tensor, dtype: torch.dtype) -> bool:
    """Equal but for the network's own rounding; a head that is nearly linear is not linear."""
    room = 64 * torch.finfo(dtype).eps
    return bool((found - truth).abs().max() <= room * truth.abs().max())


@contextmanager
def _needs_no_gradient(module: nn.Module) -> Iterator[None]:
    """No graph is built before the layer: nothing before it asks for gradients."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _digest(module: nn.Module, settings: str) -> str:
    total = hashlib.sha256(f"{settings}\n{module}".encode())
    for name, tensor in module.state_dict().items():
        if name == "_threshold":  # of a SiameseNet; no embedding and no map depends on it
            continue
        total.update(name.encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(plain.view(torch.uint8).numpy())
    return total.hexdigest()


def _function_name(function: Callable) -> str:
    inner = getattr(function, "func", function)  # of a partial
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{getattr(inner, '__module__', '')}.{name}"


def _some(names: Any, limit: int = 8) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _without(values: dict, key: str) -> dict:
    return {k: v for k, v in values.items() if k != key}
