"""Runs every chapter once, with parameters, into a staging folder; the introduction says how.

Each notebook of `_toc.yml` is executed by papermill in a process of its own, so that a chapter
which hangs can be ended from outside (`execution`). What is staged holds no path of this machine,
and is what both the tests look at and `siamcam_lib.book.build` renders.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import nbformat
import yaml

from siamcam_lib.book.execution import Executor
from siamcam_lib.book.progress import Board, Line
from siamcam_lib.book.same import settled
from siamcam_lib.book.unchanged import run_keys
from siamcam_lib.datasets import load_folder
from siamcam_lib.errors import BookError, DataError, SiamcamError
from siamcam_lib.files import expanded, shown, whole_file

RUNS_FILE = "runs.json"
"""In the staging folder: what was run, with which parameters, in how many seconds."""

_TAG = re.compile(r"<|\]\(")
CHAPTERS_AT_ONCE = 2
"""Much of a chapter uses one core; each needs up to 3 GB."""
_NOT_RUN = """```{{warning}}
This page has not been run yet, so it has no results. `make book` runs every page, and
`make book ONLY={name}` this one.
```"""


@dataclass(frozen=True)
class ChapterRun:
    """One page of the book after it was run.

    Attributes:
        name: As in `_toc.yml`, e.g. ``"book/foundations/01_pairs"``.
        path: The staged file.
        seconds: How long it ran; 0 for a page without code.
        executed: Whether it is a notebook, which was run, or prose, which was copied.
        parameters: What was put into its `parameters` cell.
        key: Digest of everything its results depend on; see `siamcam_lib.book.unchanged`.
    """

    name: str
    path: Path
    seconds: float
    executed: bool
    parameters: dict[str, Any]
    key: str = ""


def chapters(root: Path | str) -> dict[str, Path]:
    """Every page of the book in reading order: its name in `_toc.yml` and its source file.

    Args:
        root: Folder that holds `_toc.yml`.

    Raises:
        BookError: There is no `_toc.yml`, it cannot be read, or it names a page that has no source.
    """
    root = Path(root)
    found = {}
    for name in page_names(root):
        sources = [p for p in (root / f"{name}.ipynb", root / f"{name}.md") if p.is_file()]
        if len(sources) != 1:
            raise BookError(
                f"_toc.yml names the page {name!r}, which has {len(sources)} sources; "
                "it needs one: a notebook (.ipynb) or a page of prose (.md)."
            )
        found[name] = sources[0]
    return found


def page_names(root: Path | str) -> list[str]:
    """The name of every page in `_toc.yml`, in reading order.

    Raises:
        BookError: There is no `_toc.yml`, or it cannot be read.
    """
    file = Path(root) / "_toc.yml"
    try:
        names = list(_names(yaml.safe_load(file.read_text(encoding="utf-8"))))
        for name in names:
            place = PurePath(name)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"{name!r} leads out of the book")
        return names
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError,
            RecursionError) as error:  # fmt: skip
        raise BookError(
            f"{file} could not be read as a table of contents ({error!r}); "
            "run this in the folder of the book, where _toc.yml lies."
        ) from error


def _names(toc: dict[str, Any]) -> Iterator[str]:
    if "root" in toc:
        yield toc["root"]
    if "file" in toc:
        yield toc["file"]
    for key in ("parts", "chapters", "sections"):
        for entry in toc.get(key, []):
            yield from _names(entry)


def run_chapters(
    root: Path | str,
    stage: Path | str,
    data: str = "auto",
    profile: str = "quick",
    seed: int = 0,
    only: str | Collection[str] | None = None,
    cell_timeout: float = 600.0,
    chapter_timeout: float = 1200.0,
    workers: int | None = None,
    reuse: bool = False,
) -> list[ChapterRun]:
    """Execute the chapters and stage everything the pages are rendered from.

    A chapter that fails does not stop those after it; all failures are told together at the end.

    Args:
        root: Folder of the book, which holds `_toc.yml`, `_config.yml` and `book/`.
        stage: Folder for the result; what it held before is removed, unless `only` is given.
        data: ``"auto"``, ``"scenes"``, ``"real"`` or a folder of class folders.
        profile: ``"quick"`` or ``"full"``.
        seed: Passed to every chapter that declares it.
        only: Name of one page, as in `_toc.yml`, or several: run these and leave the others as
            they are. Chapters never run before are staged without results, and say so; prose is
            staged.
        cell_timeout: Seconds one cell may take.
        chapter_timeout: Seconds one chapter may take; then its processes are ended.
        workers: Chapters run at once, which share the cores among them; by default two, as many
            as there are cores at most.
        reuse: Keep the results of chapters for which nothing has changed since they were run into
            `stage`: neither the chapter, nor the library, nor a package, nor the data.

    Returns:
        What was run or kept, in reading order.

    Raises:
        BookError: A chapter failed or took too long; the message names chapter, cell and error, and
            the notebook that failed is left in `stage`. Or `only` is no page of the book, `data`
            has a name that could not be shown on a page, or `stage` cannot be written.
    """
    root, stage = Path(root).resolve(), Path(stage).resolve()
    every = pages = chapters(root)
    if only is not None:
        wanted = [only] if isinstance(only, str) else list(only)
        if unknown := [name for name in wanted if name not in every]:
            raise BookError(f"There is no page {unknown[0]!r}; _toc.yml has: {', '.join(every)}.")
        pages = {name: source for name, source in every.items() if name in wanted}
    if data not in ("auto", "scenes", "real"):
        data = _folder(data)
    known = {"data": data, "profile": profile, "seed": seed}
    order, prose = list(every), {n: s for n, s in pages.items() if s.suffix == ".md"}
    with writing(stage):
        keys = run_keys(pages, root, known)
        if only is None:
            _wipe(stage, keys if reuse else {})
        kept = {run.name: run for run in _recorded(stage) if only is None}
        _copy_surroundings(root, stage)
        # all others are not run yet, and a run that is cut off is none
        _record({name: kept.get(name) for name in pages} | dict.fromkeys(prose), stage, order)
        staged = {n: _stage_prose(n, source, stage, keys[n]) for n, source in prose.items()}
        _record(staged, stage, order)
        kept |= staged
        if only is not None:
            _stage_not_run({n: s for n, s in every.items() if n not in pages}, stage, order)

    to_run = {n: source for n, source in pages.items() if n not in kept}
    workers = max(1, min(workers or CHAPTERS_AT_ONCE, _cores(), len(to_run)))
    print(_plan(len(pages) - len(prose), len(to_run), len(prose), workers), flush=True)
    board, noting = Board(len(to_run)), threading.Lock()

    def one(name: str, source: Path) -> ChapterRun | str:
        """Run a chapter; what went wrong, if something did."""
        line = Line(board, name)
        job = {"source": str(source), "parameters": known, "cell_timeout": cell_timeout}
        try:
            with writing(stage):
                run = _run_chapter(name, keys[name], job, stage, chapter_timeout, executor, line)
        except BookError as error:
            line.end("failed")
            with noting:
                _record({name: None}, stage, order)
            return str(error)
        line.end(f"{run.seconds:.1f} s")
        with noting, writing(stage):
            _record({name: run}, stage, order)
        return run

    executor = Executor(root, max(1, _cores() // workers), to_run.values())
    with executor, ThreadPoolExecutor(workers) as pool:
        longest_first = sorted(to_run, key=lambda name: -_weight(to_run[name]))
        runs = {n: pool.submit(one, n, to_run[n]) for n in longest_first}
        try:
            ended = [kept[name] if name in kept else runs[name].result() for name in pages]
        except BaseException:  # Ctrl-C: what runs is ended, what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            board.stopped.set()
            raise
    if failures := [found for found in ended if isinstance(found, str)]:
        raise BookError("\n".join(failures))
    return [run for run in ended if isinstance(run, ChapterRun)]


def _plan(chapters: int, to_run: int, prose: int, workers: int) -> str:
    """How many chapters and pages of prose there are, and what is done with them."""
    said = f"chapters to run: {to_run}"
    said += f", {workers} at a time, the longest first" if to_run else ""
    said += f"; unchanged since they were run: {chapters - to_run}" if to_run < chapters else ""
    return f"{said}; pages of prose: {prose}" if prose else said


def with_results(root: Path | str) -> list[str]:
    """Names of the chapters that show records of results (`siamcam_lib.results.show`)."""
    pages = chapters(Path(root))
    return [n for n, source in pages.items() if "results.show(" in source.read_text("utf-8")]


def _weight(source: Path) -> float:
    """How long a chapter takes, by its own word: minutes in its metadata, one where it says none.

    The longest are begun first, so that none is left to run alone when all others have ended.
    """
    try:
        return float(json.loads(source.read_text("utf-8"))["metadata"]["siamcam"]["minutes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 1.0


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with files becomes a `BookError` that names the folder."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SiamcamError):
            raise
        raise BookError(
            f"{folder} cannot be written ({error}); free some space or mend its permissions, and "
            "run the same command again."
        ) from error


def _folder(data: str) -> str:
    """A folder of the reader's own, as chapters are told of it: they run in another one.

    Chapters put names of classes and files into Markdown and HTML as they are, so a name that could
    be taken for a tag or a link is refused here.
    """
    try:
        folder = expanded(data).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise BookError(f"The folder {data!r} cannot be looked at: {error}.") from error
    try:
        images = load_folder(folder, check="header")
    except DataError:
        return str(folder)  # the chapters say what is wrong
    for text in (images.name, *images.classes, *images.items, *images.notes):
        if _TAG.search(text):
            raise BookError(
                f"A page could take a name in {shown(folder)} for HTML: {shown(text)!r}. Rename "
                "it without < and without ](."
            )
    return str(folder)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recorded_runs(stage: Path | str) -> list[ChapterRun]:
    """What `run_chapters` left in `stage`, in reading order.

    Raises:
        BookError: Nothing was run into this folder.
    """
    file = Path(stage) / RUNS_FILE
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        for row in rows:
            place = PurePath(row["path"])
            if place.is_absolute() or ".." in place.parts:
                raise ValueError(f"{row['path']!r} leads out of it")
        return [ChapterRun(**{**row, "path": Path(stage) / row["path"]}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BookError(
            f"{stage} holds no executed chapters ({error}); run the chapters first: make book."
        ) from error


def _wipe(stage: Path, keys: dict[str, str]) -> None:
    """Empty `stage`, save for executed chapters whose key is the one in `keys`.

    What is kept is never out of its place, so that nothing is lost whenever this is cut off.
    """
    try:
        recorded = _recorded(stage) if keys else []
    except BookError:  # the record is damaged: nothing can be kept
        recorded = []
    kept = {
        run.name: run.path
        for run in recorded
        if run.executed and run.key == keys.get(run.name) and run.path.is_file()
    }
    if not kept:
        shutil.rmtree(stage, ignore_errors=True)
        return
    _record({run.name: None for run in recorded if run.name not in kept}, stage, list(keys))
    wanted = {stage / RUNS_FILE, *kept.values()}
    for path in sorted(stage.rglob("*"), reverse=True):  # what lies in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # something in it is kept
                path.rmdir()
        elif path not in wanted:
            path.unlink()


def _recorded(stage: Path) -> list[ChapterRun]:
    """As `recorded_runs`, but nothing where nothing was run yet."""
    return recorded_runs(stage) if (stage / RUNS_FILE).is_file() else []


def _record(found: Mapping[str, ChapterRun | None], stage: Path, order: list[str]) -> None:
    """Replace what the record holds of some pages; None for a page that was not run."""
    known = {run.name: run for run in _recorded(stage)} | dict(found)
    rows = [
        {**asdict(run), "path": run.path.relative_to(stage).as_posix()}
        for name in order
        if (run := known.get(name))
    ]
    if not rows:
        (stage / RUNS_FILE).unlink(missing_ok=True)
        return
    with whole_file(stage / RUNS_FILE) as temporary:
        temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _stage_prose(name: str, source: Path, stage: Path, key: str = "") -> ChapterRun:
    """Stage a page of prose as it is."""
    target = _place(name, source, stage)
    shutil.copyfile(source, target)
    return ChapterRun(name, target, 0.0, False, {}, key)


def _place(name: str, source: Path, stage: Path) -> Path:
    """Where a page is staged, in a folder that is there."""
    target = stage / f"{name}{source.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _stage_not_run(pages: dict[str, Path], stage: Path, order: list[str]) -> None:
    """Stage those of `pages` that the record does not know: prose as it is, chapters unrun."""
    known = {run.name for run in _recorded(stage) if run.path.is_file()}
    prose = {}
    for name, source in pages.items():
        if name in known:
            continue
        if source.suffix == ".md":
            prose[name] = _stage_prose(name, source, stage)
        else:
            _stage_unrun_chapter(name, source, _place(name, source, stage))
    _record(prose, stage, order)


def _stage_unrun_chapter(name: str, source: Path, target: Path) -> None:
    """Write a chapter without results, with a warning below its first cell, the title."""
    try:
        notebook = nbformat.read(source, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:
        raise BookError(f"Chapter {name}: {source} cannot be read ({error}).") from error
    notebook.metadata.pop("widgets", None)  # results that a reader may have saved
    # what a run adds, and Sphinx wants to know
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notice = nbformat.v4.new_markdown_cell(_NOT_RUN.format(name=name), id="not-run")
    if notebook.nbformat_minor < 5:
        del notice["id"]
    notebook.cells.insert(1, notice)
    nbformat.write(notebook, target)


def _copy_surroundings(root: Path, stage: Path) -> None:
    """Stage whatever the pages need besides themselves: settings, styles, references, pictures."""
    (stage / "book").mkdir(parents=True, exist_ok=True)
    for name in ("_config.yml", "_toc.yml", "CONTRIBUTING.md", "CHANGELOG.md"):  # pages show them
        if (root / name).is_file():
            shutil.copyfile(root / name, stage / name)
    not_pages = shutil.ignore_patterns(
        "*.ipynb", "*.md", "__pycache__", ".ipynb_checkpoints", "vendor", "models"
    )
    if (root / "book").is_dir():
        shutil.copytree(root / "book", stage / "book", ignore=not_pages, dirs_exist_ok=True)


def _run_chapter(
    name: str,
    key: str,
    job: dict[str, Any],
    stage: Path,
    timeout: float,
    executor: Executor,
    line: Line,
) -> ChapterRun:
    target = _place(name, Path(job["source"]), stage)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="siamcam-chapter-") as scratch:
        job = job | {"target": str(target), "scratch": scratch}
        answer = executor.execute(job, timeout, line)
    if "error" in answer:
        raise BookError(f"Chapter {name}: {answer['error']} The notebook is kept: {target}")
    target.write_text(settled(nbformat.read(target, as_version=4)), encoding="utf-8")
    seconds = time.monotonic() - start
    return ChapterRun(name, target, round(seconds, 1), True, answer["parameters"], key)
