"""Numbers that a page shows, with where they come from, so that no page ever types one in.

`show` draws a table in a chapter and leaves the same numbers in the notebook as data; the results
page of the book gathers them from all executed chapters. Used in the case studies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import pandas as pd

from siamcam_lib.datasets import ImageSet
from siamcam_lib.errors import EvaluationError
from siamcam_lib.evaluation import Estimate
from siamcam_lib.studies import Study

KEPT = "siamcam_results"
"""Where an output's metadata hold the records of the table it shows."""
COLUMNS = {"auc": "AUC"}
"""What a measure is called in a table, where that is not its name."""
PACKAGES = ("torch", "torchvision", "timm", "lightning", "scikit-learn", "numpy")
"""Whose versions a record names: those that can change a number."""


@dataclass(frozen=True)
class Record:
    """Some numbers and all that is needed to get them again.

    Attributes:
        study: What was studied, e.g. ``"flowers"``; the results page has a table for each.
        setting: The row's name, e.g. ``"frozen features"``.
        protocol: ``"sound"``, or ``"paper"`` where the paper's own way of splitting and measuring
            was followed; the results page keeps the two apart.
        measures: Name → number with its interval.
        images: Name of the image set.
        origin: ``"scenes"``, ``"photographs"`` or ``"folder"``.
        count: Number of images.
        digest: SHA-256 of the image set: contents, names, labels and groups.
        profile: ``"quick"`` or ``"full"``.
        seeds: Of the runs.
        seconds: Wall-clock time of the runs together.
        versions: Of Python and of the packages that can change a number.
    """

    study: str
    setting: str
    protocol: str
    measures: dict[str, Estimate]
    images: str
    origin: str
    count: int
    digest: str
    profile: str
    seeds: tuple[int, ...]
    seconds: float
    versions: dict[str, str]


def record(
    study: str,
    setting: str,
    measures: Mapping[str, Estimate | Sequence[float]] | Study,
    images: ImageSet | None = None,
    *,
    seeds: Iterable[int] = (),
    seconds: float = 0.0,
    profile: str,
    protocol: str = "sound",
) -> Record:
    """Numbers with their origin.

    Args:
        study: See `Record`.
        setting: See `Record`.
        measures: Name → (value, low, high); or a `Study`, which knows its images, seeds and time.
        images: What the numbers were measured on.
        seeds: Of the runs.
        seconds: Wall-clock time.
        profile: The chapter's.
        protocol: See `Record`.

    Raises:
        EvaluationError: if the protocol is unknown, no image set is given, or an interval is not
            one.

    Example:
        >>> import siamcam_lib as sc
        >>> images = sc.datasets.load("scenes/flowers", n=10)
        >>> made = record("flowers", "nothing learned", {"accuracy": (0.5, 0.4, 0.6)}, images,
        ...               profile="quick")
        >>> print(made.measures["accuracy"])
        0.500 [0.400, 0.600]
    """
    if isinstance(measures, Study):
        images, seeds, seconds = measures.images, measures.seeds, measures.seconds
        measures = measures.estimates()
    if images is None:
        raise EvaluationError("Which images the numbers were measured on must be given.")
    if protocol not in ("sound", "paper"):
        raise EvaluationError(f"The protocol is 'sound' or 'paper', not {protocol!r}.")
    found = {name: Estimate(*map(float, estimate)) for name, estimate in measures.items()}
    for name, (value, low, high) in found.items():
        if not low <= value <= high:
            raise EvaluationError(f"{name}: {value} does not lie in its interval [{low}, {high}].")
    return Record(
        study, setting, protocol, found, images.name, images.origin, len(images),
        images.fingerprint(), profile, tuple(seeds), float(seconds), _versions(),
    )  # fmt: skip


class show:
    """A table of records, for the end of a cell; the notebook keeps the records as data.

    Args:
        records: One row each.

    Raises:
        EvaluationError: if there is none.
    """

    def __init__(self, *records: Record) -> None:
        if not records:
            raise EvaluationError("There is no record to show.")
        self.records = records

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shown = {"text/plain": repr(self), "text/html": _html(self.records)}
        # measures as a list: a notebook's keys are sorted, and @10 would come before @5
        return shown, {
            KEPT: [asdict(r) | {"measures": [*r.measures.items()]} for r in self.records]
        }

    def __repr__(self) -> str:
        return markdown(self.records)


def read(notebook: Path | str) -> list[Record]:
    """The records that an executed notebook holds, in the order of its cells.

    Raises:
        EvaluationError: if the file is no notebook, or a record is of another version.
    """
    path = Path(notebook)
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        found = [row for output in outputs for row in output.get("metadata", {}).get(KEPT, ())]
        return [_record(row) for row in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EvaluationError(
            f"No records can be read from {path} ({type(error).__name__}: {error}); run the "
            "chapter again."
        ) from error


def markdown(records: Sequence[Record]) -> str:
    """Records as a Markdown table: settings down, measures across."""
    names, rows = _cells(records)
    lines = [f"| {' | '.join(['', *names])} |", f"| {' | '.join(['---'] * (len(names) + 1))} |"]
    plain = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in plain])


def provenance(records: Sequence[Record]) -> str:
    """How the numbers came about, as a Markdown table; digests and times in short."""
    lines = [
        "| | images | digest | profile | protocol | seeds | time |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in records:
        seeds = ", ".join(map(str, r.seeds)) or "–"
        time = f"{r.seconds:.0f} s" if r.seconds else "–"
        lines.append(
            f"| {r.setting} | {r.images}, {r.count} ({r.origin}) | `{r.digest[:12]}` | "
            f"{r.profile} | {r.protocol} | {seeds} | {time} |"
        )
    versions = {f"{name} {number}" for r in records for name, number in r.versions.items()}
    return "\n".join([*lines, "", f"Made with {', '.join(sorted(versions, key=str.lower))}."])


def _html(records: Sequence[Record]) -> str:
    names, rows = _cells(records)
    cells, settings = [rest for _, *rest in rows], [first for first, *_ in rows]
    return pd.DataFrame(cells, settings, names).to_html(border=0)


def _cells(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and each row as text."""
    names = list(dict.fromkeys(name for r in records for name in r.measures))
    rows = [
        [r.setting, *(str(r.measures[name]) if name in r.measures else "–" for name in names)]
        for r in records
    ]
    return [COLUMNS.get(name, name) for name in names], rows


def _record(row: dict[str, Any]) -> Record:
    measures = {name: Estimate(*estimate) for name, estimate in row["measures"]}
    return Record(**{**row, "measures": measures, "seeds": tuple(row["seeds"])})


def _versions() -> dict[str, str]:
    found = {"Python": python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
