"""Shared parts of the training loops: learning rate, optimiser, loop, moving average of the weights."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """The schedule of training: steps and learning rate.

    ``floor`` is the last learning rate as a share of the first; ``max_norm`` is the largest norm of the gradient.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    floor: float
    max_norm: float = 1.0
    log_every: int = 100

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up times a half cosine down to ``floor``."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        warm = min(1.0, (step + 1) / self.warmup)
        return self.learning_rate * warm * (self.floor + (1 - self.floor) * cosine)


class Average(Generic[M]):
    """An exponential moving average of a model's weights, in ``model``; at the beginning it forgets faster."""

    def __init__(self, model: M, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Add the weights of ``model`` after ``step``."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for mine, current in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(current, weight)


def train(
    loss: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    device: torch.device,
    log: logging.Logger,
    after: Callable[[int], None] = lambda step: None,
) -> float:
    """Minimise ``loss``, a function of the step that returns a value and figures to log.

    On a GPU the loss runs under autocast in bfloat16. ``after`` is called after each step.

    Returns:
        Seconds.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    start = time.perf_counter()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            value, info = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, schedule.max_norm)
        optimizer.step()
        after(step)
        if (step + 1) % schedule.log_every == 0 or step in (0, schedule.steps - 1):
            figures = {"loss": value, **info}
            shown = ", ".join(f"{name} {figure.item():.4f}" for name, figure in figures.items())
            log.info("step %d/%d, %.0f s, %s", step + 1, schedule.steps, time.perf_counter() - start, shown)
    return time.perf_counter() - start


def adamw(
    parameters: Iterable[nn.Parameter],
    schedule: Schedule,
    *,
    betas: tuple[float, float],
    weight_decay: float,
    device: torch.device,
    decay_vectors: bool = True,
) -> torch.optim.AdamW:
    """Return AdamW, fused on a GPU; biases and other vectors do not decay unless ``decay_vectors``."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if decay_vectors or p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if not decay_vectors and p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=schedule.learning_rate,
        betas=betas,
        fused=device.type == "cuda",
    )
