"""Writing files so that they appear whole or not at all; the cache folder; names as they are shown.

Used by everything that saves: weights, features, explanations, downloads, pages.
"""

from __future__ import annotations

import errno
import os
import tempfile
import unicodedata
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
    home = expanded(home)
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


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with ``~`` as the home folder; a ``~`` that nobody's home answers to stays a name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def shown(text: object) -> str:
    r"""Text of any origin, a file's name say, as terminals and pages can show it.

    What is no Unicode, moves a terminal's cursor or turns the direction of the text around it
    becomes �.

    Example:
        >>> shown("caf\xe9 \x1b[2J\u202egpj.exe")
        'café �[2J�gpj.exe'
    """
    return "".join("�" if _hostile(c) else c for c in str(text))


def _hostile(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):  # controls, and halves of no character
        return character not in "\n\t"
    return character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes `path`'s place in one step.

    If the block raises, or the process dies, `path` is as it was before; of a process that was
    killed, a hidden ``.*.part`` may be left beside it, which nothing reads.

    Raises:
        OSError: if the folder cannot be made or written, or `path` is no name for a file.

    Example:
        >>> import tempfile; folder = Path(tempfile.mkdtemp())
        >>> with whole_file(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (folder / "note.txt").read_text()
        'whole'
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the beginning of the name only: file systems take 255 bytes
        handle, name = tempfile.mkstemp(".part", f".{path.name[:50]}.", path.parent)
    except ValueError as error:  # a null byte, say
        raise OSError(errno.EINVAL, f"{error}: {str(path)!r}") from error
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
