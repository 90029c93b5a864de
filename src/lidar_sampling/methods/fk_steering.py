"""Feynman-Kac steering (Singhal et al. 2025, https://arxiv.org/abs/2501.06848): particles that die and multiply.

k particles of a prompt are sampled side by side by a stochastic sampler. At some steps each is weighed by the reward
r of its clean prediction, and the population is resampled by the weights G (table 1 of the paper):

    difference  G = exp(lambda (r_t - r_prev))        sum  G = exp(lambda (r_t + all before))
    max         G = exp(lambda max(r_t, all before))  rt   G = exp(lambda r_t)

The last step divides by what was weighed before, the product P of a particle's earlier weights. Three forms:

    paper  always resamples, by G = exp(lambda r) / P. As k grows the population follows the law tilted by
           exp(lambda r), whatever the potential. The law is the sampler's own, or that of LiDAR ("SMC + LiDAR" of the
           LiDAR paper's table 8).
    code   what the released code does, but for a cut: resamples by G = exp(lambda M) / P, with the running maximum or
           sum M for max and sum, and only where the effective sample size falls below k / 2. It follows no law that
           can be stated: where nothing is resampled at the end, the last weights are left out.
    cut    all that the released code does (https://github.com/zacharyhorvitz/Fk-Diffusion-Steering, 9413005): as
           code, and every weight is cut at 1e10, so that exp does not overflow. Here weights are kept as logarithms,
           which cannot. A cut depends on where the reward has its zero, and makes all particles alike once lambda M
           is above 23. With ImageReward, which is at most 2, and lambda = 10 the sum reaches that, and a difference
           that rises by more than 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import calls_of
from .._hooks import Step
from .._levels import check
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_population, with_noise
from ._face import (
    bank_cost,
    charge_looks,
    check_comparable,
    hook_batches,
    looks_cost,
    rewards_of_predictions,
    sampling_cost,
)
from ._particles import Particles, check_resampling, resampling_steps


@dataclass(frozen=True)
class FKSteering:
    """FK steering with the published settings for images (its repository's launch.sh), as released.

    Attributes:
        potential: how a particle is weighed.
        reward_scale: lambda of the weights, in 1 / reward.
        start: first step of resampling, as a fraction of all.
        end: no such step is later, but for the last of all.
        every: fraction of all steps between two.
        adaptive: resample only where the effective sample size falls below half the particles. The last step does so
            in the form of the code whatever this says, and never in that of the paper.
        floor: the reward before the first, which ``max`` cannot fall below.
        form: ``"code"`` as released but for its cut, ``"cut"`` with it, or ``"paper"``, which follows the tilted law.
            Code and paper differ in the last step, and in what ``difference`` is measured from after a look at which
            nothing was resampled: in the code that look, in the paper the last one at which something was.
        guided: steer the guided sampler, which costs a bank per prompt, instead of the plain one.
    """

    potential: Literal["difference", "max", "sum", "rt"] = "max"
    reward_scale: float = 10.0
    start: float = 0.2
    end: float = 0.8
    every: float = 0.2
    adaptive: bool = False
    floor: float = 0.0
    form: Literal["code", "cut", "paper"] = "code"
    guided: bool = False

    def __post_init__(self) -> None:
        check_fields(self, reward_scale="[0, inf)", floor="(-inf, inf)")
        check_resampling(self.start, self.end, self.every)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` particles per prompt; each costs its steps, and a decode and a reward call at 5 of them.

        Raises:
            ValueError: a scheduler that remembers earlier steps, whose memory would stay with the dead; one without
                noise, under which copies stay alike; or a call that ends before the samples are clean.
        """
        self._check(lidar, images)
        if images == 1:
            lidar.warn_once("FK steering chooses among the images of a prompt: one alone is drawn as it is")
        lidar = with_noise(lidar, copies=images > 1)

        def particles(batch: Sequence[Item]) -> Weighed:
            rewards = rewards_of_predictions(lidar.with_prompts(prompts), batch)
            return Weighed(self, rewards, [item.seed for item in batch[::images]])

        around, populations = hook_batches(lidar, particles)
        if self.guided:
            result = lidar.draw_guided(prompts, images, seed, None, around=around, together=images)
        else:
            result = lidar.sample(prompts, images, seed, around=around, together=images)
        return charge_looks(lidar, result, sum(population.evaluations for population in populations))

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps of the particles and the looks at them.

        Guided, a bank comes on top, whether or not a store already holds it.
        """
        self._check(lidar, images)
        looks = images * len(self.looks(calls_of(lidar.pipe, lidar.arguments())))
        bank = bank_cost(lidar) if self.guided else Cost()
        return bank + sampling_cost(lidar, images) + looks_cost(lidar, looks)

    def looks(self, steps: int) -> set[int]:
        """Return the steps of a run of ``steps`` at which particles are weighed; the last is among them."""
        return resampling_steps(steps, start=self.start, end=self.end, every=self.every) | {steps - 1}

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_population(lidar, "FK steering", "resamples particles", copies=images > 1)
        check_comparable(lidar)
        if self.guided:
            check(lidar.pipe.scheduler)


_LOG_CUT = math.log(1e10)  # of the released code


class Weighed(Particles):
    """The hook that weighs particles and resamples them, after the step as the released code does.

    Survivors of all looks but the last take their places as the next step begins, where other hooks are told of it.
    """

    who = "FK steering"

    def __init__(self, settings: FKSteering, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, *args, **kwargs)
        self._kept: Tensor | float = settings.floor  # r_prev, the maximum or the sum so far (P, k)
        self._log_product: Tensor | float = 0.0  # of the weights that were used so far (P, k)
        self._survivors: Tensor | None = None

    def before(self, step: Step) -> Step:
        """Let survivors take the places of the others, and weigh the particles at the steps to look at."""
        if self._survivors is not None:
            step = step.with_rows(self._survivors)
        self._survivors = self.survivors(step)
        return step

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Let survivors of the last look take the places of the others."""
        last = self._survivors if self._step == self._last else None
        return x if last is None else x[last.to(x.device)]

    def choose(self, r: Tensor) -> Tensor:
        """Resample particles of rewards (P, k) by their weights."""
        how, last, paper = self.settings, self._step == self._last, self.settings.form == "paper"
        before, product = (
            torch.as_tensor(value, dtype=r.dtype).expand_as(r) for value in (self._kept, self._log_product)
        )
        kept = {"difference": r, "max": torch.maximum(r, before), "sum": r + before, "rt": r}[how.potential]
        if how.potential == "difference":
            log_weights = how.reward_scale * (r - before)
        elif last:
            log_weights = how.reward_scale * (r if paper else kept) - product
        else:
            log_weights = how.reward_scale * kept
        if how.form == "cut":
            log_weights = log_weights.clamp(max=_LOG_CUT)
        weights = log_weights.softmax(1)
        count = r.shape[1]
        may_stay = not paper if last else how.adaptive
        stays = weights.square().sum(1, keepdim=True).reciprocal() >= (0.5 * count if may_stay else torch.inf)
        drawn = [
            torch.multinomial(row, count, replacement=True, generator=generator)
            for row, generator in zip(weights, self.generators, strict=True)
        ]
        chosen = torch.stack(drawn)
        seen = before if paper and how.potential == "difference" else kept  # after a look that resampled nothing
        self._kept = torch.where(stays, seen, kept.gather(1, chosen))
        self._log_product = torch.where(stays, product, (product + log_weights).gather(1, chosen))
        return torch.where(stays, torch.arange(count), chosen)
