"""What comes from outside is data: nothing is unpickled, run, or written where it should not be."""

from __future__ import annotations

import ast
import builtins
import html
import io
import json
import os
import pickle
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from nbformat import v4
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file
from torch import nn

import siamcam_lib as sc
from siamcam_lib import results, training
from siamcam_lib.book import __main__ as command
from siamcam_lib.book import run_chapters
from siamcam_lib.book.run import chapters, recorded_runs
from siamcam_lib.cache import FeatureCache
from siamcam_lib.cli import main
from siamcam_lib.datasets import catalogue, download, images
from siamcam_lib.errors import (
    BookError,
    DataError,
    DownloadError,
    ImageError,
    ModelError,
    SiamcamError,
)
from siamcam_lib.files import shown
from siamcam_lib.widgets import league_table

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
# As far as a file system takes them: a name holds no slash.
NAMES = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)<⁄script>", '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)", "a&lt;b&amp;", "]]><!--", "\u202egpj.exe", "\x1b[2Jgone\x07",
    "{{7*7}}${7*7}", "=cmd|'calc'!A1", "`rm -rf`", "日本 é", "not\udcffutf8", "a\nb\rc",
]  # fmt: skip


def network() -> sc.SiameseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sc.SiameseNet(nn.Conv2d(3, 8, 9, 8), 8, image_size=SIDE).eval()


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Image.fromarray(pixels)


# --- nothing is unpickled -------------------------------------------------------------------------


