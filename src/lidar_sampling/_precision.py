"""A warning, given once, of a precision that the device only emulates, which costs more than it saves."""

from __future__ import annotations

import functools
import logging
import time

import torch

_log = logging.getLogger(__name__)
_SLOW = 1.5  # warn if it takes so many times as long as float32


def warn_if_emulated(dtype: torch.dtype, device: torch.device | str) -> None:
    """Warn, once per precision, if a CPU computes slower in ``dtype`` than in float32."""
    if torch.device(device).type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        _warn(dtype)


@functools.cache
def _warn(dtype: torch.dtype) -> None:
    factor = seconds(dtype) / seconds(torch.float32)
    if factor > _SLOW:
        name = str(dtype).removeprefix("torch.")
        _log.warning(
            "%s takes %.1f times as long as float32 on this CPU (one convolution, measured now): use float32, "
            "or on the command line --dtype auto",
            name,
            factor,
        )


@torch.no_grad()
def seconds(dtype: torch.dtype) -> float:
    """Return what one convolution, as a UNet has them, takes on the CPU in ``dtype``; the best of five."""
    x, w = torch.ones(2, 128, 16, 16, dtype=dtype), torch.ones(128, 128, 3, 3, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, w, padding=1)
        best = min(best, time.perf_counter() - start)
    return best
