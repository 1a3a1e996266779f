"""The built site in a browser: over http and as plain files, complete and asking nobody else."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Locator, Page

from siamcam_lib.book import build

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(4800)]

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["color-contrast", "link-in-text-block"]
"""What axe-core judges by colours. All else is the same by night as by day, and from disk as over
http: the files are the same."""
NARROW, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
# All that a page must show, read in one go.
LOOK = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const short = (element) => element.outerHTML.slice(0, 160);
  return {
    title: document.title,
    formulas: all(".math").length,
    raw: all(".math").filter((m) => !m.querySelector("mjx-container")).map(short),
    wrong: all("mjx-merror, [data-mjx-error]").map(short),
    images: all("img").length,
    broken: all("img").filter((i) => i.complete && !i.naturalWidth).map(short),
    // docutils writes the file's name where nobody wrote a text
    mute: all("img").filter((i) => !i.alt.trim() || /\\.(png|jpe?g|svg)$/i.test(i.alt)).map(short),
    widgets: all('script[type="application/vnd.jupyter.widget-view+json"]').length,
    explorers: all(".siamcam-explorer").length,
    shown: all(".widget-subarea").filter((w) => w.childElementCount).length,
    terms: all('.bd-article a[href*="glossary.html#term-"]').map((a) => a.getAttribute("href")),
    hyphens: all(".bd-article *").filter((e) => !e.closest("pre, code, script, style, textarea"))
      .flatMap((e) => [...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE))
      .map((n) => n.data.match(/.{0,20}(?<![\\w.,)\\]/-])-\\.?\\d.{0,10}/)?.[0]).filter(Boolean),
    tables: all(".bd-article p").map((p) => p.innerText.trim()).filter((t) => /^\\|.*\\|/.test(t)),
    lost: all('.bd-article a[href^="#"]')
      .map((a) => decodeURIComponent(a.getAttribute("href").slice(1)))
      .filter((name) => name && !document.getElementById(name)),
  };
}"""
READY = """() => {
  const drawn = [...document.querySelectorAll(".widget-subarea")].filter((w) => w.firstChild);
  const widgets = document.querySelectorAll('script[type$="widget-view+json"]');
  const all = window.formulas?.all;
  return widgets.length <= drawn.length && (!all || all.then(() => true));
}"""
DRAWN = """() => [...document.querySelectorAll(".siamcam-explorer")]
  .every((e) => e.querySelector(".siamcam[data-drawn]"))"""
# Highlighted code has thousands of words in a few colours, which are most of a long page and of
# axe-core's time: one word of each kind is left, in code and in what it printed, of those that can
# be seen and have two letters; it judges no others.
THIN_OUT = """() => {
  const seen = new Set();
  for (const word of document.querySelectorAll("pre span")) {
    const kind = `${word.className} in ${word.closest("pre").parentNode.parentNode.className}`;
    if (seen.has(kind)) word.replaceWith(...word.childNodes);
    else if (word.checkVisibility() && word.textContent.trim().length > 1) seen.add(kind);
  }
}"""
# What sticks out of a narrow page and is not inside a box that scrolls.
OVERFLOW = """() => {
  if (document.documentElement.scrollWidth <= window.innerWidth) return [];
  return [...document.querySelectorAll(".bd-main *")]
    .filter((e) => e.getBoundingClientRect().right > window.innerWidth + 1)
    .map((e) => e.outerHTML.slice(0, 120)).slice(0, 5).concat("the page scrolls sideways");
}"""
# Pages with boxes of each kind that are wider than a telephone.
WIDER = {
    "book/appendix/api_data": ["mjx-container[display]"],
    "book/beyond/paper_revisited": [
        ".siamcam-picture", ".output.text_html", ".pst-scrollable-table-container", "pre",
    ],
}  # fmt: skip
KINDS = [kind for kinds in WIDER.values() for kind in kinds]
# What is cut on a narrow page: of which kinds, and what does not show it by a shade at its edge or
# is out of a keyboard's reach. Then pictures too small to be read, and captions that scroll.
CUT = """(kinds) => {
  const all = (selector) => [...document.querySelectorAll(`.bd-article ${selector}`)];
  const short = (element) => element.outerHTML.slice(0, 160);
  const cut = all(":not(mjx-container *, pre *)").filter((e) => e.scrollWidth > e.clientWidth + 1
    && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.checkVisibility());
  return {
    kinds: kinds.filter((kind) => cut.some((e) => e.matches(kind))),
    unseen: cut.filter((e) => !/local.*scroll/.test(getComputedStyle(e).backgroundAttachment)
      || getComputedStyle(e).backgroundImage === "none").map(short),
    unreached: cut.filter((e) => e.tabIndex < 0).map(short),
    small: all(".cell_output img").filter((i) => i.checkVisibility()
      && i.clientWidth < 0.69 * i.naturalWidth).map(short),
    captions: all("figcaption").filter((c) => c.closest(".siamcam-picture")).map(short),
  };
}"""
# The colour of a box' text and of its ground in the shade, each from 0 to 255.
SHADED = """(box) => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const probe = box.appendChild(document.createElement("i"));
  const computed = (colour) => {
    probe.style.color = colour;
    return numbers(getComputedStyle(probe).color);
  };
  const text = numbers(getComputedStyle(box).color).slice(0, 3);
  const ground = computed("var(--siamcam-ground)");
  const [red, green, blue, share] = computed("var(--siamcam-shade)");
  probe.remove();
  return [text, [red, green, blue].map((c, k) => share * c + (1 - share) * ground[k])];
}"""


