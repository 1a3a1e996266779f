"""The directive ``{pictures} SET``: how many pictures of each class the authors published.

Its numbers are read from the manifest that downloads are checked against.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from siamcam_lib.datasets.catalogue import SETS

_SHEET = """**{total} pictures in {kinds} classes**, {megabytes:.0f} MB: {counts}.
Upstream: the folder `{folder}` of `{repository}` at commit `{commit}`."""


class Pictures(SphinxDirective):
    """One sentence on a set of photographs."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the sentence as Markdown, in the place of the directive."""
        known = SETS[self.arguments[0]]
        text = _SHEET.format(
            total=f"{len(known.files):,}",
            kinds=len(known.classes),
            megabytes=sum(file.size for file in known.files) / 1e6,
            counts=", ".join(f"{name} {count:,}" for name, count in known.counts.items()),
            folder=known.upstream,
            repository=known.source.repository,
            commit=known.source.commit[:10],
        )
        page = nodes.container()
        self.state.nested_parse(StringList(text.splitlines(), "pictures"), self.lineno, page)
        return page.children


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("pictures", Pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
