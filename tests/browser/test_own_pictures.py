"""A reader's own pictures in a page: what the page makes of them is what Python makes of them."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import siamcam_lib as sc
from benchmarks.browser import GRAPHICS, start
from siamcam_lib import portable
from siamcam_lib.datasets.images import as_image
from siamcam_lib.embedder import as_explainable
from siamcam_lib.gallery import Gallery
from siamcam_lib.widgets import own

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LOAD = ".siamcam-load button"
STATUS = ".siamcam-status"
EVIL = "<img src=x onerror=alert(1)>.png"


# What a worker's text begins with in these tests: something is not there.
WORKERS_WITHOUT = """() => {{
  const Known = Blob;
  globalThis.Blob = class extends Known {{
    constructor(parts, options) {{
      super(options?.type === "text/javascript" ? ['{text}', ...parts] : parts, options);
    }}
  }};
}}"""
NO_CARD_IN_WORKERS = WORKERS_WITHOUT.format(
    text='Object.defineProperty(navigator, "gpu", { value: undefined });'
)
NO_MEMORY_IN_WORKERS = WORKERS_WITHOUT.format(
    text='globalThis.OffscreenCanvas = class { constructor() { throw new RangeError("memory"); } };'
)


def trained(seed: int, size: int = 224, **options: object) -> sc.SiameseNet:
    """A network whose scores spread over (0, 1), which is all that these tests ask of it."""
    torch.manual_seed(seed)
    net = sc.SiameseNet(image_size=size, **options).eval()
    torch.nn.init.constant_(net.output.weight, 6.0)
    torch.nn.init.constant_(net.output.bias, -3.0)
    net.threshold = 0.5
    return net


@pytest.fixture(scope="module")
def nets() -> dict[str, sc.SiameseNet]:
    return {"flowers": trained(0), "rooms": trained(1, size=192, embed_dim=64)}


@pytest.fixture(scope="module")
def gal(nets) -> Gallery:
    images = sc.datasets.load("scenes/flowers", n=10).subset(range(4))
    return Gallery.embed(nets["flowers"], images, progress=False)


@pytest.fixture(scope="module")
def book(gal, nets, write_linked, tmp_path_factory) -> Path:
    """A page as the book has it, with three models beside it."""
    folder = tmp_path_factory.mktemp("book")
    page = write_linked([gal.widget(pair=(0, 1))], folder)
    offers = [portable.untrained(), *(portable.offer(net, name) for name, net in nets.items())]
    own.write(folder / "models", offers)
    script = '<script defer src="models/models.js"></script>'
    text = page.read_text("utf-8")
    page.write_text(text.replace("<head>", f"<head>{script}"), encoding="utf-8")
    return folder


@pytest.fixture
def page(book, serve, opened) -> Callable[..., AbstractContextManager]:
    """Opens the page over http; `folder` another one than the book's."""
    import contextlib

    @contextlib.contextmanager
    def open_page(folder: Path = book, **options: object):
        with serve(folder) as address, opened(f"{address}/page.html", address, **options) as here:
            yield here

    return open_page


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A photograph in little: 300 by 200 pixels, nothing about it symmetric."""
    image = sc.datasets.load("scenes/flowers", n=10).image(7).resize((300, 200))
    ImageDraw.Draw(image).polygon([(10, 10), (90, 20), (20, 120)], fill=(200, 30, 40))
    return image


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return written(image, "JPEG", quality=92, exif=exif)


def see_through(image: Image.Image) -> Image.Image:
    alpha = Image.linear_gradient("L").resize(image.size)
    return Image.merge("RGBA", (*image.split(), alpha))


def deep(image: Image.Image) -> Image.Image:
    """Sixteen bits of grey, of which the lower eight say something too."""
    grey = np.asarray(image.convert("L"), np.uint16)
    return Image.fromarray(grey * 256 + 255 - grey)


# What a reader may have; the first six lose nothing, so that the same numbers reach the network.
FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "plain.png": lambda i: written(i, "PNG"),
    "grey.png": lambda i: written(i.convert("L"), "PNG"),
    "palette.png": lambda i: written(i.quantize(64), "PNG"),
    "plain.bmp": lambda i: written(i, "BMP"),
    "lossless.webp": lambda i: written(i, "WEBP", lossless=True),
    "moving.gif": lambda i: written(
        i.quantize(64), "GIF", save_all=True, append_images=[i.rotate(180).quantize(64)]
    ),
    "photo.jpg": lambda i: written(i, "JPEG", quality=92),
    "progressive.jpg": lambda i: written(i, "JPEG", quality=85, progressive=True),
    "turned6.jpg": lambda i: turned(i, 6),
    "turned3.jpg": lambda i: turned(i, 3),
    "turned5.jpg": lambda i: turned(i, 5),
    "deep.png": lambda i: written(deep(i), "PNG"),
    "glass.png": lambda i: written(see_through(i), "PNG"),
    "tiny.png": lambda i: written(i.resize((31, 17)), "PNG"),
    "large.jpg": lambda i: written(i.resize((2400, 1600)), "JPEG", quality=90),
}
EXACT = list(FORMATS)[:6]


def give(here, side: int, name: str, data: bytes) -> None:
    """Choose a file for a side."""
    file = {"name": name, "mimeType": "", "buffer": data}
    here.page.locator(".siamcam-drop input").nth(side).set_input_files(file)


def load(here, model: str | None = None) -> None:
    if model is not None:
        here.page.locator(".siamcam-load select").select_option(model)
    if here.page.locator(LOAD).is_visible() and here.page.locator(LOAD).is_enabled():
        here.page.locator(LOAD).click()
    here.page.get_by_text("The model is loaded").wait_for()


def told(here, text: str) -> None:
    here.page.locator(STATUS).get_by_text(text).wait_for()


class TestTheSameAsPython:
    def test_scores_decisions_and_maps_of_every_format(self, page, gal, nets, scene):
        """Against the first picture of the gallery, whose map travelled with the page."""
        wrong, far = {}, {}
        with page() as here:
            load(here)
            for name, make in FORMATS.items():
                give(here, 1, name, make(scene))
                told(here, f"B is now {name}")
                seen = here.seen()
                truth = sc.explain(nets["flowers"], gal.image(0), io.BytesIO(make(scene)))
                far[name] = abs(seen["dissimilarity"] - truth.dissimilarity)
                for found, expected in zip(seen["raw"], truth.raw, strict=True):
                    share = np.abs(found - expected.ravel()).max() / np.abs(expected).max()
                    if share > (2e-3 if name in EXACT else 5e-2):
                        wrong[name] = share
                assert seen["decision"] == truth.decision, name
                assert seen["a"] == 0
                assert seen["b"] is None
        assert wrong == {}
        assert {name: y for name, y in far.items() if y > (1e-4 if name in EXACT else 1e-2)} == {}

    def test_two_pictures_by_every_model(self, page, nets, scene):
        other = scene.transpose(Image.Transpose.ROTATE_90)
        every = {portable.UNTRAINED: sc.Embedder.imagenet(), **nets}
        with page() as here:
            load(here)
            give(here, 0, "one.png", FORMATS["plain.png"](scene))
            told(here, "A is now one.png")
            give(here, 1, "two.png", FORMATS["plain.png"](other))
            told(here, "B is now two.png")
            for name, net in every.items():
                load(here, name)
                truth = sc.explain(net, scene, other)
                here.page.locator(f"output:text('{truth.dissimilarity:.3f}')").wait_for()
                seen = here.seen()
                assert abs(seen["dissimilarity"] - truth.dissimilarity) < 1e-4
                assert seen["threshold"] == pytest.approx(truth.threshold)
                assert tuple(seen["shape"]) == truth.raw[0].shape
                for found, expected in zip(seen["raw"], truth.raw, strict=True):
                    assert np.abs(found - expected.ravel()).max() < 2e-3 * np.abs(expected).max()

    def test_gallery_pictures_are_looked_at_anew_by_another_model(self, page, gal, nets):
        with page() as here:
            load(here, "rooms")
            seen = here.seen()
            truth = sc.explain(nets["rooms"], gal.image(0), gal.image(1))
            # as the page shows them: JPEG
            assert abs(seen["dissimilarity"] - truth.dissimilarity) < 2e-2
            assert tuple(seen["shape"]) == truth.raw[0].shape

    def test_a_thumbnail_takes_the_place_of_an_own_picture(self, page, gal, scene):
        with page() as here:
            load(here)
            give(here, 0, "one.png", FORMATS["plain.png"](scene))
            told(here, "A is now one.png")
            assert here.seen()["a"] is None
            here.page.locator(".siamcam-strip").nth(0).locator("[role=option]").nth(0).click()
            here.page.wait_for_function("document.querySelector('.siamcam').__siamcam.a === 0")
            truth = gal.explain(0, 1)
            assert here.seen()["dissimilarity"] == pytest.approx(truth.dissimilarity, abs=1e-5)

    @pytest.mark.parametrize("after", [0, 2])
    def test_the_menu_names_the_own_picture_until_another_is_chosen(self, page, scene, after):
        """Also when the gallery's picture that stood there before is chosen again."""
        with page() as here:
            load(here)
            menu = here.page.locator(".siamcam-controls select").nth(0)
            names = menu.locator("option").all_inner_texts()
            for name in ("one.png", EVIL):  # the second takes the place of the first
                give(here, 0, name, FORMATS["plain.png"](scene))
                told(here, f"A is now {name}")
                assert menu.locator("option").all_inner_texts() == [*names, name]
                assert menu.locator("option:checked").inner_text() == name
            menu.select_option(index=after)
            shown = "document.querySelector('.siamcam').__siamcam.a"
            here.page.wait_for_function(f"{shown} === {after}")
            assert menu.locator("option").all_inner_texts() == names
            assert menu.locator("option:checked").inner_text() == names[after]

    def test_it_was_resized_as_pillow_does(self, page, scene):
        """Sizes that shrink, grow, and both: the pixels themselves, by the worker's own code."""
        sizes = [(300, 200), (31, 17), (224, 500), (640, 224), (223, 225), (1, 1)]
        sizes += [(5, 900), (300, 376), (300, 377)]  # where Pillow begins with the other side
        run = """async ([text, data, side]) => {
          const url = URL.createObjectURL(new Blob([text + `
            onmessage = async ({ data: [bytes, side] }) => {
              const { pixels } = await squared(new Blob([bytes]), side, 64);
              postMessage(Array.from(pixels, (v) => Math.round(255 * v)));
            };`], { type: "text/javascript" }));
          const worker = new Worker(url);
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          return new Promise((done) => {
            worker.onmessage = ({ data }) => { worker.terminate(); done(data); };
            worker.postMessage([bytes, side]);
          });
        }"""
        from siamcam_lib.widgets.base import source

        functions = source("base.js", "worker.js").partition("const WORKER")[0]
        with page() as here:
            for size in sizes:
                image = scene.resize(size)
                data = base64.b64encode(written(image, "PNG")).decode()
                found = np.array(here.page.evaluate(run, [functions, data, 224]))
                expected = np.array(image.resize((224, 224), Image.Resampling.BICUBIC))
                np.testing.assert_array_equal(
                    found.reshape(3, 224, 224), expected.transpose(2, 0, 1)
                )


