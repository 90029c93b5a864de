"""RBF, rollover budget forcing (Kim et al. 2025, https://arxiv.org/abs/2503.19385).

A sample proposes its next state from the stochastic kernel, and the reward looks at the clean prediction of each
proposal. Every level has a quota of proposals. With r* the best reward that this sample has seen at any level,

    r > r*               the proposal is taken at once, r* <- r, and what is left of the quota rolls over to the next
    the quota is spent   the best proposal of the level is taken, and r* stays

so easy levels pay for hard ones. The first level tries ``start`` initial noises and takes the best. The last level,
whose clean prediction is the sample, spends all that is left and takes the best. So a sample of T steps always costs
``start + m (T - 1)`` proposals, of one step of the network each.

Rule and settings are those of the released code (https://github.com/KAIST-Visual-AI-Group/Flow-Inference-Time-Scaling,
b65bb07: rbf/rbf.py and config/compositional_image/rbf.yaml), which was read; of the paper only the abstract was. The
code takes FLUX.1-schnell to a variance preserving path, and steps an SDE whose noise has a size of its own. The
kernel here (:mod:`lidar_sampling._kernel`) depends on sigma / alpha alone, so another path only places the steps
elsewhere, which ``timesteps`` or ``sigmas`` of the call do; but its noise is that of DDPM, unless ``noise`` says
otherwise. The code spends one budget of 500 evaluations on two samples side by side and keeps the better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._cost import Cost
from .._draw import Item, seed_of
from .._forecast import calls_of, rows_of
from .._hooks import Step
from .._kernel import check_kernel, new_noise, next_level, noise_like, step_without_noise
from .._levels import NoiseLevel, start_scale
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_ddim, check_middle, check_own_noise, check_population, takes_own_steps, with_noise
from ._face import (
    charge_looks,
    check_comparable,
    hook_batches,
    in_steps,
    looks_cost,
    rewards_of_predictions,
    sampling_cost,
)
from ._particles import Particles
from ._predict import Predictor


@dataclass(frozen=True)
class RBF:
    """Rollover budget forcing.

    Attributes:
        m: quota of proposals per level; 22 in the released settings, which have 500 evaluations, two samples and 10
            steps. 1 chooses among initial noises alone.
        start: initial noises that are tried; 25 in the released settings.
        steps: denoising steps; None takes those of the sampler's call. The released settings have 10.
    """

    m: int = 22
    start: int = 25
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, m="[1, inf)", start="[1, inf)", steps="[1, inf)")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Return ``images`` samples per prompt, each with a budget of its own.

        A sample of T steps costs ``start + m (T - 1)`` steps of the network, and a decode and a reward call for each.

        Raises:
            ValueError: a sampler other than DDIM with noise, a flow model or a kernel (``noise="ddpm"``); a call that
                ends before the samples are clean; or a mixture that cannot score loose images.
            TypeError: the pipeline takes no ``latents``, or starts from a picture.
        """
        self._check(lidar)
        lidar = with_noise(lidar, copies=self.m > 1).with_prompts(prompts)
        call = in_steps(lidar, self.steps)

        def make(batch: Sequence[Item]) -> Proposing:
            def rewards(x0: Tensor, rows: Tensor) -> Tensor:
                return rewards_of_predictions(lidar, [batch[row] for row in rows.tolist()])(x0)

            seeds = [seed_of(item.seed, "proposals", "", 0) for item in batch]
            return Proposing(self, rewards, Predictor(lidar, batch, call), seeds)

        around, hooks = hook_batches(lidar, make)
        result = lidar.sample(prompts, images, seed, around=around, call=call)
        return charge_looks(lidar, result, sum(hook.evaluations for hook in hooks))

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the whole budget of each sample."""
        self._check(lidar)
        call = in_steps(lidar, self.steps)
        steps = calls_of(lidar.pipe, call)
        more = self.start - 1 + (self.m - 1) * (steps - 1)
        network = Cost(network_evaluations=images * more * rows_of(lidar.pipe, call))
        looks = sum(self.start if step == 0 else self.m for step in self.looks(steps))
        return sampling_cost(lidar, images, call=call) + network + looks_cost(lidar, images * looks)

    def looks(self, steps: int) -> range:
        """Return the steps of a run of ``steps`` at which proposals are rewarded: all, if there is any choice."""
        if self.m > 1 and steps > 1:
            return range(steps)
        return range(1 if self.start > 1 else 0)

    def _check(self, lidar: LiDAR) -> None:
        check_comparable(lidar)
        if self.m > 1:
            if takes_own_steps(lidar):
                check_ddim(lidar.pipe.scheduler, "RBF proposes steps")
            check_kernel(lidar.pipe.scheduler)
            check_own_noise(lidar, "RBF", "proposes along the noise of every step")
        check_population(lidar, "RBF", "goes on from one of several proposals", copies=self.m > 1)
        if self.m > 1 or self.start > 1:
            check_middle(lidar, "RBF")


class _Parents(NamedTuple):
    """The origin of a level's proposals: the step before, as it was taken."""

    x_t: Tensor
    x0: Tensor
    here: NoiseLevel
    there: tuple[float, float]
    deviation: float


