r"""`export_onnx`: a network as two ONNX files, for every runtime that is not PyTorch.

Used in the chapter on your own photographs. The backbone turns a picture into a feature map A; the
head turns A into the projected map P and the embedding e, from which the score and every map of
every pair follow. Networks that share a frozen backbone share its file: only their heads differ.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siamcam_lib.embedder import Embedder, Explainable, SiameseEmbedder, as_explainable
from siamcam_lib.errors import ModelError
from siamcam_lib.files import whole_file
from siamcam_lib.heads import PooledHead, PooledSeen

TOLERANCE = 1e-4
"""Largest error of an exported network, as a share of the largest value of what it gives."""
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
        own = copy.deepcopy(seeing.net).cpu().float().eval()
        looking: nn.Module = _Normalised(own.backbone, own.mean, own.std)
    elif isinstance(seeing, Embedder):
        own = copy.deepcopy(seeing.module).cpu().float().eval()
        looking = _Normalised(_Until(own, seeing.layer), seeing.mean, seeing.std)
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


def pictures(side: int, count: int = 3) -> Tensor:
    """Made-up pictures to check a network on: smooth, as photographs are, and the same always.

    Returns:
        (count, 3, side, side) in [0, 1].
    """
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=random)
    smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    grain = torch.rand(count, 3, side, side, generator=random)
    return (0.9 * smooth + 0.1 * grain).clamp(0, 1)


def exported(
    module: nn.Module,
    given: Tensor,
    name: str,
    outputs: list[str],
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A module of one input as an ONNX model; the first dimension may have any size.

    Raises:
        ModelError: if torch cannot export it.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (given,),
                dynamo=True,
                input_names=[name],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("n")},),
                external_data=False,
                verbose=False,
            )
            model = program.model_proto
    except Exception as error:  # of torch's exporter, which raises what it likes
        first = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ModelError(
            f"torch cannot export this network to ONNX, from {name} to {' and '.join(outputs)} "
            f"({first}); simplify its forward pass, or choose another backbone."
        ) from error
    _forget_origin(model)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def check(
    model: bytes, given: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float
) -> dict[str, float]:
    """The largest error of each output, as a share of its largest value.

    Raises:
        ModelError: if one is above `tolerance`, or the model does not run.
    """
    import onnxruntime  # loaded by whoever exports

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    errors: dict[str, float] = {}
    for rows in (slice(None), slice(1)):  # all images, and a single one
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            feed = {name: np.ascontiguousarray(v[rows].numpy()) for name, v in given.items()}
            found = session.run(list(truth), feed)
        except Exception as error:  # of the runtime, whose errors have no common kind
            raise ModelError(
                f"The exported network does not run on ONNX Runtime ({error})."
            ) from error
        for name, value in zip(truth, found, strict=True):
            expected = truth[name][rows].numpy()
            largest = float(np.abs(expected).max()) or 1.0
            far = float(np.abs(value - expected).max()) / largest
            errors[name] = max(errors.get(name, 0.0), far)
    wrong = {name: far for name, far in errors.items() if not far <= tolerance}
    if wrong:
        told = ", ".join(f"{name} by {far:.2g}" for name, far in wrong.items())
        raise ModelError(
            f"The exported network differs from PyTorch's: {told} of the largest value, where at "
            f"most {tolerance:g} is allowed. Nothing was written."
        )
    return errors


class _Normalised(nn.Module):
    """A backbone that takes pixels in [0, 1]."""

    def __init__(self, backbone: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.backbone((pixels - self.mean) / self.std)


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


def _forget_origin(model: Any) -> None:
    """Take out the lines of source that torch notes beside every node, with the paths of files."""
    for node in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch's exporter logs and warns of its inner affairs."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