@dataclass
class Visit:
    """What happened while one page was open."""

    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    look: dict = field(default_factory=dict)
    overflow: list[str] = field(default_factory=list)
    cut: dict = field(default_factory=dict)
    barriers: list = field(default_factory=list)


@pytest.fixture(scope="session")
def site(browser, executed, request) -> Path:
    """The site made of the chapters that were executed for this session."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        return _render(executed.kind, executed.stage)


@functools.cache  # pytest may set a fixture up again when it reorders tests by their parameters
def _render(kind: str, stage: Path) -> Path:
    print(f"\nrendering the book on {kind}")
    build(ROOT, stage, stage.parent / "html")
    return stage.parent / "html"


def visit(page: Page, url: str, base: str, shots: dict[str, Path], read: Callable) -> Visit:
    """Look at one page, photograph it, and let axe-core read it last."""
    seen = Visit()
    own = (base, "data:", "blob:")
    page.on("request", lambda r: r.url.startswith(own) or seen.outside.append(r.url[:150]))
    page.on("requestfailed", lambda r: seen.failed.append(f"{r.failure} {r.url[:150]}"))
    page.on("response", lambda r: r.status < 400 or seen.failed.append(f"{r.status} {r.url[:150]}"))
    page.on("pageerror", lambda e: seen.errors.append(str(e)[:300]))
    page.on("console", lambda m: m.type == "error" and seen.errors.append(m.text[:300]))
    page.set_viewport_size(WIDE)
    page.goto(url, wait_until="load")
    page.wait_for_function(READY)
    page.wait_for_function(DRAWN)
    page.evaluate("document.querySelectorAll('img').forEach((i) => (i.loading = 'eager'))")
    page.wait_for_load_state("networkidle")
    seen.look = page.evaluate(LOOK)
    photograph(page, shots["wide"])
    page.set_viewport_size(NARROW)
    seen.overflow = page.evaluate(OVERFLOW)
    photograph(page, shots["narrow"])
    seen.cut = page.evaluate(CUT, KINDS)
    if seen.cut["unreached"]:  # the theme waits until a window has its size
        page.wait_for_timeout(500)
        seen.cut = page.evaluate(CUT, KINDS)
    page.set_viewport_size(WIDE)
    seen.barriers = read(page, seen.look["explorers"])
    return seen


def photograph(page: Page, path: Path) -> None:
    """A whole page, or as much of it as a JPEG holds; in a third of the time that a PNG takes."""
    width, height = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
    part: Any = {"x": 0, "y": 0, "width": width, "height": min(height, 65_000)}
    page.screenshot(path=path, full_page=True, clip=part, type="jpeg", quality=85)


def whole_page(page: Page, violations: Callable, rules: list[str] | None = None) -> list:
    """What axe-core finds on a page, of whose highlighted code it sees a word of each kind.

    The page is not the same afterwards.
    """
    page.evaluate(THIN_OUT)
    return violations(page, "html", rules)


@pytest.fixture(scope="session", params=[("http", "light"), ("file", "dark")], ids="-".join)
def visits(request, browser, serve, site, executed, violations) -> dict[str, Visit]:
    """Every page of the site, opened once: over http by day, from disk by night."""
    way, mode = request.param

    def read(page: Page, explorers: int) -> list:
        """All of a page with scenes; with photographs its explorers; by night the colours."""
        rules = COLOURS if mode == "dark" else None
        if executed.kind == "scenes":
            return whole_page(page, violations, rules)
        return violations(page, ".siamcam-explorer", rules) if explorers else []

    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))
    pages = [p for p in pages if not p.startswith("_static/") and p != "index.html"]
    if executed.kind == "real":  # what photographs change: the chapters and the gathered results
        told = {f"{run.name}.html" for run in executed.runs if run.executed}
        pages = [p for p in pages if p in told or p == "book/appendix/results.html"]
    pictures = ROOT / "_build" / "screenshots" / executed.kind / mode
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    found = {}
    with serve(site) if way == "http" else contextlib.nullcontext(site.as_uri()) as base:
        for name in pages:
            context = browser.new_context(color_scheme=mode, reduced_motion="reduce")
            context.add_init_script(f"localStorage.mode = localStorage.theme = '{mode}'")
            context.set_default_timeout(60_000)
            picture = str(pictures / name.removesuffix(".html").replace("/", "-"))
            shots = {"wide": Path(f"{picture}.jpg"), "narrow": Path(f"{picture}.narrow.jpg")}
            page = context.new_page()
            found[name] = visit(page, f"{base}/{name}", base, shots, read)
            assert page.evaluate("document.documentElement.dataset.theme") == mode
            context.close()
    return found


def test_every_chapter_has_a_page_with_its_title(visits, executed):
    titles = {name: seen.look["title"] for name, seen in visits.items()}
    runs = [run for run in executed.runs if run.executed or executed.kind == "scenes"]
    assert {f"{run.name}.html" for run in runs} <= set(titles)
    assert [name for name, title in titles.items() if not title.strip()] == []


def test_the_front_door_leads_to_the_first_page(browser, serve, site, executed):
    page = browser.new_page()
    errors = []
    page.on("console", lambda m: m.type == "error" and errors.append(m.text))
    with serve(site) as base:
        page.goto(base)
        page.wait_for_url(f"{base}/{executed.runs[0].name}.html")
        page.wait_for_load_state("networkidle")  # before the server goes
        heading = page.locator("h1").first.inner_text()
        page.close()
    assert heading.strip() and errors == []


def test_no_page_asks_another_server(visits):
    assert {name: seen.outside for name, seen in visits.items() if seen.outside} == {}


def test_no_page_has_an_error(visits):
    assert {name: seen.errors for name, seen in visits.items() if seen.errors} == {}


def test_nothing_a_page_asks_for_is_missing(visits):
    assert {name: seen.failed for name, seen in visits.items() if seen.failed} == {}
    broken = {name: seen.look["broken"] for name, seen in visits.items()}
    assert {name: images for name, images in broken.items() if images} == {}


def test_links_inside_a_page_lead_somewhere(visits):
    assert {name: seen.look["lost"] for name, seen in visits.items() if seen.look["lost"]} == {}


def test_numbers_below_zero_have_a_minus_and_no_hyphen(visits):
    found = {name: seen.look["hyphens"] for name, seen in visits.items()}
    assert {name: hyphens for name, hyphens in found.items() if hyphens} == {}


def test_words_of_the_glossary_are_explained_where_they_come_first(visits, executed):
    terms = {name: seen.look["terms"] for name, seen in visits.items()}
    chapters = {f"{run.name}.html" for run in executed.runs if run.executed}
    assert {name for name in chapters if not terms[name]} == set()
    assert {name: t for name, t in terms.items() if len(t) != len(set(t))} == {}


def test_every_formula_is_typeset(visits):
    assert sum(seen.look["formulas"] for seen in visits.values()) > 0
    for kind in ("raw", "wrong"):
        left = {name: seen.look[kind] for name, seen in visits.items()}
        assert {name: formulas for name, formulas in left.items() if formulas} == {}


def test_every_picture_has_alternative_text(visits):
    assert sum(seen.look["images"] for seen in visits.values()) > 0
    mute = {name: seen.look["mute"] for name, seen in visits.items()}
    assert {name: images for name, images in mute.items() if images} == {}


def test_every_table_is_one(visits):
    """Markdown that a cell prints is read without tables, unless its metadata ask for them."""
    found = {name: seen.look["tables"] for name, seen in visits.items()}
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_every_widget_is_drawn(visits):
    counts = {n: (seen.look["widgets"], seen.look["shown"]) for n, seen in visits.items()}
    assert {n: pair for n, pair in counts.items() if pair[0] != pair[1]} == {}


def test_no_page_has_a_serious_violation(visits):
    assert {name: seen.barriers for name, seen in visits.items() if seen.barriers} == {}


def test_a_violation_of_a_page_would_be_found(browser, site, violations):
    page = browser.new_page()
    page.goto((site / "book/foundations/01_pairs.html").as_uri(), wait_until="load")
    page.evaluate("document.querySelector('.bd-article p').style.color = '#ddd'")
    page.evaluate("document.querySelector('.bd-article td').style.color = '#ddd'")
    page.add_style_tag(content="html .bd-article pre .kn { color: #eee !important }")
    assert page.locator("pre .kn").count() > 3
    for rules in (None, COLOURS):
        ((rule, places),) = whole_page(page, violations, rules)
        assert rule == "color-contrast"
        assert len(places) == 3
        assert {"<span", "<td"} <= {place.split()[0] for place in places}
    page.close()


def test_launch_buttons_open_the_page_s_own_file(browser, site, executed):
    """Binder, Colab and the download; what a server of the outside would answer is not asked."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
    name = repository["url"].removeprefix("https://github.com/")
    at = f"{name}/{repository['branch']}"
    page = browser.new_page()
    for run in executed.runs:
        if not run.executed:
            continue
        file = f"{run.name}.ipynb"
        assert (ROOT / file).is_file()
        page.goto((site / f"{run.name}.html").as_uri(), wait_until="domcontentloaded")
        links = set(page.locator("a[href]").evaluate_all("all => all.map((a) => a.href)"))
        assert f"https://mybinder.org/v2/gh/{at}?urlpath=lab/tree/{file}" in links
        branch = f"{name}/blob/{repository['branch']}"
        assert f"https://colab.research.google.com/github/{branch}/{file}" in links
        (download,) = [link for link in links if link.endswith(".ipynb") and "_sources" in link]
        notebook = nbformat.read(unquote(urlsplit(download).path), as_version=4)
        nbformat.validate(notebook)
        original = nbformat.read(ROOT / file, as_version=4)
        assert {c.source for c in original.cells} <= {c.source for c in notebook.cells} | {
            c.source for c in original.cells if "parameters" in c.metadata.get("tags", [])
        }
    page.close()


