"""Universal guidance, forward (Bansal et al. 2023, https://arxiv.org/abs/2302.07121): gradients through the network.

    score(x_t)  <-  score(x_t) + lambda grad_{x_t} r(decode(E[x_0 | x_t]))                          (section 3.1)

so the clean prediction moves by ``lambda sigma^2 / alpha`` times the gradient. It needs a differentiable reward, a
backward pass of network and decoder at each step, and their graph in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._attach import Hook, attached
from .._decode import decode
from .._draw import Item
from .._levels import clean_prediction, noise_level
from .._sampler import LiDAR, Result
from ._face import charged


@dataclass(frozen=True)
class UniversalGuidance:
    """Forward universal guidance.

    Attributes:
        reward_scale: lambda, in 1 / reward; the LiDAR paper uses 15 for SD 1.5 and 3 for SDXL, with ImageReward.
    """

    reward_scale: float = 15.0

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` samples a prompt; every step costs a backward pass, a decode and a reward call a sample more.

        Raises:
            ValueError: the reward says that it is not differentiable.
        """
        reward: Any = lidar.reward
        if not getattr(reward, "differentiable", True):
            raise ValueError(f"universal guidance needs the gradient of the reward, and {reward.name!r} has none")
        hooks: list[Gradient] = []

        @contextmanager
        def guided(batch: Sequence[Item]) -> Iterator[None]:
            def total(x0: Tensor) -> Tensor:
                pictures = decode(lidar.pipe, x0)
                return reward(images=pictures, prompts=[item.prompt for item in batch]).sum()

            hooks.append(Gradient(self.reward_scale, total))
            with attached(lidar.pipe.scheduler, hooks[-1]):
                yield

        result = lidar.sample(list(prompts), images, seed, around=guided, differentiable=True)
        looks = sum(hook.evaluations for hook in hooks)
        # Every evaluation is gone back through.
        return charged(result, looks, backward_passes=result.cost["sampling"].network_evaluations)


class Gradient(Hook):
    """The hook that moves the clean prediction along the gradient of a scalar of it.

    Args:
        reward_scale: lambda.
        total: from clean predictions (B, *) to the sum of their rewards, differentiable.

    Attributes:
        evaluations: clean predictions that were rewarded so far.
    """

    def __init__(self, reward_scale: float, total: Callable[[Tensor], Tensor]) -> None:
        self.reward_scale, self.total, self.evaluations = reward_scale, total, 0

    def before(self, scheduler: Any, arguments: dict[str, Any]) -> Tensor:
        """Differentiate the reward with respect to the sample, which is a leaf of the graph of ``model_output``."""
        output, sample = arguments["model_output"], arguments["sample"]
        level = noise_level(scheduler, arguments["timestep"])
        arguments["sample"] = sample.detach()
        if level.sigma == 0 or level.alpha == 0:  # nothing is noisy, or nothing is known
            return output.detach()
        total = self.total(clean_prediction(level, output, sample))
        (gradient,) = torch.autograd.grad(total, sample)
        self.evaluations += len(sample)
        shift = self.reward_scale * level.sigma**2 / level.alpha * gradient
        return output.detach() + level.slope * shift

    def after(self, scheduler: Any, previous: Tensor) -> Tensor:
        """Start the graph of the next step."""
        return previous.detach().requires_grad_()
