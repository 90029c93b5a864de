"""EvoSearch, evolutionary search along the trajectory (He et al. 2025, https://arxiv.org/abs/2505.17618).

A population is drawn to its end and rewarded. At each step s of a schedule a generation is born of all that passed
there, and drawn from s to its end. A state has the reward of the end that it came to. The best ``elites`` states are
kept as they are; every other child has a parent that wins a tournament, the best of a share of all at random, and is
a mutation of it,

    x  <-  sqrt(1 - m^2) x + m eps     at the first step, of the initial noise, whose law it keeps
    x  <-  x + sigma_s eps             at a later step, whose own noise has the standard deviation sigma_s

The samples are the best of all ends. With a sampler that has noise, the elites come to other ends than before.

A later mutation leaves x somewhat too noisy for its level (alpha, sigma), the more the longer the steps. ``renoised``
starts from the state y at (alpha', sigma') that step s came to instead, and noises it back by the forward process,

    x  <-  a y + sqrt(sigma^2 - a^2 sigma'^2) eps,      a = alpha / alpha',

which keeps the law of the model.

Formulas and settings are those of the released code (https://github.com/tinnerhrhe/EvoSearch-codes, f2b6ba7:
SD2.1/evo_pipe.py, SD2.1/evosearch.py and the README), which was read; of the paper only the abstract was. The code
keeps of step s the state y alone, and from there takes step s once more: of elites y, a level too early, and of
others y + sigma_s eps, which in short steps is what ``renoised`` does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import items_of, seed_of
from .._forecast import calls_of, evaluations_of, rows_of
from .._hooks import Segment, Step
from .._kernel import new_noise, next_level
from .._levels import start_scale
from .._result import Result
from .._sampler import LiDAR
from .._settings import takes_eta
from .._values import check_fields
from ._checks import check_images, check_middle, check_own_noise, check_population, with_noise
from ._face import check_comparable, guiding_scores, hook_batches, in_steps, looks_cost, only

PUBLISHED = (42, 26, 26, 26, 30)
"""Sizes of the generations in the released settings for SD 2.1, which cost as much as 100 samples of 50 steps."""


@dataclass(frozen=True)
class EvoSearch:
    """Evolutionary search; by default with the released settings for SD 2.1.

    Attributes:
        population: size of each generation, the first of which is drawn from pure noise.
        schedule: where each of the others is born, as rising fractions of the steps; 0 is the initial noise.
        elites: states that each generation takes over, at most its size.
        mutation: m, how much of the initial noise is drawn anew.
        tournament: share of all states among which a parent is the best.
        renoised: whether later children are noised back by the forward process, and not by noise that is added.
        steps: denoising steps; None takes those of the sampler's call.
    """

    population: tuple[int, ...] = PUBLISHED
    schedule: tuple[float, ...] = (0.0, 0.4, 0.6, 0.8)
    elites: int = 5
    mutation: float = 0.2
    tournament: float = 0.9
    renoised: bool = False
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, elites="[0, inf)", mutation="[0, 1]", tournament="(0, 1]", steps="[1, inf)")
        if not self.population or min(self.population) < 1:
            raise ValueError(f"population must hold whole numbers of at least 1, got {self.population}")
        if not all(a < b for a, b in pairwise([-1.0, *self.schedule, 1.0])) or min(self.schedule, default=0) < 0:
            raise ValueError(f"schedule must be rising fractions from 0 to below 1, got {self.schedule}")
        if len(self.population) != len(self.schedule) + 1:
            raise ValueError(
                f"population must have one size more than schedule has steps, got {self.population} for "
                f"{self.schedule}"
            )
        if self.schedule and self.elites > min(self.population):
            raise ValueError(f"elites must be at most every size of population {self.population}, got {self.elites}")

    @classmethod
    def of_size(cls, n: int, steps: int | None = None) -> EvoSearch:
        """Return the search whose first generation has ``n`` samples; the rest follows the released proportions.

        >>> EvoSearch.of_size(42) == EvoSearch(), EvoSearch.of_size(8).population
        (True, (8, 5, 5, 5, 6))
        """
        sizes = tuple(max(1, round(n * size / PUBLISHED[0])) for size in PUBLISHED)
        return cls(population=sizes, elites=max(1, round(n * cls.elites / PUBLISHED[0])), steps=steps)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Return the ``images`` best of all samples per prompt, best first.

        It costs the steps of each generation from where it is born, and a decode and a reward call per sample. Late
        generations differ little from their parents, and so may the images.

        Raises:
            ValueError: more images than samples; a schedule whose steps fall together, or with the last; a scheduler
                that remembers earlier steps, or one without noise where children are born on the way; a call that
                ends before the samples are clean; or a mixture that cannot score loose images.
            TypeError: the pipeline takes no ``latents``, or starts from a picture.
        """
        births = self._births(lidar, images)
        lidar = with_noise(lidar, copies=any(self.schedule))
        generations: list[_Generation] = []
        for number, (size, birth) in enumerate(zip(self.population, births, strict=True)):
            latents = self._breed(generations, birth, size, prompts, seed) if number else None
            noise = seed_of(seed, f"generation {number}", "", 0) if number else seed
            generations.append(self._draw(lidar, prompts, size, births[number:], noise, latents))
        rewards = torch.cat([each.rewards for each in generations], 1)
        every = replace(
            generations[0].result,
            images=torch.cat([each.result.images for each in generations], 1),
            latents=torch.cat([each.result.latents for each in generations], 1),
            cost={"sampling": sum((each.cost for each in generations), Cost())},
        )
        return only(every, rewards.argsort(dim=1, descending=True, stable=True)[:, :images])

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt, however many of its samples are wanted."""
        births, call = self._births(lidar, images), in_steps(lidar, self.steps)
        left = [calls_of(lidar.pipe, call) - birth for birth in births[1:]]
        later = sum(size * steps for size, steps in zip(self.population[1:], left, strict=True))
        first = self.population[0] * evaluations_of(lidar.pipe, call)
        network = Cost(network_evaluations=first + later * rows_of(lidar.pipe, call))
        return network + looks_cost(lidar, sum(self.population))

    def _births(self, lidar: LiDAR, images: int) -> list[int]:
        """Return the step that each generation starts with; refuse a schedule that cannot be drawn."""
        what = "goes on from mutations of some of the samples"
        check_population(lidar, "EvoSearch", what, copies=any(self.schedule))
        check_comparable(lidar)
        total = sum(self.population)
        check_images(images, total, "the {} samples of all generations")
        steps = calls_of(lidar.pipe, in_steps(lidar, self.steps))
        births = [round(at * steps) for at in self.schedule]
        ends = max(steps - 1, 1)  # the last step adds no noise that would part children
        if not all(a < b for a, b in pairwise([*births, ends])):
            raise ValueError(
                f"schedule must be rising fractions that differ in {steps} steps and leave out the last, got "
                f"{self.schedule}: set schedule and population, or take more steps"
            )
        if births:
            check_middle(lidar, "EvoSearch")
            if not self.renoised:
                check_own_noise(lidar, "EvoSearch", "mutates by the noise of a step")
        return [0, *births]

    def _draw(
        self,
        lidar: LiDAR,
        prompts: Sequence[str],
        size: int,
        births: Sequence[int],
        seed: int,
        latents: Tensor | None,
    ) -> _Generation:
        """Return a generation of ``size`` samples per prompt, drawn from the first of these steps to the end.

        At the other steps later generations are born.
        """
        call, scheduler = in_steps(lidar, self.steps), lidar.pipe.scheduler
        steps = calls_of(lidar.pipe, call)
        around, seen = hook_batches(
            lidar, lambda batch: _Passing(births[0], births[1:], steps, scheduler), whole=True
        )
        rows = {} if latents is None else {"latents": latents.flatten(0, 1).to(lidar.pipe.device)}
        result = lidar.sample(prompts, size, seed, around=around, call=call, rows=rows)
        rewards, selection = guiding_scores(lidar, result)
        crossed = {at: _join([hook.crossed[at] for hook in seen], rewards.shape) for at in seen[0].crossed}
        return _Generation(result, rewards, crossed, result.cost["sampling"] + selection)

    def _breed(
        self, before: Sequence[_Generation], birth: int, size: int, prompts: Sequence[str], seed: int
    ) -> Tensor:
        """Return the states (P, size, *) that a generation starts from, of those that passed where it is born."""
        rewards = torch.cat([each.rewards for each in before], 1)
        crossed = [each.crossed[birth] for each in before]
        states = sources = torch.cat([each.states for each in crossed], 1)
        keep, add = math.sqrt(1 - self.mutation**2), self.mutation
        if birth and self.renoised:
            sources, (keep, add) = torch.cat([each.after for each in crossed], 1), crossed[0].back
        elif birth:
            keep, add = 1.0, crossed[0].deviation
        born, items = [], items_of(prompts, 1, seed, f"children {len(before)}")
        for item, own, kept, changed in zip(items, rewards, states, sources, strict=True):
            generator = torch.Generator().manual_seed(item.seed)
            elites = kept[own.argsort(descending=True, stable=True)[: self.elites]]
            parents = changed[winners(own, size - self.elites, self.tournament, generator)]
            noise = torch.randn(parents.shape, generator=generator).to(parents)
            born.append(torch.cat([elites, keep * parents + add * noise]))
        return torch.stack(born)


class _Crossed(NamedTuple):
    """Samples at a step where later generations are born, as ``latents`` that a pipeline starts from.

    Attributes:
        states: where they stood (P, n, *).
        after: where the step took them (P, n, *).
        deviation: the standard deviation of the step's own noise.
        back: what the forward process keeps of ``after``, and how much noise it adds, on the way back to the step.
    """

    states: Tensor
    after: Tensor
    deviation: float
    back: tuple[float, float]


def _join(batches: Sequence[_Crossed], shape: Sequence[int]) -> _Crossed:
    """Return the samples of batches that follow one another, by prompt and number."""
    states, after = (torch.cat(parts).unflatten(0, list(shape)) for parts in list(zip(*batches, strict=True))[:2])
    return batches[0]._replace(states=states, after=after)


class _Generation(NamedTuple):
    """Samples that were born at one step.

    Attributes:
        result: at their end.
        rewards: (P, n).
        crossed: step -> how they crossed it, where later generations are born.
        cost: of drawing and rewarding them.
    """

    result: Result
    rewards: Tensor
    crossed: dict[int, _Crossed]
    cost: Cost


class _Passing(Segment):
    """The hook under which a call starts with step ``birth`` of ``steps``, and which keeps samples ``at`` others."""

    def __init__(self, birth: int, at: Collection[int], steps: int, scheduler: Any) -> None:
        super().__init__([birth / steps] if birth else [], 1 if birth else 0, scheduler)
        self.at = at
        self.crossed: dict[int, _Crossed] = {}

    def before(self, step: Step) -> Step:
        """Keep the samples at the steps to keep, and the noise between them and those after the step."""
        step, here = super().before(step), self.ends[self.part] + step.index
        if here in self.at:
            scale, level, (alpha, sigma) = start_scale(step.scheduler), step.level, next_level(step)
            eta = step.eta if takes_eta(step.scheduler) else 1.0
            own = new_noise(eta, level, (alpha, sigma))[1] if step.deviation is None else step.deviation
            keep = level.alpha / alpha
            add = math.sqrt(max(0.0, level.sigma**2 - (keep * sigma) ** 2))
            states = (step.x_t / scale).cpu()
            self.crossed[here] = _Crossed(states, states, own / scale, (keep, add / scale))
        return step

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Keep where the step took them."""
        here = self.ends[self.part] + step.index
        if here in self.at:
            self.crossed[here] = self.crossed[here]._replace(after=(x / start_scale(step.scheduler)).cpu())
        return x


def winners(rewards: Tensor, count: int, share: float, generator: torch.Generator) -> Tensor:
    """Return who wins ``count`` tournaments: the best of a share of all, drawn without replacement.

    Args:
        rewards: (n,) of all.
        count: of tournaments.
        share: of all that takes part in each, at least one.
        generator: of the draws.

    Returns:
        (count,) indices.

    Example:
        >>> winners(torch.tensor([1.0, 3.0, 2.0]), 2, 1.0, torch.Generator())
        tensor([1, 1])
    """
    rivals = max(1, math.floor(share * len(rewards) + 1e-9))
    drawn = [torch.randperm(len(rewards), generator=generator)[:rivals] for _ in range(count)]
    return torch.tensor([int(those[rewards[those].argmax()]) for those in drawn], dtype=torch.long)
