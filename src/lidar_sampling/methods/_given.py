"""Schedulers that take exactly the timesteps that they were given, whatever the pipeline sets.

Few pipelines take timesteps from the user, and flow models shift those that they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from ..solvers._dpm import NO_SPACING
from ._checks import is_flow


class GivenDiffusion(DPMSolverMultistepScheduler):
    """The scheduler of a diffusion model that takes the timesteps ``times``, which fall, and no others."""

    times: Sequence[float]

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, timesteps: Any = None) -> None:
        """Set the steps to ``times``."""
        super().set_timesteps(device=device, timesteps=list(self.times))  # type: ignore[misc]

    def level_of(self, time: float) -> tuple[float, float]:
        """Return (alpha, sigma) at a timestep."""
        signal = float(self.alphas_cumprod[int(time)])  # type: ignore[attr-defined]
        return signal**0.5, (1 - signal) ** 0.5


class GivenFlow(FlowMatchEulerDiscreteScheduler):
    """The scheduler of a flow model that takes the timesteps ``times``, which fall, and no others."""

    times: Sequence[float]

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        timesteps: Any = None,
    ) -> None:
        """Set the steps to ``times``."""
        self.num_inference_steps = len(self.times)
        levels = [self.level_of(time)[1] for time in self.times]
        self.timesteps = torch.tensor(self.times, dtype=torch.float32, device=device)
        self.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32)
        self._step_index = self._begin_index = None

    def level_of(self, time: float) -> tuple[float, float]:
        """Return (alpha, sigma) at a timestep."""
        sigma = time / self.config.num_train_timesteps  # type: ignore[attr-defined]
        return 1 - sigma, sigma


def scheduler_for(scheduler: Any) -> Any:
    """Return such a scheduler for the model that ``scheduler`` belongs to; set its ``times`` before use."""
    if is_flow(scheduler):
        return GivenFlow.from_config(scheduler.config)
    return GivenDiffusion.from_config(
        scheduler.config,
        solver_order=1,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
        thresholding=False,
        **NO_SPACING,
    )
