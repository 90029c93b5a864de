"""Guidance that does not collapse: other weights of the same bank, beside LiDAR's.

    python -m benchmarks.collapse --prompts development --out docs/results/collapse
    python -m benchmarks.collapse --prompts reported --out docs/results/collapse

In most guided steps both weightings of a bank rest on one member each, so guidance draws the best member again. Each
row weighs the same bank of a prompt otherwise, from the same noise, 25 steps, four pictures, bfloat16:

    lidar           glyph's settings; ``auto``: the strength follows from each bank
    grid=g          weights by g x g cells of x_t, which the library has; with ``auto``, where it says so
    tempered t      every logit of the kernel times t, as if the noise were larger
    pca k, random k weights by k principal components of the bank, or by k random directions
    .., projected   the shift moves those directions alone, and is the gradient of the projected law
    stop            no shift where both effective sample sizes are below 1.05
    related         the bank of another prompt of the same kind, scored for this one
    refresh k       at step k each sample gets a bank of its own, 8 rollouts of 3 steps from x_t, weighed by the exact
                    law of the forward process between two levels; ``lidar+``: after guidance by the prompt's bank

``development`` prompts chose what ``reported`` prompts are asked; no prompt is in both. What is done is kept in
results.jsonl, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar_sampling import LiDAR, LookaheadBank, glyph, methods
from lidar_sampling._decode import pictures
from lidar_sampling._draw import Item
from lidar_sampling._guidance import Members, auto_strength
from lidar_sampling._hooks import Hook, Step
from lidar_sampling._levels import NoiseLevel
from lidar_sampling._result import Result
from lidar_sampling._settings import Strength
from lidar_sampling.evaluation.rows import estimate
from lidar_sampling.methods._face import hook_batches, rewards_of_predictions
from lidar_sampling.methods._rollout import Rollout
from lidar_sampling.rewards import diversity, features_of, score
from lidar_sampling.runs._lines import fill, read_objects

from .many import by_turns

STEPS, IMAGES = 25, 4
JUDGES = ("glyph", "glyph-heldout", "geneval")
AUTO = "reward_scale=auto"
REPORTED = ("vanilla", "lidar", f"lidar:{AUTO}", f"lidar:{AUTO},grid=2", f"lidar:{AUTO},grid=2,ess=0.1")
Shift = Callable[[Tensor, NoiseLevel], Tensor]


def main() -> None:
    """Draw what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", choices=("development", "reported"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and table.md")
    parser.add_argument("--table", action="store_true", help="draw nothing, write the table of what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    names = REPORTED if arguments.prompts == "reported" else (*REPORTED, *FURTHER, *OTHERS)
    units = [
        {"set": arguments.prompts, "prompt": line["prompt"], "tag": line["tag"], "row": name}
        for line in prompts_of(arguments.prompts)
        for name in names
    ]
    if not arguments.table:
        lidar = LiDAR.from_pretrained("glyph", dtype=torch.bfloat16, steps=STEPS, batch_size=16)
        banks: dict[str, LookaheadBank] = {}
        for line in fill(path, units, partial(measure, lidar, banks)):
            print(line["prompt"], line["row"], flush=True)
    (arguments.out / "table.md").write_text(table(read_objects(path)))


def prompts_of(which: str) -> list[dict[str, Any]]:
    """Return prompts of both splits: 48 that another benchmark reports too, or 24 that none reports."""
    every = {split: glyph.prompts(split) for split in ("geneval", "hard")}
    reported = [glyph.spread(every["geneval"], 4), glyph.spread(every["hard"], 8)]
    if which == "reported":
        return [line for pair in zip(*map(by_turns, reported), strict=True) for line in pair]
    known = {line["prompt"] for lines in reported for line in lines}
    known |= {line["prompt"] for count in (10, 11) for line in glyph.spread(every["geneval"], count)}
    known |= {line["prompt"] for line in glyph.spread(every["hard"], 20)}
    positions = [line for line in every["hard"] if line["tag"] == "color_position"]
    known |= {line["prompt"] for line in glyph.spread(positions, 60)}
    chance, chosen = random.Random(7), []
    for split, tags in (
        ("geneval", ("two_object", "counting", "colors", "position", "color_attr")),
        ("hard", ("color_position", "two_counts", "three_objects")),
    ):
        for tag in tags:
            left = [line for line in every[split] if line["tag"] == tag and line["prompt"] not in known]
            chosen += chance.sample(left, 3)
    return by_turns(chosen)


def measure(lidar: LiDAR, banks: dict[str, LookaheadBank], unit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means over the pictures of one row, and the effective sample sizes at the first guided step."""
    prompt, name = unit["prompt"], unit["row"]
    if prompt not in banks:
        banks.clear()
        banks[prompt] = lidar.look(prompt)[0]
    if name in OTHERS:
        result = lidar.judge(OTHERS[name](lidar, banks[prompt], unit))
    elif name == "vanilla":
        result = lidar.vanilla(prompt, images=IMAGES)
    else:
        result = methods.load(name).sampler(lidar)(prompt, images=IMAGES, banks=banks[prompt])  # type: ignore[attr-defined]
    return means(lidar, result)


def means(lidar: LiDAR, result: Result) -> dict[str, float]:
    """Return the means of the judges over the pictures of a judged result, and their diversity."""
    features = features_of([judge for judge in lidar.metrics if judge.name == "glyph-heldout"], result.images[0])
    values = {judge: round(float(result.rewards[judge].mean()), 5) for judge in JUDGES}
    return {**values, "diversity": round(float(diversity(features)), 5)}


class Weights(Hook):
    """The hook that shifts by other weights, in glyph's window and at its scale."""

    def __init__(self, shift: Shift, scale: float) -> None:
        self.shift, self.scale = shift, scale

    @torch.no_grad()
    def before(self, step: Step) -> Step:
        """Shift the clean prediction of a step in the window."""
        level = step.level
        if level.sigma == 0 or level.time <= 0.2:
            return step
        return step.with_shift(self.scale * self.shift(step.x_t, level))


def by_weights(
    lidar: LiDAR,
    bank: LookaheadBank,
    unit: Mapping[str, Any],
    *,
    look: Callable[[Tensor], Tensor] | None = None,
    power: float = 1.0,
    projected: bool = False,
    stop: bool = False,
    strength: Strength = 20.0,
    scale: float = 6.0,
    log_weights: Tensor | float = 0.0,
) -> Result:
    """Return samples guided by the posterior means given ``A x_t``, with A (k, D) that ``look`` makes of the bank.

    Members weigh alike beforehand, or by ``log_weights`` (n,).
    """
    r = bank.reward().double()
    tilt = (auto_strength(r, 0.25) if strength == "auto" else strength) * (r - r.max())
    x = bank.samples.flatten(1).double()
    mean = x.mean(0)
    y = x - mean
    a = None if look is None else look(y)
    keys = y if a is None else y @ a.T

    def shift(x_t: Tensor, level: NoiseLevel) -> Tensor:
        seen = x_t.flatten(1).double() - level.alpha * mean
        seen = seen if a is None else seen @ a.T
        logits = power * (level.alpha * seen @ keys.T - level.alpha**2 * keys.square().sum(1) / 2) / level.sigma**2
        logits = logits + log_weights
        plain, tilted = logits.softmax(1), (logits + tilt).softmax(1)
        delta = (tilted - plain) @ y
        if projected and a is not None:
            delta = delta @ a.T @ a
        if stop:
            alone = (plain.square().sum(1) > 1 / 1.05) & (tilted.square().sum(1) > 1 / 1.05)
            delta = delta * ~alone[:, None]
        return delta.view_as(x_t).to(torch.float32)

    around, _ = hook_batches(lidar, lambda batch: Weights(shift, scale))
    return lidar.sample([unit["prompt"]], IMAGES, 0, around=around)


def principal(y: Tensor, k: int) -> Tensor:
    """Return the first k principal components (k, D) of a centred bank."""
    return torch.linalg.svd(y, full_matrices=False).Vh[:k]


def at_random(y: Tensor, k: int) -> Tensor:
    """Return k orthonormal random directions (k, D)."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(y.shape[1], k, generator=generator, dtype=y.dtype)).Q.T


def by_related(lidar: LiDAR, bank: LookaheadBank, unit: Mapping[str, Any]) -> Result:
    """Return samples guided by the bank of another prompt with the same first object, scored for this one."""
    every = glyph.prompts("geneval") + glyph.prompts("hard")
    mine = next(line for line in every if line["prompt"] == unit["prompt"])
    first = mine["include"][0]["class"]
    others = [line for line in every if line["prompt"] != mine["prompt"]]
    alike = [line for line in others if line["tag"] == mine["tag"] and line["include"][0]["class"] == first]
    near = alike or [line for line in others if first in [each["class"] for each in line["include"]]]
    theirs = lidar.look(near[0]["prompt"])[0]
    images = pictures(lidar.pipe, theirs.samples.to(lidar.pipe.dtype), lidar.batch_size)
    rewards = score(lidar.reward, images=images.float(), prompts=[unit["prompt"]] * len(images))
    (name,) = bank.rewards
    scored = replace(theirs, prompt=unit["prompt"], rewards={name: rewards})
    return lidar.draw_guided([unit["prompt"]], IMAGES, 0, [scored])


class Refresh(Hook):
    """The hook that gives each sample a bank of its own on the way.

    Members drawn from p(x_0 | x_t) are weighed by p(x_s | x_0, x_t) at a later level s: a Gaussian of precision
    1 / sigma_s^2 + a^2 / v around the mean of both ends, a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2.
    """

    def __init__(
        self, lidar: LiDAR, batch: Sequence[Item], at: Sequence[int], scale: float, first: Shift | None
    ) -> None:
        self.at, self.scale, self.first = at, scale, first
        self.rollout = Rollout(lidar, batch, steps=3, samples=8)
        self.rewards = rewards_of_predictions(lidar, [item for item in batch for _ in range(8)])
        self.bank: tuple[Tensor, Tensor, NoiseLevel, Tensor] | None = None

    @torch.no_grad()
    def before(self, step: Step) -> Step:
        """Draw the banks of the step where they are due; shift by those that are there."""
        level, x = step.level, step.x_t.flatten(1).float()
        if step.index in self.at:
            ends = self.rollout(step).float()
            tilt = 20.0 * self.rewards(ends.to(step.x_t.dtype)).float().view(len(x), 8)
            self.bank = ends.view(len(x), 8, -1), tilt, level, x
        if level.sigma == 0 or (self.bank is not None and level.time <= 0.2):
            return step
        if self.bank is None:
            return step if self.first is None else step.with_shift(6.0 * self.first(step.x_t, level))
        y, tilt, then, x_then = self.bank
        logits = torch.zeros_like(tilt)
        if level.alpha != then.alpha:
            a = then.alpha / level.alpha
            v = then.sigma**2 - a**2 * level.sigma**2
            variance = 1 / (1 / level.sigma**2 + a**2 / v)
            mean = variance * (level.alpha * y / level.sigma**2 + (a / v * x_then)[:, None])
            logits = -(x[:, None] - mean).square().sum(-1) / (2 * variance)
        weights = (logits + tilt).softmax(1) - logits.softmax(1)
        delta = torch.einsum("bm,bmd->bd", weights, y).view_as(step.x_t)
        return step.with_shift((self.scale * delta).to(step.x_t.dtype))


def by_refresh(
    lidar: LiDAR,
    bank: LookaheadBank,
    unit: Mapping[str, Any],
    *,
    at: Sequence[int],
    scale: float = 1.0,
    first: bool = False,
) -> Result:
    """Return samples whose banks are drawn on the way; by ``first``, after guidance by the bank of the prompt."""
    lidar = lidar.with_prompts([unit["prompt"]])
    members = Members(bank.samples, bank.reward(), reward_scale=20.0)
    whole: Shift = lambda x_t, level: members.shift(x_t, alpha=level.alpha, sigma=level.sigma)[0]  # noqa: E731
    around, _ = hook_batches(lidar, lambda batch: Refresh(lidar, batch, at, scale, whole if first else None))
    return lidar.sample([unit["prompt"]], IMAGES, 0, around=around)


FURTHER = (
    "lidar:grid=2",
    f"lidar:{AUTO},grid=1",
    f"lidar:{AUTO},grid=4",
    f"lidar:scale=10.0,{AUTO},grid=2",
)
OTHERS: dict[str, Callable[[LiDAR, LookaheadBank, Mapping[str, Any]], Result]] = {
    "stop": partial(by_weights, stop=True),
    "scale 3": partial(by_weights, scale=3.0),
    "tempered .1": partial(by_weights, power=0.1),
    "tempered .02": partial(by_weights, power=0.02),
    "tempered .1, auto": partial(by_weights, power=0.1, strength="auto"),
    "pca 8": partial(by_weights, look=partial(principal, k=8)),
    "pca 8, projected": partial(by_weights, look=partial(principal, k=8), projected=True),
    "pca 3": partial(by_weights, look=partial(principal, k=3)),
    "random 64": partial(by_weights, look=partial(at_random, k=64)),
    "related": by_related,
    "refresh 8": partial(by_refresh, at=(8,)),
    "refresh 8, scale 3": partial(by_refresh, at=(8,), scale=3.0),
    "refresh 5 and 12": partial(by_refresh, at=(5, 12)),
    "lidar+refresh 8": partial(by_refresh, at=(8,), first=True),
}


def table(lines: list[dict[str, Any]]) -> str:
    """Return gains over vanilla, and over LiDAR on the held-out reward, as Markdown."""
    text = (
        "# Other weights of a bank\n\nGains over vanilla, paired, with 95 % bootstrap intervals over prompts; in the "
        "last column the held-out reward\nless LiDAR's.\n"
    )
    for which in ("development", "reported"):
        here = [line for line in lines if line["set"] == which]
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for line in here:
            found.setdefault(line["row"], {})[line["prompt"]] = line
        if not here:
            continue
        text += (
            f"\n## {which.capitalize()} prompts\n\n"
            "| row | prompts | guiding | held-out | GenEval | diversity | less LiDAR's |\n"
            "|---|---|---|---|---|---|---|\n"
        )
        for name, row in found.items():
            cells = [less(row, found["vanilla"], key) if name != "vanilla" else "-" for key in JUDGES]
            last = less(row, found["lidar"], JUDGES[1]) if name != "lidar" else "-"
            spread = np.mean([line["diversity"] for line in row.values()])
            text += f"| {name} | {len(row)} | " + " | ".join([*cells, f"{spread:.3f}", last]) + " |\n"
    every: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        every.setdefault(line["row"], {})[line["prompt"]] = line
    text += "\n## Prompts of both sets\n\n"
    text += "| row | less | prompts | guiding | held-out | diversity |\n|---|---|---|---|---|---|\n"
    for name, other in (*combinations(REPORTED[1:4], 2), ("lidar", "related")):
        cells = [less(every[other], every[name], key) for key in (*JUDGES[:2], "diversity")]
        text += f"| {other} | {name} | {len(set(every[name]) & set(every[other]))} | " + " | ".join(cells) + " |\n"
    return text


def less(row: Mapping[str, Any], other: Mapping[str, Any], key: str) -> str:
    """Return a row's values less another's, paired over the prompts that both have, with their interval."""
    shared = [prompt for prompt in row if prompt in other]
    values = np.array([row[prompt][key] - other[prompt][key] for prompt in shared])
    return str(estimate(values, ["all"] * len(shared)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
