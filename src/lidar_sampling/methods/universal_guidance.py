"""Universal guidance (Bansal et al. 2023, https://arxiv.org/abs/2302.07121): forward, backward and with recurrence.

Forward (section 3.1), gradients through the network:

    score(x_t)  <-  score(x_t) + lambda grad_{x_t} r(decode(E[x_0 | x_t]))

so the clean prediction moves by ``lambda sigma^2 / alpha`` times the gradient. It needs a differentiable reward, a
backward pass of network and decoder at each step, and their graph in memory. Backward (section 3.2), none through the
network: ascent of the reward from the clean prediction itself,

    x0  <-  x0 + Delta,      Delta = argmax_Delta r(decode(x0 + Delta))  by a few steps,

which is ``eps <- eps - (alpha / sigma) Delta``. Recurrence (section 3.3): after a step from t to s the sample is
noised back, ``x_t <- sqrt(abar_t / abar_s) x_s + sqrt(1 - abar_t / abar_s) z``, and the step taken again: k in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from .._cost import Cost
from .._forecast import levels_of
from .._hooks import Step
from .._kernel import check_kernel, next_level, noise_like, take_again
from .._levels import NoiseLevel, check
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_ddim, check_level_by_step, check_own_noise, takes_own_steps, with_noise
from ._face import check_differentiable
from ._gradients import Climb, climbing_cost, draw_climbing


@dataclass(frozen=True)
class UniversalGuidance:
    """Universal guidance; by default forward alone.

    Attributes:
        reward_scale: lambda, in 1 / reward; the LiDAR paper uses 15 for SD 1.5 and 3 for SDXL, with ImageReward. With
            0 there is no forward guidance and nothing goes back through the network.
        backward_steps: steps of ascent on the clean prediction.
        backward_rate: the rate of Adam in them, in units of latents; .01 in the released code, on pixels.
        recurrence: k, how often each step is taken; the paper uses 2 to 10.
    """

    reward_scale: float = 15.0
    backward_steps: int = 0
    backward_rate: float = 0.01
    recurrence: int = 1

    def __post_init__(self) -> None:
        check_fields(
            self, reward_scale="[0, inf)", backward_steps="[0, inf)", backward_rate="(0, inf)", recurrence="[1, inf)"
        )

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt.

        Every step adds to the cost of a sample, ``recurrence`` times: forward a backward pass, a decode and a reward
        call, backward ``backward_steps`` decodes and reward calls.

        Raises:
            ValueError: the reward says that it is not differentiable; recurrence with another scheduler than DDIM
                whose steps ``noise`` does not replace, or with one that takes a step twice by itself; or recurrence
                in a part of the schedule.
        """
        self._check(lidar)
        if self.recurrence > 1:
            lidar = with_noise(lidar, copies=False)
        make, forward = partial(Gradient, self), self.reward_scale > 0
        return draw_climbing(lidar, prompts, make, images=images, seed=seed, differentiable=forward)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: every step ``recurrence`` times, and looks at it."""
        self._check(lidar)
        forward, levels = self.reward_scale > 0, levels_of(lidar.pipe, lidar.arguments())
        guided = sum(map(_is_guidable, levels))
        return climbing_cost(
            lidar,
            images=images,
            steps=len(levels),
            climbed=forward * guided,
            looks=guided * (forward + self.backward_steps),
            again=self.recurrence,
        )

    def _check(self, lidar: LiDAR) -> None:
        check_differentiable(lidar, "universal guidance")
        check(lidar.pipe.scheduler)
        if self.recurrence > 1:
            check_level_by_step(lidar.pipe, "recurrence", cache=True)
            check_own_noise(lidar, "recurrence", "takes every step again")
            if takes_own_steps(lidar):
                check_ddim(lidar.pipe.scheduler, "universal guidance takes steps again")
            else:
                check_kernel(lidar.pipe.scheduler)
                _check_no_level_twice(lidar)


def _check_no_level_twice(lidar: LiDAR) -> None:
    """Refuse a scheduler that takes a step twice by itself: it counts, and would take a repetition for its own.

    Raises:
        ValueError: it does, as PNDM's does.
    """
    levels = levels_of(lidar.pipe, lidar.arguments())
    if any(one == other for one, other in pairwise(levels)):
        name = type(lidar.pipe.scheduler).__name__
        raise ValueError(
            f"recurrence takes every step again, and {name} takes one twice by itself: use another scheduler, such "
            "as DDIMScheduler"
        )


def _is_guidable(level: NoiseLevel) -> bool:
    """Return whether something is noisy, and something is known."""
    return level.sigma != 0 and level.alpha != 0


class Gradient(Climb):
    """The hook that moves the clean prediction along the gradient of a scalar of it.

    Args:
        settings: how.
        total: from clean predictions (B, *) to the sum of their rewards, differentiable.
    """

    def __init__(self, settings: UniversalGuidance, total: Callable[[Tensor], Tensor]) -> None:
        super().__init__(settings, total)
        self._schedule = 0
        self._back: tuple[float, float] | None = None

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """Repeat each timestep as often as its step is taken."""
        repeated = timesteps.repeat_interleave(self.settings.recurrence)
        self._schedule = len(repeated)
        return repeated

    def start(self, steps: int) -> None:
        """Refuse recurrence in a part of the schedule: the pipeline cut it after the timesteps were repeated."""
        if self.settings.recurrence > 1 and steps != self._schedule:
            raise ValueError(
                f"recurrence repeats the whole schedule of {self._schedule} steps, and the pipeline takes {steps} of "
                "them: set recurrence=1, or leave out strength, denoising_start and denoising_end"
            )

    def before(self, step: Step) -> Step:
        """Shift the prediction; for forward guidance the sample is a leaf of the graph of the network's output."""
        how, level = self.settings, step.level
        self.taken += len(step.x_t)
        self._back = next_level(step) if (step.index + 1) % how.recurrence else None
        if not _is_guidable(level):
            return step.without_graph()
        shift = self._ascent(step.x0.detach())
        if how.reward_scale > 0:
            shift = shift + how.reward_scale * level.sigma**2 / level.alpha * self.gradient(step)
        return step.without_graph().with_shift(shift)

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Noise the sample back where the step is taken again, and start the graph of the next one."""
        x = x.detach()
        if self._back is not None:
            alpha, sigma = self._back
            keep = step.level.alpha / alpha
            noise = noise_like(x, step.generator)
            x = keep * x + max(0.0, step.level.sigma**2 - (keep * sigma) ** 2) ** 0.5 * noise
            take_again(step)
        return x.requires_grad_(self.settings.reward_scale > 0)

    @torch.enable_grad()
    def _ascent(self, x0: Tensor) -> Tensor:
        """Return Delta (B, *), in float32."""
        delta = torch.zeros_like(x0, dtype=torch.promote_types(x0.dtype, torch.float32), requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=self.settings.backward_rate, maximize=True)
        for _ in range(self.settings.backward_steps):
            (delta.grad,) = torch.autograd.grad(self.total((x0 + delta).to(x0.dtype)), delta)
            self.evaluations += len(x0)
            optimizer.step()
        return delta.detach()
