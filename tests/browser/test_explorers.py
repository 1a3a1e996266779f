"""Explorers of thresholds, losses, steps and crops in a browser: their numbers are Python's."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import siamcam_lib as sc
from siamcam_lib.cropping import box
from siamcam_lib.embedder import as_explainable
from siamcam_lib.evaluation import metrics
from siamcam_lib.explanation import stretch
from siamcam_lib.losses import contrastive
from siamcam_lib.plots import OPACITY
from siamcam_lib.widgets import (
    Explorer,
    crop_explorer,
    loss_explorer,
    steps_explorer,
    threshold_explorer,
)
from siamcam_lib.widgets.loss import FARTHEST, POINTS
from siamcam_lib.widgets.threshold import BINS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

KINDS = ("threshold", "loss", "steps", "same", "crop")
IMAGE = "(k) => [...document.querySelectorAll('.siamcam')].at(-1).__siamcam.image === k"


NEAR = """([k, wanted]) => Object.entries(wanted).every(([name, value]) =>
  Math.abs(document.querySelectorAll(".siamcam")[k].__siamcam[name] - value) < 1e-6)"""


# --- what is shown ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> sc.datasets.ImageSet:
    return sc.datasets.load("scenes/flowers", n=20)


@pytest.fixture(scope="module")
def net() -> sc.SiameseNet:
    torch.manual_seed(0)
    return sc.SiameseNet(image_size=160)


@pytest.fixture(scope="module")
def pairs(images) -> sc.pairs.PairSet:
    return sc.pairs.sample(images, seed=0)


@pytest.fixture(scope="module")
def report(pairs) -> sc.Report:
    """Scores that overlap, some of them the same, some at 0 and 1."""
    random = np.random.default_rng(0)
    score = 1 / (1 + np.exp(-random.normal(2 * pairs.label - 1, 1.5)))
    score[::5] = np.round(score[::5], 1)
    score[:4] = [0, 0, 1, 1]
    return metrics.report(score, pairs.label, 0.437, pairs.a, bootstrap=5)


@pytest.fixture(scope="module")
def couple(images) -> tuple[Image.Image, Image.Image]:
    return images.image(0).crop((0, 0, 224, 150)), images.image(1)


@pytest.fixture(scope="module")
def crops(images) -> tuple[list[Image.Image], list[np.ndarray]]:
    """Maps that are smooth, of many equal regions, blank, negative, tiny; of several shapes."""
    random = np.random.default_rng(0)
    shapes = [(224, 224), (200, 120), (90, 150), (40, 30), (30, 40), (60, 60), (50, 50), (1, 1)]
    pictures = [
        images.image(k).crop((0, 0, *size)) for k, size in enumerate(shapes)
    ]  # fmt: skip
    dots = np.kron(np.eye(2), [[1, 0, 0], [0, 1, 0], [0, 0, 0]]).astype(float)
    maps = [
        random.normal(size=(7, 7)), random.normal(size=(5, 9)), random.normal(size=(7, 7)) + 1,
        (random.random((30, 40)) > 0.75).astype(float), np.tile(dots, (6, 5))[:40, :30],
        np.zeros((7, 7)), -np.ones((4, 4)), np.ones((1, 1)),
    ]  # fmt: skip
    return pictures, maps


@pytest.fixture(scope="module")
def explorers(report, pairs, net, couple, crops) -> dict[str, Explorer]:
    return {
        "threshold": threshold_explorer(report, pairs),
        "loss": loss_explorer(),
        "steps": steps_explorer(net, *couple, channels=100),
        "same": steps_explorer(net, couple[1], couple[1]),
        "crop": crop_explorer(*crops),
    }


@pytest.fixture(scope="module")
def files(explorers, write_alone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("explorers")
    for kind, explorer in explorers.items():
        write_alone(explorer, folder / f"{kind}.html")
    return folder


@pytest.fixture
def here(request, opened, files):
    """The explorer that the test's parameter or its class names, opened as a file."""
    kind = getattr(request, "param", None) or request.cls.kind
    with opened((files / f"{kind}.html").as_uri(), "file:") as page:
        yield page


