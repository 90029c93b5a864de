"""One step of a sampler as hooks see it and change it.

    x_t = alpha x_0 + sigma eps

x0 is the only currency: a model's output becomes a clean prediction once, where the sampler is met, and a shift
of the prediction becomes a change of its output once. A :class:`Step` can be made wherever somebody knows x_t, x0
and the level; for diffusers :mod:`._hooks` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ._levels import NoiseLevel


@dataclass(eq=False)
class Step:
    """A step that is about to be taken; hooks return it, changed or not.

    Attributes:
        x_t: the sample (B, *), in the sampler's coordinates.
        say_level: returns the level of x_t; called only when a hook asks, since not every sampler has one.
        predict: returns the clean prediction (B, *) that the model makes of x_t, asked likewise.
        index: number of the step in this call, from 0.
        total: steps of the call.
        timestep: as the sampler counts it.
        generator: of the call: one, one per row, or None.
        output: what the model returned for x_t, where there is such a thing; shift and taken are not in it yet.
        shift: (B, *) by which hooks moved the clean prediction; None if none did.
        taken: (B,) the rows that go on in the places of all; None if every row goes on in its own place.
        noise: standard normal (B, *) for the step to add; None lets the sampler draw it.
        deviation: the standard deviation of what it adds, where that is known already.
        ends_graph: whether no more gradients are wanted through what came before.
        eta: the share of its own noise that the sampler was asked to add.
        scheduler: the diffusers scheduler that takes the step; None where a sampler of our own takes it.

    Example:
        >>> import torch
        >>> level = NoiseLevel(alpha=0.6, sigma=0.8, slope=-0.75, tilt=1.25, time=0.5)
        >>> step = Step.of(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), level)
        >>> step.with_shift(torch.ones(2, 1)).with_rows(torch.tensor([1, 1])).x0
        tensor([[3.],
                [3.]])
    """

    x_t: Tensor
    say_level: Callable[[], NoiseLevel]
    predict: Callable[[], Tensor]
    index: int = 0
    total: int = 1
    timestep: float | Tensor = 0.0
    generator: Any = None
    output: Tensor | None = None
    shift: Tensor | None = None
    taken: Tensor | None = None
    noise: Tensor | None = None
    deviation: float | None = None
    ends_graph: bool = False
    eta: float = 0.0
    scheduler: Any = None

    @classmethod
    def of(cls, x_t: Tensor, x0: Tensor, level: NoiseLevel, **more: Any) -> Step:
        """Return the step of a sample whose clean prediction and level are known."""
        return cls(x_t, lambda: level, lambda: x0, **more)

    @property
    def level(self) -> NoiseLevel:
        """Where in the diffusion x_t is."""
        return self.say_level()

    @property
    def x0(self) -> Tensor:
        """The clean prediction (B, *), in units of clean latents, as hooks have moved it so far."""
        x0 = self.predict()
        x0 = x0 if self.taken is None else x0[self.taken.to(x0.device)]
        return x0 if self.shift is None else x0 + self.shift

    def with_shift(self, delta: Tensor) -> Step:
        """Return the step with its clean prediction moved by ``delta`` (B, *)."""
        return replace(self, shift=delta if self.shift is None else self.shift + delta)

    def with_rows(self, rows: Tensor) -> Step:
        """Return the step in which ``rows`` (B,) of the batch go on in the places of all."""
        rows = rows.to(self.x_t.device)
        return replace(
            self,
            x_t=self.x_t[rows],
            shift=None if self.shift is None else self.shift[rows],
            taken=rows if self.taken is None else self.taken[rows],
        )

    def with_samples(self, rows: Tensor, x_t: Tensor, x0: Tensor) -> Step:
        """Return the step in which some rows of the batch stand at other samples of its level.

        Args:
            rows: (k,) which.
            x_t: (k, *) their samples.
            x0: (k, *) the clean predictions that the model makes of these.

        Example:
            >>> import torch
            >>> level = NoiseLevel(alpha=0.6, sigma=0.8, slope=-0.75, tilt=1.25, time=0.5)
            >>> step = Step.of(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), level)
            >>> step.with_samples(torch.tensor([1]), torch.ones(1, 1), torch.full((1, 1), 5.0)).x0
            tensor([[1.],
                    [5.]])
        """
        rows = rows.to(self.x_t.device)

        def place(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new.to(old))

        unshifted, output = replace(self, shift=None).x0, self.output
        if output is not None:
            output = output if self.taken is None else output[self.taken]
            means = self.level.slope * x0 + self.level.tilt * x_t
            extra = output[rows, means.shape[1] :]  # of a learned variance
            output = place(output, torch.cat([means.to(output), extra], 1))
        return replace(
            self,
            x_t=place(self.x_t, x_t),
            predict=lambda: place(unshifted, x0),
            output=output,
            shift=None if self.shift is None else place(self.shift, torch.zeros_like(x0)),
            taken=None,
        )

    def with_noise(self, noise: Tensor, deviation: float | None = None) -> Step:
        """Return the step with standard normal noise (B, *) to add, and a new standard deviation if one is given."""
        return replace(self, noise=noise, deviation=self.deviation if deviation is None else deviation)

    def without_graph(self) -> Step:
        """Return the step through which no gradients flow any more."""
        shift = None if self.shift is None else self.shift.detach()
        return replace(self, x_t=self.x_t.detach(), shift=shift, ends_graph=True)


class Hook:
    """An object that sees every step of a sampler and may change it. By default it changes nothing.

    The order is ``timesteps`` when a call chooses its schedule, ``start`` at its first step, ``before`` and ``after``
    at each, and ``finish`` where the block ends without an error.
    """

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """See the schedule that a call chose; return the timesteps to take."""
        return timesteps

    def start(self, steps: int) -> None:
        """Learn how many steps this call takes, just before the first of them."""

    def before(self, step: Step) -> Step:
        """See a step that is about to be taken; return it, changed or not."""
        return step

    def after(self, step: Step, x: Tensor) -> Tensor:
        """See the sample after the step, as all hooks left it; return the one to go on with."""
        return x

    def finish(self) -> None:
        """Learn that the run has ended; refuse here a run that took other steps than it promised."""
