"""How long a reader waits for two pictures of their own, in Chromium: load once, then look.

Two photographs of ordinary size (1200 × 900, JPEG) are handed to the page at once; the time runs
from there until both maps are drawn, by the page's own clock.
"""

from __future__ import annotations

import base64
import io
import statistics
import tempfile
from pathlib import Path

import siamcam_lib as sc
from benchmarks.browser import NONE, launch
from benchmarks.timing import machine

SIZE = (1200, 900)
LOAD = """async () => {
  const start = performance.now();
  document.querySelector(".siamcam-load button").click();
  const status = document.querySelector(".siamcam-status");
  while (!status.textContent.startsWith("The model")) await new Promise((go) => setTimeout(go, 5));
  return performance.now() - start;
}"""
LOOK = """async ([pictures, rounds]) => {
  const files = pictures.map((data, k) => new File(
    [Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], `${k}.jpg`, { type: "image/jpeg" }));
  const inputs = [...document.querySelectorAll(".siamcam-drop input")];
  const status = document.querySelector(".siamcam-status"), times = [];
  for (let i = 0; i < rounds + 3; i++) { // three to warm up
    status.textContent = "";
    const held = new DataTransfer();
    for (const k of [i % 2, 1 - (i % 2)]) held.items.add(files[k]);
    const start = performance.now();
    inputs[0].files = held.files; // two files for A: the second is B's
    inputs[0].dispatchEvent(new Event("change"));
    while (!status.textContent.startsWith("B is now")) await new Promise((go) => setTimeout(go, 1));
    await new Promise((go) => requestAnimationFrame(go));
    if (i >= 3) times.push(performance.now() - start);
  }
  return times;
}"""


def table(rounds: int) -> str:
    """Times as Markdown; where there is no browser, a sentence that says so."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "Own pictures were not measured: playwright is not installed (extra `test`)."
    images = sc.datasets.load("scenes/flowers", n=10)
    pictures = []
    for k in range(2):
        buffer = io.BytesIO()
        images.image(k).resize(SIZE).save(buffer, "JPEG", quality=90)
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        if (browser := launch(playwright)) is None:
            return f"Own pictures were not measured: {NONE}."
        net = sc.SiameseNet()
        gal = sc.Gallery.embed(net, images.subset(range(4)), progress=False)
        file = gal.to_html(Path(folder) / "own.html", model=True)
        try:
            page = browser.new_page()
            page.goto(file.as_uri())
            load = page.evaluate(LOAD)
            times = page.evaluate(LOOK, [pictures, rounds])
        finally:
            browser.close()
    high = statistics.quantiles(times, n=20)[-1]
    return "\n".join([
        f"A reader's own pictures in a page of {file_size(net):.1f} MB of model, headless Chromium "
        f"({machine()})",
        "",
        "| from | median, ms | 95 % within, ms |",
        "| --- | ---: | ---: |",
        f"| model asked for, until it is ready | {load:.0f} | |",
        f"| two JPEGs of {SIZE[0]} × {SIZE[1]} chosen, until both maps are drawn "
        f"| {statistics.median(times):.0f} | {high:.0f} |",
    ])  # fmt: skip


def file_size(net: sc.SiameseNet) -> float:
    """Megabytes that a reader loads for a network."""
    from siamcam_lib import portable

    _, files = portable.bundle([portable.offer(net, "one")])
    return sum(map(len, files.values())) / 1e6
