"""Few-step solvers for phase 1, by name.

``dpm:N`` is DPM-Solver++ multistep in N steps (Lu et al. 2022, https://arxiv.org/abs/2211.01095), the paper's
lookahead for SD 1.5; ``dpm:N-karras`` the same on Karras's noise levels, its lookahead for SDXL. ``own:N`` is the
pipeline's own scheduler in N steps, for models with a distilled or a flow matching scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Solver:
    """A few-step solver.

    Attributes:
        name: what provenance calls it.
        steps: ``num_inference_steps``.
        scheduler: makes the scheduler to use from the pipeline's own.
    """

    name: str
    steps: int
    scheduler: Callable[[Any], Any]


def load(name: str) -> Solver:
    """The solver called ``name``: ``dpm:N``, ``dpm:N-karras`` or ``own:N`` with N at least 1.

    Raises:
        ValueError: no such solver.

    Example:
        >>> load("dpm:5").steps
        5
    """
    match = re.fullmatch(r"(dpm|own):([1-9]\d*)(-karras)?", name)
    if match is None or (match[1] == "own" and match[3]):
        raise ValueError(f"unknown solver {name!r}; known are dpm:N, dpm:N-karras and own:N, for example dpm:5")
    if match[1] == "own":
        return Solver(name, int(match[2]), _own)
    return Solver(name, int(match[2]), _dpm_karras if match[3] else _dpm)


def _own(scheduler: Any) -> Any:
    return type(scheduler).from_config(scheduler.config)


def _dpm(scheduler: Any, **changes: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    if "beta_schedule" not in scheduler.config:
        raise ValueError(
            f"dpm:N starts from the noise schedule of a diffusion model, which {type(scheduler).__name__} "
            f"does not have; use own:N"
        )
    # The solver's own spacing: the one a scheduler was saved with is made for many steps.
    return DPMSolverMultistepScheduler.from_config(
        scheduler.config, timestep_spacing="linspace", thresholding=False, **changes
    )


def _dpm_karras(scheduler: Any) -> Any:
    return _dpm(scheduler, use_karras_sigmas=True)