class TestTheReader:
    def test_nothing_is_loaded_before_it_is_asked_for(self, page):
        asked = []
        with page() as here:
            here.page.on("request", lambda r: asked.append(r.url))
            here.page.locator(".siamcam-strip").nth(0).locator("[role=option]").nth(2).click()
            here.page.wait_for_function("document.querySelector('.siamcam').__siamcam.a === 2")
            assert [url for url in asked if ".bin" in url] == []
            assert "MB)" in here.page.locator(LOAD).text_content()
            load(here)
            assert len([url for url in asked if ".bin" in url]) == 4

    def test_the_button_says_how_much_and_a_second_model_only_adds_its_head(self, page, book):
        manifest = (book / "models" / "models.js").read_text("utf-8")
        known = json.loads(manifest.rpartition("announce(")[2].partition(");\n")[0])
        sizes = {m["name"]: m["head"] and m["head"]["bytes"] for m in known["models"]}
        assert sizes[portable.UNTRAINED] is None
        total = sum(p["bytes"] for p in known["runtimes"]["wasm"].values())
        total += known["backbones"][known["models"][1]["backbone"]]["bytes"] + sizes["flowers"]
        with page() as here:
            assert f"({round(total / 1e6)} MB)" in here.page.locator(LOAD).text_content()
            load(here)
            here.page.locator(".siamcam-load select").select_option(portable.UNTRAINED)
            here.page.locator(LOAD).wait_for(state="hidden")

    def test_a_model_with_another_backbone_waits_for_its_button(self, page):
        with page() as here:
            load(here)
            before = here.seen()
            here.page.locator(".siamcam-load select").select_option("rooms")
            here.page.locator(LOAD).get_by_text("MB)").wait_for()
            assert here.seen()["dissimilarity"] == before["dissimilarity"]
            here.page.locator(LOAD).click()
            here.page.wait_for_function(
                "document.querySelector('.siamcam').__siamcam.shape[0] === 6"
            )

    def test_only_with_the_keyboard(self, page, violations, scene):
        with page() as here:
            opened = []  # listened for from the beginning: Chromium takes its time to begin telling
            here.page.on("filechooser", lambda chooser: opened.append(chooser))
            here.page.locator(LOAD).focus()
            here.page.keyboard.press("Enter")
            here.page.get_by_text("The model is loaded").wait_for()
            inputs = here.page.locator(".siamcam-drop input")
            inputs.nth(0).focus()
            with here.page.expect_file_chooser() as chooser:
                here.page.keyboard.press("Enter")
            file = {"name": "a.png", "mimeType": "image/png", "buffer": written(scene, "PNG")}
            chooser.value.set_files(file)
            told(here, "A is now a.png")
            assert len(opened) == 1
            assert violations(here.page, ".siamcam-explorer") == []
            labels = [inputs.nth(k).evaluate("(i) => i.labels[0].textContent") for k in (0, 1)]
            assert all(side in label for side, label in zip("AB", labels, strict=True))

    @pytest.mark.parametrize("width", [320, 390])
    def test_on_a_telephone(self, page, scene, width):
        with page(width=width) as here:
            load(here)
            give(here, 0, f"{'long name ' * 8}.png", written(scene, "PNG"))
            told(here, "A is now long name")
            assert not here.overflows()

    def test_dropped_and_pasted(self, page, scene):
        data = base64.b64encode(written(scene, "PNG")).decode()
        hand = """([selector, k, kind, name, data]) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const held = new DataTransfer();
          held.items.add(new File([bytes], name, { type: "image/png" }));
          const event = kind === "drop"
            ? new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: held, bubbles: true, cancelable: true });
          document.querySelectorAll(selector)[k].dispatchEvent(event);
        }"""
        with page() as here:
            load(here)
            canvas = ".siamcam-sheet canvas"
            here.page.evaluate(hand, [canvas, 1, "drop", "dropped.png", data])
            told(here, "B is now dropped.png")
            here.page.evaluate(hand, ["body", 0, "paste", "pasted.png", data])
            told(here, "A is now pasted.png")
            assert here.seen()["dissimilarity"] < 0.06  # of one and the same picture

    def test_what_is_given_before_the_model_waits_for_it(self, page, scene):
        with page() as here:
            hand = """(data) => {
              const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
              const held = new DataTransfer();
              held.items.add(new File([bytes], "early.png", { type: "image/png" }));
              document.querySelector(".siamcam-sheet").dispatchEvent(
                new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true }));
            }"""
            here.page.evaluate(hand, base64.b64encode(written(scene, "PNG")).decode())
            told(here, "early.png waits")
            here.page.locator(LOAD).click()
            told(here, "A is now early.png")
            assert here.seen()["a"] is None

    def test_a_hostile_name_stays_a_name(self, page, scene):
        with page() as here:
            load(here)
            give(here, 0, EVIL, written(scene, "PNG"))
            here.page.locator(".siamcam-name").nth(0).get_by_text(EVIL).wait_for()
            assert here.page.locator(".siamcam-explorer img").count() == 0

    def test_the_result_is_saved_as_picture_and_as_numbers(self, page, gal, nets, scene, tmp_path):
        source = tmp_path / "mine.jpg"
        source.write_bytes(FORMATS["turned6.jpg"](scene))
        with page() as here:
            load(here)
            give(here, 1, "mine.jpg", source.read_bytes())
            told(here, "B is now mine.jpg")
            for kind, name in {"picture": "p.png", "numbers (JSON)": "n.json"}.items():
                with here.page.expect_download() as saved:
                    here.page.get_by_role("button", name=f"save as {kind}").click()
                saved.value.save_as(tmp_path / name)
        poster = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"), float)
        assert poster.std() > 20
        assert poster.shape[1] == 1008
        read = sc.Explanation.open(tmp_path / "n.json", gal.image(0), source)
        truth = sc.explain(nets["flowers"], gal.image(0), source)
        assert read.decision == truth.decision
        assert read.dissimilarity == pytest.approx(truth.dissimilarity, abs=1e-2)
        assert read.factual[1].shape == truth.factual[1].shape  # upright
        assert read._repr_png_()[:4] == b"\x89PNG"


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "data", "words"),
        [
            ("notes.jpg", b"these are words", "no picture that this browser can read"),
            ("empty.png", b"", "is empty"),
            ("cut.png", None, "no picture that this browser can read"),
            ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "such as HEIC"),
            ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture that"),
        ],
    )
    def test_what_is_no_picture_gets_a_kind_word(self, page, scene, name, data, words):
        data = written(scene, "PNG")[:2000] if data is None else data
        with page() as here:
            load(here)
            before = here.seen()["dissimilarity"]
            give(here, 0, name, data)
            told(here, words)
            assert here.seen()["dissimilarity"] == before
            give(here, 0, "good.png", written(scene, "PNG"))  # nothing is dead
            told(here, "A is now good.png")

    def test_forty_megapixels_are_looked_at_and_a_hundred_and_one_refused(self, page):
        stripes = Image.new("1", (8000, 5000))
        stripes.paste(1, (0, 0, 4000, 2500))
        with page() as here:
            load(here)
            give(here, 0, "forty.png", written(stripes, "PNG"))
            told(here, "A is now forty.png")
            give(here, 1, "vast.png", written(Image.new("1", (10_100, 10_000)), "PNG"))
            told(here, "vast.png")
            here.page.get_by_text("Make it smaller").or_(
                here.page.get_by_text("no picture that this browser can read")
            ).wait_for()
            assert (here.seen()["a"], here.seen()["b"]) == (None, 1)

    def test_a_browser_that_runs_out_of_memory_is_told_so(self, page, scene):
        with page() as here:
            here.page.evaluate(NO_MEMORY_IN_WORKERS)
            load(here)
            give(here, 0, "huge.png", written(scene, "PNG"))
            told(here, "huge.png needs more memory than this browser gives a page")
            assert "judged" in here.page.locator(".siamcam-verdict").text_content()

    def test_a_browser_without_webassembly_is_told_so(self, book, serve, browser):
        context = browser.new_context()
        page = context.new_page()
        page.add_init_script("delete globalThis.WebAssembly")
        with serve(book) as address:
            page.goto(f"{address}/page.html")
            page.locator(LOAD).click()
            page.locator(STATUS).get_by_text("has no WebAssembly").wait_for()
            assert "judged" in page.locator(".siamcam-verdict").text_content()
        context.close()

    def test_a_missing_file_of_the_model_is_told(self, book, serve, browser, tmp_path):
        folder = tmp_path / "book"
        shutil.copytree(book, folder)
        for file in folder.glob("models/backbone-*.bin"):
            file.unlink()
        context = browser.new_context()
        page = context.new_page()
        with serve(folder) as address:
            page.goto(f"{address}/page.html")
            page.locator(LOAD).click()
            page.locator(STATUS).get_by_text("has no file backbone").wait_for()
            assert page.locator(LOAD).is_enabled()  # to try again
        context.close()

    @pytest.mark.parametrize("kind", ["backbone", "head"])
    def test_an_altered_file_is_not_used_and_not_kept(self, book, page, tmp_path, kind):
        folder = tmp_path / "book"
        shutil.copytree(book, folder)
        whole = {file: file.read_bytes() for file in folder.glob(f"models/{kind}-*.bin")}
        for file, data in whole.items():
            middle = len(data) // 2
            file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with page(folder) as here:
            here.page.locator(".siamcam-load select").select_option("flowers")
            here.page.locator(LOAD).click()
            told(here, "damaged or altered")
            assert here.page.locator(LOAD).is_enabled()  # to try again
            for file, data in whole.items():
                file.write_bytes(data)
            here.page.locator(LOAD).click()  # what the browser kept is not asked again
            told(here, "The model is loaded")

    def test_a_page_from_disk_says_how_to_serve_it(self, book, opened):
        with opened((book / "page.html").as_uri(), "file:") as here:
            here.page.locator(LOAD).click()
            told(here, "python -m http.server")
            assert "judged" in here.page.locator(".siamcam-verdict").text_content()


