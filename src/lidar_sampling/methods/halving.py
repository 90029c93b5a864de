"""Successive halving: many seeds start, those whose clean predictions the reward likes go on.

After some of the steps the reward looks at every seed's prediction of the clean sample, and half of them are dropped;
so early steps are spent on many seeds and late ones on few (Jamieson and Talwalkar 2016,
https://arxiv.org/abs/1502.07943; for diffusion as progressive seed pruning, https://arxiv.org/abs/2607.21591).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .._cost import metered
from .._decode import pictures
from .._draw import Item, seed_of
from .._hooks import Segment, attached, check_memoryless
from .._result import Result
from .._sampler import LiDAR
from ._face import best


@dataclass(frozen=True)
class Halving:
    """Successive halving of seeds.

    Attributes:
        n: seeds a prompt at the start, at least as many as images are wanted.
        keep_at: fractions of the steps after which half of the seeds are dropped.
        steps: denoising steps; None takes those of the settings.
    """

    n: int = 16
    keep_at: tuple[float, ...] = (0.25, 0.5)
    steps: int | None = None

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` samples a prompt, the best of those that reach the end.

        It costs the steps of every seed as far as it gets, and a decode and a reward call each time it is looked at.

        Raises:
            ValueError: more images than reach the end, or a scheduler whose memory would stay with the dropped.
        """
        check_memoryless(lidar.pipe.scheduler, "successive halving goes on with some of the samples")
        steps = lidar.settings.steps if self.steps is None else self.steps
        stops = [round(fraction * steps) for fraction in self.keep_at]
        if not all(a < b for a, b in pairwise([0, *stops, steps])):
            raise ValueError(f"keep_at must be rising fractions that differ in {steps} steps, got {self.keep_at}")
        end = self.n >> len(stops)
        if not 1 <= images <= end:
            raise ValueError(f"images must be 1 to the {end} that reach the end, got {images}")
        result, x0 = self._segment(lidar, prompts, self.n, seed, steps, 0, stops[0], None)
        cost, latents = result.cost["sampling"], result.latents
        for start, stop in pairwise([*stops, steps]):
            with metered(lidar.pipe, "lookahead") as looking:
                looks = pictures(lidar.pipe, x0, lidar.batch_size).cpu().unflatten(0, latents.shape[:2])
            looking.decodes = len(x0)
            kept, selection = best(lidar, replace(result, images=looks), latents.shape[1] // 2)
            cost += looking + selection
            result, x0 = self._segment(
                lidar,
                prompts,
                kept.latents.shape[1],
                seed,
                steps,
                start,
                None if stop == steps else stop,
                kept.latents,
            )
            cost, latents = cost + result.cost["sampling"], result.latents
        kept, selection = best(lidar, result, images)
        return replace(kept, seed=seed, cost={"sampling": cost + selection})

    def _segment(
        self,
        lidar: LiDAR,
        prompts: Sequence[str],
        alive: int,
        seed: int,
        steps: int,
        start: int,
        stop: int | None,
        latents: Tensor | None,
    ) -> tuple[Result, Tensor]:
        """Steps ``start`` to ``stop`` of ``alive`` samples a prompt, and their clean predictions (P alive, *)."""
        predictions: list[Tensor] = []

        @contextmanager
        def segment(batch: Sequence[Item]) -> Iterator[None]:
            hook = Segment(start, stop)
            with attached(lidar.pipe.scheduler, hook):
                yield
            if hook.x0 is not None:
                predictions.append(hook.x0.cpu())

        result = lidar.sample(
            list(prompts),
            alive,
            seed_of(seed, f"step {start}", "", 0) if start else seed,  # noise that no earlier segment has met
            around=segment,
            call=lidar.arguments(num_inference_steps=steps),
            rows={} if latents is None else {"latents": latents.flatten(0, 1).to(lidar.pipe.device)},
            decoded=stop is None,
        )
        return result, torch.cat(predictions)
