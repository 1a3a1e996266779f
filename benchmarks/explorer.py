"""How quickly the pair explorer answers: from an input event to the drawn frame, in Chromium.

A full page: 60 images whose maps are 256 × 7 × 7. Times are taken in the page, by its own clock.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import siamcam_lib as sc
from benchmarks.browser import NONE, launch
from benchmarks.timing import machine
from siamcam_lib.widgets import pair_explorer
from siamcam_lib.widgets.base import size

IMAGES = 60
BOOK = Path(__file__).parents[1] / "_build" / "html"
# When the first explorer has drawn, on the clock that starts as the page is asked for.
CLOCK = """new MutationObserver((_, observer) => {
  if (!document.querySelector(".siamcam[data-drawn]")) return;
  window.ready = performance.now();
  observer.disconnect();
}).observe(document, { subtree: true, childList: true, attributeFilter: ["data-drawn"] });"""
# Milliseconds from each event until its canvases are drawn, and until their frame has been made.
ACT = """async ([way, rounds]) => {
  const view = document.querySelector(".siamcam"), drawn = [], frames = [];
  const lists = [...document.querySelectorAll(".siamcam-strip")].map((l) => [...l.children]);
  const slider = [...document.querySelectorAll("input[type=range]")][0];
  const canvas = document.querySelector("canvas"), frame = canvas.getBoundingClientRect();
  const acts = {
    pair: (i) => lists[i % 2][(7 * i + 3) % lists[0].length].click(),
    threshold: (i) => {
      slider.value = 0.05 + 0.9 * ((0.37 * i) % 1);
      slider.dispatchEvent(new Event("input"));
    },
    place: (i) => canvas.dispatchEvent(new PointerEvent("pointermove", { pointerType: "mouse",
      clientX: frame.left + frame.width * (((3 * i) % 7) + 0.5) / 7,
      clientY: frame.top + frame.height * (((5 * i) % 7) + 0.5) / 7 })),
  };
  const after = (ms) => new Promise((go) => setTimeout(go, ms));
  for (let i = 0; i < rounds + 5; i++) { // five to warm up
    await after(20 + 7 * (i % 5)); // events come at any time between two frames
    const before = view.dataset.drawn, start = performance.now();
    acts[way](i);
    while (view.dataset.drawn === before) await null;
    const done = performance.now() - start;
    await new Promise((go) => requestAnimationFrame(() => {
      const { port1, port2 } = new MessageChannel(); // told once the frame has been made
      port1.onmessage = go;
      port2.postMessage(0);
    }));
    if (i >= 5) { drawn.push(done); frames.push(performance.now() - start); }
  }
  return [drawn, frames];
}"""
WAYS = {
    "another image chosen": "pair",
    "threshold moved": "threshold",
    "pointed at another place": "place",
}


def table(rounds: int) -> str:
    """All of it, as a Markdown table; where there is no browser, a sentence that says so."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "The explorers were not measured: playwright is not installed (extra `test`)."
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        if (browser := launch(playwright)) is None:
            return f"The explorers were not measured: {NONE}."
        try:
            lines = [
                f"Pair explorer, {IMAGES} images, 256 × 7 × 7, headless Chromium "
                f"{browser.version}, {os.cpu_count()} cores, {machine()}; {rounds} events each",
                "",
                "| what | drawn, median | 95th percentile | with its frame | 95th percentile |",
                "| --- | --- | --- | --- | --- |",
                *_alone(browser, Path(folder) / "pairs.html", rounds),
                *_book(browser),
            ]
        finally:
            browser.close()
    return "\n".join(lines)


def _alone(browser: Any, file: Path, rounds: int) -> list[str]:
    torch.manual_seed(0)
    net = sc.SiameseNet(pretrained=False)
    images = sc.datasets.load("scenes/flowers", n=IMAGES)
    explorer = pair_explorer(sc.Gallery.embed(net, images, progress=False))
    explorer.to_html(file)
    ready = [_opened(browser, file)[0] for _ in range(5)]
    page = _opened(browser, file, keep=True)[2]
    page.wait_for_timeout(1500)  # pictures that nobody asked for yet are decoded meanwhile
    rows = []
    for name, way in WAYS.items():
        quantiles = np.quantile(page.evaluate(ACT, [way, rounds]), [0.5, 0.95], axis=1)
        cells = " | ".join(f"{ms:.1f} ms" for ms in quantiles.T.ravel())
        rows.append(f"| {name} | {cells} |")
    page.close()
    return [
        *rows,
        f"| a file of its own, opened from disk, has drawn | {np.median(ready):.0f} ms | | | |",
        f"| its data | {size(explorer.view.data) / 1e6:.2f} MB | | | |",
    ]


def _book(browser: Any) -> list[str]:
    """When the first explorer of each page of the book, opened from disk, has drawn."""
    pages = sorted(p for p in BOOK.rglob("*.html") if "_static" not in p.parts)
    pages = [p for p in pages if "siamcam-explorer" in p.read_text("utf-8")]
    if not pages:
        return ["| the book’s pages | not built: make book first | | | |"]
    looks = {page.stem: [_opened(browser, page)[:2] for _ in range(5)] for page in pages}
    ready = {name: np.median(found, axis=0) for name, found in looks.items()}
    rows = []
    for k, since in ((0, "asking for the page"), (1, "the page was loaded")):
        slowest = max(ready, key=lambda name: ready[name][k])
        rows.append(
            f"| {len(ready)} pages of the book from disk, median of 5: the slowest, {slowest}, has "
            f"drawn, since {since} | {ready[slowest][k]:.0f} ms | | | |"
        )
    return rows


def _opened(browser: Any, file: Path, keep: bool = False) -> tuple[float, float, Any]:
    """Milliseconds until the first explorer has drawn, since asking and since loading; its page."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(CLOCK)
    page.goto(file.resolve().as_uri(), wait_until="commit")
    page.wait_for_function("() => window.ready > 0")
    ready, loaded = page.evaluate(
        "[window.ready, performance.getEntriesByType('navigation')[0].loadEventEnd]"
    )
    if not keep:
        page.close()
    return ready, max(0.0, ready - loaded), page
