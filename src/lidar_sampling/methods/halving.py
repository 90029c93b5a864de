"""Successive halving: many seeds start, those whose clean predictions the reward likes go on.

After some of the steps the reward looks at every seed's prediction of the clean sample, and half of them are dropped;
so early steps are spent on many seeds and late ones on few (Jamieson and Talwalkar 2016,
https://arxiv.org/abs/1502.07943; for diffusion as progressive seed pruning, https://arxiv.org/abs/2607.21591).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .._cost import Cost, metered
from .._decode import pictures
from .._draw import items_of, seed_of
from .._forecast import rows_of, timesteps_of
from .._hooks import Segment
from .._levels import data_scale, start_scale
from .._result import Result
from .._sampler import LiDAR
from ._checks import check_fields, check_level_by_step, check_population, check_start
from ._face import best, hooked, in_steps, looks_cost


@dataclass(frozen=True)
class Halving:
    """Successive halving of seeds.

    Attributes:
        n: seeds a prompt at the start, at least as many as images are wanted.
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
        """``images`` samples a prompt, the best of those that reach the end.

        It costs the steps of every seed as far as it gets, and a decode and a reward call each time it is looked at.

        Raises:
            ValueError: more images than reach the end, drops that fall on one step, a scheduler whose memory would
                stay with the dropped, or a call that ends before the samples are clean.
            TypeError: the pipeline takes no ``latents``, or starts from a picture.
        """
        self._check(lidar, images)
        result, hooks = self._segment(lidar, prompts, self.n, 0, seed, None)
        cost, latents = result.cost["sampling"], result.latents
        for part in range(1, len(self.keep_at) + 1):
            with metered(lidar.pipe, "lookahead") as looking:
                x0 = torch.cat([hook.x0 for hook in hooks if hook.x0 is not None])
                items = items_of(prompts, latents.shape[1], seed, "target")
                decoded = pictures(lidar.pipe, x0, lidar.batch_size, lidar.with_prompts(prompts).arguments(), items)
                looks = decoded.cpu().unflatten(0, latents.shape[:2])
            looking.decodes = len(x0)
            kept, selection = best(lidar, replace(result, images=looks), latents.shape[1] // 2)
            cost += looking + selection
            noise = seed_of(seed, f"step {hooks[0].ends[part]}", "", 0)  # that no earlier segment has met
            result, hooks = self._segment(lidar, prompts, kept.latents.shape[1], part, noise, kept.latents)
            cost, latents = cost + result.cost["sampling"], result.latents
        kept, selection = best(lidar, result, images)
        return replace(kept, seed=seed, cost={"sampling": cost + selection})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: the steps of each seed as far as it gets, and looks."""
        self._check(lidar, images)
        call, segment = in_steps(lidar, self.steps), Segment(self.keep_at, 0)
        segment.timesteps(timesteps_of(lidar.pipe, call))  # says where parts end
        alive = [self.n >> part for part in range(len(self.keep_at) + 1)]
        steps = sum(seeds * (b - a) for seeds, (a, b) in zip(alive, pairwise(segment.ends), strict=True))
        return Cost(network_evaluations=steps * rows_of(lidar.pipe, call)) + looks_cost(lidar, sum(alive))

    def _check(self, lidar: LiDAR, images: int) -> None:
        check_population(lidar, "successive halving", "goes on with some of the samples", copies=False)
        check_start(lidar, "successive halving")
        check_level_by_step(lidar.pipe, "successive halving", cache=False)
        end = self.n >> len(self.keep_at)
        if not 1 <= images <= end:
            raise ValueError(f"images must be 1 to the {end} that reach the end, got {images}")

    def _segment(
        self, lidar: LiDAR, prompts: Sequence[str], alive: int, part: int, seed: int, latents: Tensor | None
    ) -> tuple[Result, list[Segment]]:
        """Part ``part`` of the schedule of ``alive`` samples a prompt, and its hooks, one a batch."""
        scheduler = lidar.pipe.scheduler
        if latents is not None:
            latents = (latents.flatten(0, 1) * data_scale(scheduler) / start_scale(scheduler)).to(lidar.pipe.device)
        around, hooks = hooked(lidar, lambda batch: Segment(self.keep_at, part, scheduler))
        result = lidar.sample(
            list(prompts),
            alive,
            seed,
            around=around,
            call=in_steps(lidar, self.steps),
            rows={} if latents is None else {"latents": latents},
            decoded=part == len(self.keep_at),
        )
        return result, hooks
