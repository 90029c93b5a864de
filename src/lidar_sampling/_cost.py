"""The cost of sampling, counted in one way for every method."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._parts import decoders, denoisers, text_encoders
from ._profile import time_modules, time_part


@dataclass
class Cost:
    """Counts, wall-clock seconds and memory.

    Attributes:
        network_evaluations: rows of the denoiser's batch over all its calls: one image step is 1, and 2 with
            classifier-free guidance.
        backward_passes: rows of the denoiser's batch that gradients went back through, counted alike.
        decodes: images that left the decoder.
        reward_calls: images that a reward scored, each reward counted.
        seconds: wall-clock time.
        peak_memory: bytes at the peak beyond what was held before: of the device on CUDA, of the process's resident
            memory on Linux; 0 where neither can be read.
    """

    network_evaluations: int = 0
    backward_passes: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Add the costs of two phases, one after the other: the higher peak, and the sum of everything else.

        >>> Cost(seconds=1.0, peak_memory=5) + Cost(seconds=2.0, peak_memory=3)
        Cost(network_evaluations=0, backward_passes=0, decodes=0, reward_calls=0, seconds=3.0, peak_memory=5)
        """
        total = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Cost(**{**total, "peak_memory": max(self.peak_memory, other.peak_memory)})

    def share(self, count: int) -> Cost:
        """Return an even share of counts, rounded, and of seconds; the peak of memory stays.

        >>> Cost(network_evaluations=8, seconds=3.0, peak_memory=5).share(2)
        Cost(network_evaluations=4, backward_passes=0, decodes=0, reward_calls=0, seconds=1.5, peak_memory=5)
        """
        counts = {name: round(value / count) for name, value in vars(self).items()}
        return Cost(**{**counts, "seconds": self.seconds / count, "peak_memory": self.peak_memory})


@contextmanager
def meter(pipe: Any, phase: str) -> Iterator[Cost]:
    """Count the denoiser's evaluations, seconds and memory of a block; the caller adds decodes and reward calls.

    ``phase`` is what a profile calls the block. Blocks do not nest: each forgets the peak of memory before it.

    Example:
        >>> from lidar_sampling import testing
        >>> pipe = testing.tiny_stable_diffusion()
        >>> with meter(pipe, "sampling") as cost:
        ...     images = pipe("a cat", num_inference_steps=3, output_type="pt").images
        >>> cost.network_evaluations
        8
    """
    cost = Cost()

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cost.network_evaluations += len(next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)))

    handles = [module.register_forward_pre_hook(count, with_kwargs=True) for module in denoisers(pipe).values()]
    device = torch.device(getattr(pipe, "device", "cpu"))
    held = _forget_peak(device)
    start = time.perf_counter()
    try:
        parts = {"network": [*denoisers(pipe).values()], "text": text_encoders(pipe), "decode": decoders(pipe)}
        with time_part(phase, device=device), time_modules(parts):
            yield cost
    finally:
        cost.seconds += time.perf_counter() - start
        cost.peak_memory = max(_peak(device) - held, 0)
        for handle in handles:
            handle.remove()


def _forget_peak(device: torch.device) -> int:
    """Start the peak of memory anew; return the bytes that are held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident set
    except OSError:
        return read_proc("self/status", "VmHWM")
    return read_proc("self/status", "VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else read_proc("self/status", "VmHWM")


def read_proc(file: str, field: str) -> int:
    """Return a field of a file of Linux's /proc, such as meminfo, in bytes; 0 where the system has none."""
    try:
        lines = (Path("/proc") / file).read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def spell_counts(cost: Cost) -> str:
    """Return the network evaluations and reward calls of a cost as a person says them.

    >>> spell_counts(Cost(network_evaluations=1200, reward_calls=50)), spell_counts(Cost(network_evaluations=8))
    ('1,200 network evaluations, 50 reward calls', '8 network evaluations')
    """
    counts = {"network evaluations": cost.network_evaluations, "reward calls": cost.reward_calls}
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
