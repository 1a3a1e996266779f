"""Puts beside the pages the models that run in them: those that chapters offer, and ImageNet's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

from siamcam_lib.book.run import page_names
from siamcam_lib.errors import BookError, SiamcamError

if TYPE_CHECKING:
    from siamcam_lib.portable import Offer


def models(stage: Path, target: Path) -> list[str]:
    """Write every model that a staged chapter offers into `target`, with what runs it.

    Args:
        stage: The executed chapters.
        target: Folder to fill, ``_static/models`` of the staged book.

    Returns:
        The models' names, in the order of the menu.

    Raises:
        BookError: if one of them, or the runtime, cannot be made ready.
    """
    from siamcam_lib import portable  # torch: not for the processes that only run a chapter
    from siamcam_lib.widgets import own

    try:
        offers = [portable.untrained(), *_offered(stage)]
        own.write(target, offers)
    except BookError:
        raise
    except SiamcamError as error:
        raise BookError(f"The models for the pages could not be made ready: {error}") from error
    return [one.name for one in offers]


def _offered(stage: Path) -> list[Offer]:
    """What the chapters' cells display as offers, in the order of the book."""
    from siamcam_lib import portable

    found = []
    files = [stage / f"{name}.ipynb" for name in page_names(stage)]
    for file in (file for file in files if file.is_file()):
        for cell in nbformat.read(file, as_version=4).cells:
            for output in cell.get("outputs", []):
                told = output.get("metadata", {}).get(portable.KEPT)
                if told is not None:
                    found.append(portable.read(told))
    return found
