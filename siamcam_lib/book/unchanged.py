"""Whether a chapter would give the same results again.

A chapter's key is a digest of all that its results depend on: its own cells, the library's code,
every installed package, the parameters, and the names, sizes and times of the data's files. An edit
of the library or another version of a package changes the key of every chapter.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from siamcam_lib.datasets.catalogue import VARIABLE, data_home


def run_key(source: Path, root: Path, parameters: dict[str, Any]) -> str:
    """Digest of everything the results of the page `source` depend on.

    Args:
        source: The chapter.
        root: Folder of the book; a library that lies there is the one the chapters use.
        parameters: What is put into its `parameters` cell.
    """
    told = [
        hashlib.sha256(source.read_bytes()).hexdigest(), _library(root), _packages(), parameters,
        _data(parameters.get("data")),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _library(root: Path) -> str:
    own = root / "siamcam_lib"
    folder = own if own.is_dir() else Path(__file__).parents[1]
    return _listing(folder, (".py", ".js", ".css", ".tsv"), lambda path: path.read_bytes())


@functools.cache
def _packages() -> str:
    found = sorted(f"{d.metadata['Name']} {d.version}" for d in distributions())
    return hashlib.sha256("\n".join([sys.version, *found]).encode()).hexdigest()


def _data(data: Any) -> str:
    """Of the photographs: reading them all would take longer than many a chapter."""
    if data == "scenes":
        return ""
    folder = data_home() if data in ("auto", "real") else Path(str(data))

    def state(path: Path) -> bytes:
        found = path.stat()
        return f"{found.st_size} {found.st_mtime_ns}".encode()

    return f"{os.environ.get(VARIABLE, '')} {_listing(folder, None, state)}"


def _listing(folder: Path, suffixes: tuple[str, ...] | None, content: Any) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if suffixes is None or path.suffix in suffixes:
            total.update(os.fsencode(path.relative_to(folder)) + b"\0" + content(path) + b"\0")
    return total.hexdigest()
