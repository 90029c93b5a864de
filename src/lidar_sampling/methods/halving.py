"""Successive halving: many seeds start, and those whose clean predictions the reward likes go on.

After some of the steps the reward looks at every seed's prediction of the clean sample, and half of them are dropped;
so early steps are spent on many seeds and late ones on few (Jamieson and Talwalkar 2016,
https://arxiv.org/abs/1502.07943; for diffusion as progressive seed pruning, https://arxiv.org/abs/2607.21591).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from .._cost import Cost
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ._checks import check_images, check_parts, check_population, with_noise
from ._face import best, selection_cost
from ._segments import prune, pruning_cost


@dataclass(frozen=True)
class Halving:
    """Successive halving of seeds.

    Attributes:
        n: seeds per prompt at the start, at least as many as images are wanted.
        keep_at: fractions of the steps after which half of the seeds are dropped.
        steps: denoising steps; None takes those of the sampler's call.
    """

    n: int = 16
    keep_at: tuple[float, ...] = (0.25, 0.5)
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", steps="[1, inf)")
        if not self.keep_at or not all(a < b for a, b in pairwise([0.0, *self.keep_at, 1.0])):
            raise ValueError(f"keep_at must be rising fractions between 0 and 1, got {self.keep_at}")

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt, the best of those that reach the end.

        It costs the steps of every seed as far as it gets, and a decode and a reward call each time it is looked at.

        Raises:
            ValueError: more images than reach the end, drops that fall on one step, a scheduler whose memory would
                stay with the dropped, or a call that ends before the samples are clean.
            TypeError: the pipeline takes no ``latents``, or starts from a picture.
        """
        self._check(lidar, images)
        lidar = with_noise(lidar, copies=False)
        alive, choose = self._alive, partial(best, lidar)
        result, cost = prune(lidar, prompts, alive, self.keep_at, choose, steps=self.steps, seed=seed)
        kept, selection = best(lidar, result, images)
        return replace(kept, cost={"sampling": cost + selection})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps of each seed as far as it gets, and looks."""
        self._check(lidar, images)
        pruning = pruning_cost(lidar, self._alive, self.keep_at, steps=self.steps)
        return pruning + selection_cost(lidar, self._alive[-1])

    @property
    def _alive(self) -> list[int]:
        return [self.n >> part for part in range(len(self.keep_at) + 1)]

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_population(lidar, "successive halving", "goes on with some of the samples", copies=False)
        check_parts(lidar, "successive halving")
        end = self._alive[-1]
        check_images(images, end, "the {} that reach the end")
