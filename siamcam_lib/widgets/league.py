"""The league table: every explainer on every measure, in the order of the one that is asked for.

Used in the chapter on measuring explanations. What is said of a cell, its words, its place and its
mark, is worked out here; the page only puts rows in order.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import traitlets

from siamcam_lib import explainers as registry
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import MEASURES, Measure
from siamcam_lib.plots import SIMILAR, WIDTH
from siamcam_lib.widgets.base import Explorer, View, source

NUMBERS = ["mean", "low", "high", "seconds"]
COLUMNS = ["explainer", "measure", "higher", *NUMBERS]
COST = "cost, milliseconds a pair"
NONE = "–"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SHADE = 0.4
"""How much of its colour the best cell of a column shows."""


class LeagueView(View):
    """Explainers as rows, measures as columns; the head of a column puts its best first.

    Attributes:
        dataset: Which data set.
    """

    _esm = source("base.js", "league.js")
    dataset = traitlets.Int(0).tag(sync=True)


def league_table(
    summaries: Mapping[str, pd.DataFrame], measures: Mapping[str, Measure] | None = None
) -> Explorer:
    """Sort explainers by any measure, and see how they do by the others.

    A cell is bold where its interval overlaps that of the best of its column, and shaded by its
    place there.

    Args:
        summaries: For each data set, by the name that is shown, `evaluation.League.summary`. Rows
            and columns come as they first appear there; a missing pair of them is a dash.
        measures: Those that `evaluation.MEASURES` does not know, for their titles.

    Raises:
        EvaluationError: if there is no data set, or a summary is none: columns are missing, there
            is no row, a number is not finite, a row comes twice, or a measure is better both high
            and low.

    Example:
        >>> row = {"explainer": "shared", "measure": "deletion", "higher": False}
        >>> found = pd.DataFrame([row | {"mean": 0.2, "low": 0.1, "high": 0.3, "seconds": 0.01}])
        >>> league_table({"Flowers": found})
        Explorer('League table, 1 explainer on 1 data set')
    """
    if not isinstance(summaries, Mapping) or not summaries:
        given = "none" if isinstance(summaries, Mapping) else f"a {type(summaries).__name__}"
        raise EvaluationError(
            "A league table needs the summary of at least one data set, under its name: "
            f"{{'Flowers': league(...).summary}}; {given} was given."
        )
    known = MEASURES | dict(measures or {})
    sets = [_set(str(name), _checked(name, found), known) for name, found in summaries.items()]
    view = LeagueView(data={"sets": sets})
    menu = ipywidgets.Dropdown(
        options=[(one["name"], k) for k, one in enumerate(sets)], description="data set"
    )
    count = len({one["title"] for found in sets for one in found["explainers"]})
    about = f"League table, {_count(count, 'explainer')} on {_count(len(sets), 'data set')}"
    return Explorer(view, {"dataset": menu}, about, lambda: _still(sets[view.dataset]))


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"


def _checked(name: str, found: Any) -> pd.DataFrame:
    """The summary with numbers for numbers."""

    def refuse(what: str) -> None:
        raise EvaluationError(f"The summary of {name!r} {what}; give league(...).summary.")

    if not isinstance(found, pd.DataFrame):
        refuse(f"is a {type(found).__name__}, not a data frame")
    if missing := [column for column in COLUMNS if column not in found.columns]:
        refuse(f"lacks {', '.join(missing)}")
    if found.empty:
        refuse("has no row")
    found = found.assign(**found[NUMBERS].apply(pd.to_numeric, errors="coerce"))
    if not found.higher.isin([True, False]).all():
        refuse("does not say everywhere whether high is better, True or False")
    who = found.explainer.astype(str) + " on " + found.measure.astype(str)
    for column in NUMBERS:
        if not (fine := np.isfinite(found[column])).all():
            refuse(f"has no finite {column} of {who[~fine].iloc[0]}")
    if (twice := found.duplicated(["explainer", "measure"])).any():
        refuse(f"has {who[twice].iloc[0]} twice")
    ways = found.groupby("measure").higher.nunique()
    if (ways > 1).any():
        refuse(f"says of {ways.idxmax()} both that high and that low is better")
    return found


def _set(name: str, found: pd.DataFrame, known: Mapping[str, Measure]) -> dict[str, Any]:
    """All that is shown of one data set."""
    order = found.explainer.unique()
    columns = [
        _column(
            str(key),
            known[key].title if key in known else str(key),
            bool(rows.higher.iloc[0]),
            rows.set_index("explainer")[["mean", "low", "high"]],
            order,
        )
        for key, rows in found.groupby("measure", sort=False)
    ]
    cost = 1000 * found.groupby("explainer").seconds.mean().to_frame("mean")
    columns.append(_column("seconds", COST, False, cost.assign(low=np.nan, high=np.nan), order))
    return {"name": name, "explainers": [_told(key) for key in order], "columns": columns}


def _told(key: Any) -> dict[str, str]:
    """What an explainer says of itself."""
    if key not in registry.names():
        return {"title": str(key), "cost": "", "limits": ""}
    explainer = registry.get(key)
    return {"title": explainer.title, "cost": explainer.cost, "limits": explainer.limits}


def _column(
    key: str, title: str, higher: bool, found: pd.DataFrame, order: np.ndarray
) -> dict[str, Any]:
    """A column; of each cell its words, its shade from 0 (worst) to 1, whether it is near the best.

    A cost, which has no interval, is near to nothing.
    """
    rank = found["mean"].rank(method="min", ascending=not higher)
    best = found.loc[rank.idxmin()]
    power = _power(found["mean"].to_numpy())
    cells = {
        one.Index: {
            "mean": one.mean,
            **_words(*(np.array([one.mean, one.low, one.high]) / 10.0**power)),
            "shade": 1 - (place - 1) / max(len(found) - 1, 1),
            "near": bool(one.low <= best.high and one.high >= best.low),
        }
        for one, place in zip(found.itertuples(), rank, strict=True)
    }
    return {
        "key": key, "title": title, "higher": higher,
        "unit": f"in 10{str(power).translate(RAISED)}" if power else "",
        "cells": [cells.get(key) for key in order],
    }  # fmt: skip


def _power(values: np.ndarray) -> int:
    """Of ten, in which small numbers are told; 0 where half of them are at least a hundredth.

    Example:
        >>> _power(np.array([0.0, 0.0004, -0.0006, 0.5])), _power(np.array([0.0, 0.01, 300]))
        (-4, 0)
    """
    sizes = np.abs(values[values != 0])
    usual = np.median(sizes) if len(sizes) else 1
    return math.floor(math.log10(usual)) if usual < 0.01 else 0


def _words(mean: float, low: float, high: float) -> dict[str, str]:
    """Mean and interval, with three digits as far as three decimals show them.

    Example:
        >>> _words(-0.5, -0.61, -0.00001)
        {'text': '−0.500', 'interval': '[−0.610, 0.000]'}
        >>> _words(1234.5, math.nan, math.nan), _words(23, 9, 45)["interval"]
        ({'text': '1234', 'interval': ''}, '[9.0, 45.0]')
    """
    most = np.nanmax(np.abs([mean, low, high]))
    decimals = min(3, max(0, 3 - math.ceil(math.log10(most)))) if most else 3
    told = [f"{x:z.{decimals}f}".replace("-", "−") for x in (mean, low, high)]
    return {"text": told[0], "interval": "" if math.isnan(low) else f"[{told[1]}, {told[2]}]"}


def _still(shown: dict[str, Any]) -> bytes:
    """The means as a shaded table, in the order of the first column, the best first."""
    columns = shown["columns"]
    first = columns[0]
    sign = -1 if first["higher"] else 1
    rows = sorted(
        range(len(shown["explainers"])),
        key=lambda k: sign * cell["mean"] if (cell := first["cells"][k]) else math.inf,
    )
    cells = [[column["cells"][k] for column in columns] for k in rows]
    shades = [[cell["shade"] if cell else 0 for cell in row] for row in cells]
    texts = [[cell["text"] if cell else NONE for cell in row] for row in cells]
    figure, axis = plt.subplots(figsize=(WIDTH, 2 + 0.21 * len(rows)), layout="constrained")
    sns.heatmap(
        shades, vmin=0, vmax=1 / SHADE, cmap=sns.light_palette(SIMILAR, as_cmap=True), cbar=False,
        annot=np.array(texts), fmt="", linewidths=0.5, ax=axis,
        annot_kws={"fontsize": min(7, 88 / len(columns)), "color": "black"},
        xticklabels=[
            f"{textwrap.fill(' '.join([column['title'], column['unit']]), 24)} "
            f"{'↑' if column['higher'] else '↓'}"
            for column in columns
        ],
        yticklabels=[shown["explainers"][k]["title"] for k in rows],
    )  # fmt: skip
    for text, cell in zip(axis.texts, sum(cells, []), strict=True):
        text.set_fontweight("bold" if cell and cell["near"] else "normal")
    axis.xaxis.tick_top()
    axis.tick_params(axis="x", rotation=90, labelsize=7.5, length=0)
    axis.tick_params(axis="y", rotation=0, labelsize=8, length=0)
    axis.set_title(shown["name"], fontsize=10)
    axis.set_xlabel(
        "↑ high is better, ↓ low is better. Darker: better placed in its column.\n"
        "Bold: the 95% interval overlaps that of the column’s best.", fontsize=8,
    )  # fmt: skip
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    return buffer.getvalue()
