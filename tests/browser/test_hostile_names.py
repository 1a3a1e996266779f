"""Pages of pictures with hostile names, in a browser: nothing of a name runs, all of it is read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import siamcam_lib as sc
from siamcam_lib.cli import main
from siamcam_lib.files import shown
from siamcam_lib.widgets import league_table

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = [
    "<img src=x onerror=alert(1)>", "<iframe srcdoc='<script>parent.pwned=1'>",
    '"><svg onload=alert(1)>', "' autofocus onfocus='alert(1)", "\u202egpj.exe", "]]><!-- -->",
]  # fmt: skip
WATCH = "window.pwned = 0; window.alert = () => { window.pwned = 1; };"
STRANGE = """[...document.querySelectorAll('*')].filter((e) =>
  ['IFRAME', 'OBJECT', 'EMBED', 'BASE'].includes(e.tagName)
  || (e.tagName === 'IMG' && !e.src.startsWith('data:image/'))
  || [...e.attributes].some((a) => a.name.startsWith('on'))).map((e) => e.outerHTML.slice(0, 99))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """What the command writes about a folder in which every name is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    photos = folder / NAMES[0]
    random = np.random.default_rng(0)
    for kind in NAMES[:2]:
        (photos / kind.replace("/", "⁄")).mkdir(parents=True)
        for name in NAMES:
            pixels = random.integers(0, 256, (48, 48, 3), np.uint8)
            Image.fromarray(pixels).save(photos / kind.replace("/", "⁄") / f"{name}.png")
    torch.manual_seed(0)
    net = sc.SiameseNet("resnet18", embed_dim=4, pretrained=False, image_size=64).eval()
    net.save(folder / "net.safetensors")
    files = sorted(photos.rglob("*.png"))
    more = ["--model", str(folder / "net.safetensors")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIAMCAM_CACHE", str(folder / "cache"))
        for words in (
            ["evaluate", photos, "-o", folder / "report.html"],
            ["gallery", photos, "-o", folder / "explorer.html"],
            ["explain", files[0], files[-1], "-o", folder / "pair"],
            ["explain", files[0], files[-1], "-o", folder / "other", "--method", "shared"],
        ):
            done = CliRunner().invoke(main, [*map(str, words), *more])
            assert done.exit_code == 0, done.output
    row = {"explainer": NAMES[0], "measure": NAMES[2], "higher": True, "mean": 0.2, "low": 0.1,
           "high": 0.3, "seconds": 0.01}  # fmt: skip
    league_table({NAMES[1]: pd.DataFrame([row])}).to_html(folder / "league.html", title=NAMES[0])
    return folder


@pytest.mark.parametrize(
    ("page", "views"),
    [("report", 0), ("explorer", 1), ("pair/explanation", 1), ("other/explanation", 0),
     ("league", 1)],
)  # fmt: skip
def test_names_are_read_and_do_nothing(browser, pages, page, views):
    file = (pages / f"{page}.html").as_uri()
    context = browser.new_context()
    context.set_default_timeout(60_000)
    wrong: list[str] = []
    try:
        here = context.new_page()
        here.add_init_script(WATCH)
        here.on("dialog", lambda d: (wrong.append(d.message), d.dismiss()))
        here.on("pageerror", lambda e: wrong.append(str(e)))
        here.on(
            "request",
            lambda r: r.url.startswith((file, "data:", "blob:")) or wrong.append(r.url[:99]),
        )
        here.goto(file, wait_until="load")
        here.wait_for_function(f"document.querySelectorAll('[data-drawn]').length >= {views}")
        for control in here.locator("select, input, [role=option], button").all()[:12]:
            control.focus()
            control.dispatch_event("mouseover")
            control.dispatch_event("click")
        here.wait_for_timeout(200)
        assert here.evaluate(STRANGE) == [] and here.evaluate("window.pwned") == 0
        text = here.evaluate("document.body.innerText + document.body.innerHTML")
        assert "onload" in text or "onerror" in text  # names are there, as words
        assert "\u202e" not in text
        title = here.locator("h1").inner_text()
        assert any(shown(name) in title for name in NAMES)
    finally:
        context.close()
    assert wrong == []
