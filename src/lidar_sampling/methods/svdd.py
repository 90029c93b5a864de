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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import calls_of
from .._hooks import Hook, Step
from .._result import Result
from .._sampler import LiDAR
from ._checks import check_fields, check_population, check_start, noise_for
from ._face import charged, check_comparable, hooked, looks_cost, rewards_of_predictions, sampling_cost
from ._resampling import rows
from ._rollout import Rollout, check_rollout, rollout_cost


@dataclass(frozen=True)
class SVDD:
    """Soft value-based decoding.

    Attributes:
        m: proposals a step; 20 in the released code for images.
        temperature: of the choice among them, in units of the reward; 0 takes the best.
        rollout_steps: of the rollouts, the clean prediction among them: 1 is the prediction itself.
        rollouts: a proposal; one is deterministic, several are samples of p(x_0 | x_t) in so many steps.
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
        """``images`` samples a prompt; it costs ``m`` times their steps, and a decode and a reward call a proposal.

        With rollouts, ``rollouts`` decodes and reward calls, and ``rollouts * (rollout_steps - 1)`` evaluations more.

        Raises:
            ValueError: a scheduler that remembers earlier steps, or one without noise, under which proposals are
                alike; a call that ends before the samples are clean; or a mixture that cannot score loose images.
        """
        self._check(lidar)

        def proposals(batch: Sequence[Item]) -> Proposals:
            rewards = rewards_of_predictions(
                lidar.with_prompts(prompts), [item for item in batch for _ in range(self.rollouts)]
            )
            ends = None
            if self.rollout_steps > 1:
                ends = Rollout(lidar, batch, steps=self.rollout_steps, samples=self.rollouts)
            return Proposals(self, rewards, [item.seed for item in batch[:: self.m]], ends)

        around, hooks = hooked(lidar, proposals, noise=noise_for(lidar, copies=self.m > 1))
        result = lidar.sample(list(prompts), images * self.m, seed, around=around, together=self.m)
        # The last step adds no noise, so the proposals of a sample end alike.
        first = slice(None, None, self.m)
        result = replace(result, images=result.images[:, first], latents=result.latents[:, first])
        return charged(lidar, result, sum(hook.evaluations for hook in hooks))

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: ``m`` proposals a step, their rollouts and rewards."""
        self._check(lidar)
        proposals = images * self.m
        cost = sampling_cost(lidar, proposals)
        if self.m == 1:  # nothing to choose from
            return cost
        looks = proposals * self.rollouts * (calls_of(lidar.pipe, lidar.arguments()) - 1)
        ends = rollout_cost(lidar, proposals * self.rollouts, steps=self.rollout_steps)
        return cost + looks_cost(lidar, looks) + ends

    def _check(self, lidar: LiDAR) -> None:
        check_population(lidar, "SVDD", "goes on from one of several proposals", copies=self.m > 1)
        check_comparable(lidar)
        if self.rollout_steps > 1:
            check_start(lidar, "SVDD with rollouts")
            check_rollout(lidar, "SVDD")


class Proposals(Hook):
    """The hook that lets ``m`` neighbours in a batch go on from one of them.

    Args:
        settings: how.
        rewards: from clean samples (B, *) to rewards (B,); with several rollouts, of those of each side by side.
        seeds: of the choice, one a sample.
        ends: from a step to clean samples; None takes its clean predictions.

    Attributes:
        evaluations: clean samples that were rewarded so far.
    """

    def __init__(
        self,
        settings: SVDD,
        rewards: Callable[[Tensor], Tensor],
        seeds: Sequence[int],
        ends: Callable[[Step], Tensor] | None = None,
    ) -> None:
        self.settings, self.rewards, self.ends, self.evaluations = settings, rewards, ends, 0
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._started = False

    def before(self, step: Step) -> Step:
        """Choose among the proposals; all rows of a sample go on from the chosen one, each with its own noise."""
        m = self.settings.m
        if self._started and m > 1:
            x0 = self.ends(step) if self.ends else step.x0
            self.evaluations += len(x0)
            chosen = self._choose(self._values(self.rewards(x0).double()).view(-1, m))
        else:
            chosen = torch.zeros(len(self._generators), dtype=torch.long)  # one noise to start from
        self._started = True
        return step.taking(rows(chosen[:, None], m).repeat_interleave(m))

    def _values(self, rewards: Tensor) -> Tensor:
        """The soft maxima (B,) of rewards (B * rollouts,); the maxima at temperature 0."""
        rewards, temperature = rewards.view(-1, self.settings.rollouts), self.settings.temperature
        if temperature == 0 or rewards.shape[1] == 1:
            return rewards.amax(1)
        return temperature * ((rewards / temperature).logsumexp(1) - math.log(rewards.shape[1]))

    def _choose(self, values: Tensor) -> Tensor:
        if self.settings.temperature == 0:
            return values.argmax(1)
        weights = (values / self.settings.temperature).softmax(1)
        drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(weights, self._generators, strict=True)]
        return torch.cat(drawn)
