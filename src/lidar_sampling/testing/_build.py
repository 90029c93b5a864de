"""How every tiny pipeline is built: from a fixed seed, without touching the caller's, and silent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def seeded(build: Callable[..., Any]) -> Callable[..., Any]:
    """Build with seed 0, put the random state back, and turn the progress bar off."""

    @functools.wraps(build)
    def make(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = build(*args, **kwargs)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make
