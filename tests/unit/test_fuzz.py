"""Hostile input of every kind: only our exceptions come out, nothing hangs, memory stays bounded.

Some hundred inputs, the same in every run. ``SIAMCAM_FUZZ=10000`` tries about as many as it says,
others in every run; of what fails, the line that repeats it is printed.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import sqlite3
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from papermill.parameterize import parameterize_notebook
from PIL import Image
from torch import nn

import siamcam_lib as sc
from siamcam_lib import portable, results, training
from siamcam_lib.book import chapters
from siamcam_lib.book.run import recorded_runs
from siamcam_lib.cache import FeatureCache
from siamcam_lib.cli import main
from siamcam_lib.datasets import catalogue, download, images
from siamcam_lib.decoder import Decoder
from siamcam_lib.errors import DownloadError, SiamcamError
from siamcam_lib.npm import unpack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of Pillow, zipfile and torch, as they may
    pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning"),
]

WANTED, USUAL = int(os.environ.get("SIAMCAM_FUZZ", "0")), 640
MOST_PIXELS = 1_000_000
MOST_MEMORY = 500 << 20  # bytes above what a test began with
TRIED: Counter[str] = Counter()


def tries(usual: int, **inputs: st.SearchStrategy) -> Callable:
    """Run a test on that many inputs; in a long run on more in proportion."""

    def decorate(test):
        @functools.wraps(test)
        def counted(*args, **kwargs):
            TRIED[test.__name__] += 1
            test(*args, **kwargs)

        how = settings(
            max_examples=max(usual, usual * WANTED // USUAL), derandomize=not WANTED,
            database=None, print_blob=True, deadline=timedelta(seconds=30),
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        return pytest.mark.timeout(3600 if WANTED else 300)(how(given(**inputs)(counted)))

    return decorate


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory) -> Iterator[None]:
    """Nothing of the user's is read or written, and the number of inputs is told at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIAMCAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SIAMCAM_DATA", str(tmp_path_factory.mktemp("data")))
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield
    if WANTED:
        print(f"\n{sum(TRIED.values())} inputs: {dict(TRIED)}")


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """The peak of a test's memory, where the system tells it."""

    def told(field: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if field in x)
        return int(line.split()[1]) << 10

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = told("VmRSS")
    except OSError:
        yield
        return
    yield
    grown = told("VmHWM") - before
    if WANTED:
        print(f"\npeak {told('VmHWM') >> 20} MB, grown by {grown >> 20} MB")
    assert grown < MOST_MEMORY


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Our own exceptions are fine; whatever else is raised fails the test."""
    with contextlib.suppress(SiamcamError):
        yield


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    try:
        yield made
    finally:
        for inner in made.rglob("*"):  # of those that were locked
            if inner.is_dir() and not inner.is_symlink():
                inner.chmod(0o700)
        shutil.rmtree(made)


# --- hostile things -------------------------------------------------------------------------------

NUMBERS = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\x80"]
EVIL = [
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", '"><svg onload=alert(1)>',
    "\u202egpj.exe", "../../etc/passwd", "/etc/passwd", "C:\\x", "__import__('os').system('x')",
    "a\nb", "\x1b[2J", "$(touch x)", "`touch x`", "'", '"', "{}", "%s", "\\", "~nobody/x", "~", "-",
    "--help", "\udcff", "\ud800", "ﷺ" * 80, "x" * 300, "con", "nan", "1e999", "", " ", ".", "\0",
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(EVIL), st.text(max_size=40))
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), TEXTS,
        st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)  # fmt: skip


@st.composite
def spoilt(draw: Any, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a few faults: flipped, cut, put in, repeated; or a number that lies."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        near = st.integers(0, min(80, len(data) - 1))  # headers lie there
        at = draw(st.one_of(near, st.integers(0, len(data) - 1)))
        match draw(st.integers(0, 6)):
            case 0 | 1:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                data[at] = draw(st.integers(0, 255))
            case 3:
                data[at : at + 4] = draw(st.sampled_from(NUMBERS))
            case 4:
                del data[at:]
            case 5:
                data[at:at] = draw(st.binary(max_size=20))
            case 6:
                data[at:at] = data[at : at + draw(st.integers(1, 200))]
    return bytes(data)


@st.composite
def lying(draw: Any, whole: Any) -> Any:
    """A JSON value some entries of which are others, missing or new."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place, steps = value, draw(st.integers(0, 3))
        for _ in range(steps):
            inner = place.values() if isinstance(place, dict) else place
            deeper = [x for x in inner if isinstance(x, dict | list) and x]
            if not deeper:
                break
            place = draw(st.sampled_from(deeper))
        if not place:
            continue
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        match draw(st.integers(0, 3)):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[draw(TEXTS)] = place[key]
            case _:
                place[key] = draw(VALUES)
    return value


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


