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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import levels_of
from .._hooks import Hook, Step
from .._kernel import check_kernel, following, noise_like, take_again
from .._levels import NoiseLevel
from .._result import Result
from .._sampler import LiDAR
from ._checks import check_ddim, check_fields, check_level_by_step, check_own_noise, takes_own_steps, with_noise
from ._face import charged, check_differentiable, differentiable_rewards, hooked, looks_cost, sampling_cost


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
        """``images`` samples a prompt.

        Every step, ``recurrence`` times, costs a sample more: forward a backward pass, a decode and a reward call,
        backward ``backward_steps`` decodes and reward calls.

        Raises:
            ValueError: the reward says that it is not differentiable; or recurrence with another scheduler than DDIM,
                or in a part of the schedule.
        """
        self._check(lidar)
        if self.recurrence > 1:
            lidar = with_noise(lidar, copies=False)

        def gradient(batch: Sequence[Item]) -> Gradient:
            rewards = differentiable_rewards(lidar.with_prompts(prompts), batch)
            return Gradient(self, lambda x0: rewards(x0).sum())

        around, hooks = hooked(lidar, gradient)
        forward = self.reward_scale > 0
        result = lidar.sample(list(prompts), images, seed, around=around, differentiable=forward)
        looks, gradients, taken = (
            sum(getattr(h, name) for h in hooks) for name in ("evaluations", "gradients", "taken")
        )
        backward = result.cost["sampling"].network_evaluations * gradients // taken
        return charged(lidar, result, looks, backward_passes=backward)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: every step ``recurrence`` times, and looks at it."""
        self._check(lidar)
        taken, forward = images * self.recurrence, self.reward_scale > 0
        levels = levels_of(lidar.pipe, lidar.arguments())
        guided = sum(map(_is_guidable, levels))
        network = replace(sampling_cost(lidar, taken), decodes=images)
        looks = taken * guided * (forward + self.backward_steps)
        backward = forward * network.network_evaluations * guided // len(levels)
        return network + looks_cost(lidar, looks, backward_passes=backward)

    def _check(self, lidar: LiDAR) -> None:
        check_differentiable(lidar, "universal guidance")
        if self.recurrence > 1:
            check_level_by_step(lidar.pipe, "recurrence", cache=True)
            check_own_noise(lidar, "recurrence", "takes every step again")
            if takes_own_steps(lidar):
                check_ddim(lidar.pipe.scheduler, "universal guidance takes steps again")
            else:
                check_kernel(lidar.pipe.scheduler)


def _is_guidable(level: NoiseLevel) -> bool:
    """Whether something is noisy, and something is known."""
    return level.sigma != 0 and level.alpha != 0


class Gradient(Hook):
    """The hook that moves the clean prediction along the gradient of a scalar of it.

    Args:
        settings: how.
        total: from clean predictions (B, *) to the sum of their rewards, differentiable.

    Attributes:
        evaluations: clean predictions that were rewarded so far.
        taken: rows of all steps so far.
        gradients: how many of them were gone back through.
    """

    def __init__(self, settings: UniversalGuidance, total: Callable[[Tensor], Tensor]) -> None:
        self.settings, self.total = settings, total
        self.evaluations = self.taken = self.gradients = 0
        self._schedule = 0
        self._back: tuple[float, float] | None = None

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """Every one as often as the step is taken."""
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
        self._back = following(step) if (step.index + 1) % how.recurrence else None
        if not _is_guidable(level):
            return step.without_graph()
        x0 = step.x0
        shift = self._ascent(x0.detach())
        if how.reward_scale > 0:
            (gradient,) = torch.autograd.grad(self.total(x0), step.x_t)
            self.evaluations += len(step.x_t)
            self.gradients += len(step.x_t)
            shift = shift + how.reward_scale * level.sigma**2 / level.alpha * gradient
        return step.without_graph().shifted(shift)

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
        """Delta (B, *), in float32."""
        delta = torch.zeros_like(x0, dtype=torch.promote_types(x0.dtype, torch.float32), requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=self.settings.backward_rate, maximize=True)
        for _ in range(self.settings.backward_steps):
            (delta.grad,) = torch.autograd.grad(self.total((x0 + delta).to(x0.dtype)), delta)
            self.evaluations += len(x0)
            optimizer.step()
        return delta.detach()
