"""Minuses and intervals of a page."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.core import publish_doctree

ROOT = Path(__file__).resolve().parents[2]
numerals = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "_ext" / "numerals.py")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("by -0.1 [-0.20, -.05]", "by −0.1 [−0.20,\N{NO-BREAK SPACE}−.05]"),
        ("0.4 [0.1, +12%]", "0.4 [0.1,\N{NO-BREAK SPACE}+12%]"),
        ("a list [a, b], a place (1, 2), [1, 2, 3]", None),
        ("-0.3 ± 0.1", "−0.3\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.1"),
        ("more ± or less", None),
        ("-3 points (-4 to 1)", "−3 points (−4 to 1)"),
        ("resnet-50, 2026-11-22, 5-10, lite-0, --3, .5-1, (a)-1, x/-1", None),
        ("well-known - or not", None),
    ],
)
def test_only_a_hyphen_before_a_number_of_its_own(text, told):
    assert numerals.in_text(text) == (told or text)


def test_only_the_cells_of_a_table():
    html = '<style>x {margin: -1px}</style><td id="T-1" class="a" >-0.5</td><th>-1</th><p>-2</p>'
    told = numerals.in_tables(html)
    assert told == html.replace(">-0.5<", ">−0.5<").replace("<th>-1", "<th>−1")


def test_code_and_its_output_stay_as_they_are():
    page = publish_doctree("It is -1, ``x = -1``\n\n::\n\n  -1\n\n.. raw:: html\n\n  <td>-1</td>\n")
    numerals.write(None, page)
    assert page.astext().count("−1") == 2
    assert [n.astext() for n in page.findall(nodes.literal)] == ["x = -1"]
    assert [n.astext() for n in page.findall(nodes.literal_block)] == ["-1"]
    (raw,) = page.findall(nodes.raw)
    assert raw.astext() == "<td>−1</td>" and raw["format"] == "html"