class Long(bytes):
    """Bytes that are not printed in full."""

    def __repr__(self) -> str:
        return f"{self[:9]!r}…"


DEEP = st.sampled_from([
    Long(b"[" * 100_000), Long(b'{"a":' * 100_000), Long(b"7" * 5000), b"\xff\xfe", b"null",
])  # fmt: skip

# --- pictures -------------------------------------------------------------------------------------


def encoded(kind: str, mode: str, size: tuple[int, int] = (24, 17), **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    """One of every format that can be written, several of those that a reader has."""
    more = Image.fromarray(np.zeros((9, 9), np.uint8))
    made = [
        encoded("JPEG", "RGB"), encoded("JPEG", "CMYK"), encoded("JPEG", "L", progressive=True),
        encoded("PNG", "RGBA"), encoded("PNG", "P"), encoded("PNG", "I;16"), encoded("GIF", "P"),
        encoded("GIF", "P", save_all=True, append_images=[more] * 3), encoded("WEBP", "RGB"),
        encoded("WEBP", "RGBA", lossless=True), encoded("TIFF", "RGB"), encoded("TIFF", "CMYK"),
        *(encoded("TIFF", "RGB", compression=c) for c in ("jpeg", "tiff_lzw", "tiff_deflate")),
        encoded("ICNS", "RGBA", (64, 64)), encoded("ICO", "RGBA", (32, 32)),
    ]  # fmt: skip
    for kind in sorted(set(Image.SAVE) & set(images.formats())):
        for mode in ("RGB", "L", "1", "F"):
            with contextlib.suppress(Exception):  # what cannot be written is no seed
                made.append(encoded(kind, mode))
                break
    return made


def bombs() -> list[bytes]:
    """Small files that say they are large, within the limit and beyond it."""
    file, made = io.BytesIO(), []
    Image.new("L", (1500, 1500)).save(file, "PNG")  # 2 KB, beyond the limit of these tests
    flat = file.getvalue()
    made.append(flat)
    for side in (999, 30_000, 2**31 - 1):
        header = struct.pack(">II", side, side)
        made.append(flat[:16] + header + flat[24:])
        made.append(b"P6 %d %d 255\n" % (side, side))
        bitmap = struct.pack("<IiiHHI", 40, side, side, 1, 24, 0)
        made.append(b"BM" + bytes(12) + bitmap + bytes(24))
        made.append(b"GIF89a" + struct.pack("<HH", side % 65536, side % 65536) + b"\xf7\0\0")
    return made


@tries(200, data=st.one_of(spoilt(st.sampled_from(pictures())), spoilt(st.sampled_from(bombs()))))
def test_pictures(data):
    with ours():
        found = images.read(data, max_pixels=MOST_PIXELS)
        assert found.mode == "RGB" and found.width * found.height <= MOST_PIXELS


SHAPES = st.one_of(
    arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from([1, 3, 4])),
)
DTYPES = st.one_of(arrays.scalar_dtypes(), st.sampled_from(["O", "V4", "U3", "S2", "g", "e", "?"]))
TORCH = [x for x in vars(torch).values() if isinstance(x, torch.dtype)]


