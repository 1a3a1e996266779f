"""The league table in a browser: its order is Python's, by click and by key, in every data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import siamcam_lib as sc
from siamcam_lib.evaluation import MEASURES
from siamcam_lib.widgets import Explorer, league_table

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

KEYS = list(MEASURES)
BOX = ".siamcam-scroll"
ORDER = "(names) => names.join() === document.querySelector('.siamcam').__siamcam.order.join()"
FOCUSED = "document.activeElement.textContent"


def a_summary(names: list[str], keys: list[str], seed: int) -> pd.DataFrame:
    """Invented numbers, some of them equal; the last explainer lacks the last measure."""
    random = np.random.default_rng(seed)
    rows = []
    for name in names:
        seconds = float(10 ** random.uniform(-4, 1))
        for key in keys:
            mean = round(float(random.normal(0.4, 0.3)), 1)
            half = float(random.uniform(0.02, 0.06))
            rows.append((name, key, mean, mean - half, mean + half, MEASURES[key].higher, seconds))
    names = ["explainer", "measure", "mean", "low", "high", "higher", "seconds"]
    return pd.DataFrame(rows[:-1], columns=names)


@pytest.fixture(scope="module")
def summaries() -> dict[str, pd.DataFrame]:
    names = sc.explainers.names()
    return {
        "Drawn scenes": a_summary([*names, "mine"], KEYS, 0),
        "Flowers": a_summary(names[:9], KEYS[1:4], 1),
    }


@pytest.fixture(scope="module")
def explorer(summaries) -> Explorer:
    return league_table(summaries)


@pytest.fixture(scope="module")
def file(explorer, write_alone, tmp_path_factory) -> Path:
    return write_alone(explorer, tmp_path_factory.mktemp("league") / "league.html", "League")


@pytest.fixture
def here(opened, file):
    with opened(file.as_uri(), "file:") as page:
        yield page


def title(name: str) -> str:
    return sc.explainers.get(name).title if name in sc.explainers.names() else name


def expected(table: pd.DataFrame, key: str, reverse: bool = False) -> list[str]:
    """Titles in the order of a column; equals and those without a value as they came."""
    names = table.explainer.drop_duplicates()
    if key == "seconds":
        values, higher = table.groupby("explainer").seconds.first(), False
    else:
        rows = table[table.measure == key]
        values, higher = rows.set_index("explainer")["mean"], MEASURES[key].higher
    order = values.reindex(names).sort_values(
        ascending=higher == reverse, kind="stable", na_position="last"
    )
    return [title(name) for name in order.index]


def shown(here) -> list[str]:
    return here.page.locator("tbody th button").all_inner_texts()


def head(here, k: int):
    return here.page.locator("thead th").nth(k)


def test_a_click_puts_the_best_first_and_another_the_worst(here, summaries):
    table = summaries["Drawn scenes"]
    assert shown(here) == expected(table, KEYS[0])
    for k, key in reversed(list(enumerate([*KEYS, "seconds"], start=1))):
        higher = key in MEASURES and MEASURES[key].higher
        assert f"{'high' if higher else 'low'} is better" in head(here, k).inner_text()
        for reverse in (False, True):
            head(here, k).get_by_role("button").click()
            assert shown(here) == expected(table, key, reverse) == here.seen()["order"]
            assert head(here, k).get_attribute("aria-sort") == (
                "ascending" if higher == reverse else "descending"
            )
            assert here.page.locator("[aria-sort]").count() == 1
            words = here.page.get_by_role("status").inner_text()
            assert f"{'worst' if reverse else 'best'} first" in words
            assert f"{expected(table, key)[0]} leads with" in words
    assert head(here, 1).get_attribute("aria-sort") == "descending"


def test_names_are_sorted_too(here, summaries):
    titles = sorted(map(title, summaries["Drawn scenes"].explainer.unique()), key=str.lower)
    for sort, names in [("ascending", titles), ("descending", titles[::-1])]:
        head(here, 0).get_by_role("button").click()
        assert [name.lower() for name in shown(here)] == [name.lower() for name in names]
        assert head(here, 0).get_attribute("aria-sort") == sort


def test_cells_say_what_python_says(here, explorer):
    [*_, last] = columns = explorer.view.data["sets"][0]["columns"]
    rows = here.page.locator("tbody tr")
    for row in (0, 11, 23):
        name = shown(here)[row]
        k = [one["title"] for one in explorer.view.data["sets"][0]["explainers"]].index(name)
        cells = rows.nth(row).locator("td")
        for column, cell in zip(columns, cells.all(), strict=True):
            found = column["cells"][k]
            wanted = [found["text"], found["interval"]] if found else ["–"]
            assert cell.inner_text().split("\n") == [text for text in wanted if text]
            assert cell.locator("b").count() == bool(found and found["near"])
    assert last["key"] == "seconds"
    shades = "cells => cells.map((cell) => getComputedStyle(cell).backgroundColor)"
    assert len(set(rows.locator("td:nth-of-type(2)").evaluate_all(shades))) > 5


def test_the_keyboard_sorts(here, summaries):
    table, keyboard = summaries["Drawn scenes"], here.page.keyboard
    head(here, 2).get_by_role("button").focus()
    for key, reverse in [("Enter", False), ("Space", True), ("Enter", False)]:
        keyboard.press(key)
        assert shown(here) == expected(table, KEYS[1], reverse)
    assert here.page.evaluate(FOCUSED).startswith(MEASURES[KEYS[1]].title)
    keyboard.press("Tab")
    keyboard.press("Enter")
    assert shown(here) == expected(table, KEYS[2])


def test_each_set_has_its_own_columns_and_keeps_the_order_it_can(here, summaries):
    page, few = here.page, KEYS[1:4]
    menu = page.get_by_role("combobox", name="data set")
    head(here, 3).get_by_role("button").click()
    head(here, 3).get_by_role("button").click()
    menu.select_option(label="Flowers")
    assert page.locator("thead th").count() == 1 + len(few) + 1
    assert page.get_by_role("table").get_attribute("aria-label") == "Flowers"
    assert shown(here) == expected(summaries["Flowers"], KEYS[2], True)
    menu.select_option(label="Drawn scenes")
    head(here, len(KEYS)).get_by_role("button").click()
    menu.select_option(label="Flowers")
    assert shown(here) == expected(summaries["Flowers"], few[0])
    seen = here.seen()
    assert (seen["name"], seen["by"], seen["reverse"]) == ("Flowers", few[0], False)


def test_an_explainer_tells_its_limits(here):
    page, words = here.page, here.page.locator(".siamcam-limits")
    assert words.inner_text().startswith("Point at an explainer")

    def told(name: str) -> str:
        key = next((k for k in sc.explainers.names() if title(k) == name), None)
        limits = sc.explainers.get(key).limits if key else "nothing is noted of it."
        return f"{name}: {limits}"

    page.locator("tbody tr").nth(3).hover()
    assert words.inner_text() == told(shown(here)[3])
    assert page.locator("tbody [tabindex='0']").count() == 1
    page.locator("tbody [tabindex='0']").focus()
    for key, k in [("ArrowDown", 1), ("End", 23), ("ArrowDown", 23), ("ArrowUp", 22), ("Home", 0)]:
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == shown(here)[k]
        assert words.inner_text() == told(shown(here)[k])
    page.locator("tbody th button", has_text="mine").click()
    assert words.inner_text() == "mine: nothing is noted of it."
    assert page.locator("tbody [tabindex='0']").inner_text() == "mine"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 400])
def test_a_telephone_scrolls_the_table_and_not_the_page(opened, file, scheme, width):
    with opened(file.as_uri(), "file:", scheme=scheme, width=width) as here:
        assert not here.overflows()
        ground, text = here.lightness("body", "backgroundColor"), here.lightness("td", "color")
        assert (ground > 0.9 and text < 0.3) == (scheme == "light")
        box = here.page.locator(BOX)
        name, heading = here.page.locator("tbody th").first, here.page.locator("thead th").nth(0)
        before = name.bounding_box()["x"], heading.bounding_box()
        box.evaluate("(box) => box.scrollTo(300, 300)")
        assert box.evaluate("(box) => [box.scrollLeft, box.scrollTop]") == [300, 300]
        assert (name.bounding_box()["x"], heading.bounding_box()) == before
        # neither a point at a name nor the arrow keys bring the first column back
        third = here.page.locator("tbody th button").nth(9).bounding_box()
        here.page.mouse.click(third["x"] + 5, third["y"] + 5)
        here.page.keyboard.press("ArrowDown")
        assert here.page.evaluate(FOCUSED) == shown(here)[10]
        assert box.evaluate("(box) => box.scrollLeft") == 300
        here.page.keyboard.press("Home")
        assert name.bounding_box()["y"] >= heading.bounding_box()["y"] + 20


def test_everything_is_reached_by_the_tab_key_and_shows_it(here):
    wanted = ["SELECT", "DIV", *["BUTTON"] * (len(KEYS) + 3)]
    found = []
    for _ in wanted:
        here.page.keyboard.press("Tab")
        tag, ring = here.page.evaluate("""() => [document.activeElement.tagName,
          parseFloat(getComputedStyle(document.activeElement).outlineWidth)]""")
        assert ring >= 3
        found.append(tag)
    assert found == wanted
    assert here.page.get_by_role("status").count() == 1
    assert here.page.get_by_role("region").get_attribute("aria-label")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation(opened, file, violations, scheme):
    with opened(file.as_uri(), "file:", scheme=scheme) as here:
        assert violations(here.page, "html") == []


# --- the same control as ipywidgets has it, without a kernel and with one -------------------------


def check_controls(here, summaries) -> None:
    page = here.page
    page.locator(".widget-dropdown select").select_option(index=1)
    page.wait_for_function(ORDER, arg=expected(summaries["Flowers"], KEYS[1]))
    head(here, 2).get_by_role("button").click()
    assert shown(here) == expected(summaries["Flowers"], KEYS[2])


def test_the_linked_menu_answers_without_a_kernel(
    opened, explorer, summaries, write_linked, serve, tmp_path
):
    folder = write_linked([explorer], tmp_path).parent
    with serve(folder) as base, opened(f"{base}/page.html", base) as here:
        check_controls(here, summaries)
        here.page.set_viewport_size({"width": 360, "height": 740})
        assert not here.overflows()


IN_LAB = """\
from siamcam_lib.widgets import league_table
explorer = league_table(data)
explorer
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_answers_with_a_live_kernel_which_hears(lab, summaries):
    with lab(IN_LAB, "print('heard', explorer.view.dataset)", data=summaries) as here:
        check_controls(here, summaries)
        here.page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
        here.page.keyboard.press("Control+Enter")
        here.page.get_by_text("heard 1", exact=True).wait_for()
