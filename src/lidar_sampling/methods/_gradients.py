"""Gradients of rewards through the network, for the methods that move a sample along them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._hooks import Hook, Step
from .._result import Result
from .._sampler import LiDAR
from ._face import charge_looks, differentiable_rewards, hook_batches, looks_cost, sampling_cost


class Climb(Hook):
    """The hook that computes the gradient of the rewards of clean predictions, through the network.

    Args:
        settings: of the method.
        total: from clean predictions (B, *) to the sum of their rewards, differentiable.

    Attributes:
        evaluations: clean predictions that were rewarded so far.
        taken: rows of all steps so far.
        gradients: how many of them had a backward pass.
    """

    def __init__(self, settings: Any, total: Callable[[Tensor], Tensor]) -> None:
        self.settings, self.total = settings, total
        self.evaluations = self.taken = self.gradients = 0

    def gradient(self, step: Step) -> Tensor:
        """Return the gradient (B, *) of the rewards with respect to the sample, a leaf of the network's graph."""
        found = gradient_of(self.total(step.x0), step.x_t)
        self.evaluations += len(step.x_t)
        self.gradients += len(step.x_t)
        return found


def gradient_of(total: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of ``total``, a number, with respect to ``x`` (B, *).

    Raises:
        TypeError: no gradient comes through.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> gradient_of(x.square().sum(), x)
        tensor([6.])
        >>> gradient_of(x.detach().sum(), x)
        Traceback (most recent call last):
        TypeError: no gradient of the reward reaches the latents: use a reward that is differentiable
    """
    found = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    if found is None:
        raise TypeError("no gradient of the reward reaches the latents: use a reward that is differentiable")
    return found


def length_of(x: Tensor) -> Tensor:
    """Return the norm (B, 1, ...) of each sample of ``x`` (B, *), in float32 at least, and above 0.

    >>> length_of(torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
    tensor([[5.0000],
            [0.5000]])
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    lengths = x.flatten(1).norm(dim=1, dtype=dtype).clamp_min(torch.finfo(dtype).tiny)
    return lengths.view(-1, *[1] * (x.dim() - 1))


C = TypeVar("C", bound=Climb)


def draw_climbing(
    lidar: LiDAR,
    prompts: Sequence[str],
    make: Callable[[Callable[[Tensor], Tensor]], C],
    *,
    images: int,
    seed: int,
    differentiable: bool = True,
) -> Result:
    """Draw ``images`` samples per prompt under hooks that climb, and charge their looks and backward passes.

    Args:
        lidar: draws.
        prompts: the prompts.
        make: makes the hook of a batch, given its ``total``.
        images: samples per prompt.
        seed: of their noise.
        differentiable: whether the graph of the network is wanted.
    """

    def climb(batch: Sequence[Item]) -> C:
        rewards = differentiable_rewards(lidar.with_prompts(prompts), batch)
        return make(lambda x0: rewards(x0).sum())

    around, hooks = hook_batches(lidar, climb)
    result = lidar.sample(prompts, images, seed, around=around, differentiable=differentiable)
    looks, gradients, taken = (sum(getattr(h, name) for h in hooks) for name in ("evaluations", "gradients", "taken"))
    backward = result.cost["sampling"].network_evaluations * gradients // taken
    return charge_looks(lidar, result, looks, backward_passes=backward)


def climbing_cost(lidar: LiDAR, *, images: int, steps: int, climbed: int, looks: int, again: int = 1) -> Cost:
    """Return what :func:`draw_climbing` will count for one prompt.

    Args:
        lidar: draws.
        images: samples.
        steps: of a sample.
        climbed: how many of them have a backward pass.
        looks: clean predictions of a sample that are rewarded, each time that its steps are taken.
        again: how often each step is taken.
    """
    network = replace(sampling_cost(lidar, images * again), decodes=images)
    backward = network.network_evaluations * climbed // steps
    return network + looks_cost(lidar, images * again * looks, backward_passes=backward)
