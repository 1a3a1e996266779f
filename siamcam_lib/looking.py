"""Many pictures are looked at once: while the network looks at some, threads decode the next.

Taught in the chapter on galleries and beyond one machine. What comes out is what a gallery keeps.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siamcam_lib.datasets import ImageSet
from siamcam_lib.datasets.images import as_image
from siamcam_lib.embedder import Explainable, SiameseEmbedder
from siamcam_lib.errors import GalleryError
from siamcam_lib.features import Looks, content_digest
from siamcam_lib.heads import PooledHead, PooledSeen, Seen
from siamcam_lib.model import square
from siamcam_lib.shards import blocks, positive


@dataclass(frozen=True)
class Source:
    """One picture that is not read yet; any thread may read it.

    Attributes:
        origin: Gives SHA-256 of what the picture is read from; None where that is no file.
        read: Gives the picture.
    """

    origin: Callable[[], str | None]
    read: Callable[[], Image.Image]

    def key(self) -> bytes:
        """The first half of a stored key: what the picture is read from, or else its pixels."""
        return bytes.fromhex(self.origin() or content_digest(self.read()))[:16]


class Pictures(Sequence):
    """Images of a set or a sequence, read when asked for."""

    def __init__(self, images: ImageSet | Sequence[Any]) -> None:
        several = isinstance(images, ImageSet) or (
            images.ndim == 4
            if isinstance(images, np.ndarray | Tensor)
            else isinstance(images, Sequence) and not isinstance(images, str | bytes)
        )
        if not several:
            raise GalleryError(
                f"Images come as an ImageSet or a list, not as {type(images).__name__}."
            )
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Image.Image:  # type: ignore[override]  # no slices
        return self.source(i).read()

    def source(self, i: int) -> Source:
        """Picture `i`, to be read in any thread: a sequence itself is asked in the caller's."""
        if isinstance(self._images, ImageSet):
            return Source(partial(self._images.digest, i), partial(self._images.image, i))
        value = self._images[i]
        return Source(partial(_file_digest, value), partial(as_image, value))

    def are(self, keys: np.ndarray, start: int = 0) -> bool:
        """Whether the pictures from `start` on are those of stored keys, (m, 2, 16) uint8."""
        with _threads() as pool:
            return all(
                old.tobytes() == new
                for a, b in blocks(len(keys), 32)  # pictures that are no files are held meanwhile
                for old, new in zip(
                    keys[a:b, 0],
                    pool.map(Source.key, map(self.source, range(start + a, start + b))),
                    strict=True,
                )
            )

    @property
    def named(self) -> bool:
        """Whether every picture has a name: pictures in memory have none."""
        return isinstance(self._images, ImageSet) or all(
            isinstance(value, str | os.PathLike) for value in self._images
        )

    def names(self) -> str:
        """SHA-256 of how many pictures there are and what they are called."""
        total = hashlib.sha256(str(len(self)).encode())
        for i in range(len(self)):
            if isinstance(self._images, ImageSet):
                name = self._images.items[i]
            else:
                value = self._images[i]
                name = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
            total.update(f"{name}\0".encode(errors="surrogateescape"))
        return total.hexdigest()


def check_embeddable(pictures: Pictures, batch_size: int, images_per_shard: int) -> None:
    """Raise `GalleryError` where no gallery can be made."""
    if not len(pictures):
        raise GalleryError("A gallery needs at least one image; none was given.")
    positive("batch_size", batch_size)
    positive("images_per_shard", images_per_shard)


def _file_digest(value: Any) -> str | None:
    if isinstance(value, str | os.PathLike):
        with suppress(OSError, ValueError):  # reading it says what is wrong
            if Path(value).is_file():  # a pipe would block, a device never end
                with open(value, "rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _threads() -> ThreadPoolExecutor:
    """Hashing and Pillow's decoding let other threads run."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 2))


# --- looking --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """A picture as a network takes it.

    Attributes:
        pixels: uint8 (S, S, 3).
        size: Width and height of the picture itself.
        key: See `siamcam_lib.shards.KINDS`.
        picture: The picture itself, where somebody wants it.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    key: bytes
    picture: Image.Image | None = None


def decoded(
    pictures: Pictures, batches: list[range], side: int, keep: bool = False
) -> Iterator[list[Decoded]]:
    """Pictures batch by batch; those of the next batch are decoded by other threads meanwhile.

    Args:
        pictures: Whichever.
        batches: Positions.
        side: Of the squares, in pixels.
        keep: Keep the pictures themselves too.
    """

    def decode(source: Source) -> Decoded:
        origin = source.origin()  # first: what is changed later shows by it
        picture = source.read()
        shown = content_digest(picture)
        key = bytes.fromhex((origin or shown)[:32] + shown[:32])
        return Decoded(square(picture, side), picture.size, key, picture if keep else None)

    pool = _threads()
    waiting: deque[list[Any]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(decode, pictures.source(i)) for i in batch])
            if len(waiting) > 1:
                yield [one.result() for one in waiting.popleft()]
        while waiting:
            yield [one.result() for one in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def look(
    seeing: Explainable, batch: list[Decoded], looks: Looks | None = None
) -> dict[str, np.ndarray]:
    """What a gallery keeps of a batch, maps in full precision; see `siamcam_lib.shards.KINDS`."""
    projected = _see(seeing, batch, looks).project()
    return {
        "maps": projected.maps.numpy(), "scale": np.ones(len(batch), np.float32),
        "embedding": projected.embedding.numpy(),
        "size": np.array([one.size for one in batch], np.int32),
        "key": np.array([np.frombuffer(one.key, np.uint8).reshape(2, 16) for one in batch]),
    }  # fmt: skip


def _see(seeing: Explainable, batch: list[Decoded], looks: Looks | None) -> Seen:
    """Look at pictures, or take from `looks` what another head was shown."""
    if looks is None or not isinstance(seeing, SiameseEmbedder):
        pixels = torch.from_numpy(np.stack([one.pixels for one in batch]))
        return seeing.look(pixels.permute(0, 3, 1, 2).float().div_(255))
    weight, bias = (p.detach().cpu() for p in seeing.net.projection.parameters())
    seen = PooledSeen(
        looks(seeing.net, [one.picture for one in batch if one.picture is not None]),
        PooledHead(weight, bias),
    )
    if not torch.isfinite(seen.embedding).all():
        raise GalleryError(
            "The network's embedding is not finite; its weights are damaged. Load or train it "
            "again."
        )
    return seen


def repeated(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Later and first place of each picture that comes more than once; keys (n, 2, 16) uint8.

    Example:
        >>> keys = np.ones((3, 2, 16), np.uint8)
        >>> keys[1] = 2
        >>> list(repeated(keys))
        [(2, 0)]
    """
    shown = np.ascontiguousarray(keys[:, 1]).view("S16").ravel()
    _, first, place = np.unique(shown, return_index=True, return_inverse=True)
    first = first[place]
    later = np.flatnonzero((first != np.arange(len(keys))) & (shown != b""))  # zeros: nobody knows
    yield from zip(later.tolist(), first[later].tolist(), strict=True)
