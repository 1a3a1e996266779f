"""The directive ``{results} STUDY``: what the executed chapters recorded, as tables.

Its numbers are read from the notebooks of the very build; nothing is typed in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from siamcam_lib import results

_NONE = """```{{warning}}
No chapter of this build has computed results of *{study}*. `make results` does so.
```"""
_BY = {"sound": "", "paper": "By the paper's protocol:"}
_ALL = """{numbers}

```{{dropdown}} How these numbers came about
{provenance}
```"""


class Results(SphinxDirective):
    """Numbers and their origin of one study, gathered from all notebooks."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the tables as Markdown, in the place of the directive."""
        study = self.arguments[0]
        files = sorted(Path(self.env.srcdir).rglob("*.ipynb"))
        found = [r for file in files for r in results.read(file) if r.study == study]
        records = [r for k, r in enumerate(found) if r not in found[:k]]  # shown twice, told once
        alike: dict[tuple[str, ...], list[results.Record]] = {}  # a table for each set of columns
        for record in records:
            alike.setdefault((record.protocol, *record.measures), []).append(record)
        numbers = "\n\n".join(
            f"{_BY[protocol]}\n\n{results.markdown(rows)}" for (protocol, *_), rows in alike.items()
        )
        origin = results.provenance(records)
        text = (_ALL if records else _NONE).format(study=study, numbers=numbers, provenance=origin)
        page = nodes.container(classes=["results"])
        self.state.nested_parse(StringList(text.splitlines(), "results"), self.lineno, page)
        return [page]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
