"""Memory that is asked for again and again is kept, not given back to the system each time.

On a CPU every layer of a network asks for tens of megabytes and frees them again. glibc gives such
blocks back to the system at once, and the system clears each page anew when it is asked next: with
64 pictures of 192 pixels that is a third of the time of a training step.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's names for its parameters and its defaults, from mallopt(3)
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
DEFAULTS = {MMAP_MAX: 65536, MMAP_THRESHOLD: 128 * 1024, TRIM_THRESHOLD: 128 * 1024, TOP_PAD: 0}
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 256 * 1024**2}

ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": str(KEEP[MMAP_MAX]),
    "MALLOC_TRIM_THRESHOLD_": str(KEEP[TRIM_THRESHOLD]),
    "MALLOC_TOP_PAD_": str(KEEP[TOP_PAD]),
}
"""The same for the whole life of a process that is started with it."""


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards it goes back to the system.

    It concerns the whole process. It does nothing where the C library is not glibc, or where the
    process was started with `ENVIRONMENT`.

    Example:
        >>> with memory_kept():
        ...     sum(range(10))
        45
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or os.environ.keys() >= ENVIRONMENT.keys():
        yield
        return
    _set(libc, KEEP)
    try:
        yield
    finally:
        _set(libc, DEFAULTS)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, parameters: dict[int, int]) -> None:
    for parameter, value in parameters.items():
        libc.mallopt(parameter, value)