def test_no_page_is_wider_than_a_telephone(visits):
    assert {name: seen.overflow for name, seen in visits.items() if seen.overflow} == {}


def test_what_is_cut_on_a_telephone_shows_it_and_can_be_reached(visits):
    for fault in ("unseen", "unreached", "small", "captions"):
        found = {name: seen.cut[fault] for name, seen in visits.items()}
        assert {name: places for name, places in found.items() if places} == {}, fault
    kinds = {kind for seen in visits.values() for kind in seen.cut["kinds"]}
    assert kinds == set(KINDS)


def luminance(colour: list[float]) -> float:
    """As WCAG has it, of red, green and blue from 0 to 255."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def shades(box: Locator) -> list[bool]:
    """Whether the left and the right edge of a box are shaded: by its picture with and without."""
    box.evaluate("(box) => box.blur()")
    pictures = []
    for style in ("", "none"):
        box.evaluate("(box, style) => { box.style.backgroundImage = style }", style)
        with Image.open(io.BytesIO(box.screenshot())) as shot:
            pictures.append(np.asarray(shot.convert("L"), float))
    box.evaluate("(box) => { box.style.backgroundImage = '' }")
    changed = abs(pictures[0] - pictures[1])[10:-10]
    return [bool(np.median(edge) > 10) for edge in (changed[:, 3:6], changed[:, -6:-3])]


def test_a_shade_says_where_there_is_more_and_the_keyboard_gets_there(browser, site):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, reduced_motion="reduce", color_scheme="light"
    )
    for name, kinds in WIDER.items():
        page = context.new_page()
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        page.wait_for_function(READY)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        for kind in kinds:
            boxes = page.locator(f".bd-article {kind}")
            wide = boxes.evaluate_all("""(all) => all.findIndex((e) =>
              e.scrollWidth > e.clientWidth + 50 && e.checkVisibility())""")
            assert wide >= 0, (name, kind)
            box = boxes.nth(wide)
            for mode in ("light", "dark"):
                page.evaluate("(mode) => { document.documentElement.dataset.theme = mode }", mode)
                box.evaluate("(box) => { box.scrollLeft = 0 }")
                assert shades(box) == [False, True], (name, kind, mode)
                text, ground = map(luminance, box.evaluate(SHADED))
                ratio = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
                assert ratio > 4.5 or kind == ".siamcam-picture", (name, kind, mode)
                box.focus()
                page.keyboard.press("ArrowRight")
                page.wait_for_function("document.activeElement.scrollLeft > 20")
                box.evaluate("(box) => { box.scrollLeft = box.scrollWidth }")
                assert shades(box) == [True, False], (name, kind, mode)
        page.close()
    context.close()


def test_every_page_was_photographed(visits, executed):
    folder = ROOT / "_build" / "screenshots" / executed.kind
    names = {name.removesuffix(".html").replace("/", "-") for name in visits}
    shots = {f"{name}{kind}" for name in names for kind in (".jpg", ".narrow.jpg")}
    assert any(shots <= {p.name for p in mode.iterdir()} for mode in folder.iterdir())
