"""The pair explorer in JupyterLab with a live kernel: it answers, and the kernel hears of it."""

from __future__ import annotations

import numpy as np
import pytest

import siamcam_lib as sc

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

MAKE = """\
import torch, siamcam_lib as sc
from siamcam_lib.widgets import pair_explorer
torch.manual_seed(0)
images = sc.datasets.load("scenes/flowers", n=10)
gal = sc.Gallery.embed(sc.SiameseNet(image_size=64), images, progress=False)
explorer = pair_explorer(gal)
"""
HEARD = "print('heard', explorer.view.a, explorer.view.b, explorer.view.map)"
SEEN = """() => {
  const { a, b, kind, dissimilarity, decision, threshold, raw } =
    document.querySelector(".siamcam").__siamcam;
  return { a, b, kind, dissimilarity, decision, threshold, raw: raw.map((m) => Array.from(m)) };
}"""
SHOWS = """(wanted) => Object.entries(wanted).every(([name, value]) =>
  document.querySelector(".siamcam").__siamcam?.[name] === value)"""


@pytest.fixture(scope="module")
def gal() -> sc.Gallery:
    """What the notebook makes, made here."""
    made: dict = {}
    exec(MAKE, made)
    return made["gal"]


def test_the_explorer_answers_and_the_kernel_hears(lab, gal):
    with lab(MAKE + "explorer", HEARD) as here:
        page = here.page

        def shows(ex: sc.Explanation, **wanted: object) -> None:
            page.wait_for_function(SHOWS, arg=wanted)
            seen = page.evaluate(SEEN)
            assert {name: seen[name] for name in wanted} == wanted
            assert seen["dissimilarity"] == pytest.approx(ex.dissimilarity, rel=1e-9)
            assert seen["decision"] == ex.decision
            for found, raw in zip(seen["raw"], ex.raw, strict=True):
                assert np.abs(np.array(found) - raw.ravel()).max() <= 1e-3 * np.abs(raw).max()

        shows(gal.explain(0, 1), a=0, b=1, kind="factual", threshold=gal.threshold)

        page.locator(".siamcam-controls select").first.select_option(index=7)
        shows(gal.explain(7, 1), a=7, b=1)
        page.get_by_role("listbox", name="image B").get_by_role("option").nth(4).click()
        shows(gal.explain(7, 4), a=7, b=4)
        page.keyboard.press("ArrowRight")  # of the list, not of JupyterLab's cells
        shows(gal.explain(7, 5), a=7, b=5)
        page.get_by_role("button", name="shared", exact=True).click()
        shows(gal.explain(7, 5, method="shared"), b=5, kind="shared")
        page.get_by_role("button", name="factual", exact=True).click()
        for key, decision in [("Home", "dissimilar"), ("End", "similar")]:
            page.get_by_role("slider", name="threshold").press(key)
            page.wait_for_function(SHOWS, arg={"decision": decision})
            threshold = page.evaluate(SEEN)["threshold"]
            assert threshold < 0.02 if key == "Home" else threshold > 0.98
            shows(gal.explain(7, 5, threshold=threshold), kind="factual", decision=decision)

        page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        page.get_by_text("heard 7 5 0", exact=True).wait_for()
