"""The chapters: clean as files, and every one of them executed on every kind of data."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell

from siamcam_lib.book import chapters

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {n: p for n, p in chapters(ROOT).items() if p.suffix == ".ipynb"}
# dead in the built page, and papermill can freeze on them
FORBIDDEN = ("interact(", "@interact", "interactive_output(", "Output()")
WIDGET = "application/vnd.jupyter.widget-view+json"


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def pictures(executed) -> list[tuple[str, nbformat.NotebookNode]]:
    """Chapter and cell of every picture that a run drew; still pictures of widgets left out."""
    return [
        (run.name, cell)
        for run in executed.runs
        if run.executed
        for cell in code_cells(run.path)
        if any("image/png" in (seen := o.get("data", {})) and WIDGET not in seen
               for o in cell.outputs)
    ]  # fmt: skip


def assigned(source: str) -> set[str]:
    """Names a cell assigns at its top level."""
    names = set()
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_book_has_chapters_and_every_page_is_in_the_contents():
    assert NOTEBOOKS
    listed = set(chapters(ROOT).values())
    pages = {p for suffix in ("*.ipynb", "*.md") for p in (ROOT / "book").rglob(suffix)}
    pages = {p for p in pages if ".ipynb_checkpoints" not in p.parts}
    assert pages == listed, "pages that _toc.yml does not name are never read, run or tested"


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestFile:
    def test_is_a_valid_notebook_without_results(self, name):
        notebook = read(NOTEBOOKS[name])
        nbformat.validate(notebook)
        cells = code_cells(NOTEBOOKS[name])
        assert [c.id for c in cells if c.outputs or c.execution_count is not None] == []
        assert "widgets" not in notebook.metadata

    def test_cell_ids_are_stored_and_unique(self, name):
        text = NOTEBOOKS[name].read_text(encoding="utf-8")
        ids = [cell.get("id") for cell in nbformat.reads(text, as_version=4).cells]
        assert len(set(ids)) == len(ids)
        # nbformat invents an id where the file has none; then another one each time
        assert [i for i in ids if f'"id": "{i}"' not in text] == []

    def test_has_one_cell_of_parameters(self, name):
        cells = [
            c for c in code_cells(NOTEBOOKS[name]) if "parameters" in c.metadata.get("tags", [])
        ]
        assert len(cells) == 1
        assert {"data", "profile", "seed"} <= assigned(cells[0].source)

    def test_gets_the_library_where_a_launch_button_opens_it(self, name, monkeypatch):
        """On Binder environment.yml brings it; Colab knows nothing of the repository."""
        repository = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]
        first = code_cells(NOTEBOOKS[name])[0]
        assert first.metadata["tags"] == ["remove-cell"]
        shell, asked = InteractiveShell(), []
        shell.register_magic_function(asked.append, magic_name="pip")
        assert shell.run_cell(first.source).success and asked == []
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("colab"))
        assert shell.run_cell(first.source).success
        assert asked == [f'install --quiet "siamcam_lib @ git+{repository["url"]}"']

    def test_uses_only_widgets_that_live_in_a_page(self, name):
        source = "\n".join(c.source for c in code_cells(NOTEBOOKS[name]))
        assert [word for word in FORBIDDEN if word in source] == []

    def test_opens_with_its_title(self, name):
        first = read(NOTEBOOKS[name]).cells[0]
        assert first.cell_type == "markdown"
        assert re.search(r"^# \S", first.source, flags=re.MULTILINE)

    def test_asks_questions_that_answer_in_the_page(self, name):
        """Three of them or more, each with one right answer among several."""
        cells = [c.source for c in read(NOTEBOOKS[name]).cells if c.cell_type == "markdown"]
        asked = [s for s in cells if ":class: seealso check" in s]
        assert len(asked) >= 3 or not any("## Exercises" in s for s in cells)
        for question in asked:
            answers = re.findall(r"^:::\{dropdown\} .+\n(\w+)\b", question, flags=re.MULTILINE)
            assert len(answers) >= 3, question
            assert sum(first in ("Yes", "Right") for first in answers) == 1, question


@pytest.mark.slow
@pytest.mark.timeout(4800)
class TestExecuted:
    def test_every_chapter_ran_on_this_data(self, executed):
        ran = {run.name: run.parameters for run in executed.runs if run.executed}
        assert list(ran) == list(NOTEBOOKS)
        expected = {"data": executed.kind, "profile": "quick", "seed": 0}
        assert {name: p for name, p in ran.items() if p != expected} == {}

    def test_every_code_cell_ran_and_none_failed(self, executed):
        for run in executed.runs:
            if run.executed:
                cells = [c for c in code_cells(run.path) if c.source.strip()]
                assert [c.id for c in cells if c.execution_count is None] == []
                outputs = [o.output_type for c in cells for o in c.outputs]
                assert "error" not in outputs, run.name

    def test_no_path_of_this_machine_is_shown(self, executed):
        places = [str(ROOT), sys.prefix, str(Path.home()), os.environ.get("SIAMCAM_DATA")]
        pattern = "|".join(re.escape(place) + r"(?![\w-])" for place in places if place)
        found = {
            (run.name, match)
            for run in executed.runs
            for match in re.findall(f"{pattern}|siamcam-chapter-", run.path.read_text("utf-8"))
        }
        assert found == set()

    def test_the_state_of_a_page_s_widgets_is_at_most_three_megabytes(self, executed):
        sizes = {
            run.name: len(json.dumps(read(run.path).metadata.get("widgets", {})))
            for run in executed.runs
            if run.executed
        }
        assert any(sizes.values())
        assert {name: size for name, size in sizes.items() if size > 3_000_000} == {}

    def test_no_chapter_warns(self, executed):
        """The page leaves out what goes to stderr (progress bars), so look here for warnings."""
        warned = {
            (run.name, line)
            for run in executed.runs
            if run.executed
            for cell in code_cells(run.path)
            for output in cell.outputs
            if output.get("name") == "stderr"
            for line in output.text.splitlines()
            if "Warning" in line
        }
        assert warned == set()

    def test_every_picture_has_alternative_text(self, executed):
        without = [
            (name, cell.id)
            for name, cell in pictures(executed)
            if not cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()
        ]
        hint = 'put {"mystnb": {"image": {"alt": "…"}}} into the metadata of the cell'
        assert without == [], hint

    def test_every_figure_has_a_caption_and_a_name_of_its_own(self, executed):
        told = [
            (name, cell.id, cell.metadata.get("mystnb", {}).get("figure", {}))
            for name, cell in pictures(executed)
        ]
        without = [cell for *cell, figure in told if not figure.get("caption", "").strip()]
        hint = 'put {"mystnb": {"figure": {"caption": "…", "name": "fig-…"}}} into the metadata'
        assert without == [], hint
        names = Counter(figure.get("name") for *_, figure in told)
        assert None not in names, hint
        assert [name for name, times in names.items() if times > 1] == []
