"""Which of many vectors are nearest to one? FAISS says it, in memory and in milliseconds.

Taught in the chapter on galleries and beyond one machine. Up to `EXACT` vectors every one is
compared in full precision. Beyond, copies in half precision are compared, on all cores; they take
half of the memory and, as memory is what limits the search, half of the time. The best of them are
then compared in full precision by whoever asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from siamcam_lib.files import whole_file
from siamcam_lib.shards import TABLE, blocks

EXACT = 100_000
"""So many vectors are searched in full precision: some 10 ms on a core, at 256 numbers each."""
FILE = "neighbours.safetensors"
FORMAT = "siamcam-neighbours-1"

Vectors = Callable[[], Iterator[np.ndarray]]


class Index:
    """Vectors to search among; made by `of`.

    Example:
        >>> vectors = np.eye(4, dtype=np.float32)
        >>> index = Index.of(lambda: iter([vectors]), 4, product=False)
        >>> index.search(vectors[2:3], 1)
        array([2])
    """

    def __init__(self, together: Any, parts: list[Any] | None = None, scale: float = 1.0) -> None:
        self._together, self._scale = together, scale
        self._parts = parts  # in half precision; FAISS does not keep them alive itself

    @classmethod
    def of(
        cls, vectors: Vectors, count: int, *, product: bool, folder: Path | None = None
    ) -> Index:
        """Put vectors in.

        Args:
            vectors: Gives all of them, (m, E) float32 at a time, as often as it is called.
            count: How many there are, n.
            product: Nearest are those with the greatest product, not the least distance.
            folder: Of the gallery they are of. Half-precision copies are kept there, so that they
                are made once; where nothing can be written, they are made each time.
        """
        import faiss  # loaded by whoever searches

        if count <= EXACT:
            parts = list(vectors())
            kind = faiss.IndexFlatIP if product else faiss.IndexFlatL2
            flat = kind(parts[0].shape[1])
            for part in parts:
                flat.add(np.ascontiguousarray(part))
            return cls(flat)
        about = {"format": FORMAT, "product": str(product)}
        if folder is not None:
            about["of"] = hashlib.sha256((folder / TABLE).read_bytes()).hexdigest()
            with suppress(SafetensorError, OSError, ValueError, KeyError):
                return cls._of_halves(_Kept(folder / FILE, about, count), product)
        made = _Made(vectors, count)
        halves: _Made | _Kept = made
        if folder is not None:
            with suppress(SafetensorError, OSError, ValueError, KeyError):
                with whole_file(folder / FILE) as temporary:
                    save_file({"halves": made.halves, "scale": made.scale}, temporary, about)
                halves = _Kept(folder / FILE, about, count)  # FAISS copies them: out of memory
        return cls._of_halves(halves, product)

    @classmethod
    def _of_halves(cls, halves: _Kept | _Made, product: bool) -> Index:
        import faiss

        metric = faiss.METRIC_INNER_PRODUCT if product else faiss.METRIC_L2
        count, length = halves.shape
        together = faiss.IndexShards(length, True, True)  # type: ignore[call-arg]  # threads, numbers go on
        parts = []
        for start, stop in blocks(count, -(-count // faiss.omp_get_max_threads())):
            part = faiss.IndexScalarQuantizer(length, faiss.ScalarQuantizer.QT_fp16, metric)
            part.add_sa_codes(halves.rows(start, stop).numpy().view(np.uint8))
            parts.append(part)
            together.add_shard(part)
        return cls(together, parts, float(halves.scale))

    def search(self, vector: np.ndarray, k: int) -> np.ndarray:
        """Places of at least the k nearest to a vector (1, E), nearest first, if there are k.

        In half precision the order is not quite right, so 3k + 100 more come to be judged again.
        """
        wanted = min(k if self._parts is None else 4 * k + 100, self._together.ntotal)
        vector = np.ascontiguousarray(vector / np.float32(self._scale))
        _, found = self._together.search(vector, wanted)
        return found[0][found[0] >= 0]


class _Made:
    """Half-precision copies of vectors, divided by the largest number in them."""

    def __init__(self, vectors: Vectors, count: int) -> None:
        largest = max(float(np.abs(part).max()) for part in vectors())
        self.scale, start = torch.tensor(largest or 1.0), 0
        for part in vectors():
            if not start:
                self.halves = torch.empty((count, part.shape[1]), dtype=torch.float16)
            self.halves[start : start + len(part)] = torch.from_numpy(part) / self.scale
            start += len(part)
        self.shape = self.halves.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.halves[start:stop]


class _Kept:
    """The same from a file, read piece by piece."""

    def __init__(self, path: Path, about: dict[str, str], count: int) -> None:
        self._file = safe_open(path, framework="pt")
        if self._file.metadata() != about:
            raise ValueError("of another gallery")
        self._halves = self._file.get_slice("halves")
        self.scale = self._file.get_tensor("scale")
        self.shape = tuple(self._halves.get_shape())
        whole = len(self.shape) == 2 and self.shape[0] == count
        if not whole or self._halves.get_dtype() != "F16" or not 0 < float(self.scale) < np.inf:
            raise ValueError("damaged")

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._halves[start:stop]