def test_no_code_unpickles_evaluates_or_asks_a_shell():
    """Of the library and of the book's extensions; what chapters run is theirs."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    loads = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
    unsafe = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
              "pd.read_pickle", "__import__"}  # fmt: skip
    wrong, seen = [], 0
    for path in [*ROOT.glob("siamcam_lib/**/*.py"), *ROOT.glob("book/_ext/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                wrong += [where for name in names if name and name.split(".")[0] in modules]
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in loads:
                seen += 1
                option, safe = loads[called]
                wrong += [where] if given.get(option) != safe else []
            wrong += [where] if called in unsafe or given.get("shell") == "True" else []
    assert wrong == [] and seen >= 2


class Bomb:
    """A pickle that tells when it is loaded."""

    def __reduce__(self):
        return builtins.print, ("unpickled",)


@pytest.fixture
def no_pickle(monkeypatch):
    """Everything that unpickles without asking raises."""

    def refuse(*args, **options):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    plain = torch.load

    def only_weights(*args, weights_only=None, **options):
        assert weights_only is True
        return plain(*args, weights_only=True, **options)

    monkeypatch.setattr(torch, "load", only_weights)


def test_all_files_are_opened_without_unpickling(tmp_path, no_pickle):
    net = network()
    net.save(tmp_path / "net.safetensors")
    sc.SiameseNet.load(tmp_path / "net.safetensors", net.backbone)
    made = sc.Gallery.embed(net, [picture(k) for k in range(4)], progress=False)
    sc.Gallery.open(made.save(tmp_path / "gallery"), net).explain(0, 1)
    cache = FeatureCache(tmp_path / "f.sqlite")
    cache.put({"a": np.ones(3)})
    assert len(cache.get(["a"])) == 1
    folder = sc.explain(net, picture(0), picture(1)).save(tmp_path / "explanation")
    with np.load(folder / "maps.npz", allow_pickle=False) as maps:
        assert len(maps.files) == 6
    picture(0).save(tmp_path / "0.png")
    images.read(tmp_path / "0.png")


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
@pytest.mark.parametrize("what", ["weights", "gallery", "checkpoint", "picture", "cache", "record"])
def test_a_pickle_in_the_place_of_any_file_is_not_run(tmp_path, capsys, what, kind):
    file = io.BytesIO()
    if kind == "torch":
        torch.save({"siamcam": Bomb()}, file)
    elif kind == "numpy":
        np.save(file, np.array([Bomb()], object), allow_pickle=True)
    else:
        pickle.dump(Bomb(), file)
    names = {"weights": "n.safetensors", "gallery": "gallery.json", "checkpoint": "last.ckpt",
             "picture": "p.png", "cache": "f.sqlite", "record": "page.ipynb"}  # fmt: skip
    path = tmp_path / names[what]
    path.write_bytes(file.getvalue())
    open_it = {
        "weights": lambda: sc.SiameseNet.load(path, network().backbone),
        "gallery": lambda: sc.Gallery.open(tmp_path),
        "checkpoint": lambda: training._read_checkpoint(path),
        "picture": lambda: images.read(path),
        "cache": lambda: FeatureCache(path).get(["a"]),
        "record": lambda: results.read(path),
    }
    with pytest.raises(SiamcamError):
        open_it[what]()
    assert "unpickled" not in capsys.readouterr().out


# --- pictures -------------------------------------------------------------------------------------


def wrapped(inner: bytes) -> bytes:
    """A picture of another format within an IPTC file."""

    def field(record: int, number: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(data)) + data

    return (
        field(3, 60, b"\x01\x00") + field(3, 65, b"\x00") + field(3, 20, b"\x00\x10")
        + field(3, 30, b"\x00\x10") + field(3, 120, b"\x05") + field(8, 10, inner)
    )  # fmt: skip


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("data", [EPS, wrapped(EPS)], ids=["EPS", "EPS in IPTC"])
def test_no_picture_is_run_as_a_program(monkeypatch, tmp_path, data):
    def ghostscript(*args, **options):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    for name in ("p.eps", "p.iim", "p.jpg"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match="is not an image"):
            images.read(tmp_path / name)


def test_a_picture_within_a_picture_does_not_pass_the_limit():
    """IPTC says 16 × 16 of a picture of any size."""
    inner = io.BytesIO()
    Image.new("L", (3000, 3000)).save(inner, "PNG")
    with pytest.raises(ImageError):
        images.read(wrapped(inner.getvalue()), max_pixels=1000)


# --- archives -------------------------------------------------------------------------------------


@pytest.fixture
def unpacked(monkeypatch, tmp_path):
    """Unpacks an archive for a set of one file; gives what lies there afterwards."""
    monkeypatch.setattr(
        catalogue, "manifest",
        lambda *_: catalogue.Manifest("r", "c", (catalogue.UpstreamFile(
            "Data/S/a/1.jpg", 3, "8bdb7c5b6b3d0c6f4b8f0f2e6a8b9b5a7f2a8f11"),)),
    )  # fmt: skip
    known = catalogue.PhotoSet("small", "Small", "Data/S", ("a",), "scenes/flowers")

    def unpacked(data: bytes) -> None:
        archive = tmp_path / ".download" / "c.zip"
        archive.parent.mkdir(exist_ok=True)
        archive.write_bytes(data)
        try:
            download._unpack(known, archive, tmp_path / "small", progress=False)
        finally:
            assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]

    return unpacked


def zipped(*members: tuple[str, int, bytes], way: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", way) as archive:
        for name, mode, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, way
            archive.writestr(info, data)
    return file.getvalue()


class TestArchives:
    @pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140666])
    def test_links_devices_and_pipes(self, unpacked, mode):
        with pytest.raises(DownloadError, match="link or device"):
            unpacked(zipped(("top/Data/S/a/1.jpg", mode, b"one")))

    @pytest.mark.parametrize(
        "name",
        ["../x", "top/../../x", "/x", "\\x", "C:/x", "top\\..\\x", "", ".", "a/b/../../../x"],
    )
    def test_names_that_lead_elsewhere(self, unpacked, name):
        with pytest.raises(DownloadError):
            unpacked(zipped((name, 0, b"x"), ("top/Data/S/a/1.jpg", 0, b"one")))

    @pytest.mark.parametrize("way", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_ways_of_packing_that_ask_for_any_memory(self, unpacked, way):
        data = bytearray(zipped(("top/Data/S/a/1.jpg", 0, b"one"), way=way))
        if way == zipfile.ZIP_LZMA:  # a dictionary of four gigabytes
            at = data.index(b"\x5d", data.index(b"1.jpg"))
            data[at + 1 : at + 5] = b"\xff\xff\xff\xff"
        with pytest.raises(DownloadError, match="packed in a way"):
            unpacked(bytes(data))

    def test_a_table_of_contents_of_any_length(self, unpacked, monkeypatch):
        monkeypatch.setattr(download, "_MOST_AT_ONCE", 100_000)
        many = zipped(*((f"top/{'n' * 60}/{i}", 0, b"") for i in range(2000)))
        with pytest.raises(DownloadError, match="table of contents"):
            unpacked(many)

    def test_a_small_file_that_says_it_is_large(self, unpacked):
        data = zipped(("top/Data/S/a/1.jpg", 0, bytes(10 << 20)), way=zipfile.ZIP_DEFLATED)
        with pytest.raises(DownloadError, match="altered"):
            unpacked(data)
        lies = data.replace(struct.pack("<I", 10 << 20), struct.pack("<I", 3))
        with pytest.raises(DownloadError):
            unpacked(lies)

    def test_what_the_server_says_of_lengths(self):
        assert download._whole_number("9" * 5000) is None
        assert download._whole_number("12") == 12

    @pytest.mark.parametrize("etag", [5, None, ["x"], "a\r\nX-Evil: 1", "é"])
    def test_what_was_noted_of_a_download(self, tmp_path, etag):
        part = tmp_path / "c.part"
        note = {"url": "u", "etag": etag, "total": 3}
        download._state_file(part).write_text(json.dumps(note))
        assert download._read_state(part, "u") == {}


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hf-hub:evil/model", "hf_hub:evil/model", "timm/hf-hub:evil/model", "local-dir:/tmp",
             "https://example.org/x", "../../x", "timm/../x"]
)  # fmt: skip
def test_a_weights_file_cannot_name_a_place_to_fetch_from(tmp_path, monkeypatch, name):
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    config = {"backbone": name, "embed_dim": 2, "normalize": True, "image_size": 64}
    tensors = {"projection.bias": torch.zeros(2), "_threshold": torch.tensor(0.5)}
    about = {"format": "siamcam-1", "config": json.dumps(config)}
    save_file(tensors, tmp_path / "n.safetensors", metadata=about)
    with pytest.raises(ModelError, match="No backbone"):
        sc.SiameseNet.load(tmp_path / "n.safetensors")


# --- parameters of chapters -----------------------------------------------------------------------

HOSTILE = "__import__('os').system('touch {place}')"


def notebook(path: Path, *sources: str) -> None:
    tags = {"tags": ["parameters"]}
    cells = [
        v4.new_markdown_cell("# Title", id="title"),
        v4.new_code_cell('data = "auto"\nprofile = "quick"\nseed = 0', id="p", metadata=tags),
        *(v4.new_code_cell(source, id=f"c{k}") for k, source in enumerate(sources)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)


def book(root: Path, *sources: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/one\n")
    notebook(root / "book" / "one.ipynb", *sources)
    return root


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


@pytest.mark.parametrize("name", ["~nobody-of-that-name/photos", "~nobody-of-that-name"])
def test_a_home_that_nobody_has(name, monkeypatch, tmp_path):
    for ask in (sc.datasets.load, sc.datasets.load_folder):
        with pytest.raises(DataError, match="no "):
            ask(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIAMCAM_DATA", name)
    assert not sc.datasets.available("flowers")
    monkeypatch.setenv("SIAMCAM_CACHE", name)
    assert FeatureCache().path.parent == Path(name)  # a folder of that name, as a shell makes it


@pytest.mark.slow
def test_parameters_are_never_run(tmp_path):
    """A seed that is code, a folder whose name closes the string: both arrive as they are."""
    place = tmp_path / "pwned"
    seed = HOSTILE.format(place=place)
    data = f"a\"'\\\n{seed}\n'''\"\"\"{{x}}"
    root = book(tmp_path / "book", "print(repr((data, seed)))")
    (run,) = run_chapters(root, tmp_path / "stage", data=data, seed=seed)
    told = ast.literal_eval(printed(run.path).strip())
    assert told == (str(Path(data).resolve()), seed) and not place.exists()


def test_the_command_takes_numbers_for_seeds(tmp_path):
    place = tmp_path / "pwned"
    seed = HOSTILE.format(place=place)
    done = CliRunner().invoke(main, ["book", "--seed", seed])
    assert done.exit_code == 2 and not place.exists()
    with pytest.raises(SystemExit):
        command.main(["--seed", seed])
    assert not place.exists()


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../x"])
def test_a_table_of_contents_names_pages_of_its_own_folder(tmp_path, name):
    (tmp_path / "_toc.yml").write_text(json.dumps({"format": "jb-book", "root": name}))
    with pytest.raises(BookError, match="leads out of the book"):
        chapters(tmp_path)


# --- names on pages -------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def harmless(text: str, scripts: int = 0) -> Page:
    """A page in which no name has become a tag or an attribute, or turns what is around it."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"svg", "iframe", "object", "embed", "base", "form"} - {
            "form" if scripts else ""
        }
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag != "img" or attributes["src"].startswith("data:image/")
    assert sum(tag == "script" for tag, _ in page.tags) == scripts
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
    return page


