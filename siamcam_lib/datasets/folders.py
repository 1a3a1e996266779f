"""How does a folder of class folders become an `ImageSet`?

Chapter 1 (pairs) and every reader who brings photographs of their own come in here. The folder
is looked through once, everything that could later break a training run is found and reported
by name, and the pixels stay on the disk until they are asked for.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from siamcam_lib.datasets import images as _images
from siamcam_lib.datasets.imageset import ImageSet
from siamcam_lib.errors import DataError, DataNotFoundError, ImageError
from siamcam_lib.files import expanded

# What unpackers and file managers leave behind; nobody means a class by it.
_LITTER = frozenset({"__MACOSX", "__pycache__", "$RECYCLE.BIN", "System Volume Information"})

_AT_ONCE = 4096  # pictures handed to the threads that check them: each takes memory as it waits


@dataclass(frozen=True)
class FolderSource:
    """Pictures that lie as files below one folder; implements `imageset.Source`.

    Attributes:
        root: The folder.
        origin: ``"folder"`` for a reader's own, ``"photographs"`` for the book's real sets.
        max_pixels: Largest picture that is decoded, see `images.read`.
    """

    root: Path
    origin: str = "folder"
    max_pixels: int = _images.MAX_PIXELS
    _digests: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def path(self, item: str) -> Path:
        """The file of the picture called `item`."""
        return self.root / item

    def image(self, item: str) -> Image.Image:
        """The picture called `item`, as 8-bit RGB, upright.

        Raises:
            DataNotFoundError: The file is no longer there.
            ImageError: It cannot be read; the message names it.
        """
        return _images.read(self.path(item), max_pixels=self.max_pixels)

    def masks(self, item: str) -> dict[str, np.ndarray]:
        """Empty: nobody has drawn the parts of these pictures."""
        return {}

    def digest(self, item: str) -> str:
        """Hexadecimal SHA-256 of the file's bytes.

        It is remembered for as long as the file's size and time of change stay the same.

        Raises:
            DataNotFoundError: The file is no longer there.
            ImageError: It cannot be read.
        """
        path = self.path(item)
        try:
            status = path.stat()
            stamp = struct.pack("<qq", status.st_size, status.st_mtime_ns)
            known = self._digests.get(item, b"")
            if not known.startswith(stamp):
                with path.open("rb") as file:
                    known = stamp + hashlib.file_digest(file, "sha256").digest()
                self._digests[item] = known
        except FileNotFoundError as error:
            raise DataNotFoundError(
                f"{path} was there when the set was loaded; it is gone."
            ) from error
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error}.") from error
        return known[len(stamp) :].hex()


def load_folder(
    path: str | os.PathLike[str],
    *,
    on_bad: Literal["raise", "skip"] = "raise",
    check: Literal["full", "header"] = "full",
    name: str | None = None,
    origin: str = "folder",
    classes: Sequence[str] | None = None,
    max_pixels: int = _images.MAX_PIXELS,
) -> ImageSet:
    """Load a folder that holds one folder for each class.

    Each class folder is searched with all its sub-folders. A file counts as a picture if its
    suffix is one that Pillow reads; other files are left out, and those that hold a picture
    nonetheless are named in the notes. Hidden files and folders are passed over. Links are
    followed, but never back to a folder already searched.

    Each picture is a group of its own: where several show one object, give them one group with
    ``dataclasses.replace(images, groups=...)`` before splitting.

    Args:
        path: The folder.
        on_bad: What to do with pictures that cannot be read: ``"raise"`` names them all and
            stops, ``"skip"`` leaves them out and names them in the notes.
        check: ``"full"`` decodes every picture once (about 0.3 ms each at 320 × 240, 30 ms at
            12 megapixels) and so finds truncated files; ``"header"`` finds only empty files and
            those that are no image, and a truncated one raises when it is read.
        name: Name of the set; the folder's name if not given.
        origin: ``"folder"``, or ``"photographs"`` for the book's real sets.
        classes: Take only these class folders, in this order. All of them, sorted, if not given.
        max_pixels: Largest picture that is decoded, see `images.read`.

    Returns:
        An `ImageSet` whose items are paths relative to the folder, with ``/`` between parts.

    Raises:
        DataNotFoundError: There is no such folder.
        DataError: It is a file, is empty, has no class folders or only one, a class folder holds
            no picture, or every class holds only one, so that no similar pair can be made.
        ImageError: Some pictures cannot be read, and `on_bad` is ``"raise"``.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for kind in ("cats", "dogs"):
        ...     (folder / kind).mkdir()
        ...     for i in range(2):
        ...         Image.new("RGB", (8, 8)).save(folder / kind / f"{i}.png")
        >>> pets = load_folder(folder, name="pets")
        >>> pets
        ImageSet('pets', 4 images, 2 classes, folder)
        >>> pets.items[0]
        'cats/0.png'
    """
    if on_bad not in ("raise", "skip"):
        raise DataError(f'on_bad is {on_bad!r}; expected "raise" or "skip".')
    if check not in ("full", "header"):
        raise DataError(f'check is {check!r}; expected "full" or "header".')
    root = _root(path)
    folders, notes = _class_folders(root, classes)
    found = _search(root, folders)
    notes += _note_strays(root, found.strays)

    bad = dict(found.unreadable)
    bad.update(_unreadable(root, found.items, check == "full", max_pixels))
    kept = [
        (item, label)
        for item, label in zip(found.items, found.labels, strict=True)
        if item not in bad
    ]
    if bad and on_bad == "raise":
        raise ImageError(
            f"{_many(len(bad), 'picture')} in {root} cannot be read: {_listed(bad.values())} "
            'Or leave such pictures out: load with on_bad="skip", or give the command '
            "--skip-unreadable."
        )
    if bad:
        notes.append(f"{_many(len(bad), 'unreadable picture')} left out: {_listed(bad.values())}")

    labels = np.array([label for _, label in kept], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(folders))
    _check_counts(root, folders, counts)
    single = [c for c, n in zip(folders, counts, strict=True) if n == 1]
    if single:
        notes.append(
            f"{_many(len(single), 'class', 'classes')} of a single image can serve only in "
            f"dissimilar pairs: {', '.join(single)}."
        )
    return ImageSet(
        name=name or root.name or root.resolve().name,
        classes=tuple(folders),
        items=tuple(item for item, _ in kept),
        labels=labels,
        groups=np.arange(len(kept), dtype=np.int64),
        source=FolderSource(root, origin, max_pixels),
        notes=tuple(notes),
    )


# --- looking through the folder -----------------------------------------------------------------


def _root(path: str | os.PathLike[str]) -> Path:
    try:
        root = expanded(path)
        if root.is_dir():
            return root
        missing = not root.exists()
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"The folder {path} cannot be looked at: {error}.") from error
    if missing:
        raise DataNotFoundError(
            f"There is no folder {path}; give a folder that holds one folder for each class."
        )
    raise DataError(f"{path} is a file; give a folder that holds one folder for each class.")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in the folder, sorted by name, without hidden things and litter."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (e for e in entries if not e.name.startswith(".") and e.name not in _LITTER),
                key=lambda e: e.name,
            )
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error}.") from error


def _class_folders(root: Path, wanted: Sequence[str] | None) -> tuple[dict[str, Path], list[str]]:
    entries = _entries(root)
    if not entries:
        raise DataError(f"The folder {root} is empty; it must hold one folder for each class.")
    notes, folders, loose, upwards = [], {}, 0, []
    ancestors = {_identity(p) for p in (root.resolve(), *root.resolve().parents)}
    for entry in entries:
        if _is_folder(entry):
            if _identity(Path(entry.path)) in ancestors:
                upwards.append(entry.name)
            else:
                folders[entry.name] = root / entry.name
        elif _images.is_picture(entry.name):
            loose += 1
    if wanted is not None:
        missing = [c for c in wanted if c not in folders]
        if missing:
            raise DataError(f"The folder {root} has no class folder {', '.join(missing)}.")
        folders = {c: folders[c] for c in wanted}
    if not folders:
        what = f"only {_many(loose, 'loose image')}" if loose else "no folders"
        if any(entry.name == "gallery.json" for entry in entries):
            what = "it is a gallery, which `Gallery.open` reads"
        raise DataError(
            f"The folder {root} has no class folders, {what}; put the images of each class into "
            "a folder named after it."
        )
    if len(folders) == 1:
        raise DataError(
            f"The folder {root} has only one class, {next(iter(folders))!r}; pairs that differ "
            "need at least two. Is it perhaps the folder above that is meant?"
        )
    if loose:
        notes.append(f"{_many(loose, 'image')} outside the class folders left out.")
    if upwards:
        notes.append(f"Links that lead back up left out: {', '.join(upwards)}.")
    return folders, notes


@dataclass
class _Found:
    items: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    """Files without an image suffix."""
    unreadable: dict[str, str] = field(default_factory=dict)


def _search(root: Path, folders: dict[str, Path]) -> _Found:
    found = _Found()
    # A link to the root or to another class would file that class's images under this one.
    closed = {_identity(root)} | {_identity(folder) for folder in folders.values()}
    for label, folder in enumerate(folders.values()):
        seen = set(closed)
        waiting = [folder]
        while waiting:
            inner = []
            for entry in _entries(waiting.pop()):
                item = Path(entry.path).relative_to(root).as_posix()
                if _is_folder(entry):
                    identity = _identity(Path(entry.path))
                    if identity not in seen:
                        seen.add(identity)
                        inner.append(Path(entry.path))
                elif not _images.is_picture(entry.name):
                    found.strays.append(item)
                elif not _is_utf8(item):
                    shown = item.encode(errors="surrogateescape").decode(errors="replace")
                    found.unreadable[item] = f"{shown!r} has a name that is not UTF-8; rename it."
                else:
                    found.items.append(item)
                    found.labels.append(label)
            waiting += reversed(inner)
    return found


def _unreadable(root: Path, items: list[str], full: bool, max_pixels: int) -> dict[str, str]:
    """Item and message of each picture that cannot be read."""

    def fault(item: str) -> str | None:
        try:
            _images.check(root / item, full=full, max_pixels=max_pixels)
        except DataNotFoundError:
            return f"{root / item} is a link to nothing."
        except ImageError as error:
            return str(error)
        return None

    starts = range(0, len(items), _AT_ONCE)
    # Pillow lets other threads run while it decodes. The bar appears only if this takes long.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = tqdm(
            (f for start in starts for f in pool.map(fault, items[start : start + _AT_ONCE])),
            total=len(items),
            desc="checking images",
            unit="image",
            delay=2,
            leave=False,
        )
        return {item: f for item, f in zip(items, faults, strict=True) if f is not None}


def _check_counts(root: Path, folders: Iterable[str], counts: np.ndarray) -> None:
    empty = [c for c, n in zip(folders, counts, strict=True) if n == 0]
    if empty:
        raise DataError(
            f"{_many(len(empty), 'class folder')} of {root} without a readable image: "
            f"{', '.join(empty)}. Add images, or remove the folder."
        )
    if counts.max() == 1:
        raise DataError(
            f"Every class of {root} has a single image, so no similar pair can be made; give at "
            "least one class two or more."
        )


def _note_strays(root: Path, strays: list[str]) -> list[str]:
    pictures = [item for item in strays if _holds_image(root / item)]
    notes = []
    if pictures:
        notes.append(
            f"{_many(len(pictures), 'image')} left out because the file name has no image "
            f"suffix: {_listed(pictures)} Rename to take in."
        )
    others = len(strays) - len(pictures)
    if others:
        notes.append(f"{_many(others, 'other file')} left out: no image by name or content.")
    return notes


def _holds_image(path: Path) -> bool:
    try:
        _images.check(path, full=False)
    except DataError:
        return False
    return True


# --- small things -------------------------------------------------------------------------------


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _many(count: int, singular: str, plural: str | None = None) -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def _listed(things: Iterable[str], limit: int = 20) -> str:
    """All of a short list, the first of a long one, as sentences run together."""
    things = list(things)
    shown = [t if t.endswith(".") else f"{t}." for t in things[:limit]]
    if len(things) > limit:
        shown.append(f"And {len(things) - limit:,} more.")
    return " ".join(shown)
