"""A set is fetched whole and unaltered, or not at all; tried against a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import os
import re
import shutil
import socket
import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from siamcam_lib.datasets import catalogue, download
from siamcam_lib.errors import CacheError, DataError, DownloadError

COMMIT = "c0ffee"
TOP = f"Grad_CAM_Siamese-{COMMIT}/"


def tiny_files() -> dict[str, bytes]:
    """Two small files in each class of each set, by their path in the repository."""
    rng = np.random.default_rng(0)
    return {
        f"{known.upstream}/{c}/{name}": rng.bytes(600)
        for known in catalogue.SETS.values()
        for c in known.classes
        for name in ("0 Target é 花.jpg", "b_1_2 .jpg")
    }


FILES = tiny_files()
FIRST = next(iter(FILES))


def packed(
    files: dict[str, bytes] | None = None, *extra: tuple[zipfile.ZipInfo | str, bytes]
) -> bytes:
    """An archive as GitHub makes them: everything below one folder, other files besides."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(TOP, b"")
        archive.writestr(TOP + "01.Train.ipynb", b"{}")
        archive.writestr(TOP + "Data/AirBnB/README.txt", b"read me")
        for path, data in (FILES if files is None else files).items():
            archive.writestr(TOP + path, data)
        for info, data in extra:
            archive.writestr(info, data)
    return out.getvalue()


@dataclass
class Server:
    """What the server sends, and what it was asked."""

    payload: bytes = b""
    ranges: bool = True
    etag: str | None = '"one"'
    announce: bool = True
    longest: int | None = None
    """Most bytes in one part; a server need not send all that was asked for."""
    parts: bool = False
    """Whether a part is sent that was not asked for: all of it."""
    shift: int = 0
    """How far the part that is sent lies from the one that was asked for."""
    cuts: list[int] = field(default_factory=list)
    """For each coming answer, after how many bytes the line goes dead."""
    statuses: list[int] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server():
    state = Server(packed())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests.append(dict(self.headers))
            status = state.statuses.pop(0) if state.statuses else 200
            if status != 200:
                self.send_error(status)
                return
            body, begin = state.payload, 0
            span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if span and state.ranges and self.headers.get("If-Range", state.etag) == state.etag:
                begin = int(span[1]) + state.shift
                if begin >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                last = min(len(body), begin + (state.longest or len(body))) - 1
                self.send_header("Content-Range", f"bytes {begin}-{last}/{len(body)}")
                body = body[: last + 1]
            else:
                self.send_response(206 if state.parts else 200)
                self.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
            body = body[begin:]
            if state.announce:
                self.send_header("Content-Length", str(len(body)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *args):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_port}/archive"
    yield state
    listener.shutdown()
    listener.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def tiny_world(monkeypatch):
    files = tuple(
        catalogue.UpstreamFile(
            path, len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )
        for path, data in FILES.items()
    )
    known = catalogue.Manifest("authors/repository", COMMIT, files)
    monkeypatch.setattr(catalogue, "manifest", lambda *_: known)
    monkeypatch.setattr(download, "_BACKOFF", 0)
    # A proxy of the machine has nothing to do with a server on it.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "new" / "home"


def get(name: str, home: Path, server: Server, **options) -> Path:
    return download.fetch(name, home=home, url=server.url, progress=False, **options)


