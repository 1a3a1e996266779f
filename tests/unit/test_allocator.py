"""Memory that is kept inside, and given back afterwards."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from siamcam_lib import allocator

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")

# In a process of its own: what else lives in the tests' process would blur the numbers.
PROBE = """
import numpy as np
from siamcam_lib.allocator import memory_kept

def resident():  # megabytes
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * 4096 / 2**20

def ask_and_free():
    np.ones(64 * 2**20, np.uint8)
    return resident()

before = ask_and_free()
with memory_kept():
    inside = ask_and_free()
print(inside - before, resident() - before, ask_and_free() - before)
"""


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator alone has these settings")
def test_freed_memory_stays_inside_and_goes_back_afterwards():
    told = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    inside, left, again = map(float, told.stdout.split())
    assert inside > 60
    assert abs(left) < 8
    assert abs(again) < 8


def test_elsewhere_it_does_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(allocator.sys, "platform", "win32")
    monkeypatch.setattr(allocator.ctypes, "CDLL", asked.append)
    with allocator.memory_kept():
        pass
    assert asked == []


def test_a_process_that_was_started_so_is_left_alone(monkeypatch):
    set_ = []
    monkeypatch.setattr(allocator, "_set", lambda libc, parameters: set_.append(parameters))
    for name, value in allocator.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with allocator.memory_kept():
        pass
    assert set_ == []


def test_what_goes_wrong_inside_is_not_hidden():
    with pytest.raises(ValueError, match="mine"), allocator.memory_kept():
        raise ValueError("mine")
