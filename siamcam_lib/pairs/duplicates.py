"""Pictures that are the same picture: byte-identical copies and near-duplicates.

Taught in chapter 1 (pairs). Whatever is found here must stay on one side of a split.
"""

from __future__ import annotations

from dataclasses import dataclass

import imagehash
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from siamcam_lib.cache import FeatureCache
from siamcam_lib.datasets import ImageSet


@dataclass(frozen=True)
class Duplicates:
    """Pairs of positions in an image set, each (m, 2) int64 with i < j.

    Attributes:
        exact: Byte-identical files.
        near: Pictures whose perceptual hashes differ by at most the limit, without the exact.
    """

    exact: np.ndarray
    near: np.ndarray

    def joined(self, groups: np.ndarray) -> np.ndarray:
        """`groups` with every group that shares a duplicate made one: (n,) int64."""
        return join_groups(groups, np.concatenate([self.exact, self.near]))


def find_duplicates(
    images: ImageSet, max_bits: int = 4, *, cache: FeatureCache | None = None
) -> Duplicates:
    """Exact copies by digest, near-duplicates by perceptual hash.

    The hash is pHash of 64 bits (`imagehash.phash`), which survives re-encoding, resizing and
    small changes of brightness; it compares pictures, not subjects.

    Args:
        images: n images.
        max_bits: Largest Hamming distance of two hashes that counts as the same picture, of 64.
        cache: Where hashes are kept; by default the user's cache.

    Raises:
        ImageError: if a picture cannot be read.
        CacheError: if the cache cannot be read or written.

    Example:
        >>> import siamcam_lib as sc
        >>> find_duplicates(sc.datasets.load("scenes/flowers", n=10)).exact.shape
        (0, 2)
    """
    content = contents(images)
    hashes = _hashes(images, cache or FeatureCache())
    exact: list[tuple[int, int]] = []
    near: list[tuple[int, int]] = []
    for i in range(len(images) - 1):  # row by row: memory stays flat
        bits = np.bitwise_count(hashes[i + 1 :] ^ hashes[i])
        for j in i + 1 + np.flatnonzero(bits <= max_bits):
            (exact if content[i] == content[j] else near).append((i, int(j)))
    return Duplicates(*(np.array(found, np.int64).reshape(-1, 2) for found in (exact, near)))


def contents(images: ImageSet) -> np.ndarray:
    """Numbers that agree where, and only where, two images agree byte for byte: (n,) int64.

    Raises:
        ImageError: if a picture cannot be read.
    """
    digests = [images.digest(i) for i in range(len(images))]
    return np.unique(digests, return_inverse=True)[1].astype(np.int64)


def _hashes(images: ImageSet, cache: FeatureCache) -> np.ndarray:
    """The 64-bit pHash of every picture: (n,) uint64."""
    keys = [f"phash/{images.digest(i)}" for i in range(len(images))]
    known = cache.get(keys)
    fresh = {
        key: imagehash.phash(images.image(i)).hash.ravel().astype(np.float32)
        for i, key in enumerate(keys)
        if key not in known
    }
    if fresh:
        cache.put(fresh)
    known.update(fresh)
    bits = np.array([known[key] for key in keys]).reshape(-1, 64).astype(bool)
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def join_groups(groups: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Merge groups that a link connects, directly or through others.

    Args:
        groups: (n,) group of each image.
        links: (m, 2) pairs of image positions that belong together.

    Returns:
        (n,) int64 group numbers from 0.

    Example:
        >>> join_groups(np.array([5, 5, 8, 9]), np.array([[1, 2]])).tolist()
        [0, 0, 0, 1]
    """
    _, compact = np.unique(groups, return_inverse=True)
    size = int(compact.max(initial=-1)) + 1
    ends = compact[np.asarray(links, np.int64).reshape(-1, 2)]
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return component[compact].astype(np.int64)
