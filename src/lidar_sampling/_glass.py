r"""Transitions over several steps, sampled by an ODE: GLASS flows (Holderrieth et al. 2025, arXiv 2509.25170).

One Gaussian step (:mod:`lidar_sampling._kernel`) has the law of the true transition p(x' | x) only where it is short:
over a long one p(x_0 | x) is no single point. A transition from the level (alpha, sigma) to (alpha', sigma') is

    x' = gamma x + alpha_bar x_0 + sigma_bar eps,      x_0 ~ p(x_0 | x),
    gamma = rho sigma' / sigma,   alpha_bar = alpha' - gamma alpha,   sigma_bar = sigma' sqrt(1 - rho^2),

a flow model of its own within the model: from gamma x + noise to x'. Its denoiser E[x_0 | x, x_s], of x and of the
place x_s on that way, is the model's own at another level: both are x_0 with noise, and signal-to-noise ratios
alpha^2 / sigma^2 of independent observations add up. So the network is shown their sum, weighed by precision.

Here rho is that of DDPM, alpha sigma' / (alpha' sigma), so x' has all that x says of x_0, and the levels on the way
run from that of x to that of x'. Hence the steps of the scheduler itself are the inner steps, ``steps`` of them a
transition: with SNR_a that of its start, one of them goes on from the level of SNR to that of SNR' by

    q = SNR - SNR_a,     y' = a' x_0 + (s' / s) (y - a x_0),     a = sqrt(q / (1 + q)),  s = sqrt(1 / (1 + q)),
    x' = alpha' (SNR_a x_a / alpha_a + sqrt(q' (1 + q')) y') / SNR',

y being pure noise at the start and q' = SNR' - SNR_a. With one step a transition that is the step of ``ddpm``, and
with all steps in one the deterministic sampler. The network is asked no more often than by any other sampler.

(Of the paper its beginning was read; the formulas are those of third parties' implementations of it, and were derived
and tested anew. The paper also takes other rho, which need levels beyond the scheduler's.)
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._kernel import next_level, noise_like
from ._steps import Hook, Step


class Glass(Hook):
    """The hook under which every ``steps`` steps are one transition, whatever the scheduler made of them.

    A transition ends early where particles go on from one another, so that copies part at once.

    Args:
        steps: of a transition; the last of a call may have fewer.
        generator: one, or one per row, for pipelines that do not hand theirs to the scheduler.
    """

    def __init__(self, steps: int, generator: Any = None) -> None:
        self.steps, self.generator = steps, generator
        self._here, self._there, self._taken = (0.0, 1.0), (1.0, 0.0), 0  # levels, and steps of this transition
        self._base, self._path = torch.empty(0), torch.empty(0)  # the sample at the start, and y
        self._known, self._weight = 0.0, 0.0  # SNR and alpha / sigma^2 of the start

    def before(self, step: Step) -> Step:
        """Learn where the step leads, and draw the noise of a transition that may start here."""
        level = step.level
        self._here, self._there = (level.alpha, level.sigma), next_level(step)
        if not self._there[1]:
            return replace(step, deviation=0.0)
        return step.with_noise(
            noise_like(step.x_t, self.generator if step.generator is None else step.generator), 0.0
        )

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Return the sample that the formula gives, in the precision of ``x``."""
        (signal, noise), (alpha, sigma) = self._here, self._there
        if noise == 0:
            return x
        here = (signal / noise) ** 2
        if self._taken % self.steps == 0 or step.taken is not None:
            self._taken, self._known, self._weight = 0, here, signal / noise**2
            self._base = step.x_t.detach() if step.ends_graph else step.x_t
            self._path = torch.zeros_like(step.x_t) if step.noise is None else step.noise
        self._taken += 1
        if not sigma:
            return (alpha * step.x0).to(x.dtype)
        there = (alpha / sigma) ** 2
        a, s = _unit(here - self._known)
        to, rest = _unit(there - self._known)
        path = to * step.x0 + rest / s * (self._path - a * step.x0)
        self._path = path.detach() if step.ends_graph else path
        return (alpha / there * self._weight * self._base + alpha / there * to / rest**2 * path).to(x.dtype)


def _unit(ratio: float) -> tuple[float, float]:
    """Return (a, s) of unit length for a signal-to-noise ratio a^2 / s^2.

    >>> _unit(0.0), _unit(1.0)[0] == _unit(1.0)[1]
    ((0.0, 1.0), True)
    """
    return math.sqrt(max(0.0, ratio) / (1 + max(0.0, ratio))), math.sqrt(1 / (1 + max(0.0, ratio)))