def test_names_as_they_are_shown():
    for name in NAMES:
        text = shown(name)
        text.encode()
        assert len(text) == len(name) and not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert shown("日本 é <b>") == "日本 é <b>"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two class folders and all their pictures with hostile names."""
    root = tmp_path_factory.mktemp("photos") / '<svg onload=alert(1)>"'
    for k, kind in enumerate(NAMES[:2]):
        (root / kind).mkdir(parents=True)
        for i, name in enumerate(n for n in NAMES if "\udcff" not in n):
            picture(100 * k + i).save(root / kind / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Small, and of a backbone that the command can build."""
    torch.manual_seed(0)
    net = sc.SiameseNet("resnet18", embed_dim=4, pretrained=False, image_size=64).eval()
    net.save(path := tmp_path_factory.mktemp("model") / "net.safetensors")
    return path


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIAMCAM_CACHE", str(tmp_path / "cache"))


def told(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert not set(done.output) & {"\x1b", "\x07", "\u202e"}
    return done.output


class TestPages:
    @pytest.mark.slow
    def test_report(self, photos, model, tmp_path, own_cache):
        told("evaluate", photos, "--model", model, "-o", tmp_path / "r.html")
        page = harmless((tmp_path / "r.html").read_text("utf-8"))
        assert NAMES[0] in page.text and NAMES[1] in page.text

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["gradcam", "shared"])
    def test_explained_pair(self, photos, model, tmp_path, own_cache, method):
        pair = sorted(photos.rglob("*.png"))[:2]
        words = ["--model", model, "--method", method]
        told("explain", *pair, "-o", tmp_path / "out", *words)
        text = (tmp_path / "out" / "explanation.html").read_text("utf-8")
        page = harmless(text, scripts=2 if method == "gradcam" else 0)
        assert shown(pair[0].name).split()[0] in page.text
        record = json.loads((tmp_path / "out" / "explanation.json").read_text("utf-8"))
        assert record["images"]["a"]["file"] == str(pair[0])

    @pytest.mark.slow
    def test_explorer_of_a_folder(self, photos, model, tmp_path, own_cache):
        told("gallery", photos, "-o", tmp_path / "e.html", "--model", model, "--most", 8)
        text = (tmp_path / "e.html").read_text("utf-8")
        harmless(text, scripts=2)
        state = re.search(r'id="siamcam-state">(.*?)</script>', text, re.DOTALL)[1]
        assert "<" not in state and json.loads(state)["traits"]["data"]["images"]

    def test_names_that_are_no_unicode(self, tmp_path):
        made = sc.Gallery.embed(network(), [picture(k) for k in range(2)], progress=False)
        file = made.widget(names=NAMES[-2:]).to_html(tmp_path / "e.html", title=NAMES[-2])
        text = file.read_text("utf-8")
        harmless(text, scripts=2)
        assert html.escape(shown(NAMES[-2])) in text

    def test_league_table(self, tmp_path):
        evil = NAMES[0]
        row = {"explainer": evil, "measure": evil, "higher": True, "mean": 0.2, "low": 0.1,
               "high": 0.3, "seconds": 0.01}  # fmt: skip
        explorer = league_table({evil: pd.DataFrame([row])})
        text = explorer.to_html(tmp_path / "l.html", title=evil).read_text("utf-8")
        harmless(text, scripts=2)
        assert html.escape(evil) in text

    def test_scripts_of_explorers_make_no_tags_of_names(self):
        """Where HTML is written as text, no name is among what is put in."""
        folder = ROOT / "siamcam_lib" / "widgets"
        for path in folder.glob("*.js"):
            text = path.read_text("utf-8")
            assert not re.search(r"outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
            for template in re.findall(r"innerHTML\s*=\s*`(.*?)`;", text, re.DOTALL):
                parts = re.findall(r"\$\{([^{}]*)", template)
                assert not [x for x in parts if re.search(r"\b(names?|classes|items)\b(?!\})", x)
                            and path.name != "loss.js"], path.name  # fmt: skip


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))"])
@pytest.mark.parametrize("where", ["folder", "class", "picture"])
def test_the_book_takes_no_name_that_a_page_could_take_for_html(tmp_path, name, where):
    """Chapters put names into Markdown, where they would be tags."""
    top, kind, file = (name if where == w else w for w in ("folder", "class", "picture"))
    for k, c in enumerate((kind, "other")):
        (tmp_path / top / c).mkdir(parents=True)
        for i in range(2):
            picture(2 * k + i).save(tmp_path / top / c / f"{file if k == i == 0 else i}.png")
    root = book(tmp_path / "book", "data")
    with pytest.raises(BookError, match="Rename"):
        run_chapters(root, tmp_path / "stage", data=tmp_path / top)
    assert not (tmp_path / "stage").exists()