def written(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def wanted(name: str) -> dict[str, bytes]:
    start = catalogue.SETS[name].upstream + "/"
    return {p.removeprefix(start): d for p, d in FILES.items() if p.startswith(start)}


def archive_of(home: Path) -> Path:
    return home / ".download" / f"{COMMIT}.zip"


def assert_nothing_there(home: Path, name: str = "flowers") -> None:
    assert not (home / name).exists() and not catalogue.available(name, home=home)
    # Nothing half unpacked either.
    assert not home.exists() or all(p.is_file() for p in (home / ".download").iterdir())


# --- the good way -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalogue.SETS)
def test_every_file_and_no_other_arrives(server, home, name):
    folder = get(name, home, server)
    assert folder == home / name
    assert written(folder) == wanted(name)
    assert catalogue.available(name, home=home)


def test_what_is_there_is_not_asked_for_again(server, home):
    get("flowers", home, server)
    get("flowers", home, server)
    assert len(server.requests) == 1


def test_one_download_serves_all_sets_and_is_then_removed(server, home):
    together = [n for n, known in catalogue.SETS.items() if known.listed == catalogue.UPSTREAM]
    for i, name in enumerate(together):
        assert archive_of(home).exists() == (i > 0)
        get(name, home, server)
    assert len(server.requests) == 1
    assert not archive_of(home).exists()


def test_default_home_and_address(server, home, monkeypatch):
    monkeypatch.setenv(catalogue.VARIABLE, str(home))
    monkeypatch.setattr(download, "ARCHIVE_URL", server.url + "/{repository}/zip/{commit}")
    assert download.fetch("flowers", progress=False) == home / "flowers"


def test_the_pinned_address():
    url = download.ARCHIVE_URL.format(repository="a/b", commit="c")
    assert url == "https://codeload.github.com/a/b/zip/c"


def test_progress_is_shown(server, home, capsys):
    download.fetch("flowers", home=home, url=server.url)
    shown = capsys.readouterr().err
    assert "downloading" in shown and "unpacking flowers" in shown


def test_length_need_not_be_announced(server, home):
    server.announce = False
    assert written(get("flowers", home, server)) == wanted("flowers")


def test_an_empty_folder_is_not_in_the_way(server, home):
    (home / "flowers").mkdir(parents=True)
    assert written(get("flowers", home, server)) == wanted("flowers")


def test_a_set_without_files_in_its_manifest(home, monkeypatch, server):
    lost = catalogue.PhotoSet("lost", "Lost", "Data/Lost", ("a",), "scenes/flowers")
    monkeypatch.setitem(catalogue.SETS, "lost", lost)
    with pytest.raises(DataError, match="lists no picture in Data/Lost/a, where the set 'lost'"):
        get("lost", home, server)
    assert not home.exists() or not any(home.iterdir())


def test_a_set_may_have_a_manifest_and_an_address_of_its_own(home, monkeypatch, server):
    own = catalogue.Manifest("somebody/else", "1234", catalogue.manifest().files)
    listed = {"own.tsv": own, catalogue.UPSTREAM: catalogue.manifest()}
    monkeypatch.setattr(catalogue, "manifest", lambda name=catalogue.UPSTREAM: listed[name])
    mine = replace(catalogue.SETS["flowers"], name="mine", listed="own.tsv", archive=server.url)
    monkeypatch.setitem(catalogue.SETS, "mine", mine)
    folder = download.fetch("mine", home=home, progress=False)
    assert {p.name for p in folder.iterdir()} == set(mine.classes)
    assert not (home / ".download" / "1234.zip").exists()  # no other set is waiting for it


def test_unknown_set(home):
    with pytest.raises(DataError, match="Did you mean 'flowers'"):
        download.fetch("flower", home=home)


# --- cuts and servers that fail -----------------------------------------------------------------


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', None])
def test_cut_download_goes_on_where_it_ended(server, home, etag):
    server.etag = etag
    server.cuts = [1000, 500]
    assert written(get("flowers", home, server)) == wanted("flowers")
    asked = [r.get("Range") for r in server.requests]
    assert asked == [None, "bytes=1000-", "bytes=1500-"]
    # A weak tag may not stand in If-Range, so then the answer's tag is compared instead.
    strong = etag if etag == '"one"' else None
    assert {r.get("If-Range") for r in server.requests[1:]} == {strong}


def test_cut_download_begins_anew_where_the_server_cannot_go_on(server, home):
    server.ranges = False
    server.cuts = [1000]
    assert written(get("flowers", home, server)) == wanted("flowers")
    assert len(server.requests) == 2


def test_next_call_goes_on(server, home):
    server.cuts = [1000] + [0] * download._RESUMES
    with pytest.raises(DownloadError, match=r"cut after 1,000 bytes.*Run the same command"):
        get("flowers", home, server)
    assert_nothing_there(home)
    assert not archive_of(home).exists()
    server.requests.clear()
    assert written(get("flowers", home, server)) == wanted("flowers")
    assert server.requests[0]["Range"] == "bytes=1000-"
    assert not list((home / ".download").glob("*.part*"))


@pytest.mark.parametrize(("etag", "changed"), [('"one"', '"two"'), ('W/"one"', 'W/"two"')])
def test_next_call_begins_anew_if_the_servers_file_changed(server, home, etag, changed):
    server.payload, server.etag = b"\0" * 5000, etag
    server.cuts = [1000] + [0] * download._RESUMES
    with pytest.raises(DownloadError, match="cut"):
        get("flowers", home, server)
    server.payload, server.etag = packed(), changed
    assert written(get("flowers", home, server)) == wanted("flowers")


def test_server_may_send_the_rest_in_parts(server, home):
    server.cuts, server.longest = [1000], 10_000
    assert written(get("flowers", home, server)) == wanted("flowers")
    assert [r.get("Range") for r in server.requests[1:3]] == ["bytes=1000-", "bytes=11000-"]


def test_part_that_was_not_asked_for_is_not_taken(server, home):
    server.cuts, server.shift = [1000], 7
    assert written(get("flowers", home, server)) == wanted("flowers")
    assert [r.get("Range") for r in server.requests] == [None, "bytes=1000-", None]


def test_part_where_none_was_asked_for_is_told(server, home):
    server.parts = True
    with pytest.raises(DownloadError, match=f"{server.url} answers 206"):
        get("flowers", home, server)
    assert_nothing_there(home)


def test_part_of_another_address_is_not_gone_on_with(server, home):
    server.cuts = [1000] + [0] * download._RESUMES
    with pytest.raises(DownloadError, match="cut"):
        get("flowers", home, server)
    server.requests.clear()
    download.fetch("flowers", home=home, url=server.url + "2", progress=False)
    assert "Range" not in server.requests[0]


def test_stopped_between_the_last_byte_and_the_renaming(server, home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get("flowers", home, server)
    assert written(get("flowers", home, server)) == wanted("flowers")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", download._PASSING)
def test_a_passing_fault_is_waited_out(server, home, status):
    server.statuses = [status] * 3
    assert written(get("flowers", home, server)) == wanted("flowers")
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [403, 404, 500])
def test_lasting_refusal_is_named(server, home, status):
    server.statuses = [status] * 20
    with pytest.raises(DownloadError, match=f"{server.url} answers {status}"):
        get("flowers", home, server)
    assert_nothing_there(home)


def test_nobody_listens(server, home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/archive"
    with pytest.raises(DownloadError, match="cannot be reached"):
        get("flowers", home, server)
    assert_nothing_there(home)


def test_address_of_no_known_kind(home):
    with pytest.raises(DownloadError, match="cannot be reached"):
        download.fetch("flowers", home=home, url="gopher://x/y", progress=False)


def test_a_server_that_never_ends_is_left(server, home, monkeypatch):
    monkeypatch.setattr(download, "_MOST_BYTES", 5000)
    with pytest.raises(DownloadError, match="more than 5,000 bytes"):
        get("flowers", home, server)
    assert_nothing_there(home)


# --- archives that are not the authors' ---------------------------------------------------------


def check_refused(server: Server, home: Path, payload: bytes, message: str) -> None:
    server.payload = payload
    with pytest.raises(DownloadError, match=message):
        get("flowers", home, server)
    assert_nothing_there(home)
    assert not archive_of(home).exists()
    # Once the server is well again, so is the next call.
    server.payload, server.etag = packed(), '"mended"'
    assert written(get("flowers", home, server)) == wanted("flowers")


def test_page_instead_of_archive(server, home):
    check_refused(server, home, b"<html>Please log in</html>" * 50, "cut short, damaged or no zip")


def test_unannounced_cut(server, home):
    server.announce = False
    check_refused(server, home, packed()[:-100], "cut short, damaged or no zip")


def test_corrupted_bytes(server, home):
    damaged = bytearray(packed())
    damaged[damaged.index(FILES[FIRST]) + 300] ^= 1
    check_refused(server, home, bytes(damaged), f"{re.escape(FIRST)} is damaged in the archive")


def test_altered_file_of_the_same_size(server, home):
    altered = FILES | {FIRST: FILES[FIRST][::-1]}
    check_refused(server, home, packed(altered), f"{re.escape(FIRST)} is not the file")


def test_missing_file(server, home):
    files = {p: d for p, d in FILES.items() if p != FIRST}
    check_refused(server, home, packed(files), f"lacks 1 of the 10 files .* {re.escape(FIRST)}")


def test_file_of_another_size(server, home):
    bomb = FILES | {FIRST: b"\0" * 10_000_000}
    check_refused(server, home, packed(bomb), f"{re.escape(FIRST)} has 10,000,000 bytes")


def test_bomb_that_lies_about_its_size(server, home):
    info = zipfile.ZipInfo(TOP + FIRST)
    info.compress_type = zipfile.ZIP_DEFLATED
    files = {p: d for p, d in FILES.items() if p != FIRST}
    payload = packed(files, (info, b"\0" * 5_000_000))
    # The size as it stands in the archive's two headers.
    true, lie = (5_000_000).to_bytes(4, "little"), len(FILES[FIRST]).to_bytes(4, "little")
    assert payload.count(true) >= 2
    check_refused(server, home, payload.replace(true, lie), re.escape(FIRST))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        TOP + "../../evil.jpg",
        TOP + "Data/Flowers/Daisy/../../../../evil.jpg",
        "/evil.jpg",
        "//host/share/evil.jpg",
        "C:/evil.jpg",
        "C:evil.jpg",
        "..\\evil.jpg",
        TOP + "Data\\..\\..\\evil.jpg",
        "\\\\host\\share\\evil.jpg",
    ],
)
def test_names_that_lead_out_of_the_folder(server, home, name):
    info = zipfile.ZipInfo("x")
    info.filename = name  # past the constructor, which would tidy it
    check_refused(server, home, packed(None, (info, b"evil")), "leads out of its folder")
    assert not list(home.parent.parent.rglob("evil*"))


