r"""ReNO, reward-based noise optimisation (Eyring et al. 2024, https://arxiv.org/abs/2406.04312).

A few-step sample G(z) is a function of its initial noise z of d numbers. Gradients of the reward go back through all
of its steps, and the noise descends

    L(z)  =  - r(G(z)) + penalty K(z),      K(z) = |z|^2 / 2 - (d - 1) log |z|,

where K is the negative log density of the norm of Gaussian noise, up to a constant: it is least at
``|z| = sqrt(d - 1)``. The gradient is cut to a length of at most ``clip``, and a step is Nesterov's,

    m  <-  momentum m + g,      z  <-  z - rate (g + momentum m).

The best iterate by the reward is the sample. So ``reno-1`` is the few-step sample itself, and n iterates cost n
samples and n - 1 backward passes through them.

The form and the defaults were read in the repository ExplainableML/ReNO (MIT, commit bd6f6ac), not in the paper.
It draws with one-step models (SD-Turbo, SDXL-Turbo, PixArt-DMD; Hyper-SDXL at rate 10), and its reward is a sum: 5
HPSv2.1, ImageReward, .05 PickScore and .01 CLIP. Its option to draw the sample anew from the best noise, by another
model in many steps, is left out. Where the few steps add noise of their own, all iterates meet the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._hooks import Step
from .._kernel import noise_like
from .._levels import data_scale, start_scale
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ..solvers import Solver
from ._checks import check_start, check_whole
from ._face import check_differentiable, hook_batches, judge_of, looks_cost, where_better
from ._gradients import gradient_of, length_of
from .noise_search import Start
from .vanilla import Vanilla


@dataclass(frozen=True)
class ReNO:
    """Reward-based noise optimisation, a search of its own for every image.

    Attributes:
        n: iterates, of which the best is kept.
        steps: of a sample by the target's own scheduler; None, like ``solver``, takes the lookahead of the settings.
        solver: a few-step solver that draws the samples.
        rate: of the descent; 5 in the released code, 10 there for Hyper-SDXL.
        momentum: of the descent; 0 is plain descent.
        clip: the length to which the gradient of an image is cut.
        penalty: the weight of K, in units of the reward.
    """

    n: int = 50
    steps: int | None = None
    solver: Solver | None = None
    rate: float = 5.0
    momentum: float = 0.9
    clip: float = 0.1
    penalty: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", rate="[0, inf)", momentum="[0, 1)", clip="(0, inf)", penalty="[0, inf)")
        Vanilla(self.steps, self.solver)  # this refuses both at once, and steps below 1

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw the best iterates of ``images`` searches per prompt.

        Each of the ``n`` iterates costs a few-step sample, a decode and a reward call, and each but the last as many
        backward passes as evaluations.

        Raises:
            ValueError: the reward says that it is not differentiable, or returns what is not a number; or a mixture
                that is standardised over a bank.
            TypeError: the pipeline takes no ``latents``, starts from a picture, or cannot be differentiated.
        """
        self._check(lidar)
        with self._samples(lidar).use_pipeline(lidar.with_prompts(prompts)) as (lidar, pipe, call):
            iterate = partial(_iterate, lidar, prompts, images, seed, pipe, call)
            found = best = iterate(None, climbs=self.n > 1)
            cost, descent = found.cost, Descent(self, found.noise.float())
            for left in reversed(range(self.n - 1)):
                latents = descent(found.gradient.float()).to(found.noise.dtype)
                found = iterate(latents, climbs=left > 0)
                cost, best = cost + found.cost, best.or_better(found)
        return replace(best.result, cost={"sampling": cost})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: iterates, and gradients of all but one."""
        self._check(lidar)
        each = self._samples(lidar).cost(lidar, images=images).network_evaluations
        looks = looks_cost(lidar, images * self.n, backward_passes=each * (self.n - 1))
        return Cost(network_evaluations=each * self.n) + looks

    def _samples(self, lidar: LiDAR) -> Vanilla:
        """Return how one iterate is drawn."""
        named = self.steps is not None or self.solver is not None
        return Vanilla(self.steps, self.solver) if named else Vanilla(solver=lidar.solver)

    def _check(self, lidar: LiDAR) -> None:
        check_differentiable(lidar, "ReNO")
        check_whole(lidar, "ReNO")
        check_start(lidar, "ReNO")


class Iterate(NamedTuple):
    """The samples of one iterate, with their rewards and gradients.

    Attributes:
        result: its samples.
        rewards: theirs (P, m).
        noise: that they started from (P * m, *).
        gradient: of each reward with respect to the noise (P * m, *); empty where none was wanted.
        cost: what they took.
    """

    result: Result
    rewards: Tensor
    noise: Tensor
    gradient: Tensor
    cost: Cost

    def or_better(self, other: Iterate) -> Iterate:
        """Return the better sample of each place by the rewards; if they are equal, that of this iterate."""
        better = other.rewards > self.rewards
        result = replace(
            self.result,
            images=where_better(better, other.result.images, self.result.images),
            latents=where_better(better, other.result.latents, self.result.latents),
        )
        return self._replace(result=result, rewards=torch.maximum(self.rewards, other.rewards))


def _iterate(
    lidar: LiDAR,
    prompts: Sequence[str],
    images: int,
    seed: int,
    pipe: Any,
    call: Mapping[str, Any],
    latents: Tensor | None,
    *,
    climbs: bool,
) -> Iterate:
    """Draw and reward the samples of the noise ``latents``, or of the seed's own; with their gradients if it climbs.

    Raises:
        RewardError: a reward is not a number.
    """

    def make(batch: Sequence[Item]) -> End:
        return End(judge_of(lidar, batch, pipe, call), climbs=climbs, given=latents is not None)

    around, ends = hook_batches(lidar, make, pipe=pipe, whole=True)
    result = lidar.sample(
        prompts,
        images,
        seed,
        around=around,
        pipe=pipe,
        call=call,
        rows=None if latents is None else {"latents": latents},
        differentiable=climbs,
        decoded=False,
    )
    names = ("noise", "images", "rewards", "gradient")
    found = {name: torch.cat([getattr(end, name) for end in ends]) for name in names}
    rewards, spent, shape = found["rewards"], result.cost["sampling"], result.latents.shape[:2]
    looks = looks_cost(lidar, len(rewards), backward_passes=spent.network_evaluations if climbs else 0)
    result = replace(result, images=found["images"].unflatten(0, shape))
    return Iterate(result, rewards.view(shape), found["noise"], found["gradient"], spent + looks)


class End(Start):
    """The hook that rewards the ends of samples, with the gradients of the rewards in the initial noise.

    Args:
        judge: from clean latents (B, *) to images and rewards (B,), differentiable.
        climbs: whether gradients are wanted; the first sample is a leaf of the graph of the whole run then.
        given: whether the run starts from latents that it was given.

    Attributes:
        images: of the ends, as rewards see them.
        rewards: of the ends (B,).
        gradient: of each with respect to its noise (B, *); empty where none is wanted.
    """

    def __init__(self, judge: Callable[[Tensor], tuple[Tensor, Tensor]], *, climbs: bool, given: bool) -> None:
        super().__init__()
        self.judge, self.climbs, self.given = judge, climbs, given
        self.images = self.rewards = self.gradient = torch.empty(0)
        self._first = torch.empty(0)
        self._taken = self._total = 0

    def before(self, step: Step) -> Step:
        """Keep where the run starts, with its graph."""
        self._taken, self._total = self._taken + 1, step.total
        if step.index == 0:
            self._first = step.x_t
            if self.given:  # else the noise on the way would be what the run of the seed starts from
                noise_like(step.x_t, step.generator)
        return super().before(step)

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Reward the end, and go back from there to the start."""
        if step.index < step.total - 1:
            return x
        images, rewards = self.judge(x / data_scale(step.scheduler))
        if self.climbs:
            gradient = gradient_of(rewards.sum(), self._first)
            self.gradient = (gradient * start_scale(step.scheduler)).cpu()
        self.noise = self.noise.detach().cpu()
        self.images, self.rewards = images.detach().float().cpu(), rewards.detach().double().cpu()
        self._first = torch.empty(0)
        return x.detach()

    def finish(self) -> None:
        """Refuse a run of other steps than the pipeline promised.

        Raises:
            ValueError: it ended before or after the end that was rewarded.
        """
        if self._taken != self._total:
            raise ValueError(
                f"ReNO goes back from the last of the {self._total} steps that the pipeline promised, and it took "
                f"{self._taken}: leave out what cuts its schedule short, such as denoising_end"
            )


class Descent:
    """Nesterov's descent of the noise, each sample by itself.

    Args:
        settings: rate, momentum, clip and penalty.
        start: the noise (B, *).

    Attributes:
        noise: where the descent is (B, *).
    """

    def __init__(self, settings: ReNO, start: Tensor) -> None:
        self.settings, self.noise = settings, start
        self._momentum = torch.zeros_like(start)

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the next noise (B, *), given the gradient (B, *) of the rewards with respect to this one."""
        how = self.settings
        g = how.penalty * penalty_gradient(self.noise) - gradient
        g = g * (how.clip / length_of(g)).clamp_max(1)
        self._momentum = how.momentum * self._momentum + g
        self.noise = self.noise - how.rate * (g + how.momentum * self._momentum)
        return self.noise


def penalty_gradient(noise: Tensor) -> Tensor:
    """Return the gradient (B, *) of K: 0 at the norm ``sqrt(d - 1)``, where Gaussian noise is likeliest to be.

    >>> short, likely = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0]])
    >>> penalty_gradient(short)[0, 0], penalty_gradient(likely).norm()
    (tensor(-3.), tensor(0.))
    """
    return noise * (1 - (noise[0].numel() - 1) / length_of(noise).square())
