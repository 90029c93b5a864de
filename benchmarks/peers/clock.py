"""The clock, and memory put in order between measurements."""

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
    """The clock in seconds, once ``device`` has done what it was given.

    On one thread of a CPU it is the time that this process was given, which other programs on the core do not change.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if of_process(device) else time.perf_counter()


def of_process(device: torch.device) -> bool:
    """Whether :func:`now` reads the time of the process, not that of the wall."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def settle(device: torch.device) -> None:
    """Hand memory that nobody uses back, so that the next peak is of the next row alone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def median_seconds(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Median of ``repeats`` runs after one that is not counted."""
    times = []
    for _ in range(1 + repeats):
        start = now(device)
        run()
        times.append(now(device) - start)
    return statistics.median(times[1:])
