"""Executes notebooks, each in a process of its own that can be ended from outside.

Several of them import the same: on Linux one process does so once, and is forked for each notebook.
"""

from __future__ import annotations

import ast
import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from siamcam_lib import allocator
from siamcam_lib.book.progress import Line
from siamcam_lib.errors import BookError

_CELL_COUNT = re.compile(r"^cell (\d+)/(\d+)$")  # from 0, as the worker says it
_HERE = Path(__file__).parent
FORKS = sys.platform == "linux"
"""Elsewhere libraries of the system do not bear it, or there is no such thing."""


@dataclass
class _Started:
    """A process that executes a notebook, with its streams."""

    process: psutil.Process | psutil.Popen
    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]


@dataclass
class Executor:
    """Starts the processes that execute notebooks.

    Args:
        root: The notebooks get the library of this folder.
        threads: How many cores each may use.
        sources: Notebooks to execute; what most of them import is imported once.
    """

    root: Path
    threads: int
    sources: Collection[Path] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _forking: tuple[subprocess.Popen[bytes], socket.socket] | None = field(default=None, repr=False)

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._forking:
            process, asks = self._forking
            asks.close()  # it ends, and all that it forked
            process.wait(timeout=30)

    def execute(self, job: dict[str, Any], timeout: float, line: Line) -> dict[str, Any]:
        """Run one notebook by `worker.py`; end it, and its kernel, when time is up.

        Args:
            job: As `worker.execute` takes it.
            timeout: In seconds.
            line: Is told which cell runs.

        Returns:
            What `worker.execute` returned, or ``{"error": ...}``.
        """
        started = self._fork() if FORKS else self._spawn()
        said: list[str] = []
        listener = threading.Thread(target=_listen, args=(started.stderr, said, line), daemon=True)
        listener.start()
        try:
            answer = _exchange(started, json.dumps(job), timeout, line)
            listener.join(timeout=5)
        except TimeoutError:
            return {"error": f"took longer than {timeout:g} s and was ended {line.where}."}
        finally:
            _end_with_children(started.process)
        try:
            return json.loads(answer.splitlines()[-1])
        except (IndexError, ValueError):
            last = " | ".join(said[-3:]) or "it said nothing (out of memory?)"
            return {"error": f"its process ended: {last}."}

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            # The chapters of this folder are run with the library of this folder.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(self.root), os.environ.get("PYTHONPATH")])
            ),
            "PYTHONUNBUFFERED": "1",
            # Figures are for the page, whichever program the reader likes to see them in.
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # Whether there is a graphics card is asked in a way that a fork survives.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            **_no_card(),
            # A tenth of a chapter's time goes into clearing memory that was just given back.
            **allocator.ENVIRONMENT,
            # Chapters that run at once share the cores instead of waiting for each other.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads)),
        }

    def _spawn(self) -> _Started:
        process = psutil.Popen(
            [sys.executable, "-P", str(_HERE / "worker.py")],  # it needs nothing of the package
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=self._environment(),
        )
        return _Started(process, process.stdin, process.stdout, process.stderr)

    def _fork(self) -> _Started:
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        with self._lock:
            if self._forking is None:
                self._forking = self._start_forking()
            _, asks = self._forking
            try:
                socket.send_fds(asks, [b"\n"], theirs)
                pid = int.from_bytes(asks.recv(8), "big")
            except OSError:
                pid = 0
        for descriptor in theirs if pid else theirs + ours:
            os.close(descriptor)
        if not pid:
            raise BookError(
                "The process that is forked for every chapter has ended; what it said, if it said "
                "anything, stands above. Run the same command again."
            )
        streams = [
            open(d, mode, encoding="utf-8", errors="replace")
            for d, mode in zip(ours, "wrr", strict=True)
        ]
        return _Started(psutil.Process(pid), *streams)

    def _start_forking(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        asks, asked = socket.socketpair()
        with asked:
            process = subprocess.Popen(
                [sys.executable, "-P", str(_HERE / "forked.py"), *shared_imports(self.sources)],
                stdin=asked.fileno(),
                stdout=subprocess.DEVNULL,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for the process that started it
            )
        return process, asks


def _no_card() -> dict[str, str]:
    """Without a graphics card PyTorch need not look for one at every step of a training."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # NVIDIA's is not the only one
        return {}
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {}


def shared_imports(sources: Collection[Path]) -> list[str]:
    """What more than half of several notebooks import or take from what they import.

    Args:
        sources: Notebooks; one that cannot be read imports nothing.

    Returns:
        Modules, ``"torch"``, and names in modules, ``"siamcam_lib:fit"``.
    """
    counts = Counter(name for source in sources for name in dict.fromkeys(_imports(source)))
    return [name for name, count in counts.items() if count > max(1, len(sources) / 2)]


def _imports(source: Path) -> Iterator[str]:
    try:
        cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    trees = []
    for text in code:
        with suppress(SyntaxError, ValueError, RecursionError):  # a magic of IPython's, say
            trees.append(ast.parse(text))
    modules = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = alias.name
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}:{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules:  # a name that is imported when it is first asked for
                yield f"{modules[node.value.id]}:{node.attr}"


def _exchange(started: _Started, text: str, timeout: float, line: Line) -> str:
    """Hand over `text`, wait for the answer; meanwhile the clock on the line keeps moving."""
    answer: list[str] = []

    def read() -> None:
        with started.stdout as stream:
            answer.append(stream.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with suppress(BrokenPipeError), started.stdin as stream:  # it may have ended already
        stream.write(text)
    end = time.monotonic() + timeout
    while reader.is_alive():
        if time.monotonic() > end:
            raise TimeoutError
        reader.join(timeout=0.2)
        line.tick()
    return "".join(answer)


def _listen(stream: IO[str], said: list[str], line: Line) -> None:
    """Hear which cell is running, and keep all else that is said."""
    with stream:
        for text in stream:
            if count := _CELL_COUNT.search(text):
                line.cell = (int(count[1]), int(count[2]))
            elif text.strip():
                said.append(text.strip())


def _end_with_children(process: psutil.Process | psutil.Popen) -> None:
    """End `process` and all it started; a kernel has its own session, so its group is no help."""
    family = []
    with suppress(psutil.NoSuchProcess):
        process.suspend()  # or a kernel that it starts at this moment would be left behind
        family = process.children(recursive=True)
        process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(timeout=30)
