"""axe-core finds nothing serious in any explorer, in a file of its own, light and dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import siamcam_lib as sc
from siamcam_lib.evaluation import metrics
from siamcam_lib.widgets import (
    crop_explorer,
    loss_explorer,
    pair_explorer,
    steps_explorer,
    threshold_explorer,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

KINDS = ("threshold", "pair", "loss", "steps", "crop")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    images = sc.datasets.load("scenes/flowers", n=20)
    pairs = sc.pairs.sample(images, seed=0)
    score = np.random.default_rng(0).random(len(pairs))
    torch.manual_seed(0)
    net = sc.SiameseNet(image_size=96)
    explorers = {
        "threshold": threshold_explorer(metrics.report(score, pairs.label, 0.43), pairs),
        "pair": pair_explorer(sc.Gallery.embed(net, images, progress=False)),
        "loss": loss_explorer(),
        "steps": steps_explorer(net, images.image(0), images.image(1), channels=50),
        "crop": crop_explorer(images.subset(range(3)), [np.eye(4), np.ones((2, 3)), -np.eye(3)]),
    }
    folder = tmp_path_factory.mktemp("five")
    for kind in KINDS:
        explorers[kind].to_html(folder / f"{kind}.html")
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_explorer_has_a_serious_violation(opened, files, violations, kind, scheme):
    with opened((files / f"{kind}.html").as_uri(), "file:", scheme=scheme) as here:
        assert violations(here.page, "html") == []


def test_a_violation_would_be_found(opened, files, violations):
    with opened((files / "crop.html").as_uri(), "file:") as here:
        here.page.evaluate("""() => {
          document.querySelector("select").closest("label").replaceWith(
            document.querySelector("select"));
          document.querySelector(".siamcam-verdict").style.color = "#ddd";
        }""")
        assert {rule for rule, _ in violations(here.page, "html")} == {
            "color-contrast", "select-name",
        }  # fmt: skip