# --- threshold ----------------------------------------------------------------------------------


class TestThreshold:
    kind = "threshold"

    def test_counts_and_rates_are_pythons(self, here, report):
        assert here.seen()["threshold"] == 0.437
        assert here.seen()["auc"] == pytest.approx(report.auc, abs=1e-9)
        values = [0, 0.01, 0.3, 0.437, 0.5, 0.99, 1, *report.score[::3]]
        for threshold in map(float, values):
            seen = here.put(threshold=threshold)
            expected = replace(report, threshold=threshold).confusion
            assert seen["counts"] == expected.tolist()
            weight = np.ones((1, len(report.score)))
            found = metrics.metrics(report.score, report.label, threshold, weight)
            for name in ("accuracy", "precision", "recall"):
                assert seen[name] == pytest.approx(float(found[name][0]), abs=1e-9)
            (tn, fp), (fn, tp) = expected
            assert seen["place"] == pytest.approx([fp / (tn + fp), tp / (fn + tp)], abs=1e-12)
            cells = here.page.locator(".siamcam-counts tbody td").all_inner_texts()
            assert [int(c) for c in cells] == expected.ravel().tolist()

    def test_bars_line_and_point_are_drawn_where_they_belong(self, here, report):
        for side in (0, 1):
            path = here.page.locator(".siamcam-charts svg path[fill-opacity]").nth(side)
            drawn = re.findall(r"M([\d.]+) 100v(-?[\d.]+)", path.get_attribute("d"))
            counts = np.histogram(report.score[report.label == side], BINS)[0]
            assert [float(x) for x, _ in drawn] == pytest.approx(
                (20.5 + 7.5 * np.flatnonzero(counts)).tolist()
            )
            heights = np.abs([float(v) for _, v in drawn])
            assert heights / heights.max() == pytest.approx(
                counts[counts > 0] / counts.max(), abs=1e-9
            )
        for threshold in (0.2, 0.8):
            seen = here.put(threshold=threshold)
            line = here.page.locator(".threshold").get_attribute("transform")
            assert float(line[10:-1]) == pytest.approx(20 + 300 * threshold)
            point = here.page.locator("circle").get_attribute("transform")
            x, y = (float(v) for v in point[10:-1].split())
            assert [(x - 60) / 160, (176 - y) / 160] == pytest.approx(seen["place"])

    def test_no_label_lies_under_the_line(self, here):
        boxes = """(all) => all.map((e) => {
          const { left, right, top, bottom } = e.getBoundingClientRect();
          return [left - 2, right + 2, top, bottom]; // the line is two wide
        })"""
        for threshold in (0, 0.1, 0.3, 0.6, 0.9, 1):
            here.put(threshold=threshold)
            chart = here.page.locator(".siamcam-charts svg:has(> .threshold)")
            ((left, right, top, bottom),) = chart.locator(".threshold").evaluate_all(boxes)
            texts = chart.locator("text").evaluate_all(boxes)
            assert len(texts) == 8
            assert [t for t in texts if t[0] < right and left < t[1] and t[2] < bottom
                    and top < t[3]] == []  # fmt: skip

    def test_the_nearest_pairs_change_sides(self, here, report, pairs, explorers):
        candidates = explorers["threshold"].view.data["candidates"]
        sides = set()
        for threshold in (0.0, 0.2, 0.437, 0.5, 0.8, 1.0):
            seen = here.put(threshold=threshold)
            order = sorted((abs(c["score"] - threshold), c["pair"]) for c in candidates)
            nearest = {k for _, k in order[:6]}
            assert {p["pair"] for p in seen["nearest"]} == nearest
            columns = here.page.locator(".siamcam-judged > div > div")
            for judged in (0, 1):
                cards = columns.nth(judged).locator(".siamcam-pair")
                expected = sorted(
                    (k for k in nearest if (report.score[k] >= threshold) == judged),
                    key=lambda k: (report.score[k], k),
                )
                assert cards.count() == len(expected)
                for card, k in zip(cards.all(), expected, strict=True):
                    sides.add((k, judged))
                    word = "right" if pairs.label[k] == judged else "wrong"
                    kind = ("similar", "dissimilar")[pairs.label[k]]
                    assert card.inner_text() == f"y = {report.score[k]:.3f}\n{kind}: {word}"
                    names = [pairs.images.classes[pairs.images.labels[i]]
                             for i in (pairs.a[k], pairs.b[k])]  # fmt: skip
                    shown = card.get_by_role("img").all()
                    assert [image.get_attribute("aria-label") for image in shown] == names
        assert any((k, 1 - judged) in sides for k, judged in sides)

    def test_the_slider(self, here, report):
        slider = here.page.get_by_role("slider", name="threshold")
        for key, value in [("Home", 0.007), ("End", 0.997), ("ArrowLeft", 0.987)]:
            slider.press(key)
            seen = here.seen()
            assert seen["threshold"] == pytest.approx(value)
            found = replace(report, threshold=seen["threshold"]).confusion
            assert seen["counts"] == found.tolist()
        words = here.page.get_by_role("status").first.inner_text()
        assert words == (
            f"threshold 0.99: accuracy {seen['accuracy']:.3f}, "
            f"precision {seen['precision']:.3f}, recall {seen['recall']:.3f}"
        )


