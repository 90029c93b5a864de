"""The clock, and the release of memory between measurements."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def now(device: torch.device) -> float:
    """Return the clock in seconds, once ``device`` has finished its work.

    On one thread of a CPU it is this process's CPU time, which other programs on the core do not change.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if of_process(device) else time.perf_counter()


def of_process(device: torch.device) -> bool:
    """Return whether :func:`now` reads the time of the process instead of the wall clock."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def settle(device: torch.device) -> None:
    """Free unused memory, so that the next peak belongs only to the next row."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def median_seconds(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Return the median of ``repeats`` runs after an uncounted one."""
    times = []
    for _ in range(1 + repeats):
        start = now(device)
        run()
        times.append(now(device) - start)
    return statistics.median(times[1:])
