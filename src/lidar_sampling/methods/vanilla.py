"""The pipeline's own samples, in as many steps as wanted: what every method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._result import Result
from .._sampler import LiDAR
from ..solvers import Solver, running


@dataclass(frozen=True)
class Vanilla:
    """Plain sampling.

    Attributes:
        steps: denoising steps; None takes those of the sampler's settings.
        solver: a few-step solver instead of the pipeline's own scheduler; with it ``steps`` is the solver's.
    """

    steps: int | None = None
    solver: Solver | None = None

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` samples a prompt; it costs steps a sample, twice with classifier-free guidance."""
        if self.solver is not None:
            pipe = lidar.lookahead_pipeline(self.solver)
            with running(self.solver, pipe):
                call = self.solver.arguments(lidar.arguments())
                return lidar.sample(list(prompts), images, seed, pipe=pipe, call=call)
        steps = lidar.settings.steps if self.steps is None else self.steps
        return lidar.sample(list(prompts), images, seed, call=lidar.arguments(num_inference_steps=steps))
