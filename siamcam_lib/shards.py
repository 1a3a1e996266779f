"""Projected maps of many images as files: safetensors shards that are read row by row.

Taught in chapter 4 (Grad-CAM maths). A gallery of a hundred thousand images is 2.5 GB; explaining
two of them reads 50 kB.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from siamcam_lib.errors import GalleryError
from siamcam_lib.files import whole_file

FORMAT = "siamcam-gallery-2"
OLDER = ("siamcam-gallery-1",)
TABLE = "gallery.json"
KINDS = {
    "maps": np.float16, "scale": np.float32, "embedding": np.float32, "size": np.int32,
    "key": np.uint8,
}  # fmt: skip
"""What is kept of an image: its maps in half precision, divided by their largest absolute value,
`scale`; its embedding; width and height; and its key, 16 bytes that tell what it was read from and
16 bytes that tell its pixels, of SHA-256 (zeros where nobody knows)."""
KEY = (2, 16)
_CODES = {np.float16: "F16", np.float32: "F32", np.int32: "I32", np.uint8: "U8"}  # safetensors'


class Shards:
    """A folder of shards, read where and when a row is asked for.

    Args:
        folder: As `ShardWriter` left it.

    Raises:
        GalleryError: if there is no gallery, it is damaged or incomplete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.table = _read_table(self.folder)
        shape = tuple(self.table["shape"])
        self._rows_are = {
            "maps": shape,
            "scale": (),
            "embedding": shape[:1],
            "size": (2,),
            "key": KEY,
        }
        self._files = [self._open(name) for name in self.table["shards"]]
        self._ends = np.cumsum([self._rows(file) for file in self._files]).tolist()
        if self._ends[-1] != self.table["images"]:
            raise GalleryError(
                f"The gallery {self.folder} holds {self._ends[-1]} images, its table says "
                f"{self.table['images']}; make it again with Gallery.embed."
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def _open(self, name: str) -> Any:
        try:
            file = safe_open(self.folder / name, framework="numpy")
            if set(file.keys()) != set(KINDS):
                raise ValueError(f"it holds {sorted(file.keys())}")
            rows = self._rows(file)
            for kind, dtype in KINDS.items():
                part = file.get_slice(kind)
                have = part.get_dtype(), tuple(part.get_shape())
                if have != (_CODES[dtype], (rows, *self._rows_are[kind])):
                    raise ValueError(f"{kind} is {have[0]} {have[1]}")
            return file
        except (SafetensorError, OSError, ValueError) as error:
            raise GalleryError(
                f"The shard {self.folder / name} is damaged or missing ({error}); make the "
                "gallery again with Gallery.embed."
            ) from error

    @staticmethod
    def _rows(file: Any) -> int:
        return file.get_slice("embedding").get_shape()[0]

    def take(self, kind: str, index: np.ndarray) -> np.ndarray:
        """Rows at any places."""
        found = np.empty((len(index), *self._rows_are[kind]), KINDS[kind])
        for row, i in enumerate(index.tolist()):
            found[row] = self.read(kind, i, i + 1)[0]
        return found

    def read(self, kind: str, start: int, stop: int) -> np.ndarray:
        """Rows start…stop of one of `KINDS`."""
        parts = []
        while start < stop:
            shard = bisect.bisect_right(self._ends, start)
            offset = self._ends[shard - 1] if shard else 0
            end = min(stop, self._ends[shard])
            parts.append(self._files[shard].get_slice(kind)[start - offset : end - offset])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class ShardWriter:
    """Writes shards one by one; the table, written last, makes a gallery of them.

    Args:
        folder: Made where it is missing; must hold no other gallery.
        images_per_shard: Rows of a file.

    Raises:
        GalleryError: if the folder holds a gallery or cannot be written.
    """

    def __init__(self, folder: str | Path, images_per_shard: int = 1024) -> None:
        self.folder, self.images_per_shard = Path(folder), images_per_shard
        self.names: list[str] = []
        self.images = 0
        self._waiting: list[dict[str, np.ndarray]] = []
        self._contents = hashlib.sha256()
        refuse_another(self.folder)
        positive("images_per_shard", images_per_shard)
        with saying(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Take rows of all `KINDS`, or of all but keys; whole shards are written at once."""
        self._waiting.append(with_keys(rows))
        while sum(len(part["size"]) for part in self._waiting) >= self.images_per_shard:
            joined = join(self._waiting)
            self._write({k: v[: self.images_per_shard] for k, v in joined.items()})
            self._waiting = [{k: v[self.images_per_shard :] for k, v in joined.items()}]

    def close(self, about: dict[str, Any]) -> None:
        """Write what is left and the table."""
        if any(len(part["size"]) for part in self._waiting):
            self._write(join(self._waiting))
        contents = {"contents": self._contents.hexdigest()}
        write_table(self.folder, self.images, self.names, about | contents)

    def _write(self, rows: dict[str, np.ndarray]) -> None:
        self.names.append(write_shard(self.folder, len(self.names), rows))
        self.images += len(rows["size"])
        for kind in ("key", "embedding"):
            self._contents.update(np.ascontiguousarray(rows[kind], KINDS[kind]).data)


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"shard-{number:05d}.safetensors"


def write_shard(
    folder: Path, number: int, rows: dict[str, np.ndarray], about: dict[str, str] | None = None
) -> str:
    """Write one shard, whole or not at all; `about` is kept with it. Returns its name."""
    plain = {k: np.ascontiguousarray(rows[k], KINDS[k]) for k in KINDS}
    with saying(folder), whole_file(folder / shard_name(number)) as temporary:
        save_file(plain, temporary, metadata=about)
    return shard_name(number)


def write_table(folder: Path, images: int, names: list[str], about: dict[str, Any]) -> None:
    """Write the table that makes a gallery of shards; written last, and not where it is there."""
    table = json.dumps({"format": FORMAT, "images": images, "shards": names, **about}, indent=1)
    with suppress(OSError, ValueError):
        if (folder / TABLE).read_text("utf-8") == table:
            return
    with saying(folder), whole_file(folder / TABLE) as temporary:
        temporary.write_text(table, encoding="utf-8")


def refuse_another(folder: Path, what: str = "") -> None:
    """Raise `GalleryError` where a folder holds a gallery; `what` tells it from the wanted one."""
    if (folder / TABLE).exists():
        _refuse_older(folder)
        raise GalleryError(
            f"{folder} holds a gallery already{what}; open it with Gallery.open, or give another "
            "folder."
        )


def _refuse_older(folder: Path) -> None:
    try:
        older = json.loads((folder / TABLE).read_text("utf-8"))["format"] in OLDER
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return  # whatever it is
    if older:
        raise GalleryError(
            f"{folder} holds a gallery of an older version of this library, which cannot be read; "
            "delete it and make it again with Gallery.embed."
        )


@contextmanager
def saying(folder: Path) -> Iterator[None]:
    """Say in words that a folder cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise GalleryError(
            f"The gallery cannot be written to {folder} ({error}); choose another folder."
        ) from error


def half(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps (n, …) in half precision with one scale each: values within 2⁻¹¹ of the largest.

    Example:
        >>> small, scale = half(np.array([[1e-9, -3e-9]], np.float32))
        >>> np.round(small.astype(float), 3).tolist(), scale.tolist() == [np.float32(3e-9)]
        ([[0.333, -1.0]], True)
    """
    scale = np.abs(maps).reshape(len(maps), -1).max(axis=1).astype(np.float32)
    safe = np.where(scale > 0, scale, 1).reshape(-1, *[1] * (maps.ndim - 1))
    return (maps / safe).astype(np.float16), scale


def positive(name: str, value: Any) -> None:
    """Raise `GalleryError` where `value` is no positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GalleryError(f"{name} is a positive whole number, not {value!r}.")


def blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """0…count in pieces of at most `size`."""
    for start in range(0, count, size):
        yield start, min(start + size, count)


def with_keys(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows with keys: zeros, where there are none."""
    return {"key": np.zeros((len(rows["size"]), *KEY), np.uint8)} | rows


def join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows one after the other."""
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in KINDS}


def _read_table(folder: Path) -> dict[str, Any]:
    path = folder / TABLE
    if not path.is_file():
        raise GalleryError(
            f"There is no gallery in {folder} (no {TABLE}); Gallery.embed(net, images, "
            "folder=...) makes one."
        )
    _refuse_older(folder)
    try:
        table = json.loads(path.read_text("utf-8"))
        if table["format"] != FORMAT:
            raise ValueError(f"format {table['format']!r}, expected {FORMAT!r}")
        names = table["shards"]
        whole = all(isinstance(n, str) and Path(n).name == n for n in names)
        if not names or not whole:
            raise ValueError(f"shards {names!r}")
        if not (isinstance(table["threshold"], float) and 0 < table["threshold"] < 1):
            raise ValueError(f"threshold {table['threshold']!r}")
        shape = table["shape"]
        if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"shape {shape!r}")
        if not isinstance(table["digest"], str) or "images" not in table:
            raise ValueError(f"digest {table['digest']!r}, images {table.get('images')!r}")
        _check_settings(table["settings"])
        return table
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise GalleryError(
            f"{path} is damaged or not of this library ({error}); make the gallery again."
        ) from error


def _check_settings(settings: Any) -> None:
    """Raise ValueError where a comparison could not be made with these settings."""
    kinds: dict[str, type] = {"comparison": str}
    if settings["comparison"] == "siamese":
        kinds |= {"unit": bool, "slope": float, "offset": float}
    if settings.keys() != kinds.keys() or not all(
        isinstance(settings[name], kind) and (kind is not float or math.isfinite(settings[name]))
        for name, kind in kinds.items()
    ):
        raise ValueError(f"settings {settings!r}")