def test_links_in_the_archive(server, home):
    info = zipfile.ZipInfo(TOP + "Data/Flowers/Daisy/link.jpg")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    check_refused(server, home, packed(None, (info, b"/etc/passwd")), "holds the link")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name(server, home):
    check_refused(server, home, packed(None, (TOP + FIRST, b"other")), "twice")


def test_encrypted_member(server, home):
    payload = bytearray(packed())
    # Bit 0 of the flags in each central header (PKZIP APPNOTE 4.3.12).
    for at in [m.start() for m in re.finditer(b"PK\x01\x02", payload)]:
        payload[at + 8] |= 1
    check_refused(server, home, bytes(payload), "is damaged in the archive")


def test_kept_archive_that_went_bad_is_fetched_again(server, home):
    get("flowers", home, server)
    archive = archive_of(home)
    archive.write_bytes(archive.read_bytes()[:2000])
    assert written(get("airbnb", home, server)) == wanted("airbnb")
    assert len(server.requests) == 2


# --- the disk -----------------------------------------------------------------------------------


def test_home_below_a_file(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=catalogue.VARIABLE):
        get("flowers", tmp_path / "file" / "home", server)
    assert not server.requests


def test_home_that_cannot_be_written(server, tmp_path, monkeypatch):
    # Taking the permission away would not stop a test that runs as root.
    def forbidding(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", forbidding)
    with pytest.raises(CacheError, match="cannot be written.*Permission denied"):
        get("flowers", tmp_path, server)
    assert not server.requests


def test_too_little_space_is_seen_before_writing(server, home, monkeypatch):
    usage = type(shutil.disk_usage("/"))(10, 10, 0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(CacheError, match="disk is full"):
            get("flowers", home, server)
    assert_nothing_there(home)
    get("flowers", home, server)
    assert len(server.requests) == 1  # the archive was kept


def test_disk_that_fills_up_while_unpacking(server, home, monkeypatch):
    extract, done = download._extract, []

    def full(*arguments):
        if len(done) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(extract(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(download, "_extract", full)
        with pytest.raises(CacheError, match="disk is full"):
            get("flowers", home, server)
    assert_nothing_there(home)
    assert written(get("flowers", home, server)) == wanted("flowers")


def test_stopped_while_unpacking(server, home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download, "_chunks", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get("flowers", home, server)
    assert_nothing_there(home)


def test_what_a_killed_process_left_is_cleared(server, home):
    stale = home / ".download" / "flowers" / "Daisy" / "stale.jpg"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert written(get("flowers", home, server)) == wanted("flowers")


@pytest.mark.parametrize("there", ["flowers/mine.txt", "flowers"])
def test_what_is_in_the_way_is_left_alone(server, home, there):
    path = home / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(CacheError, match="in the way"):
        get("flowers", home, server)
    assert path.read_text() == "mine" and not server.requests


# --- two at once --------------------------------------------------------------------------------


def test_two_at_once_make_one_download(server, home):
    start = threading.Barrier(2)

    def one(_):
        start.wait()
        return get("flowers", home, server)

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(one, range(2)))
    assert folders == [home / "flowers"] * 2
    assert written(home / "flowers") == wanted("flowers")
    assert len(server.requests) == 1


def test_the_second_waits_for_the_first(server, home, capsys):
    (home / ".download").mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with download._alone(home / ".download" / "lock", False):
            second = pool.submit(download.fetch, "flowers", home=home, url=server.url)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.8)
            # The first ends its work: the set is in place before the lock is freed.
            for item, data in wanted("flowers").items():
                (home / "flowers" / item).parent.mkdir(parents=True, exist_ok=True)
                (home / "flowers" / item).write_bytes(data)
        assert second.result() == home / "flowers"
    assert not server.requests
    assert "Waiting for another process" in capsys.readouterr().err
