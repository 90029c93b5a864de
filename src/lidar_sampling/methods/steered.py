"""Steered best-of-N: a population that is resampled early and gently, and from which the best are chosen at the end.

N samples of a prompt are drawn side by side by a stochastic sampler. After some steps the clean prediction of each
is rewarded, and the population is resampled by weights

    w = softmax(lambda r),      lambda such that  1 / (N sum w^2) = ess,

so lambda follows from the rewards at hand and has no unit to be tuned in (tempering to an effective sample size, Del
Moral et al. 2012, https://doi.org/10.1007/s11222-011-9271-y). The noise of later steps parts the copies again; so
nothing is resampled late, and the choice at the end is best-of-N's.

Copies that part late are near copies still, and several images of one population are often of one ancestor. With
``islands`` the N samples are so many populations of equal size, each resampled for itself (the island model of
particles, Verge et al. 2013, https://arxiv.org/abs/1306.3911, without exchange between islands), and the images come
from as many of them as can be. With ``diverse`` the choice at the end is of the best set.
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
from .._values import check_fields
from ._checks import check_images, check_population, with_noise
from ._face import (
    best,
    best_cost,
    charge_looks,
    check_comparable,
    check_features,
    hook_batches,
    in_steps,
    looks_cost,
    rewards_of_predictions,
    sampling_cost,
    wants_features,
)
from ._particles import Particles, check_resampling, resampling_steps, ssp


@dataclass(frozen=True)
class Steered:
    """Steered best-of-N.

    Attributes:
        n: samples per prompt, at least as many as images are wanted.
        ess: effective sample size of the weights, as a share of the samples; 1 resamples nothing.
        start: first step of resampling, as a fraction of all.
        end: no such step is later.
        every: fraction of all steps between two.
        steps: denoising steps; None takes those of the sampler's call.
        islands: populations of a prompt, which divide ``n``. Every image has an island of its own where there are
            enough; ``n`` of them are best-of-N.
        diverse: what an average distance of two samples is worth in the choice at the end, as in best-of-N; the best
            set is then chosen of all samples, whichever islands they come from. 0 goes by rewards and islands.
    """

    n: int = 12
    ess: float = 0.5
    start: float = 0.2
    end: float = 0.6
    every: float = 0.2
    steps: int | None = None
    islands: int = 1
    diverse: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", ess="(0, 1]", steps="[1, inf)", islands="[1, inf)", diverse="[0, inf)")
        check_resampling(self.start, self.end, self.every)
        if self.n % self.islands:
            raise ValueError(
                f"n must be a multiple of islands, got n={self.n} and islands={self.islands}: take n="
                f"{self.n + -self.n % self.islands}"
            )

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Return the ``images`` best of ``n`` samples per prompt, spread over the islands; it costs their steps.

        Each sample takes a decode and a reward call more at each resampling and at the end, where features of samples
        count as a second call.

        Raises:
            ValueError: more images than samples, a scheduler that remembers earlier steps, whose memory would stay
                with the dropped, or one without noise, under which copies stay alike; a call that ends before the
                samples are clean; a mixture that cannot score loose images; or ``diverse``, and nothing to tell
                samples apart by.
        """
        self._check(lidar, images)
        lidar = with_noise(lidar, copies=self._copies)
        size = self.n // self.islands

        def resample(batch: Sequence[Item]) -> Resampled:
            rewards = rewards_of_predictions(lidar.with_prompts(prompts), batch)
            return Resampled(self, rewards, [item.seed for item in batch[::size]])

        around, hooks = hook_batches(lidar, resample)
        call = in_steps(lidar, self.steps)
        many = lidar.sample(prompts, self.n, seed, around=around, together=size, call=call)
        many = charge_looks(lidar, many, sum(hook.evaluations for hook in hooks))
        kept, selection = best(lidar, many, images, self.diverse, islands=self.islands)
        return replace(kept, cost={**many.cost, "selection": selection})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps of ``n`` samples, looks and the choice."""
        self._check(lidar, images)
        call = in_steps(lidar, self.steps)
        looks = self.n * len(self.looks(calls_of(lidar.pipe, call)))
        chosen = best_cost(lidar, self.n, self.diverse)
        return sampling_cost(lidar, self.n, call=call) + looks_cost(lidar, looks) + chosen

    def looks(self, steps: int) -> set[int]:
        """Return the steps of a run of ``steps`` at which populations are resampled."""
        if not self._copies:
            return set()
        return resampling_steps(steps, start=self.start, end=self.end, every=self.every)

    @property
    def _copies(self) -> bool:
        """Whether a sample can take the place of another."""
        return self.n > self.islands and self.ess < 1

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_population(lidar, "steered best-of-N", "resamples", copies=self._copies)
        check_comparable(lidar)
        if wants_features(self.diverse):
            check_features(lidar)
        check_images(images, self.n)


class Resampled(Particles):
    """The hook that resamples populations to an effective sample size."""

    who = "steered best-of-N"

    def choose(self, r: Tensor) -> Tensor:
        """Resample particles of rewards (P, k), with as little noise as can be."""
        weights = (tempering(r, self.settings.ess)[:, None] * (r - r.amax(1, keepdim=True))).softmax(1)
        return torch.stack([ssp(row, g) for row, g in zip(weights, self.generators, strict=True)])
