"""What an installed backbone sees, on a CPU, in a third of PyTorch's time.

ONNX Runtime joins convolutions with what follows them and lays numbers out as the processor takes
them. It is used where nothing but the numbers is asked for: no gradient, no hook, single precision,
and a backbone as it was installed, whose export is made and checked once and then kept. Everything
else, fine-tuned backbones and graphics cards among it, is PyTorch's.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from siamcam_lib import backbones
from siamcam_lib.crops import FiveLooks
from siamcam_lib.errors import ModelError
from siamcam_lib.onnx_files import Normalised, digest, packed, session

if TYPE_CHECKING:
    from siamcam_lib.model import SiameseNet

LEAST = 160
"""Pixels a side from which on an export, some ten seconds once, is worth its while."""


def engine(net: SiameseNet, side: int) -> Callable[[Tensor], Tensor] | None:
    """What looks once at pictures of `side` pixels as the network's backbone does, and sooner.

    Args:
        net: In evaluation mode.
        side: Of what is looked at, which is square.

    Returns:
        (B, 3, side, side) float32 in [0, 1] → (B, K, h, w), within
        `siamcam_lib.onnx_files.TOLERANCE` of PyTorch's and the same in any batch; None where
        PyTorch has to do it.

    Example:
        >>> from siamcam_lib import SiameseNet
        >>> engine(SiameseNet("resnet18", pretrained=False), 224) is None
        True
    """
    name, backbone = net.config["backbone"], net.backbone
    if isinstance(backbone, FiveLooks):
        if backbone.training or listened_to(backbone):
            return None
        backbone = backbone.inner
    if name not in backbones.INSTALLED or side < LEAST or not _as_installed(backbone, name):
        return None
    found, *_ = _installed(name)
    if any(
        own.flatten().tolist() != torch.tensor(of).tolist()
        for own, of in ((net.mean, found.mean), (net.std, found.std))
    ):
        return None
    return _engine(name, side)


def listened_to(part: nn.Module) -> bool:
    """Whether somebody has hooked into a module's forward pass."""
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _as_installed(backbone: nn.Module, name: str) -> bool:
    """Whether a backbone does what the installed one does, and nobody listens to its layers."""
    if any(part.training or listened_to(part) for part in backbone.modules()):
        return False
    _, numbers, settings = _installed(name)
    own = backbone.state_dict()
    return (
        own.keys() == numbers.keys()
        and repr(backbone) == settings
        and all(
            v.dtype == numbers[key].dtype
            and v.device.type == "cpu"
            and torch.equal(v, numbers[key])
            for key, v in own.items()
        )
    )


@functools.cache
def _installed(name: str) -> tuple[backbones.Backbone, dict[str, Tensor], str]:
    """An installed backbone, all its numbers, and its parts with their settings."""
    found = backbones.create(name)
    return found, dict(found.module.state_dict()), repr(found.module)


@functools.cache
def _engine(name: str, side: int) -> Callable[[Tensor], Tensor] | None:
    found, *_ = _installed(name)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (found.mean, found.std))
    looking = Normalised(found.module, mean, std).eval()
    try:
        run = session(gzip.decompress(packed(looking, side, digest(looking, side))))
    except ModelError:  # of an exporter that a newer torch brought
        return None

    def look(pixels: Tensor) -> Tensor:
        return torch.from_numpy(run.run(None, {"pixels": pixels.contiguous().numpy()})[0])

    return look
