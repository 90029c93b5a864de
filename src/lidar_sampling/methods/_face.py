"""The face that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from .._bank import LookaheadBank
from .._cost import Cost
from .._decode import decode
from .._sampler import LiDAR, Result
from ..rewards import name_of, score
from ..rewards.mixture import Mixture


class Method(Protocol):
    """A way to draw samples that a reward likes."""

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` samples a prompt, not yet judged; ``cost`` tells what they took, by phase."""


def rewards_of_predictions(lidar: LiDAR, prompts: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """From clean predictions (B, *) of B prompts to their guiding rewards (B,).

    Raises:
        ValueError: the reward is a mixture that is standardised over a bank.
    """
    if isinstance(lidar.reward, Mixture) and lidar.reward.calibration is None:
        raise ValueError("this method compares rewards as it goes: give the mixture a calibration")
    return lambda x0: score(lidar.reward, images=decode(lidar.pipe, x0), prompts=prompts)


def charged(result: Result, looks: int, *, backward_passes: int = 0) -> Result:
    """``result`` with the predictions that were decoded and rewarded on the way in its cost."""
    more = Cost(backward_passes=backward_passes, decodes=looks, reward_calls=looks)
    return replace(result, cost={**result.cost, "sampling": result.cost["sampling"] + more})


def best(lidar: LiDAR, result: Result, count: int) -> tuple[Result, Cost]:
    """The ``count`` samples a prompt that the guiding reward likes best, best first, and what choosing them cost."""
    scores, cost = guiding_scores(lidar, result)
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    rows = torch.arange(len(chosen))[:, None]
    return replace(result, images=result.images[rows, chosen], latents=result.latents[rows, chosen]), cost


def guiding_scores(lidar: LiDAR, result: Result) -> tuple[Tensor, Cost]:
    """The guiding reward (P, m) of the samples, and what scoring them cost.

    A mixture without a calibration is standardised over the samples of each prompt.
    """
    scores, cost = lidar.scores(result, lidar.parts)
    if not isinstance(lidar.reward, Mixture):
        return scores[name_of(lidar.reward)], cost
    mixed = []
    for row, prompt in enumerate(result.prompts):
        bank = LookaheadBank(result.latents[row], {name: values[row] for name, values in scores.items()}, prompt)
        mixed.append(lidar.reward.on(bank).reward(lidar.reward.name))
    return torch.stack(mixed), cost
