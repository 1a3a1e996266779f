"""Timing side by side: the ways take turns, so that whatever else the machine does hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from cpuinfo import get_cpu_info
from tqdm.auto import tqdm


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way over `rounds` rounds; two more before them warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in tqdm(range(rounds + 2), desc="rounds", leave=False):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> str:
    """The processor, never the host."""
    name = get_cpu_info()["brand_raw"]
    return f"{torch.get_num_threads()} threads, {name}, torch {torch.__version__}"
