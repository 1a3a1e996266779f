"""Which data sets does the book know, where do they lie, and what is wrong with them?

Taught in chapter 1 (pairs). The three sets of photographs come from the paper's authors; the
faults found in them, pictures filed under two classes, exact copies and flats that show up
under two numbers, are dealt with here, on loading, and reported in the set's notes.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from siamcam_lib.datasets import scenes
from siamcam_lib.datasets.folders import load_folder
from siamcam_lib.datasets.images import is_picture
from siamcam_lib.datasets.imageset import ImageSet
from siamcam_lib.errors import DataError, DataNotFoundError
from siamcam_lib.files import expanded

VARIABLE = "SIAMCAM_DATA"
"""Environment variable that names the folder of the real sets."""

UPSTREAM = "upstream.tsv"
"""The manifest of the paper's authors' repository, beside this module."""

_NO_LICENCE = (
    "The authors' repository states no licence, so the photographs are not passed on with this "
    "book: `fetch` gets them from the authors, for study."
)


@dataclass(frozen=True)
class PhotoSet:
    """A set of photographs that `fetch` gets; the first three are the paper's.

    Attributes:
        name: Its name in this library, and of its folder in `data_home`.
        title: What it is called on pages.
        upstream: Its folder in the repository that publishes it.
        classes: Class names, as the authors spell them: the folders that hold its pictures.
            Whatever else lies in `upstream` is no part of it.
        scenes: Name of the drawn scenes that mirror it, if there are any.
        licence: What is known about the right to use it.
        remarks: What a reader must know about it, added to the notes of the loaded set.
        listed: Its manifest, a file beside this module; see `manifest`.
        archive: Address of the zip archive, if it is not GitHub's of the manifest's commit.
    """

    name: str
    title: str
    upstream: str
    classes: tuple[str, ...]
    scenes: str | None = None
    licence: str = _NO_LICENCE
    remarks: tuple[str, ...] = ()
    listed: str = UPSTREAM
    archive: str | None = None

    @property
    def source(self) -> Manifest:
        """The repository and commit it comes from, with all that is published there."""
        return manifest(self.listed)

    @property
    def files(self) -> tuple[UpstreamFile, ...]:
        """Its pictures, as the manifest lists them."""
        places = {f"{self.upstream}/{c}" for c in self.classes}
        return tuple(
            file
            for file in self.source.files
            if file.path.rpartition("/")[0] in places and is_picture(file.path)
        )

    @property
    def counts(self) -> dict[str, int]:
        """Number of images upstream, by class."""
        found = dict.fromkeys(self.classes, 0)
        for file in self.files:
            found[file.path.split("/")[-2]] += 1
        return found

    def check(self) -> None:
        """Raise `DataError` where the manifest has no picture of a class: half a set is none."""
        if lacking := [name for name, count in self.counts.items() if not count]:
            raise DataError(
                f"The manifest {self.listed!r} lists no picture in "
                f"{', '.join(f'{self.upstream}/{name}' for name in lacking)}, where the set "
                f"{self.name!r} is said to have some: nothing could be held to it. Mend the set's "
                "entry (`upstream`, `classes`) or its manifest."
            )

    def item(self, file: UpstreamFile) -> str:
        """Where the file goes in the set's own folder: ``"Daisy/1.jpg"``."""
        return file.path.removeprefix(self.upstream + "/")


@dataclass(frozen=True)
class UpstreamFile:
    """One line of the manifest: `sha1` is the file's git blob id, `size` its bytes."""

    path: str
    size: int
    sha1: str


@dataclass(frozen=True)
class Manifest:
    """A repository at one commit: every picture with its size and git blob id."""

    repository: str
    commit: str
    files: tuple[UpstreamFile, ...]


SETS: dict[str, PhotoSet] = {
    known.name: known
    for known in (
        PhotoSet(
            "flowers",
            "Flowers",
            "Data/Flowers",
            ("Daisy", "Dandelion", "Rose", "Sunflower", "Tulip"),
            "scenes/flowers",
        ),
        PhotoSet(
            "skin_cancer",
            "Skin cancer",
            "Data/Skin_cancer",
            ("Benign", "Malignant"),
            "scenes/lesions",
            remarks=(
                'The file names hold the label ("Target 0" benign, "Target 1" malignant): '
                "nothing may learn from them.",
            ),
        ),
        PhotoSet(
            "airbnb",
            "AirBnB",
            "Data/AirBnB",
            (
                "backyard",
                "basement",
                "bathroom",
                "bedroom",
                "decor",
                "dining-room",
                "entrance",
                "house-exterior",
                "kitchen",
                "living-room",
                "outdoor",
                "staircase",
                "tv-room",
            ),
            "scenes/rooms",
        ),
    )
}
"""The sets of photographs, by name."""


