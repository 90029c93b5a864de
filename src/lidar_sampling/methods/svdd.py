"""Soft value-based decoding (Li et al. 2024, https://arxiv.org/abs/2408.08252), with posterior means as values.

Every step of a sample is proposed m times from one x_t, each with noise of its own; the value of a proposal is the
reward of its clean prediction, and one of them is taken with probability

    softmax(r / temperature),

the best at temperature 0, which is what the released code for images does. The network sees every proposal, so it
costs m times what plain sampling does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._attach import Hook, attached, check_memoryless
from .._draw import Item
from .._levels import clean_prediction, noise_level
from .._sampler import LiDAR, Result
from ._face import charged, rewards_of_predictions


@dataclass(frozen=True)
class SVDD:
    """Soft value-based decoding.

    Attributes:
        m: proposals a step; 20 in the released code for images.
        temperature: of the choice among them, in units of the reward; 0 takes the best.
    """

    m: int = 20
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.m < 1 or not self.temperature >= 0:
            raise ValueError(f"m must be at least 1 and temperature at least 0, got {self.m} and {self.temperature}")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` samples a prompt; it costs ``m`` times their steps, and a decode and a reward call a proposal.

        Raises:
            ValueError: a scheduler that remembers earlier steps, or a mixture that cannot score loose images.
        """
        check_memoryless(lidar.pipe.scheduler, "SVDD goes on from one of several proposals")
        hooks: list[Proposals] = []

        @contextmanager
        def proposing(batch: Sequence[Item]) -> Iterator[None]:
            rewards = rewards_of_predictions(lidar, [item.prompt for item in batch])
            hooks.append(Proposals(self, rewards, [item.seed for item in batch[:: self.m]]))
            with attached(lidar.pipe.scheduler, hooks[-1]):
                yield

        result = lidar.sample(list(prompts), images * self.m, seed, around=proposing, together=self.m)
        # The last step adds no noise, so the proposals of a sample end alike.
        first = slice(None, None, self.m)
        result = replace(result, images=result.images[:, first], latents=result.latents[:, first])
        return charged(result, sum(hook.evaluations for hook in hooks))


class Proposals(Hook):
    """The hook that lets ``m`` neighbours in a batch go on from one of them.

    Args:
        settings: how.
        rewards: from clean predictions (B, *) to rewards (B,).
        seeds: of the choice, one a sample.

    Attributes:
        evaluations: clean predictions that were rewarded so far.
    """

    def __init__(self, settings: SVDD, rewards: Callable[[Tensor], Tensor], seeds: Sequence[int]) -> None:
        self.settings, self.rewards, self.evaluations = settings, rewards, 0
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._started = False

    def before(self, scheduler: Any, arguments: dict[str, Any]) -> Tensor:
        """Choose among the proposals; all rows of a sample go on from the chosen one, each with its own noise."""
        output, sample = arguments["model_output"], arguments["sample"]
        m = self.settings.m
        if self._started and m > 1:
            x0 = clean_prediction(noise_level(scheduler, arguments["timestep"]), output, sample)
            self.evaluations += len(x0)
            chosen = self._choose(self.rewards(x0).double().view(-1, m))
        else:
            chosen = torch.zeros(len(self._generators), dtype=torch.long)  # one noise to start from
        self._started = True
        rows = (chosen + m * torch.arange(len(chosen))).repeat_interleave(m).to(sample.device)
        arguments["sample"] = sample[rows]
        return output[rows]

    def _choose(self, rewards: Tensor) -> Tensor:
        if self.settings.temperature == 0:
            return rewards.argmax(1)
        weights = (rewards / self.settings.temperature).softmax(1)
        drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(weights, self._generators, strict=True)]
        return torch.cat(drawn)
