"""Puts the scripts of the built pages beside them; see `siamcam_lib.npm`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from siamcam_lib import npm
from siamcam_lib.errors import BookError


def vendor(target: Path | str, cache: Path | str | None = None) -> list[Path]:
    """Put every script and font that all pages need into `target`.

    Args:
        target: Folder to fill, ``_static/vendor`` of the staged book.
        cache: Where archives are kept; the user's cache folder if not given.

    Returns:
        The files written.

    Raises:
        BookError: An archive is neither in the cache nor to be had, or is not the one that
            `npm.json` describes.
    """
    target = Path(target)
    every = [package for package in npm.packages() if package["for"] == "pages"]
    written = [file for package in every for file in npm.place(package, target, cache)]
    return [*written, _anywidget(target)]


def _anywidget(target: Path) -> Path:
    """Copy anywidget's module from the Python package, so that both are of one version."""
    try:
        listed = files("anywidget") or []
    except PackageNotFoundError as error:
        raise BookError("anywidget is not installed; run make again.") from error
    sources = [f for f in listed if f.as_posix().endswith("nbextensions/anywidget/index.js")]
    if not sources:
        raise BookError("The installed anywidget has no nbextensions/anywidget/index.js.")
    target.mkdir(parents=True, exist_ok=True)
    file = target / "anywidget.js"
    file.write_bytes(Path(sources[0].locate()).read_bytes())
    return file
