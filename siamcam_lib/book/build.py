"""Renders the staged chapters as a site; the introduction says how.

Nothing is executed here: Jupyter Book reads the notebooks that `siamcam_lib.book.run` staged, and
every warning of Sphinx is an error.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from siamcam_lib.book.models import models
from siamcam_lib.book.run import ChapterRun, page_names, recorded_runs, writing
from siamcam_lib.book.unchanged import MADE, is_rendered, note_rendered, site_key
from siamcam_lib.book.vendor import vendor
from siamcam_lib.errors import BookError

_PROGRESS = re.compile(r"(reading sources|writing output|copying images)\.\.\. *\[ *(\d+)%\]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def build(root: Path | str, stage: Path | str, out: Path | str | None = None) -> Path:
    """Render the staged book; the site that was there stays until the new one is whole.

    Args:
        root: Folder of the book, named in messages only.
        stage: What `run_chapters` made.
        out: Folder of the site; ``_build/html`` under `root` if not given.

    Returns:
        The first page of the site.

    Raises:
        BookError: Nothing was staged, the scripts or models of the pages cannot be had, Sphinx
            found something to warn of (the message has its warnings), or the site cannot be
            written.
    """
    root, stage = Path(root).resolve(), Path(stage).resolve()
    out = Path(out).resolve() if out else root / "_build" / "html"
    recorded_runs(stage)  # or there is nothing to render
    first = page_names(stage)[0]
    with writing(stage):
        key = site_key(stage, root)
        vendor(stage / MADE[0])
        print("readying the models that run in pages ...", flush=True)
        models(stage, stage / MADE[1])
    work, old = (out.with_name(f".{out.name}-{state}") for state in ("in-work", "old"))
    with writing(out):
        shutil.rmtree(work, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        _render(stage, work, out.with_name(f"{out.name}.log"))
        _write_front_door(stage, work / "_build" / "html", first)
        # two renamings: at no moment is a half site in its place
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            os.replace(out, old)
        os.replace(work / "_build" / "html", out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        note_rendered(out, key)
    return out / "index.html"


def is_built(root: Path | str, stage: Path | str, out: Path | str) -> bool:
    """Whether `build` would render the very site that is there; what is uncertain counts as no.

    Args:
        root: Folder of the book.
        stage: What `run_chapters` made.
        out: Folder of the site.
    """
    root, stage, out = (Path(folder).resolve() for folder in (root, stage, out))
    with writing(stage):
        return is_rendered(out, site_key(stage, root))


def summary(stage: Path | str) -> str:
    """What was run and how long it took, as lines of text.

    Args:
        stage: What `run_chapters` made.

    Raises:
        BookError: Nothing was staged.
    """
    runs = recorded_runs(stage)
    chapters = [run for run in runs if run.executed]
    lines = [table(chapters)] if chapters else []
    lines.append(f"chapters: {len(chapters)}; pages of prose: {len(runs) - len(chapters)}")
    known = {run.name for run in runs}
    if missing := [name for name in page_names(stage) if name not in known]:
        lines.append(f"Not run yet, and shown without results: {', '.join(missing)}.")
    return "\n".join(lines)


def table(chapters: list[ChapterRun]) -> str:
    """How long each chapter took, and the sum, as lines of text."""
    rows = [(run.name, run.seconds) for run in chapters]
    rows.append(("sum of these, some of which ran at once", sum(run.seconds for run in chapters)))
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {seconds:7.1f} s" for name, seconds in rows]
    return "\n".join(["How long each chapter took when it was last run:", *lines])


def _write_front_door(stage: Path, site: Path, first: str) -> None:
    """Lead from `index.html` to the first page; Jupyter Book's own asks for an icon at the root."""
    if first == "index":
        return
    title = yaml.safe_load((stage / "_config.yml").read_text(encoding="utf-8"))["title"]
    (site / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f'<meta http-equiv="refresh" content="0; url={first}.html">\n</head>\n'
        f'<body><a href="{first}.html">{html.escape(title)}</a></body>\n</html>\n',
        encoding="utf-8",
    )


def _render(stage: Path, work: Path, log: Path) -> None:
    """Run Jupyter Book; all it says goes to `log`, warnings and progress also to the terminal."""
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(stage)]
    command += ["--path-output", str(work), "-n", "-W", "--keep-going", "--all"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
    )
    warnings, shown, text = [], "", ""
    with process, log.open("w", encoding="utf-8") as file:
        for raw in process.stdout or ():
            text = _COLOUR.sub("", raw).rstrip()
            file.write(text + "\n")
            if "WARNING" in text or "ERROR" in text:
                # of the staged copy, whose layout is the project's
                warnings.append(text.replace(f"{stage}{os.sep}", ""))
                print(warnings[-1], flush=True)
            elif (step := _PROGRESS.search(text)) and step[1] != shown:
                shown = step[1]
                print(f"{shown} ...", flush=True)
    if process.returncode:
        told = "\n".join(warnings) or text
        raise BookError(f"The book could not be rendered; the log is {log}.\n{told}")