# --- servers --------------------------------------------------------------------------------------


def command_of_lab() -> list[str]:
    """What `make lab` runs."""
    text = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"^lab:.*?\n((?:\t.*\n)+)", text, re.MULTILINE)[1]
    recipe = re.sub(r"\$\(if .*\)", "", recipe.replace("$(CURDIR)", str(ROOT)))
    return shlex.split(recipe.replace("\\\n", " ").strip().lstrip("@"))


def test_jupyterlab_is_started_on_loopback_with_its_token():
    words = command_of_lab()
    assert "--ip=127.0.0.1" in words
    forbidden = re.compile(r"token|password|allow_origin|allow_remote|check_xsrf|0\.0\.0\.0")
    assert not [word for word in words if forbidden.search(word)]


def test_no_other_server_is_started():
    for path in [*ROOT.glob("siamcam_lib/**/*.py"), ROOT / "Makefile"]:
        text = path.read_text("utf-8")
        assert not re.search(r"http\.server|socketserver|ThreadingHTTPServer|0\.0\.0\.0|\.listen\(",
                             text), path  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_jupyterlab_answers_nobody_without_the_token(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = command_of_lab()
    command = [sys.executable, *words[words.index("-m") :], f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--no-browser", "--allow-root"]
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {name: str(tmp_path / name) for name in places}
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        for path in ("api/contents", "api/kernels", "api/terminals"):
            assert answer(process, f"http://127.0.0.1:{port}/{path}", tmp_path / "log") == 403
        token = re.search(r"token=([0-9a-f]{40,})", (tmp_path / "log").read_text())[1]
        assert answer(process, f"http://127.0.0.1:{port}/api/contents?token={token}",
                      tmp_path / "log") == 200  # fmt: skip
        inside = Path("/proc/net/tcp")
        if inside.exists():  # who else could reach it: the address that is listened to
            rows = [x.split() for x in inside.read_text().splitlines()[1:]]
            here = [row[1] for row in rows if row[3] == "0A"]
            assert f"0100007F:{port:04X}" in here and f"00000000:{port:04X}" not in here
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answer(process: subprocess.Popen, url: str, log: Path) -> int:
    """The status of an address, once somebody answers there."""
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=10) as found:
                return found.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


def test_the_policy_is_written_down():
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    for word in ("pickle", "safetensors", "127.0.0.1", "escape", "private security advisor"):
        assert word in text, word
    assert not re.search(r"[\w.]+@[\w.]+\.\w+", text)  # nobody's address is made up


@pytest.mark.parametrize("path", ["../outside.ipynb", "a/../../outside.ipynb", "/outside.ipynb"])
def test_a_record_of_runs_names_nothing_outside_its_folder(tmp_path, path):
    run = {"name": "a", "path": path, "seconds": 1.0, "executed": True, "parameters": {}}
    (tmp_path / "runs.json").write_text(json.dumps([run]))
    with pytest.raises(BookError, match="leads out"):
        recorded_runs(tmp_path)