class TestGraphicsCard:
    """By a computed one, which stands for a real one."""

    REAL = """Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter",
      { get: () => false })"""

    @pytest.fixture
    def card(self, book, serve, browser):
        chromium = start(browser.browser_type, GRAPHICS)
        asked, page = [], chromium.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda r: asked.append(r.url.rpartition("/")[2]))
        with serve(book) as address:
            yield page, f"{address}/page.html", asked
        chromium.close()

    def test_it_gives_the_same_scores(self, card, as_opened, gal, nets, scene):
        page, address, asked = card
        page.add_init_script(self.REAL)
        page.goto(address)
        here = as_opened(page)
        page.locator(LOAD).click()
        page.get_by_text("The model is loaded").wait_for()
        assert [name for name in asked if name.startswith("webgpu-machine")]
        assert not [name for name in asked if name.startswith("wasm-machine")]
        give(here, 1, "one.png", FORMATS["plain.png"](scene))
        told(here, "B is now one.png")
        seen, truth = here.seen(), sc.explain(nets["flowers"], gal.image(0), scene)
        assert seen["decision"] == truth.decision
        assert abs(seen["dissimilarity"] - truth.dissimilarity) < 1e-3
        for found, expected in zip(seen["raw"], truth.raw, strict=True):
            assert np.abs(found - expected.ravel()).max() < 1e-2 * np.abs(expected).max()

    def test_one_that_fails_is_not_needed(self, card, as_opened, scene):
        page, address, asked = card
        page.add_init_script(self.REAL)
        page.goto(address)
        page.evaluate(NO_CARD_IN_WORKERS)
        page.locator(LOAD).click()
        page.get_by_text("The model is loaded").wait_for()
        assert [name for name in asked if name.startswith("wasm-machine")]
        here = as_opened(page)
        give(here, 1, "one.png", FORMATS["plain.png"](scene))
        told(here, "B is now one.png")

    def test_a_computed_one_is_left_alone(self, card):
        page, address, asked = card
        page.goto(address)
        page.evaluate("navigator.gpu.requestAdapter()")
        page.locator(LOAD).click()
        page.get_by_text("The model is loaded").wait_for()
        assert not [name for name in asked if name.startswith("webgpu-machine")]


