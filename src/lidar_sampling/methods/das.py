r"""DAS, diffusion alignment as sampling (Kim et al. 2025, https://arxiv.org/abs/2501.05803): tempered particles.

k particles of a prompt go side by side from the prior to the law tilted by ``exp(lambda r)``, each step toward the
one tilted by ``exp(tau_i lambda r(x0))`` of its clean prediction, with a temper tau_i that rises from 0 to 1. A step
whose own noise has the standard deviation sigma is proposed along the gradient of the particle's reward,

    x_{i+1} ~ N(mu + sigma^2 g, sigma^2),      g = tau_{i+1} lambda grad_{x_i} r(x0(x_i)),

and weighed, for what was proposed and for what the temper has become, by

    log w  +=  log p(x_{i+1} | x_i) / q(x_{i+1} | x_i)  +  tau_{i+1} lambda r_{i+1}  -  tau_i lambda r_i,

where ``log p / q = -sigma z . g - sigma^2 |g|^2 / 2`` for the noise z of the proposal. Where the effective sample
size falls below half of k the particles are resampled. (The released code leaves g and r where they were when it
moves the particles; here they move along.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item
from .._forecast import calls_of, rows_of
from .._hooks import Step
from .._kernel import new_noise, next_level, noise_like
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_ddim, check_own_noise, check_population, takes_own_steps, with_noise
from ._face import (
    charge_looks,
    check_differentiable,
    differentiable_rewards,
    hook_batches,
    looks_cost,
    sampling_cost,
)
from ._particles import Particles, rows, ssp


@dataclass(frozen=True)
class DAS:
    """DAS with the published settings for Stable Diffusion.

    Attributes:
        reward_scale: lambda, in 1 / reward: one over its alpha, .005 for aesthetic scores and .01 for CLIP's.
        gamma: the temper is ``(1 + gamma)^i - 1``, at most 1, at step i of 100; in proportion with other numbers of
            steps.
        threshold: resample where the effective sample size falls below this share of the particles.
    """

    reward_scale: float = 200.0
    gamma: float = 0.008
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, reward_scale="[0, inf)", gamma="(0, inf)", threshold="[0, 1]")

    def temper(self, step: int, steps: int) -> float:
        """Return the temper before step ``step`` of ``steps``; 1 at the last, whose weights are final."""
        return 1.0 if step >= steps - 1 else min((1 + self.gamma) ** (100 * step / steps) - 1, 1.0)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` particles per prompt, resampled at the last step so that all weigh the same.

        Every step adds a decode and a reward call per particle, and all but the last a backward pass. (The released
        code returns the particle of the largest weight.)

        Raises:
            ValueError: the reward says that it is not differentiable; a sampler that is not DDIM with noise; or a
                pipeline that takes other steps than those of the settings, over which the temper is defined.
        """
        self._check(lidar)
        lidar = with_noise(lidar)

        def make(batch: Sequence[Item]) -> Tempered:
            rewards = differentiable_rewards(lidar.with_prompts(prompts), batch)
            seeds = [item.seed for item in batch[::images]]
            return Tempered(self, rewards, seeds, steps=lidar.settings.steps)

        around, hooks = hook_batches(lidar, make)
        result = lidar.sample(prompts, images, seed, around=around, together=images, differentiable=True)
        looks, gradients = (sum(getattr(h, name) for h in hooks) for name in ("evaluations", "gradients"))
        each = result.cost["sampling"].network_evaluations // looks  # of the network, per particle and step
        return charge_looks(lidar, result, looks, backward_passes=each * gradients)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: steps, looks at them, and gradients of all but one."""
        self._check(lidar)
        call = lidar.arguments()
        steps = calls_of(lidar.pipe, call)
        _check_steps(steps, lidar.settings.steps)
        gradients = images * (steps - 1) * rows_of(lidar.pipe, call)
        return sampling_cost(lidar, images) + looks_cost(lidar, images * steps, backward_passes=gradients)

    def looks(self, steps: int) -> range:
        """Return the steps of a run of ``steps`` at which particles are weighed: all."""
        return range(steps)

    def _check(self, lidar: LiDAR) -> None:
        check_differentiable(lidar, "DAS")
        check_own_noise(lidar, "DAS", "proposes along the noise of every step")
        if takes_own_steps(lidar):
            check_ddim(lidar.pipe.scheduler, "DAS proposes steps")
        check_population(lidar, "DAS", "proposes steps")


def _check_steps(steps: int, tempered: int) -> None:
    """Refuse a run of other steps than those over which the temper is defined."""
    if steps != tempered:
        raise ValueError(
            f"DAS goes from pure noise to the end in the {tempered} steps of the settings, and the pipeline "
            f"takes {steps}: set steps={steps} if it starts from pure noise, as image-to-image does not"
        )


class Tempered(Particles):
    """The hook that proposes, weighs and resamples populations; their rewards must be differentiable.

    Args:
        steps: of the temper, which must be those of the call.

    Attributes:
        gradients: of how many clean predictions the gradient was taken.
    """

    who = "DAS"

    def __init__(self, *args: Any, steps: int) -> None:
        super().__init__(*args)
        self.steps, self.gradients = steps, 0
        self._log_weights = torch.zeros(len(self.generators), 1, dtype=torch.float64)  # (P, k), without this tilt

    def start(self, steps: int) -> None:
        """Refuse a call in other steps than the temper is made for."""
        _check_steps(steps, self.steps)
        super().start(steps)

    def before(self, step: Step) -> Step:
        """Weigh, resample, and lean the noise of the step; the sample is a leaf of the graph of the output."""
        self._step += 1
        sample, last = step.x_t, self._step == self._last
        sigma = step.deviation
        if sigma is None:  # DDIM draws its own
            _, sigma = new_noise(step.eta, step.level, next_level(step))
        if not (sigma > 0 or last):
            raise ValueError("DAS proposes along the noise of the sampler, and this step has none: set eta above 0")
        rewards = self.rewards(step.x0)
        self.evaluations += len(sample)
        g = torch.zeros_like(sample)
        if not last:
            (g,) = torch.autograd.grad(rewards.sum(), sample)
            self.gradients += len(sample)
        chosen = self._resample(rewards)
        survivors = rows(chosen, chosen.shape[1]).to(sample.device)
        step = step.without_graph().with_rows(survivors)
        if last:
            return step
        then = self.settings.temper(self._step + 1, self._last + 1)
        g = then * self.settings.reward_scale * g[survivors]
        z = noise_like(g, step.generator) if step.noise is None else step.noise
        correction = (sigma * z.double() * g + sigma**2 / 2 * g.double().square()).flatten(1).sum(1)
        self._log_weights = self._log_weights - correction.cpu().view_as(chosen)
        return step.with_noise(z + sigma * g)

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Start the graph of the next step."""
        return x.detach().requires_grad_()

    def choose(self, r: Tensor) -> Tensor:
        """Resample the populations that need it, by rewards (P, k); their weights are equal then."""
        last, count = self._step == self._last, r.shape[1]
        tilt = self.settings.temper(self._step, self._last + 1) * self.settings.reward_scale * r
        log_weights = self._log_weights + tilt
        weights = log_weights.softmax(1)
        enough = torch.inf if last else self.settings.threshold * count
        stays = weights.square().sum(1, keepdim=True).reciprocal() >= enough
        chosen = torch.stack(
            [
                torch.arange(count) if stay else ssp(row, generator)
                for stay, row, generator in zip(stays, weights, self.generators, strict=True)
            ]
        )
        self._log_weights = torch.where(stays, log_weights, 0.0) - tilt.gather(1, chosen)
        return chosen