def names() -> tuple[str, ...]:
    """Every name that `load` knows.

    Example:
        >>> names()
        ('scenes/flowers', 'scenes/lesions', 'scenes/rooms', 'flowers', 'skin_cancer', 'airbnb')
    """
    return (*(f"scenes/{kind}" for kind in scenes.KINDS), *SETS)


@cache
def manifest(listed: str = UPSTREAM) -> Manifest:
    """What was published, file by file, at the commit this library is pinned to.

    The first line of the file is ``# OWNER/REPOSITORY COMMIT``. Each other line has a blob id, a
    size and a path, with tabs between them: what ``git -c core.quotePath=false ls-tree -r
    --format='%(objectname)%x09%(objectsize)%x09%(path)' COMMIT -- FOLDER`` prints. Where a set was
    not published by git, ``git hash-object FILE`` tells the id of a file all the same, and the
    first line has a name and a version of your own.

    Args:
        listed: A file beside this module.

    Raises:
        DataError: There is no such file, or a line of it is something else.

    Example:
        >>> {name: len(known.files) for name, known in SETS.items()}
        {'flowers': 4317, 'skin_cancer': 2800, 'airbnb': 864}
    """
    try:
        text = resources.files("siamcam_lib.datasets").joinpath(listed).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"The manifest {listed!r} cannot be read ({error}); it lies beside catalogue.py."
        ) from error
    head, *lines = text.splitlines() or [""]
    named = re.match(r"# (\S+/\S+) (\S+)", head)
    if named is None:
        raise DataError(
            f"The manifest {listed!r} begins with {head!r}, and must begin with "
            "'# OWNER/REPOSITORY COMMIT'."
        )
    files = []
    for number, line in enumerate(lines, start=2):
        found = re.fullmatch(r'([0-9a-f]{40})\t(\d+)\t([^"].*)', line)
        if found is None:
            raise DataError(
                f"Line {number} of the manifest {listed!r} is {line!r}, and must be a blob id, a "
                "size and a path with tabs between them. A path in quotation marks is git's way "
                "of writing letters such as ä; ask it with -c core.quotePath=false."
            )
        files.append(UpstreamFile(found[3], int(found[2]), found[1]))
    return Manifest(named[1], named[2], tuple(files))


