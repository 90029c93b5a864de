"""Runs in parts: after each part the reward looks at clean predictions, and some of the samples go on.

So what is dropped costs no further steps. Each part is a call of the pipeline that takes its share of the schedule
(:class:`lidar_sampling._hooks.Segment`) and starts from what the part before came to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from .._cost import Cost, meter
from .._decode import pictures
from .._draw import Item, items_of, seed_of
from .._forecast import rows_of, timesteps_of
from .._hooks import Segment
from .._levels import start_scale
from .._result import Result
from .._sampler import LiDAR
from ._face import hook_batches, in_steps, looks_cost


def run_part(
    lidar: LiDAR,
    prompts: Sequence[str],
    count: int,
    seed: int,
    cuts: Sequence[float],
    part: int,
    *,
    steps: int | None,
    latents: Tensor | None = None,
) -> tuple[Result, list[Segment]]:
    """Draw ``count`` samples per prompt through one part of the schedule; return them, and the hooks, one per batch.

    Only the last part is decoded.

    Args:
        lidar: draws.
        prompts: the prompts.
        count: samples per prompt.
        seed: of all noise of this part.
        cuts: rising fractions of the steps, after each of which a part ends.
        part: from 0.
        steps: denoising steps of the whole schedule; None takes those of the sampler's call.
        latents: (P, count, *) to start from, as an earlier part returned them; None starts from noise.

    Raises:
        ValueError: a part has no step.
    """
    scheduler = lidar.pipe.scheduler
    around, hooks = hook_batches(lidar, lambda batch: Segment(cuts, part, scheduler), whole=True)
    rows = {}
    if latents is not None:  # the pipeline scales them as it would noise
        rows["latents"] = latents.flatten(0, 1).to(lidar.pipe.device) / start_scale(scheduler)
    result = lidar.sample(
        prompts,
        count,
        seed,
        around=around,
        call=in_steps(lidar, steps),
        rows=rows,
        decoded=part == len(cuts),
    )
    return result, hooks


def predictions(
    lidar: LiDAR, result: Result, segments: Sequence[Segment], items: Sequence[Item]
) -> tuple[Result, Cost]:
    """Return a part's result with the pictures of its last clean predictions, and what decoding them cost.

    Args:
        lidar: decodes, with the arguments of each prompt.
        result: of the part.
        segments: the hooks of the part, one per batch.
        items: what was drawn, one per sample.
    """
    with meter(lidar.pipe, "lookahead") as looking:
        x0 = torch.cat([segment.x0 for segment in segments if segment.x0 is not None])
        decoded = pictures(lidar.pipe, x0, lidar.batch_size, lidar.arguments(), items).cpu()
    looking.decodes = len(x0)
    return replace(result, images=decoded.unflatten(0, result.latents.shape[:2])), looking


Choose = Callable[[Result, int], tuple[Result, Cost]]


def prune(
    lidar: LiDAR,
    prompts: Sequence[str],
    alive: Sequence[int],
    cuts: Sequence[float],
    choose: Choose,
    *,
    steps: int | None,
    seed: int,
) -> tuple[Result, Cost]:
    """Draw the samples that reach the end; return them, and what the whole run cost.

    Args:
        lidar: draws.
        prompts: the prompts.
        alive: samples per prompt in each part, falling.
        cuts: rising fractions of the steps, after each of which some are dropped; one less than parts.
        choose: from samples whose images are those of their clean predictions, and a count, to those that go on and
            what choosing them cost.
        steps: as in :func:`run_part`.
        seed: of all noise.
    """
    result, hooks = run_part(lidar, prompts, alive[0], seed, cuts, 0, steps=steps)
    cost = result.cost["sampling"]
    for part, count in enumerate(alive[1:], start=1):
        items = items_of(prompts, alive[part - 1], seed, "target")
        looks, looking = predictions(lidar.with_prompts(prompts), result, hooks, items)
        kept, selection = choose(looks, count)
        noise = seed_of(seed, f"step {hooks[0].ends[part]}", "", 0)  # that no earlier part has met
        result, hooks = run_part(lidar, prompts, count, noise, cuts, part, steps=steps, latents=kept.latents)
        cost = cost + looking + selection + result.cost["sampling"]
    return replace(result, seed=seed), cost


def pruning_cost(lidar: LiDAR, alive: Sequence[int], cuts: Sequence[float], *, steps: int | None) -> Cost:
    """Return what :func:`prune` will count for one prompt with a choice by rewards: the steps of all that go on.

    Raises:
        ValueError: a part has no step.
    """
    call, segment = in_steps(lidar, steps), Segment(cuts, 0)
    segment.timesteps(timesteps_of(lidar.pipe, call))  # says where parts end
    taken = sum(count * (b - a) for count, (a, b) in zip(alive, pairwise(segment.ends), strict=True))
    network = Cost(network_evaluations=taken * rows_of(lidar.pipe, call), decodes=alive[-1])
    return network + looks_cost(lidar, sum(alive[:-1]))
