"""The Python half of the league table: what it says of cells, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets.embed import dependency_state
from PIL import Image

import siamcam_lib as sc
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import MEASURES, planted
from siamcam_lib.widgets import Explorer, league_table
from siamcam_lib.widgets.league import COST, _power, _words

NAMES = ["explainer", "measure", "mean", "low", "high", "higher", "seconds"]
PARTS = planted("part", np.ones((1, 2, 4, 4), bool))


def a_summary() -> pd.DataFrame:
    """Two measures of three explainers, one of them of our own; one cell is missing."""
    rows = [
        ("shared", "insertion", 0.8, 0.7, 0.9, True, 0.002),
        ("shared", "deletion", 0.3, 0.2, 0.4, False, 0.002),
        ("gradcam", "insertion", 0.6, 0.5, 0.65, True, 0.004),
        ("gradcam", "deletion", 0.1, 0.05, 0.2, False, 0.004),
        ("mine", "insertion", 0.6, 0.5, 0.7, True, 1.5),
    ]
    return pd.DataFrame(rows, columns=NAMES)


def columns(explorer: Explorer, k: int = 0) -> dict[str, dict]:
    return {column["key"]: column for column in explorer.view.data["sets"][k]["columns"]}


def test_cells_of_a_table_worked_out_by_hand():
    found = columns(league_table({"Flowers": a_summary()}))
    assert list(found) == ["insertion", "deletion", "seconds"]
    assert [found[key]["title"] for key in found] == ["insertion, area", "deletion, area", COST]
    assert [found[key]["higher"] for key in found] == [True, False, False]
    # 0.8 leads, from 0.7 on: 0.65 lies below, 0.7 touches; two share the second of three places
    insertion = found["insertion"]["cells"]
    assert [cell["near"] for cell in insertion] == [True, False, True]
    assert [cell["shade"] for cell in insertion] == [1, 0.5, 0.5]
    assert insertion[2]["text"] == "0.600" and insertion[2]["interval"] == "[0.500, 0.700]"
    # 0.1 leads, up to 0.2, where the other begins; the third has none
    near, best, none = found["deletion"]["cells"]
    assert near["near"] and best["near"] and none is None
    assert (near["shade"], best["shade"]) == (0, 1)
    # milliseconds, without an interval to overlap
    cost = found["seconds"]["cells"]
    assert [cell["text"] for cell in cost] == ["2.00", "4.00", "1500"]
    assert [cell["shade"] for cell in cost] == [1, 0.5, 0]
    assert not any(cell["near"] or cell["interval"] for cell in cost)


def test_explainers_say_what_they_are_and_others_keep_their_names():
    [found] = league_table({"Flowers": a_summary()}).view.data["sets"]
    shared = sc.explainers.get("shared")
    assert found["explainers"][0] == {
        "title": shared.title, "cost": shared.cost, "limits": shared.limits,
    }  # fmt: skip
    assert found["explainers"][2] == {"title": "mine", "cost": "", "limits": ""}


def test_measures_are_titled_by_what_is_known_of_them():
    table = a_summary().replace({"measure": {"insertion": "precision on part", "deletion": "odd"}})
    explorer = league_table({"One": a_summary(), "Two": table}, PARTS)
    assert [c["title"] for c in columns(explorer, 1).values()] == [
        "average precision on part", "odd", COST,
    ]  # fmt: skip
    assert columns(explorer)["insertion"]["title"] == MEASURES["insertion"].title
    known = columns(league_table({"Two": table}))
    assert known["precision on part"]["title"] == "precision on part"
    assert [label for label, _ in explorer.controls["dataset"].options] == ["One", "Two"]
    assert repr(explorer) == "Explorer('League table, 3 explainers on 2 data sets')"


def test_it_takes_what_league_gives():
    images = sc.datasets.load("scenes/flowers", n=10)
    net = sc.SiameseNet("resnet18", pretrained=False, image_size=32)
    pairs = sc.explainers.Pairs(net, [images.image(0)], [images.image(1)])
    found = sc.evaluation.league(
        ["shared", "random"], pairs, {"blank": MEASURES["blank"]}, progress=False
    )
    cells = columns(league_table({"Flowers": found.summary}))["blank"]["cells"]
    assert [cell["mean"] for cell in cells] == found.summary["mean"].tolist()


@given(st.lists(st.tuples(*[st.integers(-9, 9)] * 2, st.integers(0, 5)), min_size=1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_places_and_marks_are_those_of_counting(cells, higher):
    rows = [
        (f"e{k}", "m", mean, mean - below, mean + above, higher, 0)
        for k, (mean, below, above) in enumerate((m, abs(b), a) for m, b, a in cells)
    ]
    found = columns(league_table({"": pd.DataFrame(rows, columns=NAMES)}))["m"]["cells"]
    sign = 1 if higher else -1
    best = max(rows, key=lambda row: sign * row[2])
    for row, cell in zip(rows, found, strict=True):
        before = sum(sign * other[2] > sign * row[2] for other in rows)
        assert cell["shade"] == pytest.approx(1 - before / max(len(rows) - 1, 1))
        assert cell["near"] == (max(row[3], best[3]) <= min(row[4], best[4]))


@given(st.floats(-1e4, 1e4), st.floats(0, 10))
def test_words_are_near_their_numbers(mean, half):
    words = _words(mean, mean - half, mean + half)
    told = re.findall(r"[\d.]+|−", words["text"] + words["interval"])
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", " ".join(told).replace("− ", "-"))]
    size = max(abs(mean - half), abs(mean + half))
    assert numbers == pytest.approx([mean, mean - half, mean + half], abs=0.0051 * size + 0.00051)
    assert "−0.000" not in words["text"]


@given(st.lists(st.floats(1e-9, 1e3), min_size=1))
def test_small_columns_are_told_in_a_power_that_half_of_them_reach(values):
    power = _power(np.array(values))
    usual = float(np.median(values))
    assert power == 0 if usual >= 0.01 else 1 <= usual / 10.0**power < 10 + 1e-9


def test_a_column_of_small_numbers_says_its_unit():
    table = a_summary()
    table.loc[table.measure == "deletion", ["mean", "low", "high"]] /= 1000
    found = columns(league_table({"Flowers": table}))
    assert found["deletion"]["unit"] == "in 10⁻⁴" and found["insertion"]["unit"] == ""
    assert found["deletion"]["cells"][0]["text"] == "3.00"
    assert found["deletion"]["cells"][0]["mean"] == pytest.approx(0.0003)


@pytest.mark.parametrize(("summaries", "said"), [
    ({}, "none was given"),
    (a_summary(), "a DataFrame was given"),
    ({"Flowers": [1, 2]}, "'Flowers' is a list, not a data frame"),
    ({"Flowers": a_summary().drop(columns=["low", "seconds"])}, "lacks low, seconds"),
    ({"Flowers": a_summary()[:0]}, "has no row"),
    ({"Flowers": pd.concat([a_summary()] * 2)}, "has shared on insertion twice"),
    ({"Flowers": a_summary().assign(higher=[True, False, False, False, True])},
     "says of insertion both"),
    ({"Flowers": a_summary().assign(higher=math.nan)}, "True or False"),
    ({"Flowers": a_summary().assign(seconds="fast")}, "no finite seconds of shared on insertion"),
])  # fmt: skip
def test_what_is_no_summary_is_refused(summaries, said):
    with pytest.raises(EvaluationError, match=said):
        league_table(summaries)


@pytest.mark.parametrize("column", ["mean", "low", "high", "seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(column, value):
    table = a_summary()
    table.loc[3, column] = value
    with pytest.raises(EvaluationError, match=f"no finite {column} of gradcam on deletion"):
        league_table({"Good": a_summary(), "Flowers": table})


def test_what_is_given_is_left_as_it_was():
    table = a_summary()
    league_table({"Flowers": table})
    pd.testing.assert_frame_equal(table, a_summary())


@pytest.fixture
def explorer() -> Explorer:
    return league_table({"Flowers": a_summary(), "Scenes": a_summary()[:2]})


class TestExplorer:
    """As tests/unit/test_widgets_more.py holds every explorer."""

    def test_fits_into_a_page(self, explorer):
        state = dependency_state([explorer], drop_defaults=False)
        assert len(json.dumps(state, default=str, allow_nan=False)) < 100_000

    def test_its_control_begins_as_the_view_does_and_is_named(self, explorer):
        [(trait, menu)] = explorer.controls.items()
        assert menu.index == getattr(explorer.view, trait) == 0 and menu.description == "data set"

    def test_a_picture_stands_where_no_script_may_run(self, explorer):
        data, about = explorer._repr_mimebundle_()
        assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width > 900
        assert about["image/png"]["alt"] == explorer.about
        assert data["text/plain"] == repr(explorer) and "0x" not in data["text/plain"]

    def test_the_picture_is_of_the_chosen_set(self, explorer):
        before = explorer.still()
        explorer.view.dataset = 1
        assert explorer.still() != before

    def test_code_asks_nobody_and_depends_on_nothing(self, explorer):
        code = explorer.view._esm + explorer.view._css
        assert not re.search(r"https?:|\bimport\b|\bfetch\b|XMLHttpRequest|@import", code)
        assert code.count("export default") == 1 and len(code) < 40_000

    def test_one_file_that_names_no_other(self, explorer, tmp_path):
        text = explorer.to_html(tmp_path / "page.html").read_text("utf-8")
        assert not re.search(r"\b(?:src|href)=(?!\"data:)|https?://|@import|\bimport\b", text)
