"""DPM-Solver++ for any model, in the place of the scheduler that the model was saved with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    CosineDPMSolverMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
)
from torch import Tensor

from .._flags import flag, in_edm_levels


class FlowDPMSolverMultistepScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver++ for pipelines that hand their scheduler the sigmas of a flow model."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
        sigmas: Any = None,
    ) -> None:
        """Set timesteps as the parent does; unevenly spaced ``sigmas``, before the shift, replace its own."""
        if sigmas is not None:
            num_inference_steps, timesteps = len(sigmas), None  # some hand over both
            if np.allclose(sigmas, np.linspace(1, 1 / num_inference_steps, num_inference_steps)):
                sigmas = None
        config: Any = self.config  # type: ignore[attr-defined]
        # Pipelines hand over mu whether or not the model shifts by it; the parent knows no linear shift.
        if mu is not None and config.use_dynamic_shifting:
            config.flow_shift = np.exp(mu) if config.time_shift_type == "exponential" else mu
        super().set_timesteps(num_inference_steps, device=device, timesteps=timesteps)  # type: ignore[misc]
        if sigmas is not None:
            levels = torch.as_tensor(np.asarray(sigmas), dtype=torch.float32)
            levels = config.flow_shift * levels / (1 + (config.flow_shift - 1) * levels)
            levels = levels.clamp(max=_FIRST)
            self.sigmas = torch.cat([levels, torch.zeros(1)])
            self.timesteps = (levels * config.num_train_timesteps).to(device)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return clean latents (B, *) noised to ``timestep`` (B,); pipelines of flow models call ``add_noise`` so."""
        return self.add_noise(sample, noise, timestep)  # type: ignore[attr-defined]


_FIRST = 0.999  # the noise level that the parent starts from, because it divides by the signal
_ODE = {"algorithm_type": "dpmsolver++"}  # whatever the target is sampled by
NO_SPACING = {f"use_{name}": False for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")}


def dpm_solver(scheduler: Any) -> Any:
    """Return the DPM-Solver++ for the model that ``scheduler`` belongs to.

    Raises:
        ValueError: its kind of noise schedule has no DPM-Solver++.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if config.get("invert_sigmas"):
        raise ValueError(f"there is no DPM-Solver for invert_sigmas=True of {name}, whose levels count up; use own:N")
    if in_edm_levels(scheduler):
        raise ValueError(f"there is no DPM-Solver for the EDM levels that {name} walks here; use own:N")
    if flag(scheduler, "timestep_type") == "continuous":
        raise ValueError(f"there is no DPM-Solver for timestep_type='continuous' of {name}; use own:N")
    if name.startswith("CogVideoX"):
        return CogVideoXDPMScheduler.from_config(config)
    if name.startswith("Cosine"):
        return CosineDPMSolverMultistepScheduler.from_config(config)
    if name.startswith("EDM"):
        return EDMDPMSolverMultistepScheduler.from_config(config, **_ODE)
    if name.startswith(("FlowMatch", "LTX")) or flag(scheduler, "use_flow_sigmas"):
        shift = config.get("flow_shift") or config.get("shift") or 1.0
        return FlowDPMSolverMultistepScheduler.from_config(
            config,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            flow_shift=shift,
            # Set for any spacing of the target: the solver's own would be that of a diffusion model, up to 157.
            final_sigmas_type="zero",
            **NO_SPACING,
            **_ODE,
        )
    if "beta_schedule" in config:
        # The solver's own spacing, because the one that a scheduler was saved with is made for many steps.
        return DPMSolverMultistepScheduler.from_config(
            config, timestep_spacing="linspace", thresholding=False, **_ODE
        )
    raise ValueError(f"there is no DPM-Solver for the noise schedule of {name}; use own:N")


def karras_dpm_solver(scheduler: Any) -> Any:
    """Return the same on the noise levels of Karras et al. 2022, for models with a discrete diffusion schedule."""
    solver = dpm_solver(scheduler)
    if type(solver) is not DPMSolverMultistepScheduler:
        raise ValueError(f"Karras's noise levels are not those of {type(scheduler).__name__}; use dpm:N")
    settings: Any = solver.config  # type: ignore[attr-defined]
    return type(solver).from_config(settings, **{**NO_SPACING, "use_karras_sigmas": True})
