"""The directive ``{api}``: what a module offers, from the docstrings of the code.

Its argument is a module of the library, its content the names to show, one a line; without
content, all that the module offers: its ``__all__`` or, where it has none, what it defines.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import siamcam_lib

MEMBERS = "   :members:\n   :member-order: bysource"


def offered(module: str) -> list[str]:
    """The public names of a module, without those that `sc` itself has.

    What a folder's ``__init__`` gathers counts, what a module has only imported does not.
    """
    found = import_module(module)
    if hasattr(found, "__all__"):
        names = [n for n in found.__all__ if not inspect.ismodule(getattr(found, n))]
    else:
        own = (n for n, v in vars(found).items() if getattr(v, "__module__", None) == module)
        names = [n for n in own if not n.startswith("_")]
    return [name for name in names if name not in siamcam_lib.__all__]


def described(module: str, name: str) -> str:
    """What autodoc is asked for: a class with its members, a function; of a value, what it is."""
    value = getattr(import_module(module), name)
    if inspect.isclass(value):
        members = "" if issubclass(value, BaseException) else MEMBERS
        if fields := getattr(value, "_fields", None):  # of a named tuple: its docstring has them
            members += f"\n   :exclude-members: {', '.join(fields)}"
        return f".. autoclass:: {module}.{name}\n{members}"
    if inspect.isroutine(value):
        return f".. autofunction:: {module}.{name}"
    shown = ", ".join(value) if isinstance(value, dict) else repr(value)
    return f".. py:data:: {module}.{name}\n\n   ``{shown}``"


class Api(SphinxDirective):
    """Signatures and docstrings of one module's names."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Hand the names to autodoc."""
        module = self.arguments[0]
        names = [line.strip() for line in self.content if line.strip()] or offered(module)
        text = "\n\n".join(described(module, name) for name in names)
        within = nodes.container(classes=["api"])
        rst = StringList(["```{eval-rst}", *text.splitlines(), "```"], "api")
        self.state.nested_parse(rst, self.lineno, within)
        return [within]


def resolve(app: Any, env: Any, node: addnodes.pending_xref, said: nodes.Node) -> nodes.Node | None:
    """Where a name leads that a docstring uses for short: `sc.explain`, `Gallery.nearest`."""
    if node.get("refdomain") != "py":
        return None
    known, wanted = env.get_domain("py").objects, node["reftarget"].removeprefix("sc.")
    whole = f"siamcam_lib.{wanted}"
    found = [whole] if whole in known else [name for name in known if name.endswith(f".{wanted}")]
    if len(found) != 1:
        return None
    there = known[found[0]]
    return make_refnode(app.builder, node["refdoc"], there.docname, there.node_id, said, found[0])


def call_attributes_so(app: Any, page: nodes.document) -> None:
    """Head the list of a class' attributes as the docstrings do; Sphinx says “Variables”."""
    for head in page.findall(nodes.field_name):
        if head.astext() == "Variables":
            head.children = [nodes.Text("Attributes")]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", call_attributes_so)
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
