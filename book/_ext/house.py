"""The directive ``{house}``: the library's modules, layer by layer, in their own words.

Each line of its content is a layer: what happens there, a bar, the modules. A test holds these
lines to the imports of the code (`tests/unit/test_house.py`); what a module is for is read from its
docstring when the book is built.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import siamcam_lib

LIBRARY = Path(siamcam_lib.__file__).parent


def layers(lines: list[str]) -> list[tuple[str, list[str]]]:
    """What happens in each layer, and its modules."""
    parted = [line.partition("|") for line in lines if line.strip()]
    return [(what.strip(), modules.split()) for what, _, modules in parted]


def purpose(module: str) -> str:
    """The first paragraph of a module's docstring."""
    folder = LIBRARY / module / "__init__.py"
    file = folder if folder.is_file() else LIBRARY / f"{module}.py"
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.partition("\n\n")[0].replace("\n", " ")


class House(SphinxDirective):
    """A stack of layers, the first at the top; under each its modules."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parse the layers as Markdown, in the place of the directive."""
        text = []
        for number, (what, modules) in enumerate(layers(list(self.content)), 1):
            text += [f"**{number}. {what}**", ""]
            for module in modules:
                text += [f"`{module}`", f": {purpose(module)}", ""]
        page = nodes.container(classes=["house"])
        self.state.nested_parse(StringList(text, "house"), self.lineno, page)
        return [page]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("house", House)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
