"""What several tests share: the project's folder, the photographs, and one run of the chapters.

Chapters are executed once for each kind of data in a session; the tests of the chapters look at
the executed notebooks, and the tests of the site render these very notebooks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from siamcam_lib.book import ChapterRun, run_chapters
from siamcam_lib.errors import BookError

ROOT = Path(__file__).resolve().parents[1]
KINDS = ["scenes", pytest.param("real", marks=pytest.mark.real)]


@dataclass(frozen=True)
class Executed:
    """The chapters after one run on one kind of data."""

    kind: str
    stage: Path
    runs: list[ChapterRun]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the project."""
    return ROOT


def _data_root() -> Path:
    place = os.environ.get("SIAMCAM_DATA")
    if not place:
        pytest.skip("needs real photographs: set SIAMCAM_DATA to the folder that holds them")
    folder = Path(place)
    assert folder.is_dir(), f"SIAMCAM_DATA is {place!r}, which is no folder"
    return folder.resolve()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real photographs; tests that ask for it carry the mark `real`."""
    return _data_root()


@pytest.fixture(scope="session", params=KINDS)
def executed(request: pytest.FixtureRequest) -> Executed:
    """All chapters, executed once on scenes and, where they are present, on photographs."""
    if request.param == "real":
        _data_root()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # minutes pass: show each chapter as it ends
        done = _execute(request.param)
    if isinstance(done, str):
        pytest.fail(done, pytrace=False)
    return done


@functools.cache  # pytest may set a fixture up again when it reorders tests by their parameters
def _execute(kind: str) -> Executed | str:
    """The chapters after their run on this kind of data, or what went wrong."""
    stage = ROOT / "_build" / "test" / kind / "stage"
    if kind == "real" and os.environ.get("PYTEST_XDIST_WORKER") and hasattr(os, "nice"):
        os.nice(5)  # scenes first: the browser looks at their pages while photographs still run
    try:
        with contextlib.redirect_stdout(sys.stderr):  # such a process has no other way to speak
            print(f"\nrunning the chapters on {kind}")
            # time enough where another process of pytest runs them on other data
            limits = {"cell_timeout": 1200.0, "chapter_timeout": 2400.0}
            runs = run_chapters(ROOT, stage, data=kind, profile="quick", seed=0, **limits)
    except BookError as error:
        return str(error)
    return Executed(kind, stage, runs)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With ``--dist loadscope``: a run of the chapters, or a module, stays in one process."""
    return Together(config, log) if config.getvalue("dist") == "loadscope" else None


class Together(LoadScopeScheduling):
    """Shares out tests by the data their chapters ran on, and all others by their files."""

    def _split_scope(self, nodeid: str) -> str:
        found = re.search(r"\b(scenes|real)\]$", nodeid)
        return found[1] if found else nodeid.partition("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Where the photographs are there, a test that needs them may not be skipped."""
    report = yield
    if report.skipped and os.environ.get("SIAMCAM_DATA") and item.get_closest_marker("real"):
        report.outcome = "failed"
        report.longrepr = f"SIAMCAM_DATA is set, but this test was skipped: {report.longrepr}"
    return report
