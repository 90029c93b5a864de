r"""FMRG, flow map reward guidance (Huang et al. 2026, https://arxiv.org/abs/2604.27147), without a flow map.

Each step jumps from the sample to its end, differentiates the reward of the end through the network, and adds the
gradient to the velocity, at a length that the velocity sets itself:

    v  <-  v - s |v| g / |g|,      g = grad_z r(decode(z - t v)),

on the straight path ``z = (1 - t) x_0 + t eps``. A flow map would jump to where the flow ends. In the released code's
mode ``flow_matching``, which is this one, any flow model jumps to its clean prediction ``z - t v``, so nothing is
trained. In clean predictions the rule reads

    x0  <-  x0 + s |z - x0| g / |g|,

and holds for every Gaussian path: ``z = x_t / (alpha + sigma)`` lies on the straight one.

It is forward :class:`UniversalGuidance` with a length of its own. There lambda has a unit, 1 / reward, and the shift
``lambda sigma^2 / alpha grad`` grows with the gradient. Here the shift is ``s`` times as far as the sample is from
its prediction, whatever the reward's scale. It stays finite at pure noise, and ends at a share of the steps.

The form is that of the repository jrrhuang/fmrg (Apache-2.0, commit be485ba); of the paper we read the abstract only.
That code multiplies the gradient by the length of the time step, as it does the velocity. Its runs of GenEval and of
aesthetic prompts set ``use_adam``, under which the flag that asks for ``|v|`` is not read: one step of Adam, whose
direction is the sign of the gradient, at a rate that falls to 0 over the guided steps. That is the rule ``adam``,

    v  <-  v - s (1 - i / n) sign(g)      at guided step i of n.

Left out: flow maps (``flow_map1`` and ``flow_map2``), several gradients per step, and the warm-up that keeps the best
of three starts. The evaluations that it publishes ("NFE") are calls of the network forward: the names of its sweep
add up so, all but one to within two, and leave out the backward pass of every guided step. Here that is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from .._cost import Cost
from .._forecast import levels_of
from .._hooks import Step
from .._levels import NoiseLevel, check
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._face import check_differentiable
from ._gradients import Climb, climbing_cost, draw_climbing, length_of


@dataclass(frozen=True)
class FMRG:
    """Flow map reward guidance by the clean prediction.

    Attributes:
        step_size: s, the length of the gradient in lengths of the velocity; with the rule ``adam`` in units of
            latents. The released runs take 2, 3 and 5.
        end: the share of the steps, from the first, that are guided; the others are the sampler's own. The released
            runs guide a quarter or an eighth, and jump from there to the end by their flow map.
        rule: how long the gradient is: ``velocity`` or ``adam``.
    """

    step_size: float = 3.0
    end: float = 0.25
    rule: Literal["velocity", "adam"] = "velocity"

    def __post_init__(self) -> None:
        check_fields(self, step_size="[0, inf)", end="[0, 1]")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt.

        Every guided step adds a backward pass, a decode and a reward call per sample.

        Raises:
            ValueError: the reward says that it is not differentiable; or the scheduler would cut the shift away.
            TypeError: no gradient comes through the pipeline.
        """
        self._check(lidar)
        make, some = partial(Lean, self), bool(self.looks(1))
        return draw_climbing(lidar, prompts, make, images=images, seed=seed, differentiable=some)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps, and a look at each that is guided."""
        self._check(lidar)
        levels = levels_of(lidar.pipe, lidar.arguments())
        guided = sum(_is_guidable(levels[step]) for step in self.looks(len(levels)))
        return climbing_cost(lidar, images=images, steps=len(levels), climbed=guided, looks=guided)

    def looks(self, steps: int) -> range:
        """Return the steps of a run of ``steps`` that are guided: at least one, unless ``end`` or the size is 0.

        >>> FMRG().looks(50), FMRG().looks(2), FMRG(end=0.0).looks(50)
        (range(0, 13), range(0, 1), range(0, 0))
        """
        return range(math.ceil(self.end * steps - 1e-9) if self.step_size > 0 else 0)

    def shift(self, step: Step, gradient: Tensor) -> Tensor:
        """Return by how much (B, *) the clean prediction moves.

        Args:
            step: the step, whose noise level is neither clean nor unknown to the prediction.
            gradient: of the rewards with respect to the sample (B, *), each of any length.
        """
        level = step.level
        length = level.alpha + level.sigma
        if self.rule == "adam":
            guided = len(self.looks(step.total))
            return self.step_size * (1 - step.index / guided) * level.sigma / length * gradient.sign()
        away = step.x_t.detach() / length - step.x0.detach()
        return self.step_size * length_of(away) * gradient / length_of(gradient)

    def _check(self, lidar: LiDAR) -> None:
        check_differentiable(lidar, "FMRG")
        check(lidar.pipe.scheduler)


def _is_guidable(level: NoiseLevel) -> bool:
    """Return whether something is noisy, and the network's output says what is clean."""
    return level.sigma != 0 and level.slope != 0


class Lean(Climb):
    """The hook that adds the gradient to the velocity at the first steps."""

    def before(self, step: Step) -> Step:
        """Shift the prediction of a guided step; its sample is a leaf of the graph of the network's output."""
        self.taken += len(step.x_t)
        if step.index not in self.settings.looks(step.total) or not _is_guidable(step.level):
            return step.without_graph()
        return step.without_graph().with_shift(self.settings.shift(step, self.gradient(step)))

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Start the graph of the next step, if that one is guided."""
        return x.detach().requires_grad_(step.index + 1 in self.settings.looks(step.total))