@tries(40, shape=SHAPES, dtype=DTYPES, fill=st.binary(min_size=1, max_size=16))
def test_arrays(shape, dtype, fill):
    dtype = np.dtype(dtype)
    array = np.empty(shape, dtype)
    if not dtype.hasobject:
        array = np.resize(np.frombuffer(fill, np.uint8), array.nbytes).view(dtype).reshape(shape)
    with ours(), np.errstate(all="ignore"):
        assert images.as_image(array).mode == "RGB"


@tries(20, shape=SHAPES, dtype=st.sampled_from(TORCH), kind=st.integers(0, 3))
def test_tensors(shape, dtype, kind):
    try:
        tensor = torch.zeros(shape, dtype=dtype, device="meta" if kind == 1 else "cpu")
        tensor = tensor.to_sparse() if kind == 2 else tensor
    except (RuntimeError, NotImplementedError):  # torch itself has no such thing
        assume(False)
    with ours():
        assert images.as_image(tensor).mode == "RGB"


@tries(20, value=VALUES)
def test_what_is_no_picture(value):
    with pytest.raises(SiamcamError):
        images.as_image(value)


# --- folders --------------------------------------------------------------------------------------

NAMES = TEXTS.map(lambda t: t.replace("/", "⁄").replace("\0", "")[:80]).filter(
    lambda t: t not in ("", ".", "..")
)
GOOD = encoded("PNG", "RGB")
KINDS = ["picture"] * 6 + [
    "folder", "empty", "text", "cut", "up", "self", "nothing", "pipe", "locked", "fuzz",
]  # fmt: skip
ENTRIES = st.tuples(
    st.lists(st.one_of(st.sampled_from("ab"), NAMES), min_size=1, max_size=4),
    st.sampled_from([".png", ".jpg", "", ".gif", ".PNG"]),
    st.sampled_from(KINDS),
)


