"""The same run gives the same file: names that are drawn at random are numbered instead."""

from __future__ import annotations

import json
import re
from typing import Any

import nbformat

_WIDGETS = "application/vnd.jupyter.widget-state+json"
_VIEW = "application/vnd.jupyter.widget-view+json"
_MODEL = re.compile(r"IPY_MODEL_([0-9a-f]{32})")
# Names of tables, which pandas draws at random, and places in memory; and how they begin.
_RANDOM = {
    re.compile(r'id=\\"(T_[0-9a-f]{5})\\"'): "T_",
    re.compile(r" at (0x[0-9a-f]{6,})>"): "0x",
}


def settled(notebook: nbformat.NotebookNode) -> str:
    """An executed notebook as text that holds nothing drawn at random.

    Args:
        notebook: With its outputs and the state of its widgets.
    """
    numbers = {name: f"{number:032x}" for number, name in enumerate(_widgets(notebook))}
    text = nbformat.writes(notebook)
    if numbers:
        text = re.sub("|".join(numbers), lambda found: numbers[found[0]], text)
        text = nbformat.writes(nbformat.reads(text, as_version=4))  # in the order of their numbers
    for pattern, kept in _RANDOM.items():
        for number, name in enumerate(dict.fromkeys(pattern.findall(text))):
            text = text.replace(name, f"{kept}{number:0{len(name) - len(kept)}x}")
    return text


def _widgets(notebook: nbformat.NotebookNode) -> list[str]:
    """Names of all widgets: as they are shown, each followed by its parts, then what links them."""
    state: dict[str, Any] = notebook.metadata.get("widgets", {}).get(_WIDGETS, {}).get("state", {})
    told = {name: json.dumps(model, sort_keys=True) for name, model in state.items()}
    found: dict[str, None] = {}

    def follow(name: str) -> None:
        if name in told and name not in found:
            found[name] = None
            for part in _MODEL.findall(told[name]):
                follow(part)

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            follow(output.get("data", {}).get(_VIEW, {}).get("model_id", ""))
    while rest := told.keys() - found.keys():
        parts = {part for name in rest for part in _MODEL.findall(told[name])}
        numbers = {name: str(number) for number, name in enumerate(found)}

        def known(name: str, numbers: dict[str, str] = numbers) -> str:
            """What a widget says, with numbers for the names that are known by now."""
            return _MODEL.sub(lambda m: numbers.get(m[1], "?"), told[name])

        follow(min(rest - parts or rest, key=known))  # two parts of different things may be alike
    return list(found)