# --- loss ---------------------------------------------------------------------------------------


def expected_loss(d: float, label: int, margin: float, slope=4.0, offset=-4.0) -> dict:
    d = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    y = torch.sigmoid(slope * d + offset)
    on_d, on_y = contrastive(d, label, margin), contrastive(y, label, margin)
    by_y, reaches = torch.autograd.grad(on_y, (y, d), retain_graph=True)
    (by_d,) = torch.autograd.grad(on_d, d)
    return {
        "y": y.item(), "margin": [on_d.item(), by_d.item()],
        "paper": [on_y.item(), by_y.item(), reaches.item()],
    }  # fmt: skip


def check_losses(seen: dict) -> None:
    for pair in seen["pairs"]:
        wanted = expected_loss(pair["d"], pair["label"], seen["margin"])
        assert pair["y"] == pytest.approx(wanted["y"], abs=1e-9)
        for name in ("margin", "paper"):
            keys = ("loss", "gradient", "reaches")[: len(wanted[name])]
            assert [pair[name][k] for k in keys] == pytest.approx(wanted[name], abs=1e-6)
        assert pair["margin"]["D"] == pair["d"] and pair["paper"]["D"] == pair["y"]


class TestLoss:
    kind = "loss"

    def test_losses_and_gradients_are_pythons(self, here):
        assert [(p["d"], p["label"]) for p in here.seen()["pairs"]] == list(POINTS)
        for margin in (0.1, 0.5, 0.6, 1.0, 1.7, 2.0, 2.5):
            seen = here.put(margin=margin)
            check_losses(seen)
            assert seen["least"] == pytest.approx(max(0, margin - 1) ** 2 / 2)
            closes = "closes within reach" in here.page.get_by_role("status").inner_text()
            assert closes == (margin < 1)

    def test_with_the_papers_margin_nothing_costs_less_than_a_half(self, here):
        assert "always costs more than 0.500" in here.page.get_by_role("status").inner_text()
        for k in range(4):
            here.page.get_by_role("slider", name=f"pair {k + 1}").press("End")
        seen = here.seen()
        check_losses(seen)
        for pair in seen["pairs"][2:]:
            assert pair["margin"]["loss"] == 0 < 0.5 < pair["paper"]["loss"] < 0.51

    def test_the_slider_moves_the_margin(self, here):
        slider = here.page.get_by_role("slider", name="margin m")
        for key, value in [("Home", 0.1), ("ArrowRight", 0.15), ("End", 2.5)]:
            slider.press(key)
            assert here.seen()["margin"] == pytest.approx(value)
            check_losses(here.seen())
            for hinge in here.page.locator(".hinge").all():
                x = float(hinge.get_attribute("d")[1:].split()[0])
                assert x == pytest.approx(36 + 294 * value / FARTHEST)

    def test_points_are_moved_by_keys(self, here):
        points = here.page.locator(".handle[tabindex='0']")
        assert points.count() == len(POINTS)
        point = points.nth(1)
        steps = [("ArrowRight", 1.45), ("ArrowDown", 1.4), ("PageDown", 0.9), ("Home", 0),
                 ("ArrowLeft", 0), ("PageUp", 0.5), ("End", 2.5), ("ArrowUp", 2.5)]  # fmt: skip
        for key, value in steps:
            point.press(key)
            seen = here.seen()
            assert seen["pairs"][1]["d"] == pytest.approx(value)
            assert point.get_attribute("aria-valuenow") == f"{value:.2f}"
            check_losses(seen)
        row = here.page.locator(".siamcam-losses tbody tr").nth(1).locator("td").all_inner_texts()
        pair = seen["pairs"][1]
        numbers = [float(text.replace("−", "-")) for text in row]
        wanted = [pair["d"], *(pair["margin"][k] for k in ("loss", "gradient")),
                  pair["y"], *(pair["paper"][k] for k in ("loss", "gradient"))]  # fmt: skip
        assert numbers == pytest.approx(wanted, abs=0.0051)

    @pytest.mark.parametrize("chart", [0, 1])
    def test_points_are_dragged(self, here, chart):
        svg = here.page.locator(".siamcam-charts svg").nth(chart)
        point = svg.locator(".handle .dot").nth(2)
        frame, start = svg.bounding_box(), point.bounding_box()
        mouse = here.page.mouse
        mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
        mouse.down()
        for D in (0.3, 0.75):
            x = frame["x"] + (36 + 294 * D / FARTHEST) * frame["width"] / 340
            mouse.move(x, start["y"] + 40)
        mouse.up()
        seen = here.seen()
        pair = seen["pairs"][2]
        assert pair["y" if chart else "d"] == pytest.approx(0.75, abs=1e-6)
        check_losses(seen)
        mouse.move(frame["x"] + 5, start["y"])
        assert here.seen() == seen


