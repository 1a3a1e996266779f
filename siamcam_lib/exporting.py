r"""`export_onnx`: a network as two ONNX files, for every runtime that is not PyTorch.

Used in the chapter on your own photographs. The backbone turns a picture into a feature map A; the
head turns A into the projected map P and the embedding e, from which the score and every map of
every pair follow. Networks that share a frozen backbone share its file: only their heads differ.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siamcam_lib.embedder import Embedder, Explainable, SiameseEmbedder, as_explainable
from siamcam_lib.errors import ModelError
from siamcam_lib.files import whole_file
from siamcam_lib.heads import PooledHead, PooledSeen
from siamcam_lib.onnx_files import TOLERANCE, Normalised, check, exported, pictures

BACKBONE, HEAD = "backbone.onnx", "head.onnx"
FORMAT = "siamcam-onnx-1"


@dataclass(frozen=True)
class Exported:
    """Two ONNX files, and how far they are from PyTorch.

    Attributes:
        backbone: ``pixels`` (n, 3, S, S) in [0, 1], any n → ``maps`` A (n, K, h, w).
        head: ``maps`` A → ``projected`` P (n, E, h, w) and ``embedding`` e (n, E), before any
            scaling to unit length. Its metadata say how embeddings are compared.
        error: For each of the three outputs the largest error on the pictures it was checked on,
            as a share of the largest value.
    """

    backbone: Path
    head: Path
    error: dict[str, float]


def export_onnx(net: Any, folder: str | Path, *, tolerance: float = TOLERANCE) -> Exported:
    """Write the backbone and the head of a network as ONNX files, checked against PyTorch.

    Both take any number of images. They run on ONNX Runtime and on whatever else reads ONNX; what
    the two images of a pair have to do with each other is a few products of their outputs, see
    `siamcam_lib.gradcam`.

    Args:
        net: A `SiameseNet` or an `sc.Embedder` whose head pools and projects.
        folder: Where ``backbone.onnx`` and ``head.onnx`` go; made where it is missing. The files
            appear whole, and only after they were checked.
        tolerance: How far an output may be from PyTorch's, as a share of its largest value.

    Raises:
        ModelError: if the network cannot be exported, its files give something else than PyTorch,
            or they cannot be written.

    Example:
        >>> import tempfile, siamcam_lib as sc
        >>> net = sc.SiameseNet("resnet18", embed_dim=8, pretrained=False, image_size=64)
        >>> done = export_onnx(net, tempfile.mkdtemp())
        >>> done.backbone.name, max(done.error.values()) < 1e-4
        ('backbone.onnx', True)
    """
    seeing = as_explainable(net)
    backbone, head = parts(seeing)
    pixels = pictures(seeing.image_size)
    maps = backbone(pixels)
    projected, embedding = head(maps)
    files = {
        BACKBONE: exported(backbone, pixels, "pixels", ["maps"]),
        HEAD: exported(head, maps, "maps", ["projected", "embedding"], about(seeing)),
    }
    error = check(files[BACKBONE], {"pixels": pixels}, {"maps": maps}, tolerance)
    truth = {"projected": projected, "embedding": embedding}
    error |= check(files[HEAD], {"maps": maps}, truth, tolerance)
    folder = Path(folder)
    try:
        for name, data in files.items():
            with whole_file(folder / name) as temporary:
                temporary.write_bytes(data)
    except OSError as failed:
        raise ModelError(
            f"The ONNX files cannot be written to {folder} ({failed}); choose another folder."
        ) from failed
    return Exported(folder / BACKBONE, folder / HEAD, error)


def about(seeing: Explainable) -> dict[str, str]:
    """What a file says besides its arithmetic: how embeddings are compared, and the threshold."""
    known = {
        "format": FORMAT,
        "image_size": seeing.image_size,
        "threshold": seeing.threshold,
        "settings": seeing.settings,
        "digest": seeing.digest(),
    }
    return {name: value if isinstance(value, str) else json.dumps(value)
            for name, value in known.items()}  # fmt: skip


def parts(seeing: Explainable) -> tuple[nn.Module, nn.Module]:
    """The backbone, normalisation included, and the head, as modules of their own, float32.

    Raises:
        ModelError: if the head is not one that pools and projects.
    """
    if isinstance(seeing, SiameseEmbedder):
        net = copy.deepcopy(seeing.net).cpu().float().eval()
        looking: nn.Module = Normalised(net.backbone, net.mean, net.std)
    elif isinstance(seeing, Embedder):
        own = copy.deepcopy(seeing.module).cpu().float().eval()
        looking = Normalised(_Until(own, seeing.layer), seeing.mean, seeing.std)
    else:
        raise ModelError(
            f"A {type(seeing).__name__} cannot be exported: it is neither a SiameseNet nor an "
            "sc.Embedder."
        )
    return looking.eval().requires_grad_(False), _Projection(pooled_head(seeing)).eval()


def pooled_head(seeing: Explainable) -> PooledHead:
    """The head of a network that averages over space and projects.

    Raises:
        ModelError: if its head does something else.
    """
    seen = seeing.look(pictures(seeing.image_size))
    if isinstance(seen, PooledSeen):
        return seen.head
    raise ModelError(
        "This network's head does more than average over space, project and rectify, so no single "
        "projected map says everything about an image. Use ONNX's own tools for it, or a head of "
        "that kind."
    )


class _Until(nn.Module):
    """A network up to and including one of its layers."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, batch: Tensor) -> Tensor:
        kept: list[Tensor] = []
        target = self.network.get_submodule(self.layer)
        hook = target.register_forward_hook(lambda module, given, output: kept.append(output))
        try:
            self.network(batch)
        finally:
            hook.remove()
        return kept[0]


class _Projection(nn.Module):
    """A `PooledHead` as a module: A → P and e."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, head: PooledHead) -> None:
        super().__init__()
        self.relu = head.relu
        for name in ("weight", "bias"):
            value = getattr(head, name)
            self.register_buffer(name, None if value is None else value.float().clone())

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        pooled = maps.mean(dim=(2, 3))
        projected = maps
        if self.weight is not None:
            pooled = pooled @ self.weight.T
            projected = nn.functional.conv2d(maps, self.weight[:, :, None, None])
        if self.bias is not None:
            pooled = pooled + self.bias
        if self.relu:
            pooled = torch.relu(pooled)
            projected = projected * (pooled > 0).to(maps)[:, :, None, None]
        return projected / (maps.shape[2] * maps.shape[3]), pooled
