"""A module as an ONNX model: written, held to PyTorch, and run by ONNX Runtime.

Used by `siamcam_lib.engine`, which looks at pictures with it, and by `siamcam_lib.exporting`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siamcam_lib.crops import FiveLooks
from siamcam_lib.errors import CacheError, ModelError
from siamcam_lib.files import cache_home, kept

TOLERANCE = 1e-4
"""Largest error of an exported network, as a share of the largest value of what it gives."""

STRIDE, HOME = 32, 160
"""Backbones halve a picture five times. What they pad on the way depends on the rest of its side by
`STRIDE` alone, so an export for some `HOME` + rest pixels a side does for every other such side."""


class Normalised(nn.Module):
    """A backbone that takes pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    def forward(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return self.backbone((pixels - self.mean) / self.std)


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
            assert program is not None  # as `dynamo=True` always gives one
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
    errors: dict[str, float] = {}
    for rows in (slice(None), slice(1)):  # all images, and a single one
        try:
            feed = {name: np.ascontiguousarray(v[rows].numpy()) for name, v in given.items()}
            found = session(model).run(list(truth), feed)
        except Exception as error:  # of the runtime, whose errors have no common kind
            raise ModelError(
                f"The exported network does not run on ONNX Runtime ({error})."
            ) from error
        for name, value in zip(truth, found, strict=True):
            expected = truth[name][rows].numpy()
            largest = float(np.abs(expected).max()) or 1.0
            same = value.shape == expected.shape
            far = float(np.abs(value - expected).max()) / largest if same else math.inf
            errors[name] = float(np.maximum(errors.get(name, 0.0), far))  # NaN stays NaN
    wrong = {name: far for name, far in errors.items() if not far <= tolerance}
    if wrong:
        told = ", ".join(f"{name} by {far:.2g}" for name, far in wrong.items())
        raise ModelError(
            f"The exported network differs from PyTorch's: {told} of the largest value, where at "
            f"most {tolerance:g} is allowed. Nothing was written."
        )
    return errors


def digest(looking: nn.Module, side: int, more: str = "") -> str:
    """What a backbone's file depends on: its numbers, its layers and the size of what it sees.

    Not their names: a backbone is the same alone and as a part of a larger network.
    """
    total = hashlib.sha256(str(side).encode())
    pooling = nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity  # of a larger network, behind its maps
    for part in looking.modules():
        several = isinstance(part, FiveLooks)
        if several or not (list(part.children()) or isinstance(part, pooling)):
            total.update(f"{type(part).__name__}({part.extra_repr()})".encode())
    for tensor in looking.state_dict().values():
        total.update(str(tuple(tensor.shape)).encode())
        total.update(tensor.contiguous().numpy().tobytes())
    total.update(more.encode())
    return total.hexdigest()[:16]


def packed(looking: nn.Module, side: int, key: str) -> bytes:
    """The model of a backbone, gzipped: exported and checked once, and then kept under its `key`.

    Args:
        looking: (n, 3, side, side) in [0, 1] → (n, K, h, w); in evaluation mode.
        side: Of what it sees, in pixels.
        key: See `digest`.

    Raises:
        ModelError: if it cannot be exported, or gives something else than PyTorch.
    """

    def make() -> bytes:
        pixels = pictures(side)
        with torch.no_grad():
            maps = looking(pixels)
        home = HOME + side % STRIDE
        several = any(isinstance(part, FiveLooks) for part in looking.modules())
        if side != home and not several:  # where a corner lies depends on the whole side
            with contextlib.suppress(ModelError):  # a backbone of another kind
                model = resized(gzip.decompress(packed(looking, home, digest(looking, home))), side)
                check(model, {"pixels": pixels}, {"maps": maps}, TOLERANCE)
                return gzip.compress(model, 9, mtime=0)
        model = exported(looking, pixels, "pixels", ["maps"])
        check(model, {"pixels": pixels}, {"maps": maps}, TOLERANCE)
        return gzip.compress(model, 9, mtime=0)

    try:
        folder = cache_home() / "models"
    except CacheError:
        return make()
    return kept(folder / f"{key}-{torch.__version__.partition('+')[0]}.onnx.gz", make, unzips)


def resized(model: bytes, side: int) -> bytes:
    """The same ONNX model, said to take pictures of another size: a second instead of ten.

    Whether it is the same network at that size is for `check` to find out.
    """
    import onnx

    found = onnx.load_from_string(model)
    del found.graph.value_info[:]  # sizes on the way, which the runtime works out anew
    for given in found.graph.input:
        for dim in given.type.tensor_type.shape.dim[2:]:
            dim.dim_value = side
    for output in found.graph.output:
        for k, dim in enumerate(output.type.tensor_type.shape.dim[2:]):
            dim.dim_param = "hw"[k]
    return found.SerializeToString()


def unzips(data: bytes) -> bool:
    """Whether packed data are whole, by their checksum."""
    try:
        return bool(gzip.decompress(data))
    except (OSError, EOFError, zlib.error):
        return False


def session(model: bytes) -> Any:
    """What runs a model on one core: an ``onnxruntime.InferenceSession``."""
    # When it is imported it would begin to keep a record of its use in the reader's home.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # a tenth of a second, for those who need it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


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
