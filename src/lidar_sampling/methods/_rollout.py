"""Few-step rollouts from x_t by the pipeline itself, to where samples under way would end.

Better than the clean prediction E[x_0 | x_t] that is their first step. From the time t the T' steps stand at
``t b / T'``, b = T' .. 1, as in diffusion latent beam search (https://arxiv.org/abs/2501.19252): training timesteps
of a diffusion model, levels of a flow model. Each step is the kernel's (:mod:`lidar_sampling._kernel`), without noise
or with all of it (``ddpm``), which makes the ends samples of p(x_0 | x_t).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item, draw, seed_of
from .._forecast import levels_of, rows_of, timesteps_of
from .._hooks import Step
from .._kernel import new_noise, step_without_noise, stochastic
from .._levels import NoiseLevel
from .._sampler import LiDAR
from ._checks import is_flow
from ._face import in_steps


class Rollout:
    """Follows a batch of samples to their ends; it costs ``(steps - 1) * samples`` times their network evaluations.

    Args:
        lidar: whose pipeline, arguments and batch size to use.
        items: the batch.
        steps: T', of which the first is the prediction that is already there.
        samples: rollouts per sample; a single one has no noise, several have.
    """

    def __init__(self, lidar: LiDAR, items: Sequence[Item], *, steps: int, samples: int = 1) -> None:
        from ._given import scheduler_for

        self.lidar, self.items, self.steps, self.samples = lidar, items, steps, samples
        self._eta = 0.0 if samples == 1 else 1.0
        self._calls = 0
        self._pipe = copy.copy(lidar.pipe)
        self._pipe.scheduler = scheduler_for(lidar.pipe.scheduler)

    def __call__(self, step: Step) -> Tensor:
        """Return clean latents (B * samples, *), the ends of each sample of a step side by side."""
        self._calls += 1
        times = times_from(step.scheduler, step.timestep, self.steps)
        sample, x0 = (each.repeat_interleave(self.samples, 0) for each in (step.x_t, step.x0))
        if not times:
            return x0
        items = [
            Item(item.prompt, seed_of(item.seed, f"rollout {self._calls}", "", k))
            for item in self.items
            for k in range(self.samples)
        ]
        self._pipe.scheduler.times = times
        drawn = draw(
            self._pipe,
            items,
            call=in_steps(self.lidar, len(times)),
            batch_size=self.lidar.batch_size,
            around=lambda batch: stochastic(self._pipe, f"ddpm:{self._eta}"),
            rows={"latents": self._first(step.level, sample, x0, items)},
            decoded=False,
        )
        return torch.cat([part.latents for part in drawn]).to(x0)

    def _first(self, here: NoiseLevel, sample: Tensor, x0: Tensor, items: Sequence[Item]) -> Tensor:
        """Return the samples after the kernel's step from ``here`` to the first of the times."""
        scheduler = self._pipe.scheduler
        there = scheduler.level_of(scheduler.times[0])
        if not is_flow(scheduler):  # as its own steps see it, wherever the target's see it
            length = math.hypot(here.alpha, here.sigma)
            sample, here = sample / length, here._replace(alpha=here.alpha / length, sigma=here.sigma / length)
        rho, deviation = new_noise(self._eta, here, there)
        moved = step_without_noise(sample, x0, here, there, rho)
        if not deviation:
            return moved
        generators = [torch.Generator().manual_seed(seed_of(item.seed, "first", "", 0)) for item in items]
        return moved + deviation * torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)


def check_rollout(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, rollouts of a model whose noise levels have no timesteps.

    Raises:
        ValueError: it is neither a diffusion model of DDPM's levels nor a flow model whose timesteps are its levels.
    """
    scheduler, call = lidar.pipe.scheduler, lidar.arguments()
    trained = scheduler.config.get("num_train_timesteps", 1)
    if is_flow(scheduler):
        levels = zip(timesteps_of(lidar.pipe, call), levels_of(lidar.pipe, call), strict=True)
        known = all(abs(float(t.flatten()[0]) / trained - level.sigma) < 2 / trained for t, level in levels)
    else:
        known = hasattr(scheduler, "alphas_cumprod")
    if not known:
        raise ValueError(
            f"{who} rolls out from timesteps in between, and those of {type(scheduler).__name__} do not say how "
            "noisy a sample is: look one step ahead, by the clean prediction"
        )


def times_from(scheduler: Any, timestep: float | Tensor, steps: int) -> list[float]:
    """Return the timesteps of a rollout from ``timestep`` at which the network is asked, falling.

    Those of a diffusion model are whole numbers: few of them are near the end.

    >>> from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
    >>> times_from(DDIMScheduler(), 900, 4), times_from(DDIMScheduler(), 2, 4)
    ([675, 450, 225], [1])
    >>> times_from(FlowMatchEulerDiscreteScheduler(), 2.0, 4)
    [1.5, 1.0, 0.5]
    """
    if is_flow(scheduler):
        return [float(timestep) * b / steps for b in range(steps - 1, 0, -1)]
    t = int(timestep)
    return sorted({t * b // steps for b in range(1, steps)} - {0, t}, reverse=True)


def rollout_cost(lidar: LiDAR, count: int, looks: Collection[int], *, steps: int) -> Cost:
    """Return what ``count`` rollouts side by side will count, at each of ``looks``, steps of the target."""
    call = lidar.arguments()
    timesteps = timesteps_of(lidar.pipe, call)
    times = sum(len(times_from(lidar.pipe.scheduler, timesteps[look], steps)) for look in looks)
    return Cost(network_evaluations=count * times * rows_of(lidar.pipe, call))