class TestFileOfItsOwn:
    def test_one_file_from_disk_compares_pictures(self, gal, nets, opened, scene, tmp_path):
        file = gal.to_html(tmp_path / "mine.html", model=True)
        other = scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        with opened(file.as_uri(), "file:") as here:
            load(here)
            give(here, 0, "one.png", FORMATS["plain.png"](scene))
            told(here, "A is now one.png")
            give(here, 1, "two.png", FORMATS["plain.png"](other))
            told(here, "B is now two.png")
            seen = here.seen()
        truth = sc.explain(nets["flowers"], scene, other)
        assert abs(seen["dissimilarity"] - truth.dissimilarity) < 1e-4
        for found, expected in zip(seen["raw"], truth.raw, strict=True):
            assert np.abs(found - expected.ravel()).max() < 2e-3 * np.abs(expected).max()

    def test_without_a_model_it_offers_none(self, gal, opened, tmp_path):
        file = gal.to_html(tmp_path / "plain.html")
        with opened(file.as_uri(), "file:") as here:
            assert here.page.locator(".siamcam-own").count() == 0


def test_the_head_in_half_precision_moves_no_score_that_can_be_seen(nets):
    images = sc.datasets.load("scenes/flowers", n=40)
    for net in nets.values():
        one = portable.offer(net, "one")
        seeing = as_explainable(net)
        seen = seeing.see([as_image(images.image(i)) for i in range(12)])
        half = np.frombuffer(one.head, "<f2", one.about["units"] * one.about["channels"])
        weight = torch.from_numpy(half.astype("<f4").reshape(one.about["units"], -1))
        near = type(seen.head)(weight, seen.head.bias, True).embed(seen.maps)
        scores = [seeing.compare(e[:6], e[6:]).dissimilarity for e in (seen.embedding, near)]
        assert (scores[0] - scores[1]).abs().max() < 1e-3
