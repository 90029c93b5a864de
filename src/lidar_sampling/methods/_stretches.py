"""Stretches of the target's schedule, each from a state of its own: for searches that branch and go back.

A state is a sample under way: its latents before some step. A stretch leads from one step to a later one, or to the
clean sample. Each is a call of the pipeline itself that takes a part of its schedule.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import calls_of
from .._hooks import Segment, Step
from .._kernel import next_level
from .._levels import data_scale, start_scale
from .._result import Result
from .._sampler import LiDAR
from ._face import guiding_scores, hook_batches, in_steps
from ._segments import predictions

_ROUNDING = 0.01  # share of the largest latent by which half precision may move what a pipeline is given


class Stretch(NamedTuple):
    """A stretch to draw.

    Attributes:
        item: the prompt, and the seed of the noise that is met on the way.
        first: the step that it starts with, from 0.
        last: the step that it ends before; the number of all steps leads to the clean sample.
        latents: (*) where it starts; None starts from pure noise.
    """

    item: Item
    first: int
    last: int
    latents: Tensor | None = None


class Reached(NamedTuple):
    """The end of a stretch.

    Attributes:
        latents: (*) of the state.
        image: the clean sample; None where the stretch ended before.
        reward: of the image, or else of what the clean prediction of the last step looks like.
        states: step -> latents (*), of those steps on the way whose states are kept.
    """

    latents: Tensor
    image: Tensor | None
    reward: float
    states: dict[int, Tensor]


class Stretches:
    """Draws stretches of one schedule, those that start and end alike in one batch, and rewards where they lead.

    Args:
        lidar: whose pipeline, reward and batch size to use.
        prompts: all that will be drawn, in the order of arguments that have a value for each.
        steps: of the schedule; None takes those of the sampler's call.
        keep: steps whose states are kept on the way.

    Attributes:
        total: steps of the schedule.
        cost: of all that was drawn and rewarded so far.
        levels: step -> (alpha, sigma) of latents before it, as far as stretches have started, ended or kept states
            there.
    """

    def __init__(self, lidar: LiDAR, prompts: Sequence[str], steps: int | None, keep: Collection[int]) -> None:
        self.lidar, self.keep = lidar.with_prompts(prompts), frozenset(keep)
        self._call = in_steps(self.lidar, steps)
        self.total = calls_of(lidar.pipe, self._call)
        self.cost = Cost()
        self.levels: dict[int, tuple[float, float]] = {}
        self._result: Result | None = None

    def draw(self, stretches: Sequence[Stretch]) -> list[Reached]:
        """Draw the stretches; return where each led, in their order. No two may share their item."""
        found: dict[Item, Reached] = {}
        for first, last in dict.fromkeys((each.first, each.last) for each in stretches):
            alike = [each for each in stretches if (each.first, each.last) == (first, last)]
            found.update(zip((each.item for each in alike), self._draw(alike, first, last), strict=True))
        return [found[each.item] for each in stretches]

    def result(self, prompts: Sequence[str], chosen: Sequence[Sequence[Reached]], seed: int) -> Result:
        """Return the clean samples that were chosen for each prompt as what a method returns."""
        assert self._result is not None  # they were drawn
        return replace(
            self._result,
            prompts=list(prompts),
            images=torch.stack(
                [torch.stack([each.image for each in row if each.image is not None]) for row in chosen]
            ),
            latents=torch.stack([torch.stack([each.latents for each in row]) for row in chosen]),
            seed=seed,
            cost={"sampling": self.cost},
        )

    def _draw(self, alike: Sequence[Stretch], first: int, last: int) -> list[Reached]:
        lidar, items, rows = self.lidar, [each.item for each in alike], {}
        given = {each.item: each.latents for each in alike if each.latents is not None}
        if given:
            latents = torch.stack([given[item] for item in items])
            rows["latents"] = (latents / start_scale(lidar.pipe.scheduler)).to(lidar.pipe.device)
        around, walks = hook_batches(
            lidar,
            lambda batch: _Walk(
                lidar.pipe.scheduler, first, last, self.total, self.keep, [given[i] for i in batch if i in given]
            ),
            whole=True,
        )
        result = lidar.sample(
            [item.prompt for item in items],
            1,
            0,
            items=items,
            around=around,
            call=self._call,
            rows=rows,
            decoded=last == self.total,
        )
        self.cost += result.cost["sampling"]
        self.levels.update(walks[0].levels)
        if last < self.total:
            result, looking = predictions(lidar, result, walks, items)
            self.cost += looking
        rewards, scoring = guiding_scores(lidar, result)
        self.cost += scoring
        self._result = result
        states = {step: torch.cat([walk.states[step] for walk in walks]) for step in walks[0].states}
        return [
            Reached(
                result.latents[row, 0],
                result.images[row, 0] if last == self.total else None,
                float(rewards[row, 0]),
                {step: kept[row] for step, kept in states.items()},
            )
            for row in range(len(items))
        ]


class _Walk(Segment):
    """The hook under which a pipeline takes the steps of a stretch.

    Args:
        scheduler: that takes the steps.
        first: the first of them.
        last: the one that it ends before.
        total: all that the schedule has.
        keep: steps whose samples are kept.
        given: the latents (*) that the rows of the batch start from; none if they start from noise.

    Attributes:
        states: step -> samples (B, *) before it, on the CPU, in units of clean latents.
        levels: step -> (alpha, sigma) there, in the same units.
    """

    def __init__(
        self, scheduler: Any, first: int, last: int, total: int, keep: Collection[int], given: Sequence[Tensor]
    ) -> None:
        super().__init__((), 0, scheduler, ends=[first, last])
        self.total, self.keep, self.given = total, keep, given
        self.states: dict[int, Tensor] = {}
        self.levels: dict[int, tuple[float, float]] = {}

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """Return those of the stretch.

        Raises:
            ValueError: the schedule has another number of steps than planned.
        """
        if len(timesteps) != self.total:
            raise ValueError(
                f"the search was planned for the {self.total} steps that the pipeline promised, and it takes "
                f"{len(timesteps)}: leave out what cuts its schedule short, such as denoising_end"
            )
        return self._select(timesteps)

    def before(self, step: Step) -> Step:
        """Keep the state and its level."""
        step = super().before(step)
        here, data = self.ends[0] + step.index, data_scale(step.scheduler)
        if step.index == 0 and self.given:
            _check_goes_on(
                torch.stack(list(self.given)), step.x_t.detach().cpu() / data, type(step.scheduler).__name__
            )
        if step.index == 0 or here in self.keep:
            self.levels[here] = (step.level.alpha / data, step.level.sigma / data)
        if step.index > 0 and here in self.keep:
            self.states[here] = step.x_t.detach().to("cpu", copy=True) / data
        if here + 1 == self.ends[1]:
            alpha, sigma = next_level(step)
            self.levels[here + 1] = (alpha / data, sigma / data)
        return step


def _check_goes_on(given: Tensor, taken: Tensor, name: str) -> None:
    """Refuse a pipeline that changes the latents that it is given to start from.

    Raises:
        TypeError: it does.
    """
    if given.shape != taken.shape or not torch.allclose(
        given.float(), taken.float(), rtol=0, atol=_ROUNDING * float(given.abs().max())
    ):
        raise TypeError(
            f"this method goes on from latents of its own, and the pipeline changes those that it is given before "
            f"{name} steps them: use another scheduler, or a method that draws whole samples"
        )


def back(latents: Tensor, here: tuple[float, float], there: tuple[float, float], seed: int) -> Tensor:
    """Return latents (*) noised from one level back to an earlier one.

        x'  =  (alpha' / alpha) x  +  sqrt(sigma'^2 - (alpha' / alpha)^2 sigma^2) z,      z ~ N(0, 1),

    the forward process between the two.

    Args:
        latents: (*) at the level ``here``.
        here: (alpha, sigma).
        there: (alpha', sigma'), noisier.
        seed: of z.

    Example:
        >>> import torch
        >>> back(torch.ones(2), (1.0, 0.5), (0.5, 0.25), seed=0)  # as noisy, for what is left of the signal
        tensor([0.5000, 0.5000])
    """
    keep = there[0] / here[0]
    deviation = max(0.0, there[1] ** 2 - (keep * here[1]) ** 2) ** 0.5
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    return (keep * latents + deviation * noise).to(latents.dtype)