class Proposing(Particles):
    """The hook that takes a proposal for each sample by the rule, and asks for more until then.

    The first proposal of a level is the step that the sampler took.

    Args:
        settings: quotas.
        rewards: from clean predictions (k, *) and the rows (k,) of the batch that they are of, to their rewards (k,).
        predict: from a step, samples (k, *) of its level and their rows (k,), to their clean predictions (k, *).
        seeds: of the noise of further proposals, one per row.

    Attributes:
        spent: proposals of each level so far, (B,) per level.
    """

    who = "RBF"

    def __init__(
        self,
        settings: RBF,
        rewards: Callable[[Tensor, Tensor], Tensor],
        predict: Callable[[Step, Tensor, Tensor], Tensor],
        seeds: Sequence[int],
    ) -> None:
        super().__init__(settings, lambda x0: rewards(x0, torch.arange(len(x0))), seeds)
        self.rewards_of, self.predict = rewards, predict
        self.spent: list[Tensor] = []
        self._best = torch.full((len(seeds),), -math.inf, dtype=torch.float64)
        self._quota = torch.full((len(seeds),), settings.start)
        self._parents: _Parents | None = None

    def before(self, step: Step) -> Step:
        """Search the level of the step, and go on from the proposals that were taken."""
        self._step += 1
        if self._step in self.times:
            step = self._search(step)
        if self.settings.m > 1 and self._step != self._last:
            there = next_level(step)
            deviation = new_noise(step.eta, step.level, there)[1] if step.deviation is None else step.deviation
            self._parents = _Parents(step.x_t, step.x0, step.level, there, deviation)
        return step

    def _search(self, step: Step) -> Step:
        """Return the step from the proposals that the rule takes at this level, and set the next quotas."""
        exhaustive = self._step in (0, self._last)
        x_t, x0 = step.x_t.clone(), step.x0.clone()
        found = self._reward(x0, torch.arange(len(x0)))
        spent, first = torch.ones_like(self._quota), torch.ones(len(x0), dtype=torch.bool)
        while True:
            rows = ((spent < self._quota) & (exhaustive | (found <= self._best))).nonzero()[:, 0]
            if not len(rows):
                break
            proposed = self._proposals(step, rows)
            predicted = self.predict(step, proposed, rows)
            rewards = self._reward(predicted, rows)
            spent[rows] += 1
            better = rewards > found[rows]
            taken, here = rows[better], better.to(x_t.device)
            x_t[taken], x0[taken], found[taken] = proposed[here], predicted[here], rewards[better]
            first[taken] = False
        self._best = self._best.maximum(found)
        self._quota = self.settings.m + self._quota - spent
        self.spent.append(spent)
        moved = (~first).nonzero()[:, 0]
        return step.with_samples(moved, x_t[moved], x0[moved]) if len(moved) else step

    def _reward(self, x0: Tensor, rows: Tensor) -> Tensor:
        """Return the rewards (k,) of clean predictions of these rows."""
        self.evaluations += len(rows)
        return self.rewards_of(x0, rows).detach().double().cpu()

    def _proposals(self, step: Step, rows: Tensor) -> Tensor:
        """Return a proposal (k, *) more for each of these rows: an initial noise, or a step of the kernel."""
        noise = noise_like(step.x_t[rows], [self.generators[row] for row in rows.tolist()])
        if self._parents is None:
            return noise * start_scale(step.scheduler)
        x_t, x0, here, there, deviation = self._parents
        rho = math.sqrt(max(0.0, 1 - (deviation / there[1]) ** 2)) if there[1] else 1.0
        return (step_without_noise(x_t[rows], x0[rows], here, there, rho) + deviation * noise).to(step.x_t.dtype)
