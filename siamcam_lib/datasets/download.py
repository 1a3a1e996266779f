"""How do the authors' photographs get onto this machine, whole and unaltered?

Named in chapter 1 (pairs) and behind ``make data``. The archive of the authors' repository at one
commit is downloaded, resumed where it was cut, and unpacked beside its place; every file is
compared with the packaged manifest, and only a set without a fault is moved into place. So a
set is either there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import requests
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from siamcam_lib.datasets import catalogue
from siamcam_lib.datasets.catalogue import PhotoSet, UpstreamFile
from siamcam_lib.errors import CacheError, DownloadError
from siamcam_lib.files import expanded

ARCHIVE_URL = "https://codeload.github.com/{repository}/zip/{commit}"

_FOLDER = ".download"  # below the home: archive, lock and what is half done
_RETRIES = 4  # per request, by urllib3: no connection, or a status that passes
_RESUMES = 5  # in a row without a new byte
_BACKOFF = 0.5  # seconds; doubled with each try
_TIMEOUT = (15, 60)  # seconds to connect, and between two bytes
_CHUNK = 1 << 16
_MOST_BYTES = 4 << 30  # the archive is a tenth of this; a server that never ends is cut off here
_MOST_AT_ONCE = 16 << 20  # read of an archive; its table of contents takes a tenth of this
_PASSING = (429, 500, 502, 503, 504)


def fetch(
    name: str,
    *,
    home: str | os.PathLike[str] | None = None,
    url: str | None = None,
    progress: bool = True,
) -> Path:
    r"""Download one of the sets of photographs, verify it and put it in place.

    The archive of the paper's authors holds three sets. It is kept until the last of them is
    unpacked, so it is downloaded once. A cut download is resumed on the next call if the server can
    send parts of a file, and begins anew if not. A second process that asks for a set in the
    meantime waits and then finds it there.

    Every file is compared with the packaged manifest by its size and its git blob id,
    ``sha1(b"blob %d\0" % size + bytes)`` (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).

    Args:
        name: ``"flowers"``, ``"skin_cancer"`` or ``"airbnb"``.
        home: Folder to put the set's folder in; `catalogue.data_home` if not given.
        url: Another address of the same archive, if the authors' cannot be reached.
        progress: Show progress bars.

    Returns:
        The set's folder, ``home / name``. If it is there already, nothing is asked of the network.

    Raises:
        DataError: There is no set of that name, or its manifest lists no picture of a class.
        DownloadError: The server cannot be reached or refuses, the download was cut, or the
            archive is damaged, altered, incomplete, or tries to leave its folder.
        CacheError: The home cannot be written, or the disk is full.
    """
    known = catalogue.photo_set(name)
    home = expanded(home if home is not None else catalogue.data_home()).absolute()
    target = home / name
    if catalogue.available(name, home=home):
        return target
    source = known.source
    known.check()
    url = url or known.archive
    url = url or ARCHIVE_URL.format(repository=source.repository, commit=source.commit)
    with _writing(home):
        (home / _FOLDER).mkdir(parents=True, exist_ok=True)
        with _alone(home / _FOLDER / "lock", progress):
            if catalogue.available(name, home=home):
                return target
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise CacheError(
                    f"{target} is in the way: it is not the set {name!r}, and it is not "
                    "overwritten. Move it away or give another home."
                )
            archive = home / _FOLDER / f"{source.commit}.zip"
            kept = archive.exists()
            if not kept:
                _download(url, archive, progress)
            try:
                _unpack(known, archive, target, progress)
            except DownloadError:
                # Nothing of a damaged archive is worth keeping, but one that has lain here may
                # have been damaged since, so then the server gets a second chance.
                archive.unlink(missing_ok=True)
                if not kept:
                    raise
                _download(url, archive, progress)
                try:
                    _unpack(known, archive, target, progress)
                except DownloadError:
                    archive.unlink(missing_ok=True)
                    raise
            others = (n for n, other in catalogue.SETS.items() if other.listed == known.listed)
            if all(catalogue.available(other, home=home) for other in others):
                archive.unlink(missing_ok=True)
    return target


# --- the cache folder ---------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    """Whatever goes wrong with the disk, as against the network, becomes a `CacheError`."""
    try:
        yield
    except (DownloadError, CacheError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "The disk is full; free some space"
        else:
            reason = f"It cannot be written ({error}); mend its permissions"
        raise CacheError(
            f"The data folder {home} is of no use. {reason}, or let the environment variable "
            f"{catalogue.VARIABLE} name another folder. Then run the same command again."
        ) from error


@contextlib.contextmanager
def _alone(path: Path, progress: bool) -> Iterator[None]:
    """One process at a time; the operating system frees the lock of one that dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        if progress:
            home = path.parent.parent
            tqdm.write(f"Waiting for another process that fetches into {home}.", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# --- the network --------------------------------------------------------------------------------


def _download(url: str, archive: Path, progress: bool) -> None:
    """Bring the archive here, through cuts; it bears its name only once it is complete."""
    part = archive.with_suffix(".part")
    fruitless = 0
    with _session() as session:
        while True:
            before = _size(part)
            try:
                _transfer(session, url, part, progress)
                break
            except _Cut as cut:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless >= _RESUMES:
                    raise DownloadError(
                        f"The download of {url} was cut after {_size(part):,} bytes ({cut}). Run "
                        "the same command again: it goes on from there if the server allows."
                    ) from cut
                time.sleep(_BACKOFF * 2**fruitless)
    os.replace(part, archive)
    _state_file(part).unlink(missing_ok=True)


class _Cut(Exception):
    """The connection ended before the file did."""


def _session() -> requests.Session:
    retry = Retry(
        total=_RETRIES,
        backoff_factor=_BACKOFF,
        status_forcelist=_PASSING,
        allowed_methods=["GET"],
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # Byte positions would mean nothing in a stream that is compressed on the way.
    session.headers["Accept-Encoding"] = "identity"
    return session


def _transfer(session: requests.Session, url: str, part: Path, progress: bool) -> None:
    """One request: append to `part` if the server goes on where it ended, else begin anew."""
    known = _read_state(part, url)
    begin = _size(part) if known else 0
    if begin and begin == known["total"]:  # stopped between the last byte and the renaming
        return
    headers = {}
    if begin:
        headers["Range"] = f"bytes={begin}-"
        # A weak validator is not allowed in If-Range (RFC 9110, section 13.1.5).
        if known["etag"] and not known["etag"].startswith("W/"):
            headers["If-Range"] = known["etag"]
    try:
        response = session.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
    except requests.RequestException as error:
        raise DownloadError(
            f"{url} cannot be reached: {error}. Check the connection and run the same command "
            "again; what is here already is kept."
        ) from error
    with response:
        if response.status_code == 416:  # there is nothing after what is here
            _forget(part)
            raise _Cut("the server holds another file than before")
        if response.status_code not in ((200, 206) if begin else (200,)):
            raise DownloadError(
                f"{url} answers {response.status_code} {response.reason}. Try again later, or "
                "give fetch the url of another copy of the same archive."
            )
        etag = response.headers.get("ETag", "")
        if response.status_code == 206:
            span = re.fullmatch(
                r"bytes (\d{1,18})-\d+/(\d+|\*)", response.headers.get("Content-Range", "")
            )
            if span is None or int(span[1]) != begin or etag != known["etag"]:
                _forget(part)
                raise _Cut("the server holds another file than before")
            total = _whole_number(span[2])
        else:
            begin, total = 0, _whole_number(response.headers.get("Content-Length"))
        _receive(response, part, begin, total, etag, url, progress)


def _receive(
    response: requests.Response,
    part: Path,
    begin: int,
    total: int | None,
    etag: str,
    url: str,
    progress: bool,
) -> None:
    with part.open("r+b" if begin else "wb") as file:
        file.seek(begin)
        file.truncate()
        _state_file(part).write_text(json.dumps({"url": url, "etag": etag, "total": total}))
        with tqdm(
            total=total,
            initial=begin,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            desc="downloading",
            disable=not progress,
        ) as bar:
            try:
                # Not iter_content: it throws away what it has of a block when the line is cut.
                while chunk := response.raw.read1(_CHUNK):
                    if file.tell() + len(chunk) > _MOST_BYTES:
                        raise DownloadError(
                            f"{url} sends more than {_MOST_BYTES:,} bytes, which is not the "
                            "authors' archive. Check the address."
                        )
                    file.write(chunk)
                    bar.update(len(chunk))
            except HTTPError as error:
                raise _Cut(str(error)) from error
        if total is not None and file.tell() != total:
            raise _Cut(f"{total:,} bytes were announced")


def _read_state(part: Path, url: str) -> dict:
    """What was noted of the server's file when `part` was begun; empty if that is of no use."""
    try:
        state = json.loads(_state_file(part).read_text())
        sound = isinstance(etag := state["etag"], str) and etag.isascii() and etag.isprintable()
        return state if sound and state["url"] == url and "total" in state else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 19 else None


# --- the archive --------------------------------------------------------------------------------


def _unpack(known: PhotoSet, archive: Path, target: Path, progress: bool) -> None:
    """Write the set beside its place, file by file verified, then move it there in one step."""
    staging = target.parent / _FOLDER / known.name
    # Only one process is ever here, so whatever lies there was left by one that died.
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with _open_archive(archive) as contents:
            members = _members(contents, archive)
            files = [(file, members.get(file.path)) for file in known.files]
            missing = [file.path for file, member in files if member is None]
            if missing:
                raise DownloadError(
                    f"The archive {archive} lacks {len(missing)} of the {len(files)} files of "
                    f"{known.name!r}, first {missing[0]}, in a folder at its top as GitHub makes "
                    "it. Run the same command again to download it anew."
                )
            _check_space(target.parent, sum(file.size for file, _ in files))
            for file, member in tqdm(
                files, desc=f"unpacking {known.name}", unit="file", disable=not progress
            ):
                _extract(contents, member, file, staging / known.item(file))
        # The names must not reach the disk before the bytes do, should the power fail.
        if hasattr(os, "sync"):
            os.sync()
        if target.exists():  # fetch has seen that it is an empty folder
            target.rmdir()
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _open_archive(archive: Path) -> Iterator[zipfile.ZipFile]:
    faults = (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError)
    with _Bounded(archive.open("rb", buffering=0)) as file:
        try:
            contents = zipfile.ZipFile(file)
        except faults as error:
            raise DownloadError(
                f"The archive {archive} is cut short, damaged or no zip archive ({error}). Run the "
                "same command again to download it anew."
            ) from error
        with contents:
            yield contents


class _Bounded(io.BufferedReader):
    """A file of which not much is read at once: a table of millions of names fills the memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MOST_AT_ONCE:
            raise zipfile.BadZipFile(f"its table of contents is said to have {size:,} bytes")
        return super().read(size)


def _members(contents: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by their path in the repository; refused if any could do harm."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in contents.infolist():
        # orig_filename: zipfile has already cut filename at a null byte.
        for name in (member.filename, member.orig_filename):
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if (
                not parts
                or ".." in parts
                or "\0" in name
                or name.startswith(("/", "\\"))
                or (PureWindowsPath(name).drive)
            ):
                raise DownloadError(
                    f"The archive {archive} holds {name!r}, which leads out of its folder, so "
                    "nothing of it is unpacked. It is not the authors' archive: check the address."
                )
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DownloadError(
                f"The archive {archive} holds the link or device {member.filename!r}, so nothing "
                "of it is unpacked. It is not the authors' archive: check the address."
            )
        if member.is_dir():
            continue
        # GitHub puts everything into one folder named after repository and commit.
        path = member.filename.partition("/")[2]
        if path in members:
            raise DownloadError(
                f"The archive {archive} holds {path!r} twice, so nothing of it is unpacked. It is "
                "not the authors' archive: check the address."
            )
        members[path] = member
    return members


def _extract(
    contents: zipfile.ZipFile, member: zipfile.ZipInfo, file: UpstreamFile, path: Path
) -> None:
    """Write one file, unless it is not, byte for byte, the one in the manifest."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # other ways may ask for gigabytes before the first byte comes out
        raise DownloadError(
            f"{file.path} is packed in a way that the authors' archive is not. Run the same "
            "command again to download it anew."
        )
    if member.file_size != file.size:
        raise DownloadError(
            f"{file.path} has {member.file_size:,} bytes in the archive, {file.size:,} in the "
            "authors' repository: it was altered. Run the same command again to download it anew."
        )
    digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        # ZipExtFile never gives more than the size just compared, whatever is packed inside.
        for chunk in _chunks(contents, member, file):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != file.sha1:
        raise DownloadError(
            f"{file.path} is not the file in the authors' repository: it was altered. Run the "
            "same command again to download it anew."
        )


def _chunks(
    contents: zipfile.ZipFile, member: zipfile.ZipInfo, file: UpstreamFile
) -> Iterator[bytes]:
    # RuntimeError, with its NotImplementedError: encrypted, or packed in a way unknown to Python.
    faults = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)
    try:
        with contents.open(member) as packed:
            while chunk := packed.read(_CHUNK):
                yield chunk
    except faults as error:
        raise DownloadError(
            f"{file.path} is damaged in the archive ({error}). Run the same command again to "
            "download it anew."
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed, {free:,} are free")
