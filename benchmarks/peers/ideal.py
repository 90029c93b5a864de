"""The ideal: the time of LiDAR's parts alone, each at the fastest of the batches tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.peers.clock import median_seconds, settle
from benchmarks.peers.published import conditions, predict
from benchmarks.peers.rows import PROMPT
from lidar_sampling import LiDAR
from lidar_sampling._batches import is_out_of_memory
from lidar_sampling._decode import decode
from lidar_sampling.solvers import load as load_solver

BATCH_SIZES = {"cuda": (4, 25), "cpu": (1, 4, 8, 16)}

Times = dict[str, dict[int, float]]


class Best(NamedTuple):
    """The fastest number of images at once, and its seconds per image."""

    size: int
    seconds: float


@torch.no_grad()
def unit_times(lidar: LiDAR) -> Times:
    """Measure seconds per image by part and batch size; a network evaluation includes both branches of guidance."""
    pipe, device = lidar.pipe, lidar.pipe.device
    config, scale = pipe.unet.config, float(lidar.settings.guidance_scale or 1.0)
    side = config.sample_size * pipe.vae_scale_factor
    t = torch.tensor(500, device=device)

    def latents(size: int) -> torch.Tensor:
        shape = (size, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, device=device, dtype=pipe.unet.dtype)

    def network(size: int) -> Callable[[], Any]:
        x, known = latents(size), conditions(pipe, PROMPT, size)
        return lambda: predict(pipe, x, t, known, scale)

    def time_decoding(size: int) -> Callable[[], Any]:
        x = latents(size)
        return lambda: decode(pipe, x)

    def time_scoring(size: int) -> Callable[[], Any]:
        pictures = torch.rand(size, 3, side, side, device=device)
        return lambda: lidar.reward(images=pictures, prompts=[PROMPT] * size).cpu()

    times: Times = {"network": {}, "decode": {}, "reward": {}}
    for (name, taken), part in zip(times.items(), (network, time_decoding, time_scoring), strict=True):
        for size in BATCH_SIZES[device.type]:
            settle(device)
            try:
                taken[size] = median_seconds(part(size), device) / size
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise RuntimeError(f"{name}, {size} at once: {error}") from error
                break
    return times


def work_of(lidar: LiDAR, images: int) -> dict[str, int]:
    """Return how often LiDAR needs each part, in images."""
    how = lidar.settings
    steps = load_solver(how.lookahead, lidar.pipe).steps
    return {"network": how.n * steps + images * how.steps, "decode": how.n + images, "reward": how.n}


def best(units: Times, part: str) -> Best:
    """Return the fastest batch of ``part``; NaN if it was not measured."""
    tried = [Best(size, seconds) for size, seconds in units.get(part, {}).items()]
    return min(tried, key=lambda entry: entry.seconds, default=Best(0, math.nan))
