"""Writing files so that they appear whole or not at all, and naming the cache folder.

Used by everything that saves: weights, features, explanations, downloads.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from siamcam_lib.errors import CacheError


def cache_home() -> Path:
    """Folder for downloads and cached features: ``$SIAMCAM_CACHE``, else the user's cache folder.

    Raises:
        CacheError: if the folder cannot be made or written.
    """
    home = Path(os.environ.get("SIAMCAM_CACHE") or platformdirs.user_cache_dir("siamcam"))
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"The cache folder {home} cannot be made ({error.strerror}); "
            "set SIAMCAM_CACHE to a folder you may write."
        ) from error
    if not os.access(home, os.W_OK):
        raise CacheError(
            f"The cache folder {home} cannot be written; set SIAMCAM_CACHE to one that can."
        )
    return home


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes `path`'s place in one step.

    If the block raises, or the process dies, `path` is as it was before.

    Example:
        >>> import tempfile; folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (folder / "note.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
