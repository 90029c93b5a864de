"""Populations that are neighbours in a batch: when they are resampled, and with as little noise as can be."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rows(chosen: Tensor, count: int) -> Tensor:
    """Rows of the batch, one after another, of those chosen (P, k) in each population of ``count``.

    >>> rows(torch.tensor([[2, 2], [0, 1]]), 3)
    tensor([2, 2, 3, 4])
    """
    return (chosen + count * torch.arange(len(chosen))[:, None]).flatten()


def resampling_steps(steps: int, *, start: float, end: float, every: float) -> set[int]:
    """Which of ``steps`` come first at ``start``, then after each ``every``, and none past ``end``, all fractions.

    Each is the step nearest to its fraction. The last step is never among them: what is special about it, each
    method knows for itself.

    Example:
        >>> sorted(resampling_steps(20, start=0.2, end=0.6, every=0.2))
        [4, 8, 12]
        >>> sorted(resampling_steps(20, start=0.2, end=0.6, every=0.25))
        [4, 9]
    """
    count = math.floor((end - start) / every + 1e-9) + 1  # 0.6 - 0.2 is a little less than twice 0.2
    return {step for i in range(count) if (step := round((start + i * every) * steps)) < steps - 1}


def check_window(start: float, end: float, every: float) -> None:
    """Refuse a window of resampling that is none.

    Raises:
        ValueError: not 0 <= start <= end < 1, or ``every`` is not positive.
    """
    if not 0 <= start <= end < 1 or not every > 0:
        raise ValueError(f"0 <= start <= end < 1 and every above 0 are needed, got {start}, {end} and {every}")


def ssp(weights: Tensor, generator: torch.Generator) -> Tensor:
    """The particles that go on, by the Srinivasan sampling process.

    Particle i leaves the whole part of ``k w_i`` or one more child, ``k w_i`` on average (Gerber, Chopin and Whiteley
    2019, https://arxiv.org/abs/1708.00707, section 3.2): of the fractions that are left two at a time trade until one
    of them is 0 or 1.

    Args:
        weights: (k,), which sum to 1.
        generator: of the choice.

    Returns:
        (k,) indices in rising order.

    Example:
        >>> import torch
        >>> ssp(torch.tensor([0.5, 0.0, 0.25, 0.25]), torch.Generator())
        tensor([0, 0, 2, 3])
    """
    count = len(weights)
    expected = (count * weights.double() / weights.double().sum()).tolist()
    children = [math.floor(e) for e in expected]
    left = [e - whole for e, whole in zip(expected, children, strict=True)]
    i = 0
    for j, u in enumerate(torch.rand(count - 1, generator=generator, dtype=torch.float64).tolist(), start=1):
        up, down = min(1 - left[i], left[j]), min(left[i], 1 - left[j])  # how far i can rise, or fall
        rises = u * (up + down) < down
        settled = left[i] + up == 1 if rises else left[i] == down
        left[i], left[j] = (left[i] + up, left[j] - up) if rises else (left[i] - down, left[j] + down)
        if settled:
            children[i] += round(left[i])
            i = j
        else:
            children[j] += round(left[j])
    children[i] = count - sum(children[:i] + children[i + 1 :])  # what is left of it is whole, up to rounding
    return torch.arange(count).repeat_interleave(torch.tensor(children))
