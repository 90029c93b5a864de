"""Feynman-Kac steering (Singhal et al. 2025, https://arxiv.org/abs/2501.06848): particles that die and multiply.

k particles of a prompt are sampled side by side by a stochastic sampler. At some steps each is weighed by the reward
r of its clean prediction, and the population is resampled by the weights G (table 1 of the paper):

    difference  G = exp(lambda (r_t - r_prev))        sum  G = exp(lambda (r_t + all before))
    max         G = exp(lambda max(r_t, all before))  rt   G = exp(lambda r_t)

The last step corrects for what was weighed before: there G is exp(lambda r) over the product of a particle's earlier
weights, so that the population follows the law tilted by exp(lambda r) as k grows, whatever the potential. The law
is the sampler's own, or that of LiDAR ("SMC + LiDAR" of the LiDAR paper's table 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._draw import Item
from .._hooks import Hook, check_memoryless
from .._levels import clean_prediction, noise_level
from .._result import Result
from .._sampler import LiDAR
from ._face import charged, hooked, rewards_of_predictions
from ._resampling import check_window, resampling_steps, rows


@dataclass(frozen=True)
class FKSteering:
    """FK steering with the published settings for images (its repository's launch.sh).

    Attributes:
        potential: how a particle is weighed.
        reward_scale: lambda of the weights, in 1 / reward.
        start: first step of resampling, as a fraction of all.
        end: no such step is later, but for the last of all, which always resamples.
        every: fraction of all steps between two.
        adaptive: resample only where the effective sample size falls below half the particles. (The published code
            may skip the last step so too, which leaves its weights out.)
        floor: the reward before the first, which ``max`` cannot fall below.
        guided: steer the guided sampler, which costs a bank a prompt, instead of the plain one.
    """

    potential: Literal["difference", "max", "sum", "rt"] = "max"
    reward_scale: float = 10.0
    start: float = 0.2
    end: float = 0.8
    every: float = 0.2
    adaptive: bool = False
    floor: float = 0.0
    guided: bool = False

    def __post_init__(self) -> None:
        check_window(self.start, self.end, self.every)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """The ``images`` particles of a prompt; it costs their steps, and a decode and a reward call each at 5 steps.

        Raises:
            ValueError: a scheduler that remembers earlier steps, whose memory would stay with the dead.
        """
        check_memoryless(lidar.pipe.scheduler, "FK steering resamples particles")

        def particles(batch: Sequence[Item]) -> Particles:
            rewards = rewards_of_predictions(lidar, [item.prompt for item in batch])
            return Particles(self, rewards, lidar.settings.steps, [item.seed for item in batch[::images]])

        around, populations = hooked(lidar, particles)
        how: Any = {"around": around, "together": images}
        if self.guided:
            result = lidar.guided(list(prompts), images, seed, None, **how)
        else:
            result = lidar.sample(list(prompts), images, seed, **how)
        return charged(result, sum(population.evaluations for population in populations))


class Particles(Hook):
    """The hook that weighs and resamples populations, which are neighbours of one length in a batch.

    Args:
        settings: how.
        rewards: from clean predictions (B, *) to rewards (B,).
        steps: steps in all.
        seeds: of the resampling, one a population.

    Attributes:
        evaluations: clean predictions that were rewarded so far.
    """

    def __init__(
        self, settings: FKSteering, rewards: Callable[[Tensor], Tensor], steps: int, seeds: Sequence[int]
    ) -> None:
        self.settings, self.rewards, self.evaluations = settings, rewards, 0
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        looks = resampling_steps(steps, start=settings.start, end=settings.end, every=settings.every)
        self._times = looks | {steps - 1}
        self._last, self._step = steps - 1, 0
        self._kept: Tensor | float = settings.floor  # r_prev, the maximum or the sum so far (P, k)
        self._log_product: Tensor | float = 0.0  # of the weights that were used so far (P, k)
        self._survivors: Tensor | None = None

    def before(self, scheduler: Any, arguments: dict[str, Any]) -> Tensor:
        """Weigh the particles by their clean predictions, where it is time to."""
        output, sample = arguments["model_output"], arguments["sample"]
        self._survivors = None
        if self._step in self._times:
            x0 = clean_prediction(noise_level(scheduler, arguments["timestep"]), output, sample)
            self.evaluations += len(x0)
            self._survivors = self._resample(self.rewards(x0).double().view(len(self._generators), -1))
        self._step += 1
        return output

    def after(self, scheduler: Any, previous: Tensor) -> Tensor:
        """Let survivors take the places of the others."""
        return previous if self._survivors is None else previous[self._survivors.to(previous.device)]

    def _resample(self, r: Tensor) -> Tensor:
        """The rows (B,) that go on, of rewards (P, k)."""
        how, last = self.settings, self._step == self._last
        before, product = (
            torch.as_tensor(value, dtype=r.dtype).expand_as(r) for value in (self._kept, self._log_product)
        )
        kept = {"difference": r, "max": torch.maximum(r, before), "sum": r + before, "rt": r}[how.potential]
        if how.potential == "difference":
            log_weights = how.reward_scale * (r - before)
        elif last:
            log_weights = how.reward_scale * r - product
        else:
            log_weights = how.reward_scale * kept
        weights = log_weights.softmax(1)
        count = r.shape[1]
        enough = 0.5 * count if how.adaptive and not last else torch.inf
        stays = weights.square().sum(1, keepdim=True).reciprocal() >= enough
        drawn = [
            torch.multinomial(row, count, replacement=True, generator=generator)
            for row, generator in zip(weights, self._generators, strict=True)
        ]
        chosen = torch.stack(drawn)
        self._kept = torch.where(stays, before, kept.gather(1, chosen))
        self._log_product = torch.where(stays, product, (product + log_weights).gather(1, chosen))
        chosen = torch.where(stays, torch.arange(count), chosen)
        return rows(chosen, count)
