"""The pair explorer in a browser: what it computes and draws is what Python computes and draws."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import siamcam_lib as sc
from siamcam_lib import plots
from siamcam_lib.explanation import stretch
from siamcam_lib.gallery import Gallery
from siamcam_lib.widgets import pair_explorer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

COMPARISONS = {
    "plain": {"comparison": "siamese", "unit": False, "slope": 2.0, "offset": -3.0},
    "unit": {"comparison": "siamese", "unit": True, "slope": 5.0, "offset": -3.0},
    "saturated": {"comparison": "siamese", "unit": False, "slope": 900.0, "offset": 30.0},
    "cosine": {"comparison": "cosine"},
    "l2": {"comparison": "l2"},
    "clamped": {"comparison": "clamped"},
}
KINDS = ("factual", "counterfactual", "shared", "self")
TIMES = "() => Number(document.querySelector('.siamcam').dataset.drawn)"


@pytest.fixture(scope="module")
def gal() -> Gallery:
    """Eight pictures of several shapes, two of them the same."""
    scenes = sc.datasets.load("scenes/flowers", n=10)
    whole = [scenes.image(i) for i in range(7)]
    shapes = [(224, 224), (224, 130), (100, 224), (224, 224), (90, 60), (224, 200), (224, 224)]
    images = [image.crop((0, 0, *shape)) for image, shape in zip(whole, shapes, strict=True)]
    torch.manual_seed(0)
    net = sc.SiameseNet(image_size=160)
    return Gallery.embed(net, [*images, images[0]], progress=False)


def compared(gal: Gallery, how: str) -> Gallery:
    """The same images compared otherwise, with a threshold in the middle of their scores."""
    table = gal._table | {"settings": COMPARISONS[how]}
    other = Gallery(gal._rows, table, gal._images)
    y = [other.explain(i, j).dissimilarity for i in range(4) for j in range(i)]
    other.threshold = float(np.clip(np.median(y), 0.011, 0.989))
    return other


@pytest.fixture(scope="module")
def files(gal, write_alone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explorers")
    for how in COMPARISONS:
        write_alone(pair_explorer(compared(gal, how)), folder / f"{how}.html", "Pairs")
    return folder


@pytest.fixture
def alone(opened, files):
    """The explorer in a file of its own, opened as a file."""
    with opened((files / "unit.html").as_uri(), "file:") as here:
        yield here


@pytest.fixture(scope="module")
def unit(gal) -> Gallery:
    return compared(gal, "unit")


def close(found, expected, share: float = 1e-3) -> bool:
    """Whether maps agree to a share of their greatest value."""
    found, expected = np.asarray(found), np.asarray(expected).ravel()
    return bool(np.abs(found - expected).max() <= share * np.abs(expected).max() + 1e-300)


def expected(gal: Gallery, i: int, j: int, kind: str, threshold: float, sizes):
    """Raw maps, upsampled maps and end of the shared colour scale, as Python has them."""
    method = kind if kind in ("shared", "self") else "gradcam"
    ex = gal.explain(i, j, method=method, threshold=threshold)
    sign = 1.0
    if method == "gradcam" and (ex.decision == "similar") != (kind == "factual"):
        sign = -1.0
    full = [stretch(torch.from_numpy(sign * m), s) for m, s in zip(ex.raw, sizes, strict=True)]
    ends = [np.abs(m).max() if method == "gradcam" else m.max() for m in full]
    return ex, full, max(0.0, *map(float, ends))


def picture_sizes(gal: Gallery, *ids: int) -> list[tuple[int, int]]:
    return [gal.image(i).size for i in ids]  # none is larger than what travels


def check_place(here, gal: Gallery, pair, table: np.ndarray, side: int, row: int, column: int):
    """Point at a place of one image: the other shows what `Gallery.correspondence` says of it."""
    h, w = table.shape[:2] if side == 0 else table.shape[2:]
    canvas = here.page.locator(".siamcam canvas").nth(side)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    here.page.mouse.move(
        box["x"] + box["width"] * (column + 0.5) / w,
        box["y"] + box["height"] * (row + 0.5) / h,
    )
    seen = here.seen()
    assert seen["place"] == {"side": side, "p": row * w + column}
    answer = table[row, column] if side == 0 else table[:, :, row, column]
    assert close(seen["answer"], answer)
    size = picture_sizes(gal, *pair)[1 - side]
    assert close(seen["full"][1 - side], stretch(torch.from_numpy(answer), size))
    words = here.page.locator(".siamcam-words").inner_text()
    best = np.unravel_index(answer.argmax(), answer.shape)
    assert words.startswith(f"row {row + 1}, column {column + 1} of image {'AB'[side]}")
    if answer.max() > 0:
        assert f"most at row {best[0] + 1}, column {best[1] + 1} in" in words


def check_pictures(here, gal: Gallery, seen: dict, opacity: float):
    """Each canvas shows the heatmap that was computed, over the picture in grey."""
    images = pair_explorer(gal).view.data["images"]
    for side, k in enumerate((seen["a"], seen["b"])):
        found = here.pixels(side)
        url = images[k]["picture"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as jpeg:
            grey = np.asarray(jpeg.convert("L"), float)[:, :, None]
        share = np.clip(np.array(seen["full"][side]) / seen["top"][side], 0, 1)
        share = share.reshape(grey.shape)
        colour = 255 * matplotlib.colormaps[plots.HEAT](share[:, :, 0])[:, :, :3]
        alpha = opacity * share
        wanted = (1 - alpha) * grey + alpha * colour
        assert found.shape == (*grey.shape[:2], 4)
        assert (found[:, :, 3] == 255).all()
        # decoders of JPEG may differ by a little; a colour at the edge of two by one step
        difference = np.abs(found[:, :, :3] - wanted)
        assert difference.mean() < 1 and np.quantile(difference, 0.999) < 8


@pytest.mark.parametrize("how", COMPARISONS)
def test_scores_and_maps_are_pythons(opened, files, gal, how):
    other = compared(gal, how)
    threshold = other.threshold
    decisions = set()
    with opened((files / f"{how}.html").as_uri(), "file:") as here:
        assert here.seen()["threshold"] == threshold
        for i, j in [(0, 1), (1, 0), (4, 2), (5, 3), (2, 6)]:
            for k, kind in enumerate(KINDS):
                seen = here.put(a=i, b=j, map=k)
                ex, full, top = expected(other, i, j, kind, threshold, picture_sizes(other, i, j))
                assert (seen["a"], seen["b"], seen["kind"]) == (i, j, kind)
                assert seen["dissimilarity"] == pytest.approx(ex.dissimilarity, rel=1e-9)
                assert seen["similarity"] == pytest.approx(ex.similarity, rel=1e-6)
                assert seen["decision"] == ex.decision
                decisions.add(ex.decision)
                for side in range(2):
                    assert close(seen["raw"][side], ex.raw[side]), (how, i, j, kind)
                    assert close(seen["full"][side], full[side]), (how, i, j, kind)
                assert np.allclose(seen["top"], top, rtol=1e-3, atol=0)
    assert how in ("saturated", "clamped") or decisions == {"similar", "dissimilar"}


@pytest.mark.parametrize("how", ["plain", "unit", "cosine"])
def test_a_place_is_answered_as_in_python(opened, files, gal, how):
    other = compared(gal, how)
    h, w = other._table["shape"][1:]
    table = other.correspondence(1, 5)
    with opened((files / f"{how}.html").as_uri(), "file:") as here:
        here.put(a=1, b=5)
        before = here.seen()
        for side, row, column in [(0, 1, 3), (1, 0, 0), (0, h - 1, w - 1), (1, 2, 1)]:
            check_place(here, other, (1, 5), table, side, row, column)
        here.page.mouse.move(5, 5)
        after = here.seen()
        assert after["place"] is after["answer"] is None and after["top"] == before["top"]
        assert all(map(np.array_equal, after["full"], before["full"]))


@pytest.mark.parametrize("way", ["http", "file"])
def test_the_file_asks_nobody_and_is_quick_to_start(opened, files, serve, way):
    with serve(files) if way == "http" else contextlib.nullcontext("file:") as base:
        url = f"{base}/unit.html" if way == "http" else (files / "unit.html").as_uri()
        with opened(url, base) as here:
            assert here.page.title() == "Pairs"
            assert here.page.locator("[role=option]").count() == 16
            here.page.wait_for_load_state("networkidle")


def test_every_plain_control(alone, unit):
    page = alone.page
    page.get_by_label("image A").first.select_option(index=3)
    page.get_by_label("image B").first.select_option(index=5)
    ex = unit.explain(3, 5)
    seen = alone.seen()
    assert (seen["a"], seen["b"]) == (3, 5)
    assert seen["dissimilarity"] == pytest.approx(ex.dissimilarity, rel=1e-9)
    for name in KINDS[::-1]:
        page.get_by_role("radio", name=name, exact=True).check()
        assert alone.seen()["kind"] == name
    # the threshold decides, and factual turns with it
    raw = np.abs(np.stack(ex.raw)).max()
    slider = pair_explorer(unit).controls["threshold"]
    for key, sign, word in [("Home", -1, "dissimilar"), ("End", 1, "similar")]:
        page.get_by_label("threshold").press(key)
        value = slider.min if key == "Home" else slider.max
        seen = alone.seen()
        assert seen["threshold"] == pytest.approx(value)
        assert seen["decision"] == word
        full = stretch(torch.from_numpy(sign * ex.raw[0]), unit.image(3).size)
        assert np.abs(np.array(seen["full"][0]) - full.ravel()).max() < 1e-3 * raw
        shown = page.locator(".siamcam-verdict").inner_text()
        assert shown == (
            f"judged {word}: dissimilarity {ex.dissimilarity:.3f}, "
            f"similarity {ex.similarity:.3f}, threshold {value:.2f}"
        )
        assert f"evidence for “{word}”" in page.locator(".siamcam-words").inner_text()
    page.get_by_role("radio", name="each its own").check()
    seen = alone.seen()
    assert seen["top"] == [max(0, m.max()) for m in seen["full"]]
    page.get_by_role("radio", name="one for both").check()
    both = alone.seen()["top"]
    assert both[0] == both[1] >= max(seen["top"])


@pytest.mark.parametrize("opacity", [0, 0.5, 0.85])
def test_what_is_drawn_is_the_heatmap_over_the_grey_picture(alone, unit, opacity):
    alone.page.get_by_label("opacity").fill(str(opacity))
    seen = alone.put(a=0, b=1)
    check_pictures(alone, unit, seen, opacity)


def test_the_dot_stays_inside_at_both_ends_of_its_line(alone):
    inside = """(line, y) => {
      line.style.setProperty("--y", y);
      const dot = line.querySelector("b").getBoundingClientRect();
      const all = line.closest(".siamcam-explorer").getBoundingClientRect();
      return all.left <= dot.left && dot.right <= all.right;
    }"""
    line = alone.page.locator(".siamcam-line")
    assert line.evaluate(inside, 0) and line.evaluate(inside, 1)


@pytest.mark.parametrize("pair", [(2, 2), (0, 7)])
def test_identical_images_are_called_blank(alone, unit, pair):
    blank = alone.page.get_by_text("blank: zero everywhere")
    for k, kind in enumerate(KINDS):
        seen = alone.put(a=pair[0], b=pair[1], map=k)
        if pair == (2, 2) or (unit.embeddings[0] == unit.embeddings[7]).all():
            assert blank.nth(0).is_visible() == blank.nth(1).is_visible() == (k < 2)
        if pair == (2, 2) and k < 2:
            assert seen["blank"] == [True, True] and not any(m.any() for m in seen["raw"])
            assert seen["distance"] == 0 and seen["top"] == [0, 0]
            label = alone.page.locator("canvas").first.get_attribute("aria-label")
            assert label.endswith(f"; {kind} map, blank")


def test_the_keyboard_chooses_images_and_places(alone):
    page = alone.page
    page.get_by_role("listbox", name="image B").locator("[aria-selected=true]").focus()
    steps = [("ArrowRight", 2), ("ArrowLeft", 1), ("End", 7), ("ArrowRight", 7), ("Home", 0)]
    for key, expected_b in steps:
        page.keyboard.press(key)
        assert alone.seen()["b"] == expected_b
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
        assert page.get_by_label("image B").first.evaluate("e => e.selectedIndex") == expected_b
    outline = "getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(outline) == "3px"
    # on to the picture: back over list B and list A
    page.locator("canvas").first.focus()
    h, w = 5, 5
    page.keyboard.press("ArrowDown")
    assert alone.seen()["place"] == {"side": 0, "p": (h // 2) * w + w // 2}
    for key, p in [("ArrowLeft", 11), ("ArrowUp", 6), ("ArrowUp", 1), ("ArrowUp", 1)]:
        page.keyboard.press(key)
        assert alone.seen()["place"]["p"] == p
    assert page.locator(".siamcam-cell").first.is_visible()
    assert page.evaluate(outline) == "3px"
    page.keyboard.press("Escape")
    assert alone.seen()["place"] is None
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert alone.seen()["place"] is None


def test_thumbnails_are_chosen_by_a_click(alone):
    for side, k in [(0, 5), (1, 6), (0, 6)]:
        strip = alone.page.get_by_role("listbox").nth(side)
        strip.get_by_role("option").nth(k).click()
        assert alone.seen()["ab"[side]] == k
        assert strip.locator("[aria-selected=true]").get_attribute("aria-label") == f"image {k}"
        assert strip.locator("[tabindex='0']").count() == 1


def test_everything_is_labelled_and_the_score_is_announced(alone):
    unnamed = alone.page.evaluate("""() => [
      ...document.querySelectorAll("input, select, canvas, [role=listbox], [role=option]")
    ].filter((e) => !(e.getAttribute("aria-label") || e.closest("label")?.textContent.trim()))
      .map((e) => e.outerHTML)""")
    assert unnamed == []
    assert alone.page.get_by_role("status").count() == 2
    assert alone.page.get_by_role("group", name="map").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_it_whole_in_light_and_dark(opened, files, scheme):
    url = (files / "unit.html").as_uri()
    with opened(url, "file:", scheme=scheme, width=360) as here:
        assert not here.overflows()
        ground = here.lightness("body", "backgroundColor")
        text = here.lightness(".siamcam-explorer", "color")
        assert (ground > 0.9 and text < 0.3) == (scheme == "light")
        assert abs(ground - text) > 0.6


# --- the same controls as ipywidgets, linked on a page without a kernel, as the book has them -----


@pytest.fixture(scope="module")
def linked_page(unit, write_linked, tmp_path_factory) -> Path:
    return write_linked([pair_explorer(unit)], tmp_path_factory.mktemp("linked")).parent


@pytest.fixture(params=["http", "file"])
def linked(request, opened, linked_page, serve):
    away = request.param == "http"
    with serve(linked_page) if away else contextlib.nullcontext("file:") as base:
        url = f"{base}/page.html" if away else (linked_page / "page.html").as_uri()
        with opened(url, base) as here:
            here.page.wait_for_selector(".widget-toggle-button[aria-pressed=true]")
            yield here


def check_controls(here, gal: Gallery) -> None:
    """Use every control as ipywidgets shows it; what is drawn after each is what Python says."""
    page = here.page
    chosen = {"pair": (0, 1), "kind": "factual", "threshold": gal.threshold, "own": False,
              "opacity": plots.OPACITY}  # fmt: skip

    def holds(use: Callable[[], object] | None = None, **now: object) -> None:
        """After this use of a control, which changes only this choice."""
        drawn = page.evaluate(TIMES)
        if use:
            use()
            page.wait_for_function(f"(times) => ({TIMES})() > times", arg=drawn)
        chosen.update(now)
        seen, (i, j), kind = here.seen(), chosen["pair"], chosen["kind"]
        sizes = picture_sizes(gal, i, j)
        ex, full, top = expected(gal, i, j, kind, chosen["threshold"], sizes)
        assert (seen["a"], seen["b"], seen["kind"]) == (i, j, kind)
        assert seen["threshold"] == pytest.approx(chosen["threshold"])
        assert seen["decision"] == ex.decision
        assert seen["dissimilarity"] == pytest.approx(ex.dissimilarity, rel=1e-9)
        assert all(close(f, e) for f, e in zip(seen["raw"], ex.raw, strict=True))
        assert all(close(f, e) for f, e in zip(seen["full"], full, strict=True))
        tops = [max(0.0, float(m.max())) for m in full] if chosen["own"] else [top, top]
        assert np.allclose(seen["top"], tops, rtol=1e-3, atol=0)
        check_pictures(here, gal, seen, chosen["opacity"])

    def press(slider: str, key: str) -> Callable[[], None]:
        return lambda: page.get_by_role("slider", name=slider).press(key)

    def button(name: str) -> Callable[[], None]:
        return page.get_by_role("button", name=name, exact=True).click

    def select(label: str, index: int) -> Callable[[], object]:
        menu = page.locator(".widget-dropdown", has_text=label).locator("select")
        return lambda: menu.select_option(index=index)

    holds()
    holds(select("image A", 4), pair=(4, 1))
    holds(select("image B", 6), pair=(4, 6))
    thumbnail = page.get_by_role("listbox", name="image B").get_by_role("option").nth(2)
    holds(thumbnail.click, pair=(4, 2))
    holds(lambda: page.keyboard.press("ArrowRight"), pair=(4, 3))  # JupyterLab would change cells
    for kind in KINDS[::-1]:
        holds(button(kind), kind=kind)
        pressed = page.get_by_role("group", name="map").locator("[aria-pressed=true]")
        assert pressed.all_inner_texts() == [kind]
    holds(button("each its own"), own=True)
    holds(press("opacity", "Home"), opacity=0)
    holds(press("opacity", "ArrowRight"), opacity=0.01)
    holds(press("opacity", "End"), opacity=1)
    holds(button("one for both"), own=False)
    slider = pair_explorer(gal).controls["threshold"]
    for key, value in [("Home", slider.min), ("End", slider.max)]:
        holds(press("threshold", key), threshold=value)
        word = "dissimilar" if key == "Home" else "similar"
        assert here.seen()["decision"] == word
    table = gal.correspondence(4, 3)
    for side in range(2):
        check_place(here, gal, (4, 3), table, side, 1, 3)


def test_every_linked_control(linked, unit):
    check_controls(linked, unit)


IN_LAB = """\
from siamcam_lib.widgets import pair_explorer
explorer = pair_explorer(data)
explorer
"""
HEARD = """\
v = explorer.view
print('heard', v.a, v.b, v.map, v.scale, round(v.threshold, 3), v.opacity)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_answers_with_a_live_kernel_which_hears(lab, unit):
    with lab(IN_LAB, HEARD, data=unit) as here:
        check_controls(here, unit)
        here.page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
        here.page.keyboard.press("Control+Enter")
        threshold = round(pair_explorer(unit).controls["threshold"].max, 3)
        here.page.get_by_text(f"heard 4 3 0 0 {threshold} 1.0", exact=True).wait_for()


def test_thumbnails_move_the_linked_menus(linked):
    linked.page.get_by_role("listbox", name="image A").get_by_role("option").nth(5).click()
    assert linked.seen()["a"] == 5
    menu = linked.page.locator(".widget-dropdown select").first
    assert menu.evaluate("e => e.selectedIndex") == 5


def test_the_linked_page_fits_a_telephone(linked):
    linked.page.set_viewport_size({"width": 360, "height": 740})
    assert not linked.overflows()
