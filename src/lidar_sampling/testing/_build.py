"""Helpers that build every tiny pipeline: from a fixed seed, silently, without changing the caller's random state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def with_seed(build: Callable[..., Any]) -> Callable[..., Any]:
    """Build with seed 0, restore the random state, and turn the progress bar off."""

    @functools.wraps(build)
    def make(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = build(*args, **kwargs)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def stir(module: Any, std: float = 0.1) -> Any:
    """Return ``module`` for inference with its zero weights randomised, since zero last layers would draw nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=std)
    return module.eval()
