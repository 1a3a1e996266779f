"""Pooled backbone features of many images, computed once and kept on disk.

Taught in chapter 2 (model). The backbone is by far the dearest part; where it is frozen, its
pooled output g (K numbers an image) is all that training and evaluation need.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from siamcam_lib.backbones import evaluating
from siamcam_lib.cache import FeatureCache
from siamcam_lib.crops import SHARE, FiveLooks
from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import CacheError, DataError
from siamcam_lib.files import shown
from siamcam_lib.identity import identity, workings
from siamcam_lib.model import SiameseNet, square

VIEWS = ("plain", "mirrored")
"""The picture as it is, and its mirror image: the cheapest augmentation of frozen features."""


@dataclass(frozen=True)
class View:
    """Pictures as a random transform changes them, each once: more views for frozen features.

    Attributes:
        transform: PIL image → PIL image, such as ``v2.ColorJitter(0.3)``.
        draw: Another number, another draw; each picture has its own.

    Example:
        >>> from torchvision.transforms import v2
        >>> turned = View(v2.RandomRotation(90))
        >>> turned(Image.new("RGB", (40, 30)), "name").size
        (40, 30)
    """

    transform: Callable[[Image.Image], Image.Image]
    draw: int = 0

    def __call__(self, picture: Image.Image, name: str) -> Image.Image:
        """The picture changed; the same `name` draws the same change."""
        drawn = hashlib.sha256(f"{self.draw} {name}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(drawn[:7]))
            changed = self.transform(picture)
        if not isinstance(changed, Image.Image):
            raise DataError(
                f"A view's transform gives a PIL image, not {type(changed).__name__}; leave out "
                "steps such as ToImage and ToDtype."
            )
        return changed

    def __str__(self) -> str:
        told = json.dumps(identity(self.transform), sort_keys=True)
        return f"{hashlib.sha256(told.encode()).hexdigest()}-{self.draw}"


def backbone_digest(net: SiameseNet) -> str:
    """SHA-256 of everything the features depend on besides the image: weights, size, scaling.

    Of a backbone of one's own also what it does with its weights: its parts, their settings and the
    code of their ``forward``.
    """
    told = f"{net.config['backbone']} {net.image_size}"
    if any(isinstance(part, FiveLooks) for part in net.backbone.modules()):
        told += f" {net.looks} of five looks, corners of {SHARE}"
    total = hashlib.sha256(told.encode())
    if net.config["backbone"] == "custom":
        total.update(json.dumps(workings(net.backbone)).encode())
    for tensor in (net.mean, net.std, *net.backbone.state_dict().values()):
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def feature_keys(model: str, view: str | View, images: ImageSet) -> list[str]:
    """Under which keys a cache keeps the features of all pictures; `model`: `backbone_digest`."""
    return [f"{model}/{view}/{images.digest(i)}" for i in range(len(images))]


def _square(images: ImageSet, index: int, view: str | View, side: int) -> np.ndarray:
    """A view of a picture as the network sees it, uint8 (S, S, 3)."""
    picture = images.image(index)
    if isinstance(view, View):
        picture = view(picture, images.digest(index))
    elif view == "mirrored":
        picture = ImageOps.mirror(picture)
    return square(picture, side)


def _rotated(parts: list, turn: int) -> list:
    """The same parts, beginning at another one for another `turn`."""
    if not parts:
        return parts
    # Neighbouring numbers begin far apart: the golden section's multiples spread evenly.
    start = int(turn * 0.6180339887498949 % 1 * len(parts))
    return parts[start:] + parts[:start]


def pooled_features(
    net: SiameseNet,
    images: ImageSet,
    *,
    view: str | View = "plain",
    cache: FeatureCache | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> torch.Tensor:
    """Pooled features g of every image, from the cache where they are known.

    Args:
        net: Gives backbone, input size and device.
        images: n images.
        view: ``"plain"``, ``"mirrored"`` or a `View`.
        cache: Where to look and to store; by default the user's cache folder.
        batch_size: Images in one forward pass; what is computed is stored after each batch, so
            that an interrupted run loses at most one.
        progress: Show a progress bar while images are computed.

    Returns:
        (n, K) float32 on the CPU; of several looks their mean.

    Raises:
        CacheError: if the cache cannot be read or written.
        DataError: if there is no such view.
        ImageError: if a picture cannot be read.

    Example:
        >>> import siamcam_lib as sc, tempfile
        >>> from pathlib import Path
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> net = SiameseNet("resnet18", pretrained=False, image_size=64)
        >>> cache = FeatureCache(Path(tempfile.mkdtemp()) / "f.sqlite")
        >>> pooled_features(net, images, cache=cache, progress=False).shape
        torch.Size([10, 512])
    """
    return looks_pooled(
        net, images, view=view, cache=cache, batch_size=batch_size, progress=progress
    ).mean(dim=1)


def looks_pooled(
    net: SiameseNet,
    images: ImageSet,
    *,
    view: str | View = "plain",
    cache: FeatureCache | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> torch.Tensor:
    """As `pooled_features`, each look by itself: (n, looks, K).

    Raises:
        CacheError, DataError, ImageError: as `pooled_features`.
    """
    if not isinstance(view, View) and view not in VIEWS:
        raise DataError(f"There is no view {view!r}; choose one of {VIEWS}, or give a View.")
    cache = cache or FeatureCache()
    model = backbone_digest(net)
    keys = feature_keys(model, view, images)
    known = cache.get(keys)
    missing = list({key: i for i, key in enumerate(keys) if key not in known}.items())
    parts = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    bar = tqdm(
        total=len(missing),
        desc=f"features of {shown(images.name)}",
        unit="image",
        disable=not (progress and missing),
        leave=False,
    )
    with evaluating(net), torch.inference_mode(), bar:
        # Processes that need the same features begin at different places, and what another has
        # computed in the meantime is taken: two of them share the work.
        for part in _rotated(parts, os.getpid()):
            fresh = cache.get([key for key, _ in part])
            if rest := [slot for slot in part if slot[0] not in fresh]:
                squares = [_square(images, i, view, net.image_size) for _, i in rest]
                batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
                rows = rows_of_looks(net.each_look(batch.to(net.device).float() / 255))
                made = {key: row for (key, _), row in zip(rest, rows, strict=True)}
                cache.put(made)
                fresh.update(made)
            known.update(fresh)
            bar.update(len(part))
    channels = net.projection.in_features
    if any(row.shape != (net.looks * channels,) for row in known.values()):
        raise CacheError(
            f"The feature cache {cache.path} holds vectors of other lengths than this network's; "
            "it is damaged: delete it."
        )
    found = torch.from_numpy(np.stack([known[key] for key in keys]))
    return found.unflatten(1, (net.looks, channels))


def rows_of_looks(maps: Sequence[torch.Tensor]) -> np.ndarray:
    """What a cache keeps of pictures: the pooled features of each look, one after the other.

    Args:
        maps: Of each look, (B, K, h, w).

    Returns:
        (B, looks·K) float32.
    """
    pooled = torch.cat([own.mean(dim=(2, 3)) for own in maps], dim=1)
    return pooled.float().cpu().numpy()


class Looks:
    """Feature maps of pictures, each looked at once for all networks that share a frozen backbone.

    A study's networks differ in their heads alone. Whoever asks several of them about the same
    pictures gives one `Looks` to all: what one has looked at, the others need not.

    Example:
        >>> nets = [SiameseNet("resnet18", pretrained=False, image_size=64) for _ in range(2)]
        >>> nets[1].backbone.load_state_dict(nets[0].backbone.state_dict())
        <All keys matched successfully>
        >>> looks, pictures = Looks(), [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
        >>> bool((looks(nets[0], pictures) == looks(nets[1], pictures)).all()), len(looks)
        (True, 2)
    """

    def __init__(self) -> None:
        self._maps: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._maps)

    def __call__(self, net: SiameseNet, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Feature maps of RGB pictures: (n, K, h, w) on the CPU; no gradients."""
        model = backbone_digest(net)
        keys = [f"{model}/{content_digest(picture)}" for picture in pictures]
        new = {key: k for k, key in enumerate(keys) if key not in self._maps}
        if new:
            pixels = net.to_tensor([pictures[k] for k in new.values()])
            with evaluating(net), torch.inference_mode():
                maps = net.look(pixels.to(net.device)).cpu()
            self._maps.update(zip(new, maps, strict=True))
        return torch.stack([self._maps[key] for key in keys])


def content_digest(picture: Image.Image) -> str:
    """SHA-256 of a picture's size and pixels: equal pictures, equal digests."""
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
