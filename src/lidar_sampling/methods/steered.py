"""Steered best-of-N: a population that is resampled early and gently, and from which the best are chosen at the end.

N samples of a prompt are drawn side by side by a stochastic sampler. After some steps the clean prediction of each
is rewarded, and the population is resampled by weights

    w = softmax(lambda r),      lambda such that  1 / (N sum w^2) = ess,

so lambda follows from the rewards at hand and has no unit to be tuned in (tempering to an effective sample size, Del
Moral et al. 2012, https://doi.org/10.1007/s11222-011-9271-y). The noise of later steps parts the copies again; so
nothing is resampled late, and the choice at the end is best-of-N's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import calls_of
from .._guidance import tempering
from .._result import Result
from .._sampler import LiDAR
from ._checks import check_fields, check_population, with_noise
from ._face import (
    best,
    charged,
    check_comparable,
    hooked,
    in_steps,
    looks_cost,
    rewards_of_predictions,
    sampling_cost,
    selection_cost,
)
from ._particles import Particles, check_window, resampling_steps, ssp


@dataclass(frozen=True)
class Steered:
    """Steered best-of-N.

    Attributes:
        n: samples a prompt, at least as many as images are wanted.
        ess: effective sample size of the weights, as a share of the samples; 1 resamples nothing.
        start: first step of resampling, as a fraction of all.
        end: no such step is later.
        every: fraction of all steps between two.
        steps: denoising steps; None takes those of the sampler's call.
    """

    n: int = 12
    ess: float = 0.5
    start: float = 0.2
    end: float = 0.6
    every: float = 0.2
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", ess="(0, 1]", steps="[1, inf)")
        check_window(self.start, self.end, self.every)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """The ``images`` best of ``n`` samples a prompt; it costs their steps.

        And a decode and a reward call a sample at each resampling and at the end.

        Raises:
            ValueError: more images than samples, a scheduler that remembers earlier steps, whose memory would stay
                with the dropped, or one without noise, under which copies stay alike; a call that ends before the
                samples are clean; or a mixture that cannot score loose images.
        """
        self._check(lidar, images)
        lidar = with_noise(lidar, copies=self.n > 1 and self.ess < 1)

        def resampled(batch: Sequence[Item]) -> Resampled:
            rewards = rewards_of_predictions(lidar.with_prompts(prompts), batch)
            return Resampled(self, rewards, [item.seed for item in batch[:: self.n]])

        around, hooks = hooked(lidar, resampled)
        call = in_steps(lidar, self.steps)
        many = lidar.sample(list(prompts), self.n, seed, around=around, together=self.n, call=call)
        many = charged(lidar, many, sum(hook.evaluations for hook in hooks))
        kept, selection = best(lidar, many, images)
        return replace(kept, cost={**many.cost, "selection": selection})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps of ``n`` samples, looks and the choice."""
        self._check(lidar, images)
        call = in_steps(lidar, self.steps)
        looks = self.n * len(self.looks(calls_of(lidar.pipe, call)))
        return sampling_cost(lidar, self.n, call=call) + looks_cost(lidar, looks) + selection_cost(lidar, self.n)

    def looks(self, steps: int) -> set[int]:
        """Return the steps of a run of ``steps`` at which the population is resampled."""
        if self.ess == 1:
            return set()
        return resampling_steps(steps, start=self.start, end=self.end, every=self.every)

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_population(lidar, "steered best-of-N", "resamples", copies=self.n > 1 and self.ess < 1)
        check_comparable(lidar)
        if not 1 <= images <= self.n:
            raise ValueError(f"images must be 1 to n = {self.n}, got {images}")


class Resampled(Particles):
    """The hook that resamples populations to an effective sample size."""

    who = "steered best-of-N"

    def choose(self, r: Tensor) -> Tensor:
        """Resample particles of rewards (P, k), with as little noise as can be."""
        weights = (tempering(r, self.settings.ess)[:, None] * (r - r.amax(1, keepdim=True))).softmax(1)
        return torch.stack([ssp(row, g) for row, g in zip(weights, self.generators, strict=True)])
