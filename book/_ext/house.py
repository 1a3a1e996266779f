"""The directive ``{house}``: the library as a diagram of layers, each module in its own words.

Each line of its content is a layer: what happens there, a bar, the modules. A test holds these
lines to the imports of the code (`tests/unit/test_house.py`); what a module is for, and what it
stands on, is read from the code when the book is built.
"""

from __future__ import annotations

import ast
import textwrap
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import siamcam_lib

LIBRARY = Path(siamcam_lib.__file__).parent
WIDE, LEFT, TALL, GAP = 760, 316, 26, 6  # pixels: the diagram, where modules begin, a module's box
LETTER, LINE, ROUND = 7.9, 17, 11  # of a module's name, of a layer's words, of its number's circle


def layers(lines: list[str]) -> list[tuple[str, list[str]]]:
    """What happens in each layer, and its modules."""
    parted = [line.partition("|") for line in lines if line.strip()]
    return [(what.strip(), modules.split()) for what, _, modules in parted]


def purpose(module: str) -> str:
    """The first paragraph of a module's docstring."""
    file = LIBRARY / module / "__init__.py"
    file = file if file.is_file() else LIBRARY / f"{module}.py"
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.partition("\n\n")[0].replace("\n", " ")


def anchor(module: str) -> str:
    """Where its paragraph is; docutils writes identifiers without an underscore."""
    return f"house-{module.replace('_', '-')}"


def stands_on(module: str) -> set[str]:
    """Modules of the library that a module, or a folder of them, needs in order to be imported.

    An import inside a function does not count: `Explanation.plot` may ask for `plots` when called.
    """
    folder, names = LIBRARY / module, set()
    for file in folder.rglob("*.py") if folder.is_dir() else [LIBRARY / f"{module}.py"]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("siamcam_lib.")} - {module}


def diagram(stack: list[tuple[str, list[str]]]) -> str:
    """The layers from top to bottom as SVG; each module leads to its paragraph."""
    drawn, top = [], 34
    for number, (what, modules) in enumerate(stack, 1):
        words, x, row, places = textwrap.wrap(what, 38), LEFT, 0, []
        for module in modules:
            wide = LETTER * len(module) + 18
            if x + wide > WIDE - GAP and x > LEFT:
                x, row = LEFT, row + 1
            places.append((module, x, row, wide))
            x += wide + GAP
        boxes_high = (row + 1) * (TALL + GAP) - GAP
        high = max(boxes_high, LINE * len(words)) + 2 * GAP
        boxes = []
        for module, x, row, wide in places:
            y = top + (high - boxes_high) / 2 + row * (TALL + GAP)
            boxes.append(
                f'<a href="#{anchor(module)}"><title>{escape(purpose(module))}</title>'
                f'<rect class="module" x="{x:g}" y="{y:g}" width="{wide:g}" height="{TALL}" '
                f'rx="5"/><text class="name" x="{x + wide / 2:g}" y="{y + 17:g}">{module}</text>'
                "</a>"
            )
        middle = top + high / 2
        first = middle - LINE * (len(words) - 1) / 2 + 4
        drawn += [
            f'<rect class="layer" x="28" y="{top}" width="{WIDE - 28}" height="{high}" rx="5"/>',
            f'<circle cx="12" cy="{middle:g}" r="{ROUND}"/>',
            f'<text class="number" x="12" y="{middle + 4:g}">{number}</text>',
            *(f'<text x="40" y="{first + LINE * k:g}">{escape(line)}</text>'
              for k, line in enumerate(words)),
            *boxes,
        ]  # fmt: skip
        top += high + GAP
    return "\n".join([
        f'<div class="house-diagram"><svg viewBox="0 0 {WIDE} {top + 34}" role="group" '
        'aria-label="The layers of the library, from a photograph at the top to a page at the '
        'bottom. Each module leads to its paragraph below.">',
        f'<path d="M12 24 V{top + 8} m-5 -8 l5 8 l5 -8"/>',
        '<text class="end" x="0" y="16">a photograph</text>',
        *drawn,
        f'<text class="end" x="0" y="{top + 26}">a page</text></svg></div>',
    ])  # fmt: skip


class House(SphinxDirective):
    """A diagram of the layers, and a paragraph for every module."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parse the layers as Markdown, in the place of the directive."""
        stack = layers(list(self.content))
        depth = {module: k for k, (_, modules) in enumerate(stack) for module in modules}
        text = []
        for number, (what, modules) in enumerate(stack, 1):
            text += [f"**{number}. {what}**", ""]
            for module in modules:
                below = sorted(stands_on(module), key=lambda name: (depth.get(name, 0), name))
                links = ", ".join(f"[`{name}`](#{anchor(name)})" for name in below)
                text += [f"`{module}`{{#{anchor(module)}}}", f": {purpose(module)}"]
                text += [
                    "",
                    f"  It stands on {links}." if below else "  It stands on no other.",
                    "",
                ]
        page = nodes.container(classes=["house"])
        self.state.nested_parse(StringList(text, "house"), self.lineno, page)
        return [nodes.raw("", diagram(stack), format="html"), page]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("house", House)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
