"""The rows: one method each, run once on a given pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks.peers import published
from benchmarks.peers.clock import now, settle
from benchmarks.peers.published import Plan
from benchmarks.peers.shapes import Shape, half
from lidar_sampling import LiDAR, accelerate, record
from lidar_sampling._batches import is_out_of_memory
from lidar_sampling._cost import Cost, meter
from lidar_sampling.methods import DATE, FKSteering, UniversalGuidance
from lidar_sampling.rewards import Reward
from lidar_sampling.solvers import load as load_solver

PROMPT = "a photo of a dog right of a teddy bear"
MOST = 16  # numbers of images at once to try on a GPU


def fast(pipe: Any, reward: Callable[[torch.dtype], Reward], shape: Shape) -> Reward:
    """Apply the levers that keep all settings: change ``pipe`` permanently, and return the reward to use with it.

    On a GPU these are the levers of the shape; on a CPU networks and reward become bfloat16.
    """
    if pipe.device.type == "cuda":
        accelerate(pipe, encode_once=True, **shape.levers)
        return reward(half(pipe.device))
    pipe.to(torch.bfloat16)
    accelerate(pipe, encode_once=True)
    return reward(torch.bfloat16)


@dataclass
class Bench:
    """The shared parts of all rows of a shape; ``most`` maps methods to how many images fit at once, if tried."""

    shape: Shape
    images: int
    gradient_steps: int
    device: torch.device
    most: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """One run of a row: cost, seconds by phase, a note, and its seconds if they differ from the clock's."""

    cost: Cost
    phases: dict[str, float] = field(default_factory=dict)
    note: str = ""
    seconds: float | None = None


Row = Callable[[Bench, LiDAR], Run]


def vanilla(bench: Bench, lidar: LiDAR) -> Run:
    """Run the pipeline itself."""
    with meter(lidar.pipe, "sampling") as cost:
        lidar.pipe(
            PROMPT,
            num_images_per_prompt=bench.images,
            generator=torch.Generator(bench.device).manual_seed(0),
            output_type="pt",
            **lidar.arguments(),
        )[0].cpu()
    return Run(replace(cost, decodes=bench.images))


def lidar_as_published(bench: Bench, lidar: LiDAR) -> Run:
    """Run LiDAR as published."""
    plan = plan_of(bench, lidar)
    bank_noise, noise = (torch.Generator(bench.device).manual_seed(seed) for seed in (0, 1))
    with meter(lidar.pipe, "sampling") as cost:
        drawn = published.sample(lidar.pipe, lidar.reward, plan, bank_noise=bank_noise, noise=noise)
    return Run(replace(cost, decodes=plan.n + plan.images, reward_calls=plan.n), drawn.seconds)


def plan_of(bench: Bench, lidar: LiDAR) -> Plan:
    """Return the settings of ``lidar`` for the published procedure."""
    how, shape = lidar.settings, bench.shape
    return Plan(
        prompt=PROMPT,
        images=bench.images,
        steps=how.steps,
        n=how.n,
        lookahead_steps=load_solver(how.lookahead, lidar.pipe).steps,
        karras=how.lookahead.endswith("-karras"),
        guidance_scale=float(how.guidance_scale or 1.0),
        eta=how.eta or 0.0,
        scale=how.scale,
        reward_scale=how.reward_scale,
        side=shape.side,
        lookahead_batch=shape.lookahead_batch,
        decode_batch=shape.decode_batch,
        decode_dtype=shape.decode_dtype,
    )


def ours(bench: Bench, lidar: LiDAR) -> Run:
    """Run both phases of the library's LiDAR."""
    marks = [now(bench.device)]

    @contextmanager
    def second_phase(batch: Any) -> Iterator[None]:
        marks.append(now(bench.device))
        yield

    result = lidar.draw_guided([PROMPT], bench.images, 0, None, around=second_phase)
    marks.append(now(bench.device))
    phases = {"lookahead": marks[1] - marks[0], "sampling": marks[-1] - marks[1]}
    return Run(sum(result.cost.values(), Cost()), phases)


def fk_steering(bench: Bench, lidar: LiDAR) -> Run:
    """Run FK steering with as many particles as images."""
    result = FKSteering().draw(lidar, [PROMPT], images=bench.images, seed=0)
    return Run(result.cost["sampling"], note=f"{bench.images} particles")


