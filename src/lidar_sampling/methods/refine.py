"""Refinement: the best members of a bank, noised half way and denoised again by the pipeline's own sampler.

The bank is worth more as a start than as a pull where both weightings collapse on one member: SDEdit (Meng et al.
2022, https://arxiv.org/abs/2108.01073) from few-step samples that the reward has chosen. With several refinements of
each start, of which the best are kept, it is best-of-N on both sides of the noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._cost import Cost
from .._decode import is_plain
from .._draw import seed_of
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ..solvers import load as load_solver
from ._checks import check_whole
from ._face import best, in_steps, sampling_cost, selection_cost
from .best_of import BestOf
from .vanilla import Vanilla


@dataclass(frozen=True)
class Refine:
    """The best few-step samples, noised and denoised.

    Attributes:
        n: few-step samples per prompt.
        steps: denoising steps from there; one more in pipelines that round up, such as FLUX's, if no schedule has
            just so many after its cut.
        strength: how far they are noised, 0 to 1.
        offspring: refinements of each of the best; the best of all are kept.
        solver: the few-step solver; None takes the lookahead of the settings.
    """

    n: int = 20
    steps: int = 10
    strength: float = 0.5
    offspring: int = 1
    solver: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", steps="[1, inf)", strength="(0, 1]", offspring="[1, inf)")
        if self.solver is not None:
            load_solver(self.solver)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt; it costs ``n`` few-step samples, and ``steps * offspring`` per image.

        Reward calls are ``n`` per prompt, and with offspring above 1 one per refinement.
        """
        check_whole(lidar, "refinement")
        starts = self._starts(lidar).draw(lidar, prompts, images=images, seed=seed)
        again, call = self._again(lidar)
        # Packed latents are no pictures to a pipeline that starts from one, which encodes what was decoded then.
        pictures = starts.latents if is_plain(lidar.pipe, lidar.arguments()) else starts.images
        rows = {"image": pictures.flatten(0, 1).repeat_interleave(self.offspring, 0)}
        noise = seed_of(seed, "refine", "", 0)  # the start has met the noise of the seed itself
        refined = lidar.sample(prompts, images * self.offspring, noise, pipe=again, call=call, rows=rows)
        selection = starts.cost["selection"]
        if self.offspring > 1:
            refined, choice = best(lidar, refined, images)
            selection = selection + choice
        cost = {"lookahead": starts.cost["sampling"], "selection": selection, **refined.cost}
        return replace(refined, seed=seed, cost=cost)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the starts, their rewards and the refinements."""
        check_whole(lidar, "refinement")
        starts, refined = self._starts(lidar).cost(lidar, images=images), images * self.offspring
        again, call = self._again(lidar)
        chosen = selection_cost(lidar, refined) if self.offspring > 1 else Cost()
        return starts + sampling_cost(lidar, refined, pipe=again, call=call) + chosen

    def _starts(self, lidar: LiDAR) -> BestOf:
        solver = lidar.solver if self.solver is None else load_solver(self.solver, lidar.pipe)
        return BestOf(Vanilla(solver=solver), self.n)

    def _again(self, lidar: LiDAR) -> tuple[Any, dict[str, Any]]:
        """Return the pipeline that refines, and the arguments of its call but the starts."""
        from diffusers import AutoPipelineForImage2Image

        # Image-to-image pipelines take their share of the steps: strength of them.
        whole = next(count for count in itertools.count(self.steps) if int(count * self.strength) >= self.steps)
        call = in_steps(lidar, whole, strength=self.strength)
        if is_plain(lidar.pipe, lidar.arguments()):  # whose size is the start's own
            call = {name: value for name, value in call.items() if name not in ("height", "width")}
        try:
            return AutoPipelineForImage2Image.from_pipe(lidar.pipe), call
        except ValueError:
            name = type(lidar.pipe).__name__
            raise TypeError(
                f"refinement starts from pictures, and diffusers has no such pipeline for {name}"
            ) from None
