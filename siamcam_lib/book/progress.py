"""How far the chapters are, as lines of text: one for each that ended, and now and then a clock."""

from __future__ import annotations

import shutil
import sys
import threading
import time

WIPE = "\r\033[K"  # back to the start of the terminal's line, and clear it


class Board:
    """Progress: one line for each chapter that ended, and a clock for those that run.

    Where a person watches, the clock is the last line and moves twice a second; in a log it is a
    line of its own once a minute.

    Args:
        chapters: How many will end.
    """

    def __init__(self, chapters: int) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._live = sys.stdout.isatty()
        self._every = 0.5 if self._live else 60.0  # seconds
        self._chapters, self._ended = chapters, 0
        self._running: list[Line] = []
        self._shown = time.monotonic()

    def start(self, line: Line) -> None:
        """A chapter is being run."""
        with self._lock:
            self._running.append(line)
            if not self._live:
                print(f"{line.title} …", flush=True)

    def tick(self) -> None:
        """Tell the time, where it is due."""
        now = time.monotonic()
        with self._lock:
            if now - self._shown <= self._every:
                return
            self._shown = now
            text = "   ".join(line.state(now) for line in self._running)
            if self._live:
                width = shutil.get_terminal_size().columns - 1
                print(f"{WIPE}{text[:width]}", end="", flush=True)
            else:
                print(f"  running: {text}", flush=True)

    def end(self, line: Line, result: str) -> None:
        """A chapter has ended, with this result."""
        with self._lock:
            self._running.remove(line)
            self._ended += 1
            place = f"[{self._ended}/{self._chapters}]"
            print(f"{WIPE if self._live else ''}{place} {line.title}  {result}", flush=True)


class Line:
    """What a board says of one chapter."""

    def __init__(self, board: Board, title: str) -> None:
        self.title = title
        self.cell: tuple[int, int] | None = None
        self._start = time.monotonic()
        self._board = board
        board.start(self)

    @property
    def where(self) -> str:
        """Which cell is running, in words: there cells are counted from 1."""
        return f"in cell {self.cell[0] + 1} of {self.cell[1]}" if self.cell else "at its start"

    def state(self, now: float) -> str:
        """How long the chapter has been running, and where it is."""
        place = f", {self.where}" if self.cell and self.cell[0] < self.cell[1] else ""
        return f"{self.title}  {now - self._start:.0f} s{place}"

    def tick(self) -> None:
        """Tell the time, or end what runs where everything was stopped."""
        if self._board.stopped.is_set():
            raise KeyboardInterrupt
        self._board.tick()

    def end(self, result: str) -> None:
        """The chapter has ended, with this result."""
        self._board.end(self, result)
