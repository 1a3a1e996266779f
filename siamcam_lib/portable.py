"""`Offer`: a network that a page runs itself, on pictures that never leave the reader's browser.

Used in the case studies and by `Gallery.to_html`. What a page loads, and only when asked: a
runtime, a backbone (ONNX), and of each network its head, in half precision. Networks that share a
frozen backbone share its file. The arithmetic of pairs is the explorer's own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from siamcam_lib import npm
from siamcam_lib.embedder import Embedder, Explainable, SiameseEmbedder, as_explainable
from siamcam_lib.errors import GalleryError
from siamcam_lib.exporting import parts, pooled_head
from siamcam_lib.files import cache_home, kept, shown
from siamcam_lib.model import SiameseNet
from siamcam_lib.onnx_files import digest, packed, pictures, unzips

FORMAT = "siamcam-models-1"
KEPT = "siamcam_model"
"""Key in the metadata of a notebook's output: the build makes a file of what stands there, which
every page of the book can load."""
COMPARISONS = ("siamese", "cosine", "l2", "clamped")
"""What a page can compute; see pair.js."""
RUNTIMES = ("wasm", "webgpu")
"""What runs a backbone: every browser's processor, or a graphics card that the browser knows."""
UNTRAINED = "ImageNet features, untrained"


@dataclass(frozen=True)
class Offer:
    """A network as pages know it; made by `offer`.

    Displayed at the end of a notebook's cell, it becomes one of the models that every page of the
    built book offers for pictures of the reader's own.

    Attributes:
        name: What readers choose it by.
        about: Its ``digest``, ``backbone`` (key of its file), ``side`` of the pictures it sees,
            ``how`` it compares, ``threshold``, ``relu``, ``units`` E, ``channels`` K and ``looks``.
        head: Weight, half precision (E, K), and bias, float32 (E,), one after the other as
            little-endian bytes; empty where features are compared as they are.
        source: Name of the installed backbone that this is, unchanged; None for any other.
    """

    name: str
    about: dict[str, Any]
    head: bytes
    source: str | None
    seeing: Explainable | None = field(default=None, repr=False, compare=False)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, str], dict[str, Any]]:
        told = f"Pages of this book can compare your own pictures by **{self.name}**."
        if self.source is None:
            return {
                "text/markdown": "Pages of this book cannot offer this network: its backbone is "
                "not one of those that are installed. `gallery.to_html(path, model=True)` writes "
                "a page of its own with it."
            }, {}
        head = base64.b64encode(self.head).decode()
        known = {"name": self.name, "about": self.about, "head": head, "source": self.source}
        return {"text/markdown": told}, {KEPT: known}


def offer(net: Any, name: str) -> Offer:
    """Make a network ready to be run by pages.

    Args:
        net: A `SiameseNet` or an `sc.Embedder` whose head pools and projects.
        name: What readers choose it by.

    Raises:
        GalleryError: if a page cannot compute how it compares embeddings.
        ModelError: if its head does something else than to pool and project.

    Example:
        >>> import siamcam_lib as sc
        >>> made = offer(sc.SiameseNet(image_size=96), "untrained")
        >>> made.about["units"], made.about["channels"], len(made.head), made.source
        (256, 1280, 656384, 'efficientnet_lite0')
    """
    seeing = as_explainable(net)
    how = comparison(seeing.settings)
    head = pooled_head(seeing)
    channels = seeing.look(pictures(seeing.image_size, 1)).maps.shape[1]
    weight = torch.empty(0) if head.weight is None else head.weight
    units = channels if head.weight is None else len(weight)
    bias = torch.zeros(units) if head.bias is None else head.bias
    data = b""
    if head.weight is not None:
        data = weight.numpy().astype("<f2").tobytes() + bias.numpy().astype("<f4").tobytes()
    key = _key(seeing)
    about = {
        "digest": seeing.digest(), "backbone": key, "side": seeing.image_size, "how": how,
        "threshold": seeing.threshold, "relu": head.relu, "units": units, "channels": channels,
        "looks": _looks(seeing),
    }  # fmt: skip
    return Offer(shown(name), about, data, _source(seeing, key), seeing)


def untrained(backbone: str = "efficientnet_lite0") -> Offer:
    """ImageNet features, compared as they are: for pictures of any kind."""
    return offer(Embedder.imagenet(backbone), UNTRAINED)


def comparison(settings: dict[str, Any]) -> dict[str, Any]:
    """How embeddings are compared, as a page computes it.

    Raises:
        GalleryError: if a page cannot.
    """
    how = dict(settings)
    if how["comparison"] in COMPARISONS:
        return how
    raise GalleryError(
        f"This gallery compares embeddings by {how['comparison']}, which a page cannot compute; "
        f"it can {', '.join(COMPARISONS)}. Make the gallery with one of these, or look at pairs "
        "one by one: gallery.explain(i, j)."
    )


