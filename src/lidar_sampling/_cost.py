"""What sampling cost, counted by one instrument for every method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The denoising networks of a diffusers pipeline by their names in it; Wan 2.2 has two."""
    modules = {name: getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Module)}


@dataclass
class Cost:
    """Counts and wall-clock seconds.

    Attributes:
        network_evaluations: rows of the denoiser's batch over all its calls: one image step is 1, and 2 with
            classifier-free guidance.
        backward_passes: rows of the denoiser's batch that gradients went back through, counted alike.
        decodes: images that left the decoder.
        reward_calls: images that a reward scored, each reward counted.
        seconds: wall-clock time.
    """

    network_evaluations: int = 0
    backward_passes: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0


@contextmanager
def metered(pipe: Any) -> Iterator[Cost]:
    """Count the denoiser's evaluations and the seconds of a block; the caller adds decodes and reward calls.

    Example:
        >>> from lidar_sampling import testing
        >>> pipe = testing.tiny_stable_diffusion()
        >>> with metered(pipe) as cost:
        ...     images = pipe("a cat", num_inference_steps=3, output_type="pt").images
        >>> cost.network_evaluations
        8
    """
    cost = Cost()

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cost.network_evaluations += len(next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)))

    handles = [module.register_forward_pre_hook(count, with_kwargs=True) for module in denoisers(pipe).values()]
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds += time.perf_counter() - start
        for handle in handles:
            handle.remove()