def plant(root: Path, parts: list[str], suffix: str, kind: str) -> None:
    """Put a thing into a folder, if the file system allows it."""
    with contextlib.suppress(OSError, UnicodeEncodeError):
        path = root.joinpath(*parts[:-1], parts[-1] + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        # what is there stays: writing would follow a link out of the folder, or wait for a pipe
        if os.path.lexists(path) or path.parent.resolve() != path.parent:
            return
        match kind:
            case "folder":
                path.mkdir()
            case "up" | "self" | "nothing":
                path.symlink_to({"up": "..", "self": path.name, "nothing": "gone"}[kind])
            case "pipe":
                os.mkfifo(path)
            case "locked":
                path.mkdir(mode=0)
            case _:
                contents = {"picture": GOOD, "empty": b"", "text": b"words", "cut": GOOD[:200]}
                path.write_bytes(contents.get(kind, GOOD[:90] + b"\xff" * 9 + GOOD[99:]))


@tries(60, entries=st.lists(ENTRIES, max_size=14), skip=st.booleans(), full=st.booleans())
def test_folders(entries, skip, full):
    with folder() as root:
        for name in "ab":
            plant(root, [name, "good"], ".png", "picture")
            plant(root, [name, "fine"], ".png", "picture")
        for entry in entries:
            plant(root, *entry)
        with ours():
            found = sc.datasets.load_folder(
                root, on_bad="skip" if skip else "raise", check="full" if full else "header"
            )
            assert {*"ab"} <= {*found.classes} and len(found) >= 2
            found.fingerprint()
            for i in range(len(found)):
                found.image(i)
            sc.pairs.sample(sc.pairs.split(found, seed=0).train, seed=0)


@tries(40, name=TEXTS, kind=st.one_of(st.sampled_from(["flowers", "airbnb"]), TEXTS))
def test_names_of_sets(name, kind):
    with ours():
        found = sc.datasets.resolve(name, kind, **({"n": 10} if name == "scenes" else {}))
        assert len(found) == len(found.labels) > 0
    with ours():
        assert sc.datasets.available(name) is (name in sc.datasets.names())


# --- weights, galleries, checkpoints, caches ------------------------------------------------------


def network() -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sc.SiameseNet(nn.Conv2d(3, 4, 9, 8), 3, image_size=32).eval()


def header(data: bytes) -> tuple[dict, bytes]:
    """Of a safetensors file: its header, and all that follows."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(value: Any, rest: bytes) -> bytes:
    text = written(value)
    return struct.pack("<Q", len(text)) + text + rest


@functools.cache
def weights() -> bytes:
    with folder() as root:
        network().save(root / "net.safetensors")
        return (root / "net.safetensors").read_bytes()


@functools.cache
def decoder_weights() -> bytes:
    with folder() as root:
        Decoder(2, hidden=2).save(root / "decoder.safetensors")
        return (root / "decoder.safetensors").read_bytes()


@st.composite
def weights_files(draw: Any, whole: Callable[[], bytes]) -> bytes:
    """A safetensors file with faults in its bytes, in its header, or in its configuration."""
    data = whole()
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(spoilt(st.just(data)))
    known, rest = header(data)
    if kind == 1:
        return with_header(draw(lying(known)), rest)
    if kind == 2:
        config = draw(lying(json.loads(known["__metadata__"]["config"])))
        known["__metadata__"]["config"] = json.dumps(config)
    else:
        known["__metadata__"]["config"] = draw(DEEP).decode("latin-1")
    return with_header(known, rest)


@tries(60, data=weights_files(weights), own=st.booleans())
def test_weights(data, own):
    with folder() as root:
        path = root / "net.safetensors"
        path.write_bytes(data)
        with ours():
            net = sc.SiameseNet.load(path, nn.Conv2d(3, 4, 9, 8) if own else None)
            with torch.no_grad():
                assert net(*torch.rand(2, 1, 3, 32, 32)).shape == (1,)
                assert 0 < net.threshold < 1


@tries(20, data=weights_files(decoder_weights))
def test_decoders(data):
    with folder() as root:
        path = root / "decoder.safetensors"
        path.write_bytes(data)
        with ours():
            decoder = Decoder.load(path)
            assert not decoder.training
            assert not any(weight.requires_grad for weight in decoder.parameters())


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("gallery") / "gallery"
    random = np.random.default_rng(0)
    shown = [Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(5)]
    sc.Gallery.embed(network(), shown, folder=made, images_per_shard=2, progress=False)
    return made


@tries(60, choice=st.data())
def test_galleries(gallery, choice):
    with folder() as root:
        place = root / "gallery"
        shutil.copytree(gallery, place)
        files = sorted(p for p in place.rglob("*") if p.is_file())
        for _ in range(choice.draw(st.integers(1, 2))):
            file = choice.draw(st.sampled_from(files))
            if not file.is_file():
                continue
            data = file.read_bytes()
            kind = choice.draw(st.integers(0, 5))
            if kind == 0:
                file.unlink()
            elif kind == 1:
                file.rename(choice.draw(st.sampled_from(files)))
            elif kind == 2 and file.suffix == ".json":
                file.write_bytes(choice.draw(DEEP))
            elif kind == 3 or len(data) < 8:
                file.write_bytes(choice.draw(spoilt(st.just(data))))
            else:
                with contextlib.suppress(ValueError, struct.error):  # spoilt before
                    if file.suffix == ".json":
                        file.write_bytes(written(choice.draw(lying(json.loads(data)))))
                    else:
                        known, rest = header(data)
                        file.write_bytes(with_header(choice.draw(lying(known)), rest))
        with ours():
            opened = sc.Gallery.open(place, choice.draw(st.sampled_from([None, network()])))
            first, last = 0, len(opened) - 1
            assert 0 < opened.explain(first, last).threshold < 1
            for query in (first, last):
                assert {*opened.nearest(query, k=1).index} <= {*range(len(opened))} - {query}
            assert next(opened.all_pairs()).maps.ndim == 4


@functools.cache
def checkpoint() -> bytes:
    file = io.BytesIO()
    kept = {"history": [{"loss": 0.5}], "best_state": {"w": torch.ones(3)}, "finished": False}
    torch.save({"siamcam": kept, "epoch": 1}, file)
    return file.getvalue()


@tries(30, data=st.one_of(spoilt(st.builds(checkpoint)), st.binary(max_size=60)))
def test_checkpoints(data):
    with folder() as root:
        (root / "last.ckpt").write_bytes(data)
        with ours():
            kept = training._read_checkpoint(root / "last.ckpt")
            assert {"history", "best_state", "finished"} <= {*kept["siamcam"]}


@functools.cache
def cache_file() -> bytes:
    with folder() as root:
        FeatureCache(root / "f.sqlite").put({f"{i}": np.arange(4) for i in range(9)})
        return (root / "f.sqlite").read_bytes()


@tries(40, data=spoilt(st.builds(cache_file)), value=st.one_of(st.none(), VALUES, st.binary()))
def test_caches(data, value):
    with folder() as root:
        cache = FeatureCache(root / "f.sqlite")
        cache.path.write_bytes(data)
        keys = [f"{i}" for i in range(9)]
        for _ in range(2):
            with ours():
                assert all(v.dtype == np.float32 for v in cache.get(keys).values())
            with ours():
                cache.put({"new": np.ones(4)})
        cache.path.write_bytes(cache_file())
        if isinstance(value, str | bytes | int | float | None) and value is not True:
            with contextlib.closing(sqlite3.connect(cache.path)) as file, file:
                with contextlib.suppress(OverflowError, UnicodeEncodeError):
                    file.execute("UPDATE features SET value = ? WHERE key = '3'", (value,))
            with ours():
                cache.get(keys)


# --- downloads ------------------------------------------------------------------------------------

SMALL = {"Data/S/a/1.jpg": b"one" * 50, "Data/S/b/2.jpg": b"two" * 50}
SET = catalogue.PhotoSet("small", "Small", "Data/S", ("a", "b"), "scenes/flowers")


@pytest.fixture
def upstream(monkeypatch):
    """Another manifest, of two files."""
    files = tuple(
        catalogue.UpstreamFile(p, len(d), hashlib.sha1(b"blob %d\0" % len(d) + d).hexdigest())
        for p, d in SMALL.items()
    )
    made = catalogue.Manifest("r", "c", files)
    monkeypatch.setattr(catalogue, "manifest", lambda *_: made)


@st.composite
def archives(draw: Any) -> bytes:
    """Archives with hostile members besides the right ones, packed in any way, then spoilt."""
    file = io.BytesIO()
    way = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 2 + [12, 14]))
    with zipfile.ZipFile(file, "w", way) as archive:
        for path, data in SMALL.items():
            archive.writestr("top/" + path, data)
        for name in draw(st.lists(TEXTS, max_size=3)):
            with contextlib.suppress(ValueError):  # that no archive can hold
                info = zipfile.ZipInfo(draw(st.sampled_from(["", "top/", "top/Data/S/"])) + name)
                mode = draw(st.sampled_from([0, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFREG]))
                info.external_attr = (mode | 0o777) << 16
                archive.writestr(info, b"x")
    data = file.getvalue()
    return draw(st.one_of(st.just(data), spoilt(st.just(data)), from_the_end(data)))


@st.composite
def from_the_end(draw: Any, data: bytes) -> bytes:
    """The table of contents lies at the end."""
    turned = draw(spoilt(st.just(data[::-1])))
    return turned[::-1]


@tries(60, data=archives())
def test_archives(upstream, data):
    with folder() as root:
        (root / ".download").mkdir()
        archive = root / ".download" / "c.zip"
        archive.write_bytes(data)
        with ours(), download._writing(root):
            download._unpack(SET, archive, root / "small", progress=False)
        found = {p.relative_to(root) for p in root.rglob("*") if p.is_file()} - {
            Path(".download/c.zip")
        }
        whole = {Path("small", p.removeprefix("Data/S/")) for p in SMALL}
        assert found in (set(), whole)  # as a whole or not at all, and nothing else


@tries(20, state=st.one_of(DEEP, lying({"url": "u", "etag": '"e"', "total": 5}).map(written)))
def test_notes_on_downloads(state):
    with folder() as root:
        part = root / "c.part"
        download._state_file(part).write_bytes(state)
        known = download._read_state(part, "u")
        assert known == {} or isinstance(known["etag"], str)


@functools.cache
def packed() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in ("package/a.js", "package/b.js"):
            info = tarfile.TarInfo(name)
            info.size = 300
            tar.addfile(info, io.BytesIO(bytes(range(250)) + bytes(50)))
    return file.getvalue()


@tries(30, data=spoilt(st.builds(packed)))
def test_scripts_of_pages(data):
    with folder() as root:
        with ours():
            unpack(data, {"package/*.js": "x/"}, root / "in")
        assert all("in" in p.relative_to(root).parts for p in root.rglob("*"))


EXPLAINED = {
    "format": "siamcam-explanation", "version": 1,
    "images": {side: {"file": "f", "sha256": None, "width": 9, "height": 7} for side in "ab"},
    "model": {"file": None, "digest": "d", "calibrated": True},
    "dissimilarity": 0.4, "similarity": 0.6, "threshold": 0.5, "decision": "similar",
    "method": "gradcam", "polarity": "decision",
    "raw": {side: {"shape": [2, 2], "kind": "float32",
                   "data": base64.b64encode(np.ones(4, "<f4")).decode()} for side in "ab"},
}  # fmt: skip


@tries(60, data=st.one_of(DEEP, lying(EXPLAINED).map(written), spoilt(st.just(written(EXPLAINED)))))
def test_explanations(data):
    with folder() as root:
        (root / "explanation.json").write_bytes(data)
        with ours():
            read = sc.Explanation.open(root / "explanation.json")
            assert all(np.isfinite(m).all() and (m >= 0).all() for m in read.factual)
            assert read.decision in ("similar", "dissimilar")


OFFERED = {
    "name": "n", "source": "efficientnet_lite0", "head": base64.b64encode(bytes(32)).decode(),
    "about": {"digest": "d", "backbone": "b", "side": 32, "how": {"comparison": "l2"},
              "threshold": 0.5, "relu": True, "units": 2, "channels": 6},
}  # fmt: skip


@tries(40, output=st.one_of(VALUES, lying(OFFERED)))
def test_models_that_chapters_offer(output):
    with ours():
        made = portable.read(output)
        assert isinstance(made.name, str) and isinstance(made.head, bytes)


# --- the book and the command ---------------------------------------------------------------------

NOTEBOOK = {
    "cells": [
        {"cell_type": "code", "outputs": [{"metadata": {results.KEPT: [
            {"study": "s", "setting": "t", "protocol": "sound",
             "measures": {"auc": [0.5, 0.4, 0.6]}, "images": "i",
             "origin": "folder", "count": 3, "digest": "d", "profile": "quick",
             "seeds": [0], "seconds": 1.0, "versions": {"torch": "2"}}
        ]}}]}
    ]
}  # fmt: skip


@tries(40, data=st.one_of(DEEP, lying(NOTEBOOK).map(written), spoilt(st.just(written(NOTEBOOK)))))
def test_recorded_results(data):
    with folder() as root:
        (root / "page.ipynb").write_bytes(data)
        with ours():
            records = results.read(root / "page.ipynb")
            assert all(isinstance(record, results.Record) for record in records)
            assert results.provenance(records).startswith("| | images |")


RUNS = [{"name": "a", "path": "a.ipynb", "seconds": 1.0, "executed": True, "parameters": {}}]
TOC = {"format": "jb-book", "root": "a", "chapters": [{"file": "b", "sections": [{"file": "c"}]}]}


@tries(15, runs=st.one_of(DEEP, lying(RUNS).map(written)), toc=st.one_of(
    DEEP, lying(TOC).map(written), st.just(b"chapters: &a\n- sections: *a\n  file: b"),
))  # fmt: skip
def test_the_book_s_own_files(runs, toc):
    with folder() as root:
        (root / "runs.json").write_bytes(runs)
        (root / "_toc.yml").write_bytes(toc)
        (root / "a.md").write_text("# A")
        with ours():
            assert all(run.path.resolve().is_relative_to(root) for run in recorded_runs(root))
        with ours():
            assert all(page.is_file() for page in chapters(root).values())


@tries(40, parameters=st.fixed_dictionaries({"data": TEXTS, "seed": VALUES, "profile": TEXTS}))
def test_parameters_of_chapters_are_data(parameters):
    """What is put into a chapter is one literal for each parameter, and equal to what was given."""
    declared = nbformat.v4.new_code_cell("data = seed = 0", metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about = {"kernelspec": kernel, "papermill": {}}
    book = nbformat.v4.new_notebook(cells=[declared], metadata=about)
    (cell,) = [
        c
        for c in parameterize_notebook(book, parameters).cells
        if "injected-parameters" in c.metadata.get("tags", [])
    ]
    names = {"float": float}
    for line in ast.parse(cell.source).body:
        assert isinstance(line, ast.Assign)
        calls = [x for x in ast.walk(line.value) if isinstance(x, ast.Call)]
        assert all(ast.unparse(x) in ("float('nan')", "float('inf')", "float('-inf')",
                                      "float('-inf')") for x in calls)  # fmt: skip
    exec(compile(cell.source, "cell", "exec"), {"__builtins__": {}}, names)  # literals, as seen
    assert repr({k: names[k] for k in parameters}) == repr(parameters)


WORDS = st.one_of(
    TEXTS, st.sampled_from(["good.png", "bad.png", "folder", "model.safetensors", "scenes/x"])
).filter(lambda word: not {"\0", "\ud800"} & {*word})  # which no command line can hold
COMMANDS = {
    "explain": [2, "--method", "--model"], "train": [1, "--backbone", "--seed", "--epochs"],
    "evaluate": [1, "--model", "--seed"], "gallery": [1, "--model", "--most", "--seed"],
    "fetch": [1, "--home"], "book": [0, "--data", "--profile", "--seed"],
}  # fmt: skip


@tries(60, choice=st.data())
def test_the_command(choice):
    with folder() as root, contextlib.chdir(root):
        Path("good.png").write_bytes(GOOD)
        Path("bad.png").write_bytes(GOOD[:100])
        Path("folder").mkdir()
        Path("model.safetensors").write_bytes(weights())
        name = choice.draw(st.sampled_from(sorted(COMMANDS)))
        count, *options = COMMANDS[name]
        words = [name, *(choice.draw(WORDS) for _ in range(count))]
        assume("good.png" not in words[1:] or name != "explain")  # would work, for a second
        assume(not {*catalogue.SETS} & {*words})  # would ask the network
        for option in choice.draw(st.lists(st.sampled_from(options), max_size=2, unique=True)):
            words += [option, choice.draw(WORDS)]
        words += ["-o", choice.draw(WORDS)] if name not in ("fetch", "book") else []
        if name == "book":
            words += ["--root", "folder"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code in (0, 1, 2), words
        assert done.exception is None or isinstance(done.exception, SystemExit), words
        assert "Traceback" not in done.output
        assert not set(done.output) & {"\x1b", "\u202e", "\x07"}


def test_a_download_error_is_one_of_ours():
    """What `ours` lets through is what the library promises to raise."""
    assert issubclass(DownloadError, SiamcamError) and not issubclass(OSError, SiamcamError)
