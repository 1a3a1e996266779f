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

    def __getitem__(self, i: int) -> Image.Image:
        return self.reader(i)()

    def reader(self, i: int) -> Callable[[], Image.Image]:
        """What reads picture `i`, in any thread: a sequence itself is asked in the caller's."""
        if isinstance(self._images, ImageSet):
            return lambda: self._images.image(i)
        value = self._images[i]
        return lambda: as_image(value)

    def origin(self, i: int) -> str | None:
        """SHA-256 of what picture `i` is read from; None where that is no file."""
        if isinstance(self._images, ImageSet):
            return self._images.digest(i)
        if isinstance(value := self._images[i], str | os.PathLike):
            with suppress(OSError), open(value, "rb") as file:  # reading it says what is wrong
                return hashlib.file_digest(file, "sha256").hexdigest()
        return None

    def key(self, i: int) -> bytes:
        """The first half of a stored key: what picture `i` is read from, or else its pixels."""
        return bytes.fromhex(self.origin(i) or content_digest(self[i]))[:16]

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

    def decode(origin: str | None, read: Callable[[], Image.Image]) -> Decoded:
        picture = read()
        shown = content_digest(picture)
        key = bytes.fromhex((origin or shown)[:32] + shown[:32])
        square = np.array(picture.resize((side, side), Image.Resampling.BICUBIC))
        return Decoded(square, picture.size, key, picture if keep else None)

    # Pillow lets other threads run while it decodes.
    pool = ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2))))
    waiting: deque[list[Any]] = deque()
    try:
        for batch in batches:
            # The origin comes first: what is changed later shows by it.
            waiting.append([
                pool.submit(decode, pictures.origin(i), pictures.reader(i)) for i in batch
            ])  # fmt: skip
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
    seen = PooledSeen(looks(seeing.net, [one.picture for one in batch]), PooledHead(weight, bias))
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
