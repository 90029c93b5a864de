"""Where samples under way would end: few-step rollouts from x_t, by the pipeline itself.

Better than the clean prediction E[x_0 | x_t] that is their first step. From timestep t the T' timesteps are
``t b / T'``, b = T' .. 1, as in diffusion latent beam search (https://arxiv.org/abs/2501.19252); each step is DDIM's
(https://arxiv.org/abs/2010.02502, equation 12), without noise or with all of it (eta = 1), which makes the ends
samples of p(x_0 | x_t).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item, draw, seed_of
from .._forecast import rows_of, timesteps_of
from .._hooks import Step
from .._levels import noise_level
from .._sampler import LiDAR
from ._face import in_steps


class Rollout:
    """Follows a batch of samples to their ends; it costs ``(steps - 1) * samples`` times their network evaluations.

    Args:
        lidar: whose pipeline, arguments and batch size to use.
        items: the batch.
        steps: T', of which the first is the prediction that is already there.
        samples: rollouts a sample; one is without noise, several are with.
    """

    def __init__(self, lidar: LiDAR, items: Sequence[Item], *, steps: int, samples: int = 1) -> None:
        from diffusers import DPMSolverMultistepScheduler

        self.lidar, self.items, self.steps, self.samples = lidar, items, steps, samples
        self._calls = 0
        self._pipe = copy.copy(lidar.pipe)
        # Of order 1 the solver is DDIM, for any timesteps.
        self._pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            lidar.pipe.scheduler.config,
            solver_order=1,
            algorithm_type="dpmsolver++" if samples == 1 else "sde-dpmsolver++",
            final_sigmas_type="zero",
            thresholding=False,
        )

    def __call__(self, step: Step) -> Tensor:
        """Return clean latents (B * samples, *), the ends of each sample of a step side by side.

        Args:
            step: of a scheduler without memory.
        """
        self._calls += 1
        scheduler, t = step.scheduler, int(step.timestep)
        times = times_from(t, self.steps)
        sample, x0 = (each.repeat_interleave(self.samples, 0) for each in (step.x_t, step.x0))
        if not times:
            return x0
        items = [
            Item(item.prompt, seed_of(item.seed, f"rollout {self._calls}", "", k))
            for item in self.items
            for k in range(self.samples)
        ]
        call = {**in_steps(self.lidar, len(times)), "timesteps": times}
        drawn = draw(
            self._pipe,
            items,
            call=call,
            batch_size=self.lidar.batch_size,
            rows={"latents": self._first(scheduler, t, times[0], sample, x0, items)},
            decoded=False,
        )
        return torch.cat([part.latents for part in drawn]).to(x0)

    def _first(self, scheduler: Any, t: int, s: int, sample: Tensor, x0: Tensor, items: Sequence[Item]) -> Tensor:
        """DDIM's step from t to s."""
        here, there = noise_level(scheduler, t), noise_level(scheduler, s)
        eps = (sample - here.alpha * x0) / here.sigma
        if self.samples == 1:
            return there.alpha * x0 + there.sigma * eps
        share = (there.sigma / here.sigma) ** 2
        variance = share * (1 - (here.alpha / there.alpha) ** 2)
        generators = [torch.Generator().manual_seed(seed_of(item.seed, "first", "", 0)) for item in items]
        z = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)
        return there.alpha * x0 + (there.sigma**2 - variance) ** 0.5 * eps + variance**0.5 * z


def check_rollout(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, rollouts of a model without DDIM's steps.

    Raises:
        ValueError: the sampler is one of flows or of sigmas.
    """
    if not hasattr(lidar.pipe.scheduler, "alphas_cumprod") or lidar.settings.noise is not None:
        raise ValueError(
            f"{who} rolls out by DDIM's steps, and {type(lidar.pipe.scheduler).__name__} has others: look one step "
            "ahead, by the clean prediction"
        )


def times_from(t: int, steps: int) -> list[int]:
    """Return the timesteps of a rollout from ``t`` at which the network is asked, falling; few near the end.

    >>> times_from(900, 4), times_from(2, 4)
    ([675, 450, 225], [1])
    """
    return sorted({t * b // steps for b in range(1, steps)} - {0, t}, reverse=True)


def rollout_cost(lidar: LiDAR, count: int, *, steps: int) -> Cost:
    """Return what ``count`` rollouts side by side will count, at each of the target's steps but the first."""
    call = lidar.arguments()
    times = sum(len(times_from(int(t), steps)) for t in timesteps_of(lidar.pipe, call)[1:])
    return Cost(network_evaluations=count * times * rows_of(lidar.pipe, call))
