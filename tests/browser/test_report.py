"""The pages that `siamcam` writes, opened as files: whole, harmless, and readable at any width."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import siamcam_lib as sc
from siamcam_lib.cache import FeatureCache
from siamcam_lib.report import ClassPair, audit, pair_page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = "</title><script>throw 1</script><img src=x onerror=alert(1)>.jpg"
BROKEN = "[...document.images].filter((i) => !i.complete || !i.naturalWidth || !i.alt).length"
HIDDEN = """[...document.querySelectorAll('h1, p, td, th, figcaption')].filter((e) =>
  e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.table')).length"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report and an explained pair, in which every name is hostile."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    net = sc.SiameseNet(image_size=64).eval()
    images = sc.datasets.load("scenes/flowers", n=10)
    found = audit(net, images, cache=FeatureCache(folder / "cache.sqlite"), progress=False)
    assert found.doubtful
    hard = tuple(replace(p, names=(HOSTILE, HOSTILE)) for p in found.doubtful)
    rows = (ClassPair((HOSTILE, HOSTILE), 9, 0.1, 0.9), *found.classes)
    name = replace(images, name=HOSTILE, notes=(HOSTILE,))
    replace(found, images=name, wrong=hard, doubtful=hard, classes=rows).to_html(
        folder / "report.html"
    )
    ex = sc.explain(net, images.image(0), images.image(1), method="shared")
    pair_page(folder / "pair.html", ex, [HOSTILE, HOSTILE], HOSTILE)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["report", "pair"])
def test_whole_harmless_and_readable(opened, pages, name, width, scheme):
    page = pages / f"{name}.html"
    # `opened` fails on any error and any request but for the file itself
    with opened(page.as_uri(), page.as_uri(), scheme, width, views=0) as here:
        here.page.on("dialog", lambda d: (here.wrong.append(d.message), d.dismiss()))
        assert HOSTILE in here.page.locator("h1").inner_text()
        assert here.page.locator("img").count() >= 6 and here.page.evaluate(BROKEN) == 0
        assert here.page.locator("script").count() == 0
        assert not here.overflows() and here.page.evaluate(HIDDEN) == 0
        dark = here.lightness("body", "backgroundColor") < 0.5
        assert dark == (scheme == "dark") == (here.lightness("body", "color") > 0.5)