def read(output: Any) -> Offer:
    """An offer from a notebook's output.

    Raises:
        GalleryError: if it is none.
    """
    try:
        head = base64.b64decode(output["head"], validate=True)
        about, source, name = output["about"], output["source"], output["name"]
        units, channels = about["units"], about["channels"]
        if not all(type(n) is int and 0 < n < 1_000_000 for n in (units, channels)):
            raise ValueError(f"{units} units of {channels} channels")
        length = 2 * units * channels + 4 * units
        if not isinstance(name, str) or not isinstance(source, str) or len(head) not in (0, length):
            raise ValueError(f"{len(head)} bytes of a head that takes {length}")
        comparison(about["how"])
    except (KeyError, TypeError, ValueError) as error:
        raise GalleryError(
            f"A notebook's output offers a model that cannot be read ({error}); run it again."
        ) from error
    return Offer(shown(name), about, head, source)


def bundle(
    offers: Sequence[Offer], runtimes: Sequence[str] = ("wasm",)
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """All that a page can load, as a manifest and the files it names.

    Every file's name holds its digest, so that a browser may keep it for good.

    Args:
        offers: The networks, in the order of the menu.
        runtimes: Those of `RUNTIMES` that the page chooses from.

    Raises:
        BookError: if the runtime is neither kept nor to be had.
        GalleryError: if two models have one name, or an installed backbone is another one than
            that of an offer.
        ModelError: if a backbone cannot be exported.
    """
    names = [one.name for one in offers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise GalleryError(
            f"Two models are called {twice[0]!r}; readers could not tell them apart. Give each a "
            "name of its own."
        )
    files: dict[str, bytes] = {}

    def part(stem: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[name := f"{stem}-{digest[:16]}.bin"] = data
        return {"file": name, "bytes": len(data), "sha256": digest}

    machines = {
        kind: {
            "script": part(f"{kind}-script", _runtime(f"{kind}.mjs")),
            "machine": part(f"{kind}-machine", _runtime(f"{kind}.wasm")),
        }
        for kind in runtimes
    }
    backbones, models = {}, []
    for one in offers:
        key = one.about["backbone"]
        if key not in backbones:
            backbones[key] = part("backbone", _backbone(one))
        head = part("head", gzip.compress(one.head, 9, mtime=0)) if one.head else None
        models.append({"name": one.name, "head": head} | one.about)
    manifest = {
        "format": FORMAT,
        "runtimes": machines,
        "backbones": backbones,
        "models": models,
        "versions": {
            "siamcam_lib": version("siamcam_lib"),
            "onnxruntime-web": _package()["version"],
        },
    }
    return manifest, files


def _key(seeing: Explainable) -> str:
    """What names a backbone's file."""
    backbone, _ = parts(seeing)
    ends_with = ""  # the layer it ends with, where that is not its last one
    inside = sum(1 for _ in seeing.target.parameters())
    if isinstance(seeing, Embedder) and inside < sum(1 for _ in backbone.parameters()):
        ends_with = seeing.layer
    return digest(backbone, seeing.image_size, ends_with)


def _looks(seeing: Explainable) -> int:
    """How often a network looks at a picture; any module but ours does so once."""
    return seeing.net.looks if isinstance(seeing, SiameseEmbedder) else 1


def _untrained(name: str, side: int, looks: int) -> SiameseNet:
    return SiameseNet(name, embed_dim=1, image_size=side, looks=looks)


def _source(seeing: Explainable, key: str) -> str | None:
    """The installed backbone that this one is, if it is one."""
    from siamcam_lib.backbones import INSTALLED

    count = sum(p.numel() for p in seeing.target.parameters())
    for name in INSTALLED:
        net = _untrained(name, seeing.image_size, _looks(seeing))
        if sum(p.numel() for p in net.backbone.parameters()) == count:
            return name if _key(as_explainable(net)) == key else None
    return None


def _backbone(one: Offer) -> bytes:
    """The file of an offer's backbone, packed."""
    seeing = one.seeing
    if seeing is None:
        net = _untrained(one.source or "", one.about["side"], one.about.get("looks", 1))
        seeing = as_explainable(net)
    if _key(seeing) != one.about["backbone"]:
        raise GalleryError(
            f"The model {one.name!r} was made with another backbone than the {one.source!r} "
            "that is installed; run its chapter again."
        )
    return packed(parts(seeing)[0], seeing.image_size, one.about["backbone"])


def _package() -> dict[str, Any]:
    (package,) = (p for p in npm.packages() if p["for"] == "models")
    return package


def _runtime(name: str) -> bytes:
    """A file of ONNX Runtime for browsers, packed."""
    package = _package()

    def take() -> bytes:
        with tempfile.TemporaryDirectory(prefix="siamcam-runtime-") as scratch:
            npm.place(package, Path(scratch))
            return gzip.compress((Path(scratch) / name).read_bytes(), 9, mtime=0)

    file = f"{package['name']}-{package['version']}-{name}.gz"
    return kept(cache_home() / "models" / file, take, unzips)
