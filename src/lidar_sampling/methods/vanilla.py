"""The pipeline's own samples, in as many steps as wanted: every method is measured against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .._cost import Cost
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ..solvers import Solver, use_solver
from ._face import in_steps, sampling_cost, solver_cost


@dataclass(frozen=True)
class Vanilla:
    """Plain sampling.

    Attributes:
        steps: denoising steps; None takes those of the sampler's call.
        solver: a few-step solver instead of the pipeline's own scheduler, which brings steps of its own.
    """

    steps: int | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)")
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise TypeError(f"solver must be a Solver, such as solvers.load('dpm:5'), got {self.solver!r}")
        if self.solver is not None and self.steps is not None:
            raise ValueError(f"{self.solver.name} brings steps of its own: leave out steps={self.steps}")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt; classifier-free guidance doubles the evaluations of a step."""
        with self.use_pipeline(lidar) as (lidar, pipe, call):
            return lidar.sample(prompts, images, seed, pipe=pipe, call=call)

    @contextmanager
    def use_pipeline(self, lidar: LiDAR) -> Iterator[tuple[LiDAR, Any, dict[str, Any]]]:
        """Yield the sampler, the pipeline that draws and the arguments of its call, while the block lasts.

        A solver takes its own steps, as it does for a bank, whatever noise the sampler has.
        """
        if self.solver is None:
            yield lidar, lidar.pipe, in_steps(lidar, self.steps)
            return
        lidar = lidar.with_settings(noise=None) if lidar.settings.noise is not None else lidar
        pipe = lidar.lookahead_pipeline(self.solver)
        with use_solver(self.solver, pipe):
            yield lidar, pipe, self.solver.arguments(lidar.arguments())

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps of ``images`` samples."""
        if self.solver is not None:
            return solver_cost(lidar, self.solver, images)
        return sampling_cost(lidar, images, call=in_steps(lidar, self.steps))