# --- steps --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anatomy(net, couple) -> list[tuple[np.ndarray, np.ndarray]]:
    """For both images: channels in the order of |weight| that are not silent, and terms α A."""
    seeing = as_explainable(net)
    seen = seeing.see(couple)
    compared = seeing.compare(seen.embedding[:1], seen.embedding[1:])
    weights = seen.weights(torch.arange(2), torch.cat([compared.v1, compared.v2])).numpy()
    found = []
    for alpha, maps in zip(weights, seen.maps.double().numpy(), strict=True):
        order = [k for k in np.argsort(-np.abs(alpha), kind="stable") if maps[k].any()]
        found.append((np.array(order), alpha[order, None, None] * maps[order]))
    return found


def close(found, expected, most: float) -> bool:
    return bool(np.abs(np.ravel(found) - np.ravel(expected)).max() <= 1e-3 * most)


class TestSteps:
    kind = "steps"

    def test_sums_are_pythons(self, here, net, couple, anatomy):
        ex = sc.explain(net, *couple)
        sign = 1 if ex.decision == "similar" else -1
        for rectified in (0, 1):
            for k in (0, 1, 17, 100, 101):
                seen = here.put(channels=k, sum=rectified)
                assert (seen["channels"], seen["rectified"]) == (k, bool(rectified))
                for i, (order, terms) in enumerate(anatomy):
                    side, size = seen["sides"][i], couple[i].size
                    count = len(order) if k == 101 else k
                    raw, final = terms[:count].sum(axis=0), terms.sum(axis=0)
                    most = np.abs(terms[:count]).sum(axis=0).max() if count else 0
                    assert close(side["raw"], raw, max(most, np.abs(final).max()))
                    full = stretch(torch.from_numpy(raw), size)
                    if rectified:
                        full = np.maximum(sign * full, 0)
                        raw, final = (np.maximum(sign * m, 0) for m in (raw, final))
                    assert close(side["full"], full, max(most, np.abs(final).max()))
                    away = np.abs(raw - final).sum() / np.abs(final).sum()
                    assert side["apart"] == pytest.approx(away, abs=2e-3)
                    if 1 <= k <= 100:
                        assert side["channel"] == order[k - 1]
                        term = stretch(torch.from_numpy(terms[k - 1]), size)
                        assert close(side["term"], term, np.abs(term).max())
                    else:
                        assert side["channel"] is None

    def test_all_channels_make_the_factual_map(self, here, net, couple):
        ex = sc.explain(net, *couple)
        here.page.get_by_role("radio", name="after the ReLU").check()
        here.page.get_by_role("slider", name="channels").press("End")
        seen = here.seen()
        top = max(np.abs(stretch(torch.from_numpy(m), image.size)).max()
                  for m, image in zip(ex.raw, couple, strict=True))  # fmt: skip
        assert seen["top"] == pytest.approx(top, rel=1e-3)
        for side, factual in zip(seen["sides"], ex.factual, strict=True):
            assert close(side["full"], factual, top)
            assert side["apart"] < 1e-3
        assert here.page.get_by_role("status").inner_text().startswith("all channels added: A 0.")

    def test_keys_add_and_take_away_single_channels(self, here, anatomy):
        slider = here.page.get_by_role("slider", name="channels")
        for key, k in [("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)]:
            slider.press(key)
            assert here.seen()["channels"] == k
        channel, weight = anatomy[0][0][0], here.seen()["sides"][0]["weight"]
        shown = here.page.get_by_text(f"A: channel {channel}, weight").inner_text()
        written = shown.rpartition(" ")[2].replace("−", "-")
        assert float(written) == pytest.approx(weight, rel=0.05)

    @pytest.mark.parametrize("k", [0, 3, 101])
    def test_a_signed_sum_is_drawn_in_two_colours(self, here, explorers, k):
        seen = here.put(channels=k, sum=0)
        for i in (0, 1):
            url = explorers["steps"].view.data["sides"][i]["picture"]["url"]
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as jpeg:
                grey = np.asarray(jpeg.convert("L"), float)[:, :, None]
            full = np.reshape(seen["sides"][i]["full"], grey.shape)
            alpha = OPACITY * np.minimum(np.abs(full) / seen["top"], 1)
            colour = np.where(full > 0, (0, 114, 178), (213, 94, 0))
            found = here.pixels(2 + i)
            difference = np.abs(found[:, :, :3] - ((1 - alpha) * grey + alpha * colour))
            assert (found[:, :, 3] == 255).all()
            assert difference.mean() < 1 and np.quantile(difference, 0.999) < 8


@pytest.mark.parametrize("here", ["same"], indirect=True)
def test_the_steps_of_identical_images_lead_to_a_blank_map(here):
    for k in (0, 5, 2000):
        seen = here.put(channels=k)
        assert all(s["blank"] and not np.any(s["full"]) and s["apart"] == 0 for s in seen["sides"])
    assert here.page.get_by_text("the final map is blank: zero everywhere").count() == 2


# --- crop ---------------------------------------------------------------------------------------


class TestCrop:
    kind = "crop"

    def test_boxes_are_pythons(self, here, crops):
        settings = [(0.01, 0), (0.2, 0.05), (0.5, 0), (0.5, 0.25), (0.73, 0.5), (0.99, 0.1)]
        several = 0
        for k, (picture, raw) in enumerate(zip(*crops, strict=True)):
            heat = np.maximum(stretch(torch.from_numpy(raw.astype(np.float32)), picture.size), 0)
            for threshold, margin in settings:
                seen = here.put(image=k, threshold=threshold, margin=margin)
                assert np.abs(np.reshape(seen["heat"], heat.shape) - heat).max() < 1e-5
                assert tuple(seen["box"]) == box(heat, threshold, margin), (k, threshold, margin)
                assert seen["blank"] == (not heat.any())
                several += seen["count"] > 1
                left, top, right, bottom = seen["box"]
                words = here.page.get_by_role("status").inner_text()
                assert words.startswith(
                    f"box {right - left} × {bottom - top} of {picture.width} × {picture.height} "
                )
                assert here.pixels(2).shape == (bottom - top, right - left, 4)
        assert several > 10

    def test_what_is_cropped_is_the_box_of_the_picture(self, here, explorers):
        seen = here.put(image=1, threshold=0.6, margin=0.1)
        url = explorers["crop"].view.data["images"][1]["picture"]["url"]
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as jpeg:
            wanted = np.asarray(jpeg.convert("RGB").crop(seen["box"]), float)
        found = here.pixels(2)
        assert found.shape[:2] == wanted.shape[:2] and wanted.shape[:2] != (120, 200)
        assert np.abs(found[:, :, :3] - wanted).mean() < 2

    def test_a_blank_map_keeps_the_whole_picture_and_says_so(self, here):
        seen = here.put(image=5)
        assert seen["box"] == [0, 0, 60, 60] and seen["blank"]
        assert here.page.get_by_text("The heatmap is blank: zero everywhere.").is_visible()

    def test_every_control(self, here, crops):
        page = here.page
        page.get_by_role("combobox", name="picture").select_option(index=2)
        page.wait_for_function(IMAGE, arg=2)
        page.get_by_role("slider", name="threshold").press("Home")
        page.get_by_role("slider", name="margin").press("End")
        seen = here.seen()
        assert [seen[k] for k in ("image", "threshold", "margin")] == pytest.approx([2, 0.01, 0.5])
        raw = torch.from_numpy(crops[1][2].astype(np.float32))
        heat = np.maximum(stretch(raw, crops[0][2].size), 0)
        assert tuple(seen["box"]) == box(heat, 0.01, 0.5)
        page.get_by_role("option", name="image 3").nth(-1).click()
        page.wait_for_function(IMAGE, arg=3)
        for key, image in [("ArrowRight", 4), ("Home", 0)]:
            page.get_by_role("listbox").locator("[aria-selected=true]").press(key)
            page.wait_for_function(IMAGE, arg=image)


# --- every explorer -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_it_whole_in_light_and_dark(opened, files, kind, scheme):
    url = (files / f"{kind}.html").as_uri()
    with opened(url, "file:", scheme=scheme, width=360) as here:
        assert not here.overflows()
        ground = here.lightness("body", "backgroundColor")
        text = here.lightness(".siamcam-verdict", "color")
        assert (ground > 0.9 and text < 0.3) == (scheme == "light")
        assert abs(ground - text) > 0.6


@pytest.mark.parametrize("here", KINDS, indirect=True)
def test_everything_is_labelled_and_the_numbers_are_announced(here):
    unnamed = here.page.evaluate("""() => [...document.querySelectorAll(`input, select, canvas, img,
      table, svg[role], [role=listbox], [role=option], [role=slider], [role=group]`)]
      .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("alt")
      || e.closest("label")?.textContent.trim())).map((e) => e.outerHTML)""")
    assert unnamed == []
    assert here.page.get_by_role("status").count() == 1


@pytest.mark.parametrize("here", KINDS, indirect=True)
def test_every_control_is_reached_by_the_tab_key_and_shows_it(here):
    page = here.page
    wanted = page.evaluate("""() => [...document.querySelectorAll(
      "select, input[type=range], [tabindex='0']")].length""")
    found = set()
    for _ in range(wanted + 3):
        page.keyboard.press("Tab")
        seen = page.evaluate("""() => {
          const e = document.activeElement;
          const dot = getComputedStyle(e.querySelector(".dot") ?? e);
          return [[...document.querySelectorAll("*")].indexOf(e),
            e.matches("select, input[type=range], [tabindex='0']"),
            parseFloat(getComputedStyle(e).outlineWidth) >= 3 || parseFloat(dot.strokeWidth) >= 3];
        }""")
        if seen[1]:
            assert seen[2]
            found.add(seen[0])
    assert len(found) == wanted


# --- the same on a page of ipywidgets, as the book has them, with no kernel -----------------------

SHOWN = ("threshold", "loss", "steps", "crop")


@pytest.fixture(scope="module")
def linked_page(explorers, write_linked, tmp_path_factory) -> Path:
    shown = [explorers[kind] for kind in SHOWN]
    return write_linked(shown, tmp_path_factory.mktemp("linked")).parent


def check_controls(here, report, ex, crops) -> None:
    """Use controls of all four, as ipywidgets shows them, and hold the views to Python."""
    page = here.page
    page.wait_for_selector(".widget-toggle-button[aria-pressed=true]")

    def press(name: str, key: str, k: int, **wanted: float) -> dict:
        box = page.locator(".siamcam-explorer").nth(k)
        box.get_by_role("slider", name=name, exact=True).press(key)
        page.wait_for_function(NEAR, arg=[k, wanted])
        return here.seen(k)

    seen = press("threshold", "ArrowRight", 0, threshold=0.447)
    assert seen["threshold"] == pytest.approx(0.447, rel=1e-12)
    assert seen["counts"] == replace(report, threshold=0.447).confusion.tolist()
    seen = press("threshold", "Home", 0, threshold=0.007)
    assert seen["counts"] == replace(report, threshold=0.007).confusion.tolist()
    for key, margin in [("Home", 0.1), ("End", 2.5)]:
        check_losses(press("margin m", key, 1, margin=margin))
    point = page.locator(".siamcam-explorer").nth(1).locator(".handle[tabindex='0']").nth(1)
    point.press("ArrowRight")
    check_losses(here.seen(1))
    assert press("channels", "Home", 2, channels=0)["channels"] == 0
    assert press("channels", "End", 2, channels=101)["channels"] == 101
    page.get_by_role("button", name="after the ReLU").click()
    page.wait_for_function("document.querySelectorAll('.siamcam')[2].__siamcam.rectified")
    for side, factual in zip(here.seen(2)["sides"], ex.factual, strict=True):
        assert close(side["full"], factual, here.seen(2)["top"]) and side["apart"] < 1e-3
    page.locator(".widget-dropdown select").select_option(index=1)
    page.wait_for_function(IMAGE, arg=1)
    press("threshold", "Home", 3, threshold=0.01)
    seen = press("margin", "ArrowRight", 3, margin=0.01)
    raw = torch.from_numpy(crops[1][1].astype(np.float32))
    heat = np.maximum(stretch(raw, crops[0][1].size), 0)
    assert tuple(seen["box"]) == box(heat, 0.01, 0.01)


def test_linked_controls_answer_without_a_kernel(
    opened, linked_page, serve, report, net, couple, crops
):
    with (
        serve(linked_page) as base,
        opened(f"{base}/page.html", base, views=len(SHOWN)) as here,
    ):
        check_controls(here, report, sc.explain(net, *couple), crops)
        here.page.set_viewport_size({"width": 360, "height": 740})
        assert not here.overflows()


IN_LAB = """\
from IPython.display import display
from siamcam_lib.widgets import *
made = [threshold_explorer(data["report"], data["pairs"]), loss_explorer(),
        steps_explorer(data["net"], *data["couple"], channels=100), crop_explorer(*data["crops"])]
display(*made)
"""
HEARD = """\
v = [explorer.view for explorer in made]
print('heard', round(v[0].threshold, 3), v[1].margin, v[2].channels, v[3].image)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_they_answer_with_a_live_kernel_which_hears(lab, report, pairs, net, couple, crops):
    data = {"report": report, "pairs": pairs, "net": net, "couple": couple, "crops": crops}
    with lab(IN_LAB, HEARD, data=data, views=len(SHOWN)) as here:
        check_controls(here, report, sc.explain(net, *couple), crops)
        cell = here.page.locator(".jp-CodeCell").nth(1)
        cell.locator(".cm-content").click()
        here.page.keyboard.press("Control+Enter")
        here.page.get_by_text("heard 0.007 2.5 101 1", exact=True).wait_for()
