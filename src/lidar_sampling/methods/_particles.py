"""Particles: samples of a prompt that are drawn side by side, rewarded on the way, and resampled.

A particle method has a transition, a potential, times to look, and a rule for who goes on (Chopin and
Papaspiliopoulos 2020, https://doi.org/10.1007/978-3-030-47845-2). The transition is the sampler's step; the loop over
the rest stands here once. A method adds ``looks``, which says when, and ``choose``, which says who.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .._hooks import Hook, Step


class Looks(Protocol):
    """The settings of a particle method."""

    def looks(self, steps: int) -> Collection[int]:
        """Return the steps of a run of ``steps`` at which particles are rewarded."""


class Particles(Hook):
    """The hook that rewards populations, equal runs of neighbours in a batch, and lets some members go on for all.

    Args:
        settings: of the method; they say at which steps to look.
        rewards: from clean samples to rewards, one for each.
        seeds: of the choices, one per population.
        ends: from a step to the clean samples (B, *) that are rewarded, or several of each side by side; None takes
            the clean predictions.

    Attributes:
        evaluations: clean samples that were rewarded so far.
        generators: of the choices, one per population.
    """

    who: ClassVar[str]  # the method, for messages

    def __init__(
        self,
        settings: Looks,
        rewards: Callable[[Tensor], Tensor],
        seeds: Sequence[int],
        ends: Callable[[Step], Tensor] | None = None,
    ) -> None:
        self.settings: Any = settings
        self.rewards, self.ends = rewards, ends
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.evaluations, self._step, self._last = 0, -1, -1  # the current step and the last one, from 0
        self.times: Collection[int] = ()

    def choose(self, rewards: Tensor) -> Tensor:
        """Return (P, k) the particles that go on in the places of each population, given its rewards (P, k).

        By default each goes on in its own.
        """
        return torch.arange(rewards.shape[1]).expand_as(rewards)

    @property
    def copies(self) -> int:
        """Neighbours that start from one noise."""
        return 1

    def start(self, steps: int) -> None:
        """Choose the steps at which to look, among those that this call takes."""
        self._last, self.times = steps - 1, self.settings.looks(steps)

    def before(self, step: Step) -> Step:
        """Continue the chosen rows in the places of all, each with noise of its own."""
        if self._step < 0 and self.copies > 1:
            step = step.with_rows(torch.arange(0, len(step.x_t), self.copies).repeat_interleave(self.copies))
        chosen = self.survivors(step)
        return step if chosen is None else step.with_rows(chosen)

    def survivors(self, step: Step) -> Tensor | None:
        """Return the rows (B,) of the batch that go on; None if this is not a step to look at."""
        self._step += 1
        if self._step not in self.times:
            return None
        x0 = step.x0 if self.ends is None else self.ends(step)
        self.evaluations += len(x0)
        return rows(self._resample(self.rewards(x0)), len(step.x_t) // len(self.generators))

    def _resample(self, rewards: Tensor) -> Tensor:
        """Return who goes on in each population (P, k), given the rewards (B,) of all that were looked at."""
        return self.choose(rewards.detach().double().cpu().view(len(self.generators), -1))

    def finish(self) -> None:
        """Refuse a run that took other steps than those among which the looks were chosen.

        Raises:
            ValueError: something cut its schedule short without telling the pipeline.
        """
        if self._step != self._last:
            raise ValueError(
                f"{self.who} was set for the {self._last + 1} steps that the pipeline promised, and it took "
                f"{self._step + 1}: leave out what cuts its schedule short, such as denoising_end"
            )


def rows(chosen: Tensor, count: int) -> Tensor:
    """Return the rows of the batch that are chosen (P, k) in each population of ``count``, one after another.

    >>> rows(torch.tensor([[2, 2], [0, 1]]), 3)
    tensor([2, 2, 3, 4])
    """
    return (chosen + count * torch.arange(len(chosen))[:, None]).flatten()


def resampling_steps(steps: int, *, start: float, end: float, every: float) -> set[int]:
    """Return which of ``steps`` are first at ``start`` and after each ``every``, up to ``end``; all are fractions.

    Each is the step nearest to its fraction. The last step is never among them: every method treats it
    in its own way.

    Example:
        >>> sorted(resampling_steps(20, start=0.2, end=0.6, every=0.2))
        [4, 8, 12]
        >>> sorted(resampling_steps(20, start=0.2, end=0.6, every=0.25))
        [4, 9]
    """
    count = math.floor((end - start) / every + 1e-9) + 1  # 0.6 - 0.2 is a little less than twice 0.2
    return {step for i in range(count) if (step := round((start + i * every) * steps)) < steps - 1}


def check_resampling(start: float, end: float, every: float) -> None:
    """Refuse a window of resampling that is empty or ill-formed.

    Raises:
        ValueError: not 0 <= start <= end < 1, or ``every`` is not positive.
    """
    if not 0 <= start <= end < 1 or not every > 0:
        raise ValueError(f"0 <= start <= end < 1 and every above 0 are needed, got {start}, {end} and {every}")


def ssp(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the particles that go on, by the Srinivasan sampling process.

    Particle i leaves the whole part of ``k w_i`` or one more child, ``k w_i`` on average (Gerber, Chopin and Whiteley
    2019, https://arxiv.org/abs/1708.00707, section 3.2). The fractions that are left trade in pairs, until one of the
    pair is 0 or 1.

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
