"""`SiameseNet`: two photographs in, one dissimilarity out.

Taught in chapter 2 (model). One backbone looks at both images; its feature map is averaged over
space, projected and rectified into an embedding; the distance of two embeddings, squashed by a
sigmoid, is the dissimilarity (Livieris et al. 2023, section 4, doi:10.3390/jimaging9100224).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from siamcam_lib import backbones
from siamcam_lib.crops import FiveLooks
from siamcam_lib.engine import engine, listened_to
from siamcam_lib.errors import ModelError
from siamcam_lib.files import whole_file

AT_ONCE = 4
"""Images that go through a backbone together on a CPU: with more, time is lost in fetching memory,
as much again with 64."""

FORMAT = "siamcam-1"


class SiameseNet(nn.Module):
    r"""A Siamese network: one backbone, a projection, a distance, a sigmoid.

    .. math::

        g_i = \tfrac1Z \textstyle\sum_p A_i(p), \quad e_i = \mathrm{ReLU}(W g_i + b), \quad
        d = \lVert e_1 - e_2 \rVert_2, \quad y = \sigma(w_y d + c)

    Images are float tensors (B, 3, H, W) with values in [0, 1]; the network normalises them
    itself. The weights :math:`w_y, c` and the threshold are set by `sc.fit` on validation pairs.

    Args:
        backbone: A name (see `siamcam_lib.backbones.create`) or a module that maps
            (B, 3, H, W) to (B, K, h, w).
        embed_dim: E, the length of an embedding; 256 in the paper.
        normalize: Scale embeddings to unit length, so that d lies in [0, √2], as the
            loss that `fit` takes by default asks; ``normalize=False`` gives the paper's network.
        image_size: Images are resized to this many pixels, square, before they are looked at.
        pretrained: Take the backbone's ImageNet weights.
        looks: 1, or 5 for the whole picture and its four corners, see `FiveLooks`. A look has 0.7
            of `image_size` a side: give 320 where one look has 224, and five times as much time.

    Raises:
        ModelError: if the backbone is unknown or gives no feature map, a size is not positive, or
            there is no such number of looks.

    Example:
        >>> net = SiameseNet("resnet18", embed_dim=8, pretrained=False, image_size=64).eval()
        >>> a, b = torch.rand(2, 5, 3, 64, 64)
        >>> net(a, b).shape
        torch.Size([5])
    """

    backbone: nn.Module
    mean: Tensor
    std: Tensor
    _threshold: Tensor

    def __init__(
        self,
        backbone: str | nn.Module = "efficientnet_lite0",
        embed_dim: int = 256,
        *,
        normalize: bool = True,
        image_size: int = 224,
        pretrained: bool = True,
        looks: int = 1,
    ) -> None:
        super().__init__()
        if type(looks) is not int or looks not in (1, 5):
            raise ModelError(f"A network looks 1 or 5 times at a picture, not {looks!r} times.")
        if isinstance(backbone, FiveLooks):  # that of another network
            backbone, looks = backbone.inner, 5
        for name, value in (("embed_dim", embed_dim), ("image_size", image_size)):
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"{name} must be a positive whole number, not {value!r}.")
        if isinstance(backbone, nn.Module):
            found = backbones.Backbone(backbone, backbones.channels("backbone", backbone))
        else:
            found = backbones.create(backbone, pretrained)
        self.config: dict[str, Any] = {
            "backbone": backbone if isinstance(backbone, str) else "custom",
            "embed_dim": embed_dim,
            "normalize": bool(normalize),
            "image_size": image_size,
        }
        # Convolutions on the CPU take half the time where channels lie innermost in memory.
        self.backbone = found.module.to(memory_format=torch.channels_last)
        if looks == 5:
            self.backbone = FiveLooks(self.backbone)
            self.config["looks"] = looks  # unsaid where it is one, as before there was a choice
        self.projection = nn.Linear(found.channels, embed_dim)  # W (E, K), b (E,)
        self.output = nn.Linear(1, 1)  # w_y and c of the sigmoid
        nn.init.ones_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("mean", torch.tensor(found.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(found.std).view(3, 1, 1), persistent=False)
        self.register_buffer("_threshold", torch.tensor(0.5, dtype=torch.float64))

    @property
    def normalize(self) -> bool:
        """Whether embeddings have unit length."""
        return self.config["normalize"]

    @property
    def image_size(self) -> int:
        """Side of the square the network looks at, in pixels."""
        return self.config["image_size"]

    @property
    def looks(self) -> int:
        """How often the network looks at a picture, 1 or 5."""
        return 5 if isinstance(self.backbone, FiveLooks) else 1

    @property
    def threshold(self) -> float:
        """Pairs with a dissimilarity at or above it are judged dissimilar; in (0, 1)."""
        return float(self._threshold)

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 < value < 1:
            raise ModelError(f"A threshold lies strictly between 0 and 1, not {value!r}.")
        self._threshold.fill_(value)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.projection.weight.device

    def to_tensor(self, images: Sequence[Image.Image]) -> Tensor:
        """Resize RGB pictures to the square the network looks at: float (B, 3, S, S) in [0, 1].

        The whole picture is kept, its aspect ratio is not: a map can then be stretched back over
        the whole picture.
        """
        return squares(images, self.image_size)

    def feature_maps(self, images: Tensor) -> Tensor:
        """A, the backbone's last feature map: (B, 3, H, W) in [0, 1] → (B, K, h, w)."""
        return self.backbone(self._scaled(images))

    def _scaled(self, images: Tensor) -> Tensor:
        """Pixels as the backbone takes them."""
        scaled = (images - self.mean) / self.std
        return scaled.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def look(self, images: Tensor) -> Tensor:
        """`feature_maps` of any number of images, without gradients and a few at a time.

        On a CPU by `siamcam_lib.engine` where it can. The network must be in evaluation mode: in
        training mode images of a batch depend on each other.
        """
        backbone = self.backbone
        if self.device.type != "cpu":
            return self.feature_maps(images)
        if isinstance(backbone, FiveLooks) and not listened_to(backbone):
            return backbone.join(self.each_look(images))
        return torch.cat(_side_by_side(self._quick(images) or self.feature_maps, _parts(images)))

    @torch.inference_mode()
    def each_look(self, images: Tensor) -> list[Tensor]:
        """The feature map of each look at images, as `look` makes it: (B, K, h, w) each.

        Of several looks, none is heard by whoever hooked into the backbone as a whole.
        """
        backbone = self.backbone
        if not isinstance(backbone, FiveLooks):
            return [self.look(images)]
        seen = backbone.cut(images)

        def plain(pixels: Tensor) -> Tensor:
            return backbone.inner(self._scaled(pixels))

        if self.device.type != "cpu":
            return [plain(pixels) for pixels in seen]
        parts = [part for pixels in seen for part in _parts(pixels)]
        maps = _side_by_side(self._quick(seen[0]) or plain, parts)
        return list(torch.cat(maps).split(len(images)))

    def joined(self, maps: list[Tensor]) -> Tensor:
        """One feature map of those of `each_look`: (B, K, h, w) each → (B, K, H, W)."""
        return self.backbone.join(maps) if isinstance(self.backbone, FiveLooks) else maps[0]

    def _quick(self, images: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What looks once at such pictures sooner than the backbone does, if anything."""
        height, width = images.shape[2:]
        return engine(self, width) if height == width and images.dtype == torch.float32 else None

    def activation(self, pooled: Tensor) -> Tensor:
        """ReLU(W g + b), before any scaling to unit length: (B, K) → (B, E)."""
        return torch.relu(self.projection(pooled))

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Embedding e of pooled features g: (B, K) → (B, E)."""
        e = self.activation(pooled)
        return nn.functional.normalize(e, dim=-1) if self.normalize else e

    def embed(self, images: Tensor) -> Tensor:
        """Embedding e of images: (B, 3, H, W) in [0, 1] → (B, E)."""
        return self.embed_pooled(self.feature_maps(images).mean(dim=(2, 3)))

    @staticmethod
    def distance(e1: Tensor, e2: Tensor) -> Tensor:
        """L2 distance d of embeddings: (B, E), (B, E) → (B,).

        `torch.linalg.vector_norm` has gradient 0 for equal embeddings, where
        ``((e1 - e2)**2).sum().sqrt()`` gives NaN and `F.pairwise_distance` an arbitrary direction.
        """
        return torch.linalg.vector_norm(e1 - e2, dim=-1)

    def dissimilarity(self, distance: Tensor) -> Tensor:
        """Dissimilarity y = σ(w_y d + c), in (0, 1): (B,) → (B,)."""
        return torch.sigmoid(self.output(distance.unsqueeze(-1)).squeeze(-1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Dissimilarity y of pairs of images: (B, 3, H, W) twice → (B,).

        Both images go through the backbone as one batch of 2B: it runs once, so that a hook on it
        sees both.
        """
        e1, e2 = self.embed(torch.cat([a, b])).chunk(2)
        return self.dissimilarity(self.distance(e1, e2))

    def save(self, path: str | Path) -> None:
        """Write configuration and weights as one safetensors file, whole or not at all.

        Equal networks give equal files, byte for byte.

        Raises:
            ModelError: if the file cannot be written.
        """
        # clones: a backbone of one's own may hold one tensor under two names
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items()}
        # one entry: safetensors writes several in an order that differs from run to run
        config = json.dumps({"format": FORMAT} | self.config, sort_keys=True)
        try:
            with whole_file(path) as temporary:
                save_file(tensors, temporary, metadata={"config": config})
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be written ({error}); choose another.") from error

    @classmethod
    def load(cls, path: str | Path, backbone: nn.Module | None = None) -> SiameseNet:
        """Read a network written by `save`, in evaluation mode.

        Args:
            path: The safetensors file.
            backbone: The module itself, where the network was built from one.

        Raises:
            ModelError: if the file is missing, is no safetensors file (a pickle, say), was not
                written by `save`, or its weights do not fit the architecture it names.
        """
        config, tensors = _read(Path(path))
        name = config.pop("backbone")
        if name == "custom" and backbone is None:
            raise ModelError(
                f"{path} was saved from a backbone of your own; pass the same module: "
                "SiameseNet.load(path, backbone=module)."
            )
        net = cls(name if backbone is None else backbone, pretrained=False, **config)
        expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        given = {k: tuple(v.shape) for k, v in tensors.items()}
        if expected != given:
            wrong = sorted(k for k in expected | given if expected.get(k) != given.get(k))
            first = wrong[0]
            raise ModelError(
                f"{path} does not fit the backbone {name!r}: {len(wrong)} tensors differ, first "
                f"{first} (file: {given.get(first)}, network: {expected.get(first)}). Load it "
                "with the architecture it was saved from."
            )
        net.load_state_dict(tensors)
        return net.eval()


def square(image: Image.Image, side: int) -> np.ndarray:
    """An RGB picture as every network is shown it: resized to uint8 (side, side, 3), bicubic."""
    return np.array(image.resize((side, side), Image.Resampling.BICUBIC))


def squares(images: Sequence[Image.Image], side: int) -> Tensor:
    """RGB pictures resized to `side` pixels square: float (B, 3, side, side) in [0, 1]."""
    resized = np.stack([square(image, side) for image in images])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).float().div_(255)


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and tensors of a file written by `SiameseNet.save`."""
    if not path.is_file():
        raise ModelError(
            f"There is no weights file {path}; `siamcam train` or SiameseNet.save writes one."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is no safetensors file ({error}). Only files written by SiameseNet.save are "
            "read; pickled checkpoints (.pt, .pth) can run code and are refused."
        ) from error
    try:
        config = json.loads(metadata["config"])
        if not isinstance(config, dict):
            raise ValueError(f"configuration {config}")
        # in files of earlier versions it is an entry of its own
        written = metadata["format"] if "format" in metadata else config.pop("format")
        if written != FORMAT:
            raise ValueError(f"format {written!r}, expected {FORMAT!r}")
        if set(config) - {"looks"} != {"backbone", "embed_dim", "normalize", "image_size"}:
            raise ValueError(f"configuration {config}")
        if not isinstance(config["backbone"], str):
            raise ValueError(f"backbone {config['backbone']!r}")
        if type(config.get("looks", 1)) is not int or config.get("looks", 1) not in (1, 5):
            raise ValueError(f"{config['looks']!r} looks")
        if tensors["projection.bias"].shape != (config["embed_dim"],):
            # before the network is built: a made-up size could ask for any amount of memory
            raise ValueError(f"embed_dim {config['embed_dim']!r} is not that of its tensors")
        if not 0 < float(tensors["_threshold"]) < 1:
            raise ValueError(f"threshold {float(tensors['_threshold'])} is not between 0 and 1")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path} holds tensors, but was not written by SiameseNet.save ({error})."
        ) from error
    return config, tensors


def _parts(images: Tensor) -> Sequence[Tensor]:
    """Images a few at a time: even parts, as a single image is rounded otherwise than several."""
    return images.tensor_split(-(-len(images) // AT_ONCE))


def _side_by_side(look: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """`look` at every part, at as many at a time as torch has threads, each in one of them.

    Threads that share a convolution wait for one another at every layer, and where another process
    has one of the cores they mostly wait. These share nothing.
    """
    threads = torch.get_num_threads()
    if min(threads, len(parts)) == 1:
        return [look(part) for part in parts]

    @torch.inference_mode()  # of the thread, as is the number of its threads
    def alone(part: Tensor) -> Tensor:
        return look(part)

    try:
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        with pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # torch gives the last number said to new threads
