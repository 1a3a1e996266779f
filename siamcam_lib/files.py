"""Writing files so that they appear whole or not at all; the cache folder; names as they are shown.

Used by everything that saves: weights, features, explanations, downloads, pages.
"""

from __future__ import annotations

import errno
import glob
import os
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from siamcam_lib.errors import CacheError

ABANDONED = 3600
"""Seconds after which nobody writes a half-written file any more."""


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

    What is no Unicode, moves a terminal's cursor, ends the line or turns the direction of the text
    around it becomes �.

    Example:
        >>> shown("caf\xe9 \x1b[2J\u202egpj.exe")
        'café �[2J�gpj.exe'
    """
    return "".join("�" if _hostile(c) else c for c in str(text))


def _hostile(character: str) -> bool:
    # Controls, ends of lines and paragraphs, and halves of no character; then marks of direction.
    return unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") or character in (
        "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it takes `path`'s place in one step.

    If the block raises, or the process dies, `path` is as it was before; of a process that was
    killed, a hidden ``.*.part`` may be left beside it, which nothing reads; see `clear_halves`.

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


def kept(file: Path, make: Callable[[], bytes], whole: Callable[[bytes], bool]) -> bytes:
    """What `file` holds, if it is whole; otherwise what `make` gives, which is then kept there.

    A folder that cannot be written costs no more than to make it again.

    Example:
        >>> import tempfile; file = Path(tempfile.mkdtemp()) / "dear"
        >>> kept(file, lambda: b"made", len), kept(file, lambda: b"made again", len)
        (b'made', b'made')
    """
    try:
        data = file.read_bytes()
    except OSError:
        pass
    else:
        if whole(data):
            return data
    data = make()
    try:
        with whole_file(file) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        print(f"note: {file.name} could not be kept in {file.parent} ({error}); it is made again")
    return data


def clear_halves(path: Path) -> None:
    """Remove what killed calls of `whole_file` left beside `path`: parts of an hour ago or more.

    Example:
        >>> import tempfile; folder = Path(tempfile.mkdtemp())
        >>> half = folder / ".note.txt.abc.part"
        >>> half.touch(); os.utime(half, (0, 0))
        >>> clear_halves(folder / "note.txt"); half.exists()
        False
    """
    for half in path.parent.glob(f".{glob.escape(path.name[:50])}.*.part"):
        with suppress(FileNotFoundError):
            if time.time() - half.stat().st_mtime >= ABANDONED:
                half.unlink()
