"""Whether a chapter would give the same results again, and the pages the same site.

A chapter's key is a digest of all that its results depend on: its own cells, the library's code,
every installed package, the parameters, and the names, sizes and times of the data's files. An edit
of the library or another version of a package changes the key of every chapter. The site's key is
a digest of what is staged, the library and the packages.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from siamcam_lib.datasets.catalogue import VARIABLE, data_home
from siamcam_lib.files import whole_file

MADE = (Path("book/_static/vendor"), Path("book/_static/models"))
"""Folders of what is staged that a build fills by itself, from the library and from results."""
_CACHE = "__pycache__"


def run_keys(pages: Mapping[str, Path], root: Path, parameters: dict[str, Any]) -> dict[str, str]:
    """Digest of everything the results of each page depend on.

    Args:
        pages: Name and source of each.
        root: Folder of the book; a library that lies there is the one the chapters use.
        parameters: What is put into a chapter's `parameters` cell.
    """
    shared = [_library(root), _packages(), parameters, _data(parameters.get("data"))]
    return {
        name: _digest([hashlib.sha256(source.read_bytes()).hexdigest(), *shared])
        for name, source in pages.items()
    }


def site_key(stage: Path, root: Path) -> str:
    """Digest of everything that a site is rendered from.

    Args:
        stage: The staged chapters, prose, settings, styles and extensions.
        root: Folder of the book.
    """
    staged = _listing(stage, Path.read_bytes, without=MADE)
    return _digest([staged, _library(root), _library(None), _packages()])


def is_rendered(site: Path, key: str) -> bool:
    """Whether `site` is what was rendered from what `key` stands for, with all its files.

    Where that cannot be told, because there is no record, say, it is not.
    """
    with suppress(OSError):
        return _record(site).read_text("ascii", "replace") == _state(site, key)
    return False


def note_rendered(site: Path, key: str) -> None:
    """Keep beside `site` what it was rendered from, and the names, sizes and times of its files."""
    with whole_file(_record(site)) as temporary:
        temporary.write_text(_state(site, key), encoding="ascii")


def _record(site: Path) -> Path:
    return site.with_name(f"{site.name}.digest")


def _state(site: Path, key: str) -> str:
    return _digest([key, _listing(site, _size_and_time)])


def _library(root: Path | None) -> str:
    """Of the library in the folder `root`; of the one that runs, where there is none."""
    own = root and root / "siamcam_lib"
    return _listing(own if own and own.is_dir() else Path(__file__).parents[1], Path.read_bytes)


@functools.cache
def _packages() -> str:
    found = sorted(f"{d.metadata['Name']} {d.version}" for d in distributions())
    return hashlib.sha256("\n".join([sys.version, *found]).encode()).hexdigest()


def _data(data: Any) -> str:
    """Of the photographs: reading them all would take longer than many a chapter."""
    if data == "scenes":
        return ""
    folder = data_home() if data in ("auto", "real") else Path(str(data))
    return f"{os.environ.get(VARIABLE, '')} {_listing(folder, _size_and_time)}"


def _size_and_time(path: Path) -> bytes:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}".encode()


def _listing(folder: Path, content: Callable[[Path], bytes], without: tuple[Path, ...] = ()) -> str:
    """Digest of the names of all files and of what `content` says of each."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and _CACHE not in name.parts and not {*name.parents} & {*without}:
            total.update(os.fsencode(name) + b"\0" + content(path) + b"\0")
    return total.hexdigest()


def _digest(told: list[Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
