"""Two at once, a full disk, a killed process, the same again: nothing is lost or half written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import siamcam_lib as sc
from siamcam_lib import files
from siamcam_lib.book import build, run_chapters, worker
from siamcam_lib.book import build as build_function
from siamcam_lib.book import run as run_module
from siamcam_lib.book.same import settled
from siamcam_lib.cache import FeatureCache
from siamcam_lib.datasets import catalogue, download
from siamcam_lib.decoder import Decoder
from siamcam_lib.errors import BookError, CacheError, SiamcamError
from siamcam_lib.features import pooled_features
from siamcam_lib.report import pair_page

SIDE = 32


def network(seed: int = 0, relu: type[nn.Module] = nn.ReLU) -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Conv2d(3, 4, 9, 8), relu())
        return sc.SiameseNet(backbone, 3, image_size=SIDE).eval()


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


def photos(root: Path, each: int = 3) -> Path:
    for k, kind in enumerate("ab"):
        (root / kind).mkdir(parents=True)
        for i in range(each):
            picture(10 * k + i).save(root / kind / f"{i}.png")
    return root


def script(code: str, *words: object, **environment: str) -> subprocess.Popen:
    """Python in a process of its own; what it prints is read by `done`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def done(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out


# --- two processes at once ------------------------------------------------------------------------

SMALL = {"Data/S/a/1.jpg": b"one" * 3000, "Data/S/b/2.jpg": b"two" * 3000}
FETCH = """
    import hashlib, sys
    from pathlib import Path
    from siamcam_lib.datasets import catalogue, download
    home, url = Path(sys.argv[1]), sys.argv[2]
    files = {"Data/S/a/1.jpg": b"one" * 3000, "Data/S/b/2.jpg": b"two" * 3000}
    made = tuple(
        catalogue.UpstreamFile(p, len(d), hashlib.sha1(b"blob %d\\0" % len(d) + d).hexdigest())
        for p, d in files.items()
    )
    catalogue.manifest = lambda *_: catalogue.Manifest("r", "c", made)
    # two sets, or the archive would be removed after the first
    catalogue.SETS = {
        name: catalogue.PhotoSet(name, name, "Data/S", ("a", "b"), "scenes/flowers")
        for name in ("small", "other")
    }
    print(download.fetch("small", home=home, url=url, progress=False))
"""


@pytest.fixture
def slow_server() -> Iterator[tuple[str, list[str]]]:
    """Sends the archive in small steps, so that a second process comes in between."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, data in SMALL.items():
            archive.writestr("top/" + path, data)
    body, asked = packed.getvalue(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range", "all"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for start in range(0, len(body), 4000):
                self.wfile.write(body[start : start + 4000])
                time.sleep(0.2)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/archive", asked
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_three_processes_fetch_one_set_with_one_download(slow_server, tmp_path):
    url, asked = slow_server
    running = [script(FETCH, tmp_path, url, NO_PROXY="127.0.0.1") for _ in range(3)]
    told = [done(process).splitlines()[-1] for process in running]
    assert told == [str(tmp_path / "small")] * 3 and asked == ["all"]
    found = {p.relative_to(tmp_path / "small").as_posix(): p.read_bytes()
             for p in (tmp_path / "small").rglob("*.jpg")}  # fmt: skip
    assert found == {p.removeprefix("Data/S/"): d for p, d in SMALL.items()}


FILL = """
    import sys
    from pathlib import Path
    import numpy as np
    from siamcam_lib.cache import FeatureCache
    who, path = int(sys.argv[1]), Path(sys.argv[2])
    cache = FeatureCache(path)
    for i in range(60):
        cache.put({f"{who}/{i}/{k}": np.full(5, 100 * who + i) for k in range(4)})
        cache.put({f"shared/{i}": np.full(5, i)})
        assert len(cache.get([f"{who}/{i}/{k}" for k in range(4)])) == 4
"""


@pytest.mark.slow
def test_four_processes_fill_one_cache_and_lose_nothing(tmp_path):
    path = tmp_path / "features.sqlite"
    for process in [script(FILL, who, path) for who in range(4)]:
        done(process)
    cache = FeatureCache(path)
    for who in range(4):
        found = cache.get([f"{who}/{i}/{k}" for i in range(60) for k in range(4)])
        assert len(found) == 240
        assert all((v == 100 * who + int(key.split("/")[1])).all() for key, v in found.items())
    assert [int(v[0]) for v in cache.get([f"shared/{i}" for i in range(60)]).values()] == [
        *range(60)
    ]


# --- a full disk ----------------------------------------------------------------------------------


@contextlib.contextmanager
def full_after(count: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the kernel refuses, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_space(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, leftovers too."""
    return {str(p.relative_to(folder)): told(p) for p in folder.rglob("*") if p.is_file()}


def told(path: Path) -> bytes:
    """What a file holds; safetensors writes the two entries of its metadata in any order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors" or data == OLD:
        return data
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":"))
    return header.encode() + data[8 + length :]


OLD = b"[]"


def explained() -> sc.Explanation:
    return sc.explain(network(), picture(0), picture(1))


def gallery() -> sc.Gallery:
    return sc.Gallery.embed(network(), [picture(k) for k in range(4)], progress=False)


def write_record(folder: Path) -> None:
    """What `run_chapters` notes of a page."""
    run = run_module.ChapterRun("page", folder / "page.ipynb", 1.0, True, {"data": "x" * 3000})
    with run_module.writing(folder):
        run_module._record({"page": run}, folder, ["page"])


def writers() -> dict[str, Callable[[Path], object]]:
    """Whatever the library writes whole or not at all."""
    net, ex, gal = network(), explained(), gallery()
    explorer, decoder = gal.widget(), Decoder(3, hidden=2)
    return {
        "weights": lambda folder: net.save(folder / "net.safetensors"),
        "decoder": lambda folder: decoder.save(folder / "decoder.safetensors"),
        "explanation": lambda folder: ex.save(folder),
        "report": lambda folder: pair_page(folder / "pair.html", ex, "ab", "pair"),
        "explorer": lambda folder: explorer.to_html(folder / "explorer.html"),
        "record of runs": write_record,
    }


KINDS = ("weights", "decoder", "explanation", "report", "explorer", "record of runs")


@pytest.fixture(scope="module")
def write() -> dict[str, Callable[[Path], object]]:
    made = writers()
    assert tuple(made) == KINDS
    return made


class TestFullDisk:
    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_old_file_stays_and_no_half_is_left(self, write, tmp_path, kind, share):
        write[kind](tmp_path)
        old = content(tmp_path)
        largest = max(map(len, old.values()))
        for name in old:
            (tmp_path / name).write_bytes(OLD)
        with pytest.raises(SiamcamError), full_after(int(share * largest)):
            write[kind](tmp_path)
        assert {*content(tmp_path)} == {*old}
        # those written before the one that did not fit are the new ones
        assert all(data in (OLD, old[name]) for name, data in content(tmp_path).items())
        assert OLD in content(tmp_path).values()
        write[kind](tmp_path)
        assert content(tmp_path) == old

    @pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_space_that_is_missed_late(self, write, tmp_path, monkeypatch, kind, call):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, call, no_space)
            with pytest.raises(SiamcamError, match="No space left"):
                write[kind](tmp_path)
        assert content(tmp_path) == {}

    def test_no_folder_can_be_made(self, write, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "mkdir", no_space)
        for kind in set(KINDS) - {"record of runs"}:
            with pytest.raises(SiamcamError, match="No space left"):
                write[kind](tmp_path / "new")

    @pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
    def test_a_name_that_is_none(self, write, tmp_path, name):
        for kind in set(KINDS) - {"record of runs"}:
            with pytest.raises(SiamcamError):
                write[kind](tmp_path / name / name)

    def test_a_long_name_that_is_one(self, tmp_path):
        for name in ("x" * 243 + ".safetensors", "é" * 120):
            network().save(tmp_path / name)
            assert sc.SiameseNet.load(tmp_path / name, network().backbone)

    def test_the_cache_keeps_what_it_has(self, tmp_path):
        cache = FeatureCache(tmp_path / "features.sqlite")
        cache.put({f"{k}": np.arange(9) for k in range(5)})
        size = cache.path.stat().st_size
        for more in (0, 100, 5000, 20_000):
            with full_after(size + more), pytest.raises(CacheError, match="cannot be used"):
                cache.put({f"new{k}": np.arange(900) for k in range(100)})
            assert len(cache.get([f"{k}" for k in range(5)])) == 5
            assert cache.get([f"new{k}" for k in range(100)]) == {}
        cache.put({"new": np.arange(900)})
        assert cache.get(["new"])["new"].sum() == np.arange(900).sum()

    def test_features_are_told_and_kept(self, tmp_path):
        images, cache = sc.datasets.load(photos(tmp_path / "p")), tmp_path / "features.sqlite"
        pooled_features(network(), images, cache=FeatureCache(cache), progress=False)
        size = cache.stat().st_size
        with full_after(size // 2), pytest.raises(CacheError):
            pooled_features(network(1), images, cache=FeatureCache(cache), progress=False)
        looked = Counting(network())
        pooled_features(looked.net, images, cache=FeatureCache(cache), progress=False)
        assert looked.count == 0

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
    def test_a_download_goes_on_after(self, slow_server, tmp_path, monkeypatch, share):
        url, _ = slow_server
        made = tuple(
            catalogue.UpstreamFile(p, len(d), hashlib.sha1(b"blob %d\0" % len(d) + d).hexdigest())
            for p, d in SMALL.items()
        )
        one = catalogue.PhotoSet("small", "Small", "Data/S", ("a", "b"), "scenes/flowers")
        monkeypatch.setattr(catalogue, "manifest", lambda *_: catalogue.Manifest("r", "c", made))
        monkeypatch.setattr(catalogue, "SETS", {"small": one})
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with full_after(int(share * 18_000)), pytest.raises(CacheError, match="cannot be written"):
            download.fetch("small", home=tmp_path, url=url, progress=False)
        assert not (tmp_path / "small").exists()
        folder = download.fetch("small", home=tmp_path, url=url, progress=False)
        assert {*content(folder)} == {"a/1.jpg", "b/2.jpg"}
        assert not list(tmp_path.rglob("*.part*"))


class TestBookOnAFullDisk:
    """Without running a kernel: the one page is prose, and `_render` is left out."""

    @pytest.fixture
    def root(self, tmp_path, monkeypatch) -> Path:
        (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: page\n")
        (tmp_path / "_config.yml").write_text("title: A book\n")
        (tmp_path / "page.md").write_text("# A page\n")
        (tmp_path / "siamcam_lib").mkdir()  # so that the key does not look at all of the library
        module = sys.modules[build_function.__module__]
        monkeypatch.setattr(module, "vendor", lambda target: [])
        monkeypatch.setattr(module, "models", lambda stage, target: [])

        def render(stage: Path, work: Path, log: Path) -> None:
            (work / "_build" / "html").mkdir(parents=True)
            (work / "_build" / "html" / "page.html").write_text("new")

        monkeypatch.setattr(module, "_render", render)
        return tmp_path

    @pytest.mark.parametrize("count", [0, 20])
    def test_the_stage_cannot_be_written(self, root, count):
        with full_after(count), pytest.raises(BookError, match="free some space"):
            run_chapters(root, root / "stage")
        run_chapters(root, root / "stage")
        build(root, root / "stage", root / "html")
        assert (root / "html" / "page.html").read_text() == "new"

    def test_the_old_site_stays(self, root):
        run_chapters(root, root / "stage")
        (root / "html").mkdir()
        (root / "html" / "page.html").write_text("old")
        with full_after(10), pytest.raises(BookError, match="free some space"):
            build(root, root / "stage", root / "html")
        assert content(root / "html") == {"page.html": b"old"}

    def test_at_no_moment_is_half_a_site_in_its_place(self, root, monkeypatch):
        run_chapters(root, root / "stage")
        build(root, root / "stage", root / "html")
        first = content(root / "html")
        seen = []
        for name in ("replace", "rmtree"):
            owner = os if name == "replace" else shutil
            plain = getattr(owner, name)

            def watched(*args, plain=plain, **options):
                seen.append(content(root / "html"))
                plain(*args, **options)
                seen.append(content(root / "html"))

            monkeypatch.setattr(owner, name, watched)
        build(root, root / "stage", root / "html")
        assert len(seen) > 4 and all(there in ({}, first) for there in seen)
        assert not [p for p in root.iterdir() if p.name.startswith(".html")]

    def test_a_page_that_is_cut_off_while_run_again_counts_as_never_run(self, root, monkeypatch):
        run_chapters(root, root / "stage")
        assert [run.name for run in run_module.recorded_runs(root / "stage")] == ["page"]

        def killed(*args, **options):
            assert not (root / "stage" / run_module.RUNS_FILE).exists()
            raise KeyboardInterrupt

        monkeypatch.setattr(run_module, "_stage_prose", killed)
        with pytest.raises(KeyboardInterrupt):
            run_chapters(root, root / "stage", only="page")
        with pytest.raises(BookError, match="holds no executed chapters"):
            run_module.recorded_runs(root / "stage")


# --- killed ---------------------------------------------------------------------------------------

KILLED = '''
    """Children that write without end are killed; what they leave is opened after each."""
    import importlib.util, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("reliability", sys.argv[1])
    reliability = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reliability)
    reliability.killing(Path(sys.argv[2]), int(sys.argv[3]))
'''


def versions() -> list[dict[str, Callable[[Path], object]]]:
    """Two writers of every kind of file, which write different things under the same names."""
    made = []
    for seed in (0, 1):
        net = network(seed)
        ex = sc.explain(net, picture(seed), picture(seed + 2))
        gal = sc.Gallery.embed(net, [picture(seed + k) for k in range(4)], progress=False)
        explorer, decoder = gal.widget(), Decoder(3 + seed, hidden=2)
        rows = {f"{k}": np.full(2000, seed, np.float32) for k in range(20)}
        made.append({
            "weights": lambda folder, net=net: net.save(folder / "net.safetensors"),
            "decoder": lambda folder, d=decoder: d.save(folder / "decoder.safetensors"),
            "report": lambda folder, ex=ex: pair_page(folder / "p.html", ex, "ab", "pair"),
            "explorer": lambda folder, e=explorer: e.to_html(folder / "e.html"),
            "explanation": lambda folder, ex=ex: ex.save(folder),
            "cache": lambda folder, r=rows: FeatureCache(folder / "f.sqlite").put(r),
            "gallery": lambda folder, g=gal: g.save(folder / f"{time.monotonic_ns()}", 2),
        })  # fmt: skip
    return made


def look(kind: str, folder: Path, whole: list[dict[str, bytes]]) -> None:
    """Open what was left: every file is one of the two versions; leftovers are hidden."""
    visible = {p: told(p) for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}
    if kind == "cache":
        if (folder / "f.sqlite").exists():
            found = FeatureCache(folder / "f.sqlite").get([f"{k}" for k in range(20)])
            assert len(found) in (0, 20), len(found)
            assert len({float(v[0]) for v in found.values()}) <= 1
            assert all((v == v[0]).all() for v in found.values())
        return
    if kind == "gallery":
        for inner in folder.iterdir():
            with contextlib.suppress(sc.errors.GalleryError):
                opened = sc.Gallery.open(inner)
                assert len(opened) == 4 and opened.explain(0, 3)
        return
    for path, data in visible.items():
        assert data in [version[path.name] for version in whole], path
    if kind == "weights" and visible:
        sc.SiameseNet.load(folder / "net.safetensors", network().backbone)


def killing(root: Path, rounds: int) -> None:
    """In a process of its own, for it forks: see `KILLED`."""
    made, moments, half = versions(), random.Random(0), 0
    for kind in made[0]:
        whole = []
        for k, version in enumerate(made):
            version[kind](place := root / kind / f"whole{k}")
            whole.append({p.name: told(p) for p in place.rglob("*") if p.is_file()})
        folder = root / kind / "killed"
        folder.mkdir()
        start = time.perf_counter()
        made[0][kind](root / kind / "timed")
        takes = time.perf_counter() - start
        for _ in range(rounds):
            child = os.fork()
            if not child:
                while True:
                    for version in made:
                        version[kind](folder)
            time.sleep(moments.uniform(0, 3 * takes + 0.002))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            look(kind, folder, whole)
            left = [p for p in folder.rglob(".*.part")]
            half += len(left)
            for path in left:
                path.unlink()  # only so that the next are counted
            if kind == "gallery":
                shutil.rmtree(folder)
                folder.mkdir()
        made[0][kind](folder)  # and it goes on as if nothing had been
        look(kind, folder, whole)
    print(json.dumps({"kinds": len(made[0]), "killed": rounds * len(made[0]), "half": half}))


@pytest.mark.slow
def test_killed_at_any_moment_files_are_whole_or_not_there(tmp_path):
    told = json.loads(done(script(KILLED, __file__, tmp_path, 25)).splitlines()[-1])
    assert told["kinds"] == 7 and told["killed"] == 175
    assert told["half"] > 0  # some were killed in the middle of a write, or nothing was tested


@pytest.mark.slow
def test_a_download_killed_at_any_moment_leaves_no_set_or_a_whole_one(slow_server, tmp_path):
    url, asked = slow_server
    expected = {p.removeprefix("Data/S/"): d for p, d in SMALL.items()}
    for wait in (0.0, 0.5, 0.95, 1.1):  # it takes one second
        begun = len(asked)
        child = script(FETCH, tmp_path, url, NO_PROXY="127.0.0.1")
        while len(asked) == begun and child.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        child.kill()
        child.communicate()
        if (tmp_path / "small").exists():
            assert content(tmp_path / "small") == expected
            break
    else:  # each was killed before its end: the next one ends
        done(script(FETCH, tmp_path, url, NO_PROXY="127.0.0.1"))
    assert content(tmp_path / "small") == expected
    assert len(asked) > 1


def test_what_a_killed_write_leaves_is_no_picture_and_in_nobody_s_way(tmp_path):
    folder = photos(tmp_path / "photos")
    (folder / "a" / ".0.png.abc.part").write_bytes(b"half")
    (folder / ".c.abc.part").write_bytes(b"half")
    images = sc.datasets.load(folder)
    assert len(images) == 6 and images.notes == ()
    place = gallery().save(tmp_path / "gallery")
    (place / ".gallery.json.abc.part").write_bytes(b"half")
    assert len(sc.Gallery.open(place)) == 4
    (tmp_path / ".net.safetensors.abc.part").write_bytes(b"half")
    network().save(tmp_path / "net.safetensors")
    assert (tmp_path / ".net.safetensors.abc.part").exists()  # another process may be at it


# --- exactly what has changed is computed again ---------------------------------------------------


class Counting:
    """Counts the images that a network looks at."""

    def __init__(self, net: sc.SiameseNet) -> None:
        self.net, self.count = net, 0
        plain = net.look

        def look(images):
            self.count += len(images)
            return plain(images)

        net.look = look


class TestInvalidation:
    @pytest.fixture
    def looks(self, tmp_path):
        """How many pictures of the folder a network looks at, with one cache for all."""
        folder, cache = photos(tmp_path / "photos"), FeatureCache(tmp_path / "f.sqlite")

        def looks(net: sc.SiameseNet | None = None, **options) -> int:
            counting = Counting(net or network())
            images = sc.datasets.load(folder)
            pooled_features(counting.net, images, cache=cache, progress=False, **options)
            return counting.count

        looks.folder = folder
        assert looks() == 6 and looks() == 0
        return looks

    def test_a_changed_picture_and_no_other(self, looks):
        picture(99).save(looks.folder / "b" / "1.png")
        assert (looks(), looks()) == (1, 0)
        picture(11).save(looks.folder / "b" / "1.png")  # as it was: still known
        assert looks() == 0

    def test_names_and_times_do_not_count(self, looks):
        (looks.folder / "a" / "0.png").rename(looks.folder / "b" / "moved.png")
        os.utime(looks.folder / "a" / "1.png", (1, 1))
        assert looks() == 0

    def test_a_changed_backbone_keeps_the_entries_of_the_old_one(self, looks):
        changed = network()
        with torch.no_grad():
            changed.backbone[0].bias[2] += 1e-6
        assert (looks(changed), looks(changed), looks()) == (6, 0, 0)

    def test_a_changed_head_does_not_count(self, looks):
        head = network()
        nn.init.normal_(head.projection.weight)
        head.threshold = 0.3
        assert looks(head) == 0

    def test_what_a_backbone_of_one_s_own_does_counts(self, looks):
        """The same weights, but another activation, stride or forward."""
        other = network()
        other.backbone[0].stride = (6, 6)

        class Doubled(nn.ReLU):
            def forward(self, x):
                return 2 * super().forward(x)

        assert looks(network(relu=nn.Tanh)) == looks(other) == looks(network(relu=Doubled)) == 6
        assert looks(network(relu=nn.Tanh)) == looks(other) == looks(network(relu=Doubled)) == 0

    def test_another_precision_counts(self, looks):
        half = network()
        half.backbone.bfloat16()
        half.feature_maps = lambda x, plain=half: plain.backbone(
            ((x - plain.mean) / plain.std).bfloat16()
        )
        assert (looks(half), looks(half), looks()) == (6, 0, 0)

    def test_a_row_of_another_length_is_told(self, looks, tmp_path):
        import sqlite3

        with contextlib.closing(sqlite3.connect(tmp_path / "f.sqlite")) as file, file:
            file.execute("UPDATE features SET value = x'00000000'")
        with pytest.raises(CacheError, match="delete it"):
            looks()
        with contextlib.closing(sqlite3.connect(tmp_path / "f.sqlite")) as file, file:
            file.execute("UPDATE features SET value = 'text'")
        with pytest.raises(CacheError, match="delete it"):
            looks()


# --- the same seed --------------------------------------------------------------------------------

SAME = """
    import hashlib, json, sys
    from pathlib import Path
    import numpy as np, torch
    import siamcam_lib as sc
    from siamcam_lib.cache import FeatureCache
    from siamcam_lib.report import audit
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    out.mkdir()
    images = sc.datasets.load("scenes/flowers", n=100, size=64)
    split = sc.pairs.split(images, seed=3)
    pairs = sc.pairs.sample(split.test, seed=3)
    torch.manual_seed(5)
    net = sc.SiameseNet(torch.nn.Conv2d(3, 8, 9, 8), 8, image_size=64)
    cache = FeatureCache(out / "f.sqlite")
    recipe = sc.FROZEN.__class__(**{**vars(sc.FROZEN), "epochs": 3})
    sc.fit(net, split, seed=3, cache=cache, recipe=recipe, progress=False)
    net.save(out / "net.safetensors")
    ex = sc.explain(net, images.image(0), images.image(9))
    ex.save(out / "explanation")
    audit(net, split.test, seed=3, cache=cache, progress=False).to_html(out / "report.html")
    gal = sc.Gallery.embed(net, images.subset(range(6)), progress=False)
    gal.widget().to_html(out / "explorer.html")
    (out / "pairs.json").write_text(json.dumps([
        split.train.items, split.val.items, split.test.items,
        pairs.a.tolist(), pairs.b.tolist(), pairs.label.tolist(),
    ]))
    (out / "f.sqlite").unlink()
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    """Split, pairs, weights, explanation, report and explorer, whatever order hashes come in."""
    running = [script(SAME, tmp_path / f"{k}", PYTHONHASHSEED=f"{k}") for k in (1, 2)]
    for process in running:
        done(process)
    one, two = (content(tmp_path / f"{k}") for k in (1, 2))
    assert {*one} == {*two} and len(one) >= 10
    assert [name for name in one if one[name] != two[name]] == []


@pytest.mark.slow
def test_the_number_of_threads_changes_no_more_than_the_last_digits(tmp_path):
    """Threads add numbers in another order: weights, scores and maps agree within 1e-4."""
    images = sc.datasets.load("scenes/flowers", n=100, size=64)
    split, found, before = sc.pairs.split(images, seed=0), [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(5)
                net = sc.SiameseNet(nn.Conv2d(3, 8, 9, 8), 8, image_size=64)
            cache = FeatureCache(tmp_path / f"{threads}.sqlite")
            recipe = replace(sc.FROZEN, epochs=3)
            sc.fit(net, split, 0, cache=cache, recipe=recipe, progress=False)
            ex = sc.explain(net, images.image(0), images.image(1))
            found.append([*net.state_dict().values(), *map(torch.from_numpy, ex.raw)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_what_two_runs_of_a_chapter_draw_at_random_is_not_staged(tmp_path):
    """Names of tables, places in memory, papermill's notes: the same bytes in every run."""
    staged = []
    for table, place, seconds in (
        ("T_a1b2c", "0x7fb400f0b750", 1.5),
        ("T_99e0f", "0x7f7a272836d0", 2),
    ):
        html = f'<style>#{table}_row0 {{}}</style><table id="{table}"></table>'
        data = {"text/html": html, "text/plain": f"<Styler at {place}>"}
        output = nbformat.v4.new_output("display_data", data, metadata={})
        about = {
            "papermill": {"duration": seconds},
            "kernelspec": {"name": "own", "display_name": "own"},
        }
        cell = nbformat.v4.new_code_cell("", id="c", outputs=[output])
        cell.metadata["papermill"] = {"duration": seconds}
        book = nbformat.v4.new_notebook(cells=[cell], metadata=about)
        nbformat.write(book, tmp_path / "page.ipynb")
        worker._clean(tmp_path / "page.ipynb")
        book = nbformat.read(tmp_path / "page.ipynb", as_version=4)
        (tmp_path / "page.ipynb").write_text(settled(book), encoding="utf-8")
        staged.append((tmp_path / "page.ipynb").read_bytes())
    assert staged[0] == staged[1]
    (output,) = nbformat.read(tmp_path / "page.ipynb", 4).cells[0].outputs
    assert output.data["text/html"].count("T_00000") == 2


def test_widgets_are_numbered_alike_in_every_run():
    """A shown box with two labels, two bars nobody shows any more, and what links a bar."""
    keys = ["box", "bar 0", "bar 1", "style 0", "style 1", "label 0", "label 1", "link"]

    def book(seed: int) -> nbformat.NotebookNode:
        draw = random.Random(seed)
        names = {key: f"{draw.getrandbits(128):032x}" for key in keys}
        at = {key: f"IPY_MODEL_{name}" for key, name in names.items()}
        told = {
            "box": {"children": [at["label 0"], at["label 1"]]},
            **{f"label {n}": {"value": "alike"} for n in (0, 1)},
            **{f"bar {n}": {"value": f"{n} of 2", "style": at[f"style {n}"]} for n in (0, 1)},
            **{f"style {n}": {"width": ""} for n in (0, 1)},
            "link": {"source": [at["bar 1"], "value"], "target": [at["label 0"], "value"]},
        }
        state = {
            names[key]: {"model_module": "base" if "style" in key else "more", "state": told[key]}
            for key in draw.sample(keys, len(keys))
        }
        view = {"application/vnd.jupyter.widget-view+json": {"model_id": names["box"]}}
        output = nbformat.v4.new_output("display_data", view)
        about = {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": state}}}
        cell = nbformat.v4.new_code_cell("", id="c", outputs=[output])
        return nbformat.v4.new_notebook(cells=[cell], metadata=about)

    texts = {settled(book(seed)) for seed in range(30)}
    assert len(texts) == 1
    assert "1 of 2" in texts.pop()