def data_home() -> Path:
    """Folder of the real sets: ``$SIAMCAM_DATA``, else ``data`` in the cache folder.

    The cache folder is ``$SIAMCAM_CACHE``, else the user's own. Nothing is made by asking.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return expanded(chosen)
    # The same folder as files.cache_home, which would make it: to look is not to write.
    cache_folder = os.environ.get("SIAMCAM_CACHE") or platformdirs.user_cache_dir("siamcam")
    return expanded(cache_folder) / "data"


def photo_set(name: str) -> PhotoSet:
    """The catalogue's entry for a set of photographs.

    Raises:
        DataError: There is no set of that name.
    """
    if name not in SETS:
        raise _unknown("set of photographs", name, tuple(SETS))
    return SETS[name]


def available(name: str, *, home: str | os.PathLike[str] | None = None) -> bool:
    """Whether a set can be loaded without a download; drawn scenes always can.

    A set of photographs is there if its folder holds all its class folders: `fetch` puts a set
    in place as a whole or not at all.

    Raises:
        DataError: The name is unknown.

    Example:
        >>> available("scenes/flowers")
        True
    """
    if name not in names():
        raise _unknown("data set", name, names())
    if name not in SETS:
        return True
    folder = Path(home or data_home()) / name
    try:
        return all((folder / c).is_dir() for c in SETS[name].classes)
    except OSError:
        return False


def load(name: str | os.PathLike[str], **options: Any) -> ImageSet:
    """Load a data set by name, or a folder of class folders by its path.

    Args:
        name: One of `names`, or a folder. A name goes before a folder that happens to be called
            the same; write ``"./flowers"`` for the folder.
        **options: For scenes those of `scenes.scenes` (``n``, ``size``, ``seed``, …), for
            photographs those of `load_set`, for a folder those of `folders.load_folder`.

    Raises:
        DataNotFoundError: The set has not been fetched (the message names the command), or the
            folder is not there.
        DataError: The name is neither known nor a folder, or the folder is no image set.

    Example:
        >>> import siamcam_lib as sc
        >>> sc.datasets.load("scenes/flowers", n=10)
        ImageSet('scenes/flowers', 10 images, 5 classes, scenes)
    """
    if isinstance(name, str):
        if name in SETS:
            return load_set(name, **options)
        if name in names():
            return scenes.scenes(name.removeprefix("scenes/"), **options)
        if name.startswith("scenes/") or not (_exists(name) or _looks_like_path(name)):
            raise _unknown("data set, and no folder,", name, names())
    elif not isinstance(name, os.PathLike):
        raise DataError(
            f"Cannot load {type(name).__name__}; give a folder or one of {', '.join(names())}."
        )
    return load_folder(name, **options)


def resolve(data: str | os.PathLike[str], kind: str, **options: Any) -> ImageSet:
    """The images a chapter works on, from its two parameters.

    Args:
        data: ``"auto"`` takes the photographs where they are there, else the scenes that mirror
            them; ``"scenes"`` and ``"real"`` insist; anything else is passed to `load`. The
            set's `origin` says which it became, and the page must too.
        kind: The chapter's case: ``"flowers"``, ``"skin_cancer"`` or ``"airbnb"``.
        **options: Passed to `load`; only useful where it is known which of the two it becomes.

    Raises:
        DataNotFoundError: ``"real"`` was asked for and the set has not been fetched, or scenes
            were and none mirror the set.
        DataError: `kind` or `data` is unknown, or a folder is no image set.

    Example:
        >>> import siamcam_lib as sc
        >>> sc.datasets.resolve("scenes", "airbnb", n=20).name
        'scenes/rooms'
    """
    known = photo_set(kind)
    if data == "real" or (data == "auto" and available(kind)):
        return load(known.name, **options)
    if data in ("auto", "scenes"):
        if known.scenes is None:
            raise DataNotFoundError(
                f"The photographs {kind!r} are not there, and no drawn scenes mirror them; fetch "
                f"them with `siamcam fetch {kind}`."
                if data == "auto"
                else f"No drawn scenes mirror {kind!r}; ask for `real` photographs or a folder."
            )
        return load(known.scenes, **options)
    return load(data, **options)


def load_set(name: str, *, home: str | os.PathLike[str] | None = None, **options: Any) -> ImageSet:
    """Load one of the three sets of photographs and mend its known faults.

    Byte-identical pictures under different classes have no right label and are all left out.
    Byte-identical pictures under one class form a group, and so do all pictures of one AirBnB
    listing; groups that share a picture are joined. What was done is said in the notes.

    Args:
        name: ``"flowers"``, ``"skin_cancer"`` or ``"airbnb"``.
        home: The folder that holds the set's folder; `data_home` if not given.
        **options: ``on_bad``, ``check`` and ``max_pixels`` of `folders.load_folder`. Only the
            headers are checked if nothing is said, since `fetch` verifies every file.

    Raises:
        DataNotFoundError: The set is not there; the message names the command that fetches it.
        DataError: There is no set of that name, or its folder is not in order.
        ImageError: A picture cannot be read.
    """
    known = photo_set(name)
    folder = Path(home or data_home()) / name
    if not available(name, home=home):
        raise DataNotFoundError(
            f"The photographs {name!r} are not in {folder}. Fetch them with `make data`, or with "
            f"`python -c \"import siamcam_lib as sc; sc.datasets.fetch('{name}')\"`; or let the "
            f"environment variable {VARIABLE} name the folder that holds {name!r}."
        )
    options = {"check": "header"} | options
    images = load_folder(folder, name=name, origin="photographs", classes=known.classes, **options)
    notes = [*images.notes, *known.remarks]
    expected = sum(known.counts.values())
    if len(images) != expected:
        notes.append(f"{len(images):,} of the {expected:,} images that the authors publish.")

    contents = _contents(images)
    images, contents, note = _without_conflicts(images, contents)
    notes += note
    groups, note = _groups(images, contents, listings=name == "airbnb")
    return replace(images, groups=groups, notes=(*notes, *note))


# --- mending ------------------------------------------------------------------------------------


def _contents(images: ImageSet) -> np.ndarray:
    """(n,) int64: the same number where, and only where, the bytes are the same."""
    digests = [images.digest(i) for i in range(len(images))]
    return np.unique(digests, return_inverse=True)[1].astype(np.int64)


def _without_conflicts(
    images: ImageSet, contents: np.ndarray
) -> tuple[ImageSet, np.ndarray, list[str]]:
    """Leave out every picture whose bytes are filed under more than one class."""
    lowest = np.full(contents.max() + 1, len(images.classes))
    highest = np.full(contents.max() + 1, -1)
    np.minimum.at(lowest, contents, images.labels)
    np.maximum.at(highest, contents, images.labels)
    # In a part of a set the second copy may be missing; the manifest still knows of it.
    known = _disputed(images.name)
    disputed = (lowest < highest)[contents] | np.array([item in known for item in images.items])
    if not disputed.any():
        return images, contents, []
    out = [images.items[i] for i in np.flatnonzero(disputed)]
    note = (
        f"Pictures filed under two classes have no known label: "
        f"{len(np.unique(contents[disputed]))} left out, with all copies ({', '.join(out)})."
    )
    keep = np.flatnonzero(~disputed)
    return images.subset(keep), contents[keep], [note]


@cache
def _disputed(name: str) -> frozenset[str]:
    """Items of a set that upstream files under more than one class."""
    known = SETS[name]
    classes: dict[str, set[str]] = {}
    for file in known.files:
        classes.setdefault(file.sha1, set()).add(file.path.split("/")[-2])
    return frozenset(known.item(f) for f in known.files if len(classes[f.sha1]) > 1)


def _groups(
    images: ImageSet, contents: np.ndarray, *, listings: bool
) -> tuple[np.ndarray, list[str]]:
    """Number the groups: copies belong together, and so do pictures of one listing."""
    notes = []
    copies = np.bincount(contents)
    copies = copies[copies > 1]
    if len(copies):
        notes.append(
            f"Pictures that are there more than once, byte for byte: {len(copies)}, in "
            f"{copies.sum()} files; the copies of each form a group, which no split may part."
        )
    if not listings:
        return _join(contents), notes

    keys = [_listing(item) for item in images.items]
    every = sorted(set(keys))
    number = {key: i for i, key in enumerate(every)}
    listing = np.array([number[key] for key in keys], dtype=np.int64)
    # Further rooms of a listing are filed under its number with a 1, 2 or 3 appended.
    stem = np.array(
        [number.get(re.sub("[1-9]$", "", key), number[key]) for key in every], dtype=np.int64
    )
    groups = _join(listing, stem[listing], contents)
    appended = (stem != np.arange(len(every))).sum()
    notes.append(
        f"The file names hold {len(every)} listing numbers. {appended} of these are another's with "
        "a digit appended, some with the very same picture, and are taken for the same listing: "
        f"{groups.max() + 1} groups, which no split may part."
    )
    return groups, notes


def _listing(item: str) -> str:
    """City and number of the listing, ``berlin_21282152``, from the path of its picture."""
    found = re.fullmatch(r"(?P<listing>.+_\d+)_\d+\s*", Path(item).stem)
    return found["listing"] if found else item


def _join(*keys: np.ndarray) -> np.ndarray:
    """Number the groups of images that are tied, directly or through others, by any equal key.

    Args:
        *keys: (n,) integers each, from any range; images with an equal key belong together.

    Returns:
        (n,) int64, numbered from 0 in the order in which groups appear.
    """
    n = len(keys[0])
    images, values, offset = [], [], n
    # Each key value is a node of its own that ties the images that have it.
    for key in keys:
        distinct, inverse = np.unique(key, return_inverse=True)
        images.append(np.arange(n))
        values.append(inverse + offset)
        offset += len(distinct)
    rows, columns = np.concatenate(images), np.concatenate(values)
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(offset, offset))
    joined = connected_components(graph, directed=False)[1][:n]
    _, first, inverse = np.unique(joined, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


# --- names --------------------------------------------------------------------------------------


def _unknown(what: str, name: object, known: tuple[str, ...]) -> DataError:
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return DataError(f"There is no {what} called {name!r}.{hint} Known are {', '.join(known)}.")


def _exists(name: str) -> bool:
    try:
        return bool(name) and expanded(name).exists()
    except (OSError, ValueError):
        return False


def _looks_like_path(name: str) -> bool:
    return name.startswith("~") or any(s in name for s in (os.sep, os.altsep or os.sep))