def gradient(method: Any) -> Row:
    """Return the row of a method that goes back through the network: a few steps, scaled to all."""

    def run(bench: Bench, lidar: LiDAR) -> Run:
        steps, timed, name = lidar.settings.steps, min(bench.gradient_steps, lidar.settings.steps), str(method)
        if bench.device.type == "cuda" and name not in bench.most:
            bench.most[name] = most_at_once(method, lidar, MOST)
        most = bench.most.get(name, bench.images)
        if most == 0:
            raise MemoryError("not even one image fits")
        short = lidar.with_settings(steps=timed)
        short.batch_size = min(bench.images, most)
        stamps: list[float] = []
        start = now(bench.device)
        with record(short.pipe, on_step=lambda _: stamps.append(now(bench.device))):
            result = method.draw(short, [PROMPT], images=bench.images, seed=0)
        seconds = whole(now(bench.device) - start, stamps, timed, steps)
        fit = f", {'at least ' * (most == MOST)}{most} fit" if name in bench.most else ""
        note = f"{timed} of {steps} steps timed, scaled; {short.batch_size} images at once{fit}"
        return Run(scale(result.cost["sampling"], steps / timed, bench.images), {}, note, seconds)

    return run


def whole(total: float, stamps: list[float], timed: int, steps: int) -> float:
    """Return the seconds of ``steps`` steps per batch, if ``timed`` took ``total``, with clock ``stamps``.

    >>> whole(10.0, [2.0, 4.0, 7.0, 9.0], timed=2, steps=5)  # two batches, whose steps take two seconds
    22.0
    """
    batches = [stamps[i : i + timed] for i in range(0, len(stamps), timed)]
    return total + sum((steps - timed) * (batch[-1] - batch[0]) / (timed - 1) for batch in batches)


def scale(cost: Cost, ratio: float, images: int) -> Cost:
    """Return the counts of a run of a few steps, scaled to all, except the final decoding of the images."""
    return replace(
        cost,
        network_evaluations=round(ratio * cost.network_evaluations),
        backward_passes=round(ratio * cost.backward_passes),
        decodes=round(ratio * (cost.decodes - images)) + images,
        reward_calls=round(ratio * cost.reward_calls),
    )


def most_at_once(method: Any, lidar: LiDAR, limit: int) -> int:
    """Return the largest power of two of images, at most ``limit``, that ``method`` draws in one batch; 0 if none."""
    most, size = 0, 1
    while size <= limit:
        twin: Any = copy(lidar.with_settings(steps=2))
        twin.batch_size = size
        twin.sample = partial(LiDAR.sample, twin, together=size)  # one batch, or failure
        try:
            method.draw(twin, [PROMPT], images=size, seed=0)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            break
        most, size = size, 2 * size
        settle(lidar.pipe.device)
    settle(lidar.pipe.device)
    return most


def with_preview(bench: Bench, lidar: LiDAR) -> Run:
    """Run ours with its bank scored through a small decoder, on random weights except glyph's."""
    twin = copy(lidar)
    twin.preview = bench.shape.preview().to(bench.device, lidar.pipe.unet.dtype).eval()
    return ours(bench, twin)


def with_few_steps(bench: Bench, lidar: LiDAR) -> Run:
    """Run the same with a lookahead at the cost of a distilled one: four steps without guidance."""
    return with_preview(bench, lidar.with_settings(lookahead="dpm:4-unguided"))


def in_batches_of_vanilla(bench: Bench, lidar: LiDAR) -> Run:
    """Run ours with vanilla's number of samples at a time, to see the cost of needing no more memory."""
    twin = copy(lidar)
    twin.batch_size = bench.images
    return ours(bench, twin)


ROWS: dict[str, Row] = {
    "vanilla": vanilla,
    "LiDAR, as published": lidar_as_published,
    "Universal Guidance": gradient(UniversalGuidance()),
    "DATE": gradient(DATE()),
    "FK steering": fk_steering,
    "LiDAR, ours": ours,
}
FAST = "LiDAR, ours, fast"
FASTER: dict[str, Row] = {
    FAST: ours,
    "... and a preview": with_preview,
    "... and four steps unguided": with_few_steps,
    f"{FAST}, in vanilla's batches": in_batches_of_vanilla,
}
"""The rows that run on the pipeline after :func:`fast`."""
