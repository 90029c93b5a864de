"""Soft value-based decoding (Li et al. 2024, https://arxiv.org/abs/2408.08252).

Every step of a sample is proposed m times from one x_t, each with noise of its own, and one proposal is taken with
probability

    softmax(v / temperature),

the best at temperature 0, which is what the released code for images does. The network sees every proposal, so it
costs m times what plain sampling does. The value v of a proposal is the reward of its clean prediction; or of the end
of a rollout from it; or of several, which with lambda = 1 / temperature is its expected future reward

    v = (1 / lambda) log (1 / k) sum_j exp(lambda r(x_0^j)),      x_0^j ~ p(x_0 | x_t),

by backward rollout (equation 6 of the LiDAR paper, https://arxiv.org/abs/2602.03211).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import calls_of
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_population, check_start, with_noise
from ._face import charge_looks, check_comparable, hook_batches, looks_cost, rewards_of_predictions, sampling_cost
from ._particles import Particles
from ._rollout import Rollout, check_rollout, rollout_cost


@dataclass(frozen=True)
class SVDD:
    """Soft value-based decoding.

    Attributes:
        m: proposals per step; 20 in the released code for images.
        temperature: of the choice among them, in units of the reward; 0 takes the best.
        rollout_steps: of the rollouts, the clean prediction among them: 1 is the prediction itself.
        rollouts: per proposal; one is deterministic, several are samples of p(x_0 | x_t) in so many steps.
    """

    m: int = 20
    temperature: float = 0.0
    rollout_steps: int = 1
    rollouts: int = 1

    def __post_init__(self) -> None:
        check_fields(self, m="[1, inf)", temperature="[0, inf)", rollout_steps="[1, inf)", rollouts="[1, inf)")
        if self.rollout_steps == 1 < self.rollouts:
            raise ValueError(f"several rollouts need several rollout_steps, got {self.rollouts} rollouts of 1 step")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt, at ``m`` times the steps, and a decode and a reward call per proposal.

        With rollouts, ``rollouts`` decodes and reward calls, and ``rollouts * (rollout_steps - 1)`` evaluations more.

        Raises:
            ValueError: a scheduler that remembers earlier steps, or one without noise, under which proposals are
                alike; a call that ends before the samples are clean; or a mixture that cannot score loose images.
        """
        self._check(lidar)
        lidar = with_noise(lidar, copies=self.m > 1).with_prompts(prompts)

        def proposals(batch: Sequence[Item]) -> Proposals:
            rewards = rewards_of_predictions(lidar, [item for item in batch for _ in range(self.rollouts)])
            ends = None
            if self.rollout_steps > 1:
                ends = Rollout(lidar, batch, steps=self.rollout_steps, samples=self.rollouts)
            return Proposals(self, rewards, [item.seed for item in batch[:: self.m]], ends)

        around, hooks = hook_batches(lidar, proposals)
        result = lidar.sample(prompts, images * self.m, seed, around=around, together=self.m)
        # The last step adds no noise, so the proposals of a sample end alike.
        first = slice(None, None, self.m)
        result = replace(result, images=result.images[:, first], latents=result.latents[:, first])
        return charge_looks(lidar, result, sum(hook.evaluations for hook in hooks))

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: ``m`` proposals per step, rollouts and rewards."""
        self._check(lidar)
        proposals = images * self.m
        looks = self.looks(calls_of(lidar.pipe, lidar.arguments()))
        rolled = proposals * self.rollouts
        ends = rollout_cost(lidar, rolled, looks, steps=self.rollout_steps)
        return sampling_cost(lidar, proposals) + looks_cost(lidar, rolled * len(looks)) + ends

    def looks(self, steps: int) -> range:
        """Return the steps of a run of ``steps`` at which there are proposals to choose from: all but the first."""
        return range(1, steps) if self.m > 1 else range(0)

    def _check(self, lidar: LiDAR) -> None:
        check_population(lidar, "SVDD", "goes on from one of several proposals", copies=self.m > 1)
        check_comparable(lidar)
        if self.rollout_steps > 1:
            check_start(lidar, "SVDD with rollouts")
            check_rollout(lidar, "SVDD")


class Proposals(Particles):
    """The hook that continues ``m`` neighbours in a batch from one of them."""

    who = "SVDD"

    @property
    def copies(self) -> int:
        """The proposals of a sample."""
        return self.settings.m

    def choose(self, r: Tensor) -> Tensor:
        """Choose one proposal for all rows of a sample, by rewards (P, m * rollouts)."""
        values, temperature = self.values(r.view(len(r), self.settings.m, -1)), self.settings.temperature
        if temperature == 0:
            return values.argmax(1, keepdim=True).expand_as(values)
        weights = (values / temperature).softmax(1)
        drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(weights, self.generators, strict=True)]
        return torch.stack(drawn).expand_as(values)

    def values(self, rewards: Tensor) -> Tensor:
        """Return the soft maxima (*,) of rewards (*, rollouts); the maxima at temperature 0."""
        temperature = self.settings.temperature
        if temperature == 0 or rewards.shape[-1] == 1:
            return rewards.amax(-1)
        return temperature * ((rewards / temperature).logsumexp(-1) - math.log(rewards.shape[-1]))
