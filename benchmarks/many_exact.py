"""Many pictures per prompt, on a model that needs its steps: a Gaussian mixture with contents and details.

    python -m benchmarks.many_exact --out docs/results/many

On glyph ten steps are as good as fifty, so selection among ten-step samples is cheap there. Here the denoiser is
exact, and few steps are worse: 40 contents are far apart, each with 40 details close to one another, and a sample of
few steps ends between details. A prompt is a table of rewards, one per content. The guiding reward reads only the
table, as a CLIP sees content before sharpness. The judge subtracts what a sample lacks in sharpness: its distance
from the nearest detail, in spreads, beyond that of an exact sample.

Every method gets as many evaluations as LiDAR needs for M pictures at 50 steps, with a bank of 50 in 5 steps.
Diversity is the share of pairs of kept pictures whose contents differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import Tensor

from lidar_sampling import LookaheadBank, guide
from lidar_sampling._guidance import auto_strength
from lidar_sampling.evaluation.rows import Interval, estimate

from ._command import command
from ._differences import draw_differences

CONTENTS, DETAILS, DIMENSIONS, APART, SPREAD = 40, 40, 16, 0.1, 0.01
STEPS, N, LOOKAHEAD = 50, 50, 5
KEPT = (1, 4, 16, 64)
SELECTED_FROM = (5, 10, 25, 50)  # steps of the samples that selection draws
_GENERATOR = torch.Generator().manual_seed(0)
CENTRES = (
    torch.randn(CONTENTS, 1, DIMENSIONS, generator=_GENERATOR)
    + APART * torch.randn(1, DETAILS, DIMENSIONS, generator=_GENERATOR)
).flatten(0, 1)


def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return E[x_0 | x_t] of the mixture."""
    variance = alpha**2 * SPREAD**2 + sigma**2
    weights = (-torch.cdist(x, alpha * CENTRES).square() / (2 * variance)).softmax(1)
    gain = alpha * SPREAD**2 / variance
    return (1 - gain * alpha) * weights @ CENTRES + gain * x


def draw(scheduler: diffusers.SchedulerMixin, steps: int, count: int, seed: int) -> Tensor:
    """Return samples (count, DIMENSIONS) of a scheduler with the exact denoiser."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = torch.randn(count, DIMENSIONS, generator=generator)
    for t in scheduler.timesteps:
        signal = float(scheduler.alphas_cumprod[t])
        alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        noise = (x - alpha * denoise(x, alpha, sigma)) / sigma
        x = scheduler.step(noise, t, x, generator=generator).prev_sample
    return x


def plain(steps: int, count: int, seed: int) -> Tensor:
    """Return samples of DDPM."""
    return draw(diffusers.DDPMScheduler(clip_sample=False), steps, count, seed)


def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the content of each sample (B,), and its lack of sharpness (B,)."""
    distance, mode = torch.cdist(x, CENTRES).min(1)
    return mode // DETAILS, (distance / (SPREAD * DIMENSIONS**0.5) - 1.2).clamp_min(0)


def draw_guided(rewards: Tensor, count: int, seed: int) -> Tensor:
    """Return samples of LiDAR."""
    solver = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min")
    members = draw(solver, LOOKAHEAD, N, seed + 1)
    bank = LookaheadBank(members, {"r": rewards[nearest(members)[0]]}, "mixture")
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    strength = auto_strength(bank.reward(), 0.25)
    with guide(scheduler, bank, scale=1.0, reward_scale=strength, window=(1.0, 0.2)):
        return draw(scheduler, STEPS, count, seed)


class Pool:
    """Samples by their guiding reward (B,), judge (B,) and content (B,)."""

    def __init__(self, x: Tensor, rewards: Tensor) -> None:
        self.content, blur = nearest(x)
        self.reward = rewards[self.content]
        self.judge = self.reward - blur

    def judge_best(self, best: int, of: int) -> tuple[float, float]:
        """Return the judge's mean and the diversity of the ``best`` per block of ``of`` samples, averaged."""
        found = []
        for start in range(0, len(self.judge) - of + 1, of):
            order = self.reward[start : start + of].argsort(descending=True)[:best] + start
            content = self.content[order]
            differ = (content[:, None] != content[None]).float().sum() / max(1, best * (best - 1))
            found.append((float(self.judge[order].mean()), float(differ)))
        judge, diversity = np.mean(found, axis=0)
        return float(judge), float(diversity)


def judge(prompt: int) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Return the judge's mean, the diversity and the evaluations per picture, by method and M."""
    rewards = torch.randn(CONTENTS, generator=torch.Generator().manual_seed(1000 + prompt))
    most, bank, seed = max(KEPT), N * LOOKAHEAD, 10_000 + 100 * prompt
    budgets = {kept: kept * STEPS + bank for kept in KEPT}
    lidar = Pool(draw_guided(rewards, most, seed), rewards)
    pools = {steps: Pool(plain(steps, budgets[most] // steps, seed + steps), rewards) for steps in SELECTED_FROM}
    found = {}
    for kept, budget in budgets.items():
        found["LiDAR", kept] = (*lidar.judge_best(kept, kept), budget / kept)
        found["vanilla", kept] = (*pools[STEPS].judge_best(kept, kept), float(STEPS))
        for steps, pool in pools.items():
            found[f"best M of N@{steps}", kept] = (*pool.judge_best(kept, budget // steps), budget / kept)
    return found


def main() -> None:
    """Draw the samples, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100, help="tables of rewards (default 100)")
    parser.add_argument("--out", type=Path, required=True, help="folder of exact.md and exact.svg")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = [judge(prompt) for prompt in range(arguments.prompts)]
    (arguments.out / "exact.md").write_text(table(found))
    lines = {
        f"best M of N, {steps} steps": [(kept, *less_lidar(found, f"best M of N@{steps}", kept)[:3]) for kept in KEPT]
        for steps in SELECTED_FROM[1:]
    }
    draw_differences(lines, arguments.out / "exact.svg", title="a model that needs its steps", unit="judge")


def less_lidar(found: list[dict[tuple[str, int], tuple[float, float, float]]], method: str, kept: int) -> Interval:
    """Return the judge's paired difference to LiDAR's."""
    less = np.array([line[method, kept][0] - line["LiDAR", kept][0] for line in found])
    return estimate(less, ["all"] * len(found))


def table(found: list[dict[tuple[str, int], tuple[float, float, float]]]) -> str:
    """Return the judge's value, its difference to LiDAR's, and diversity, by M and method, as Markdown."""
    blur = {steps: float(nearest(plain(steps, 2000, 7))[1].mean()) for steps in SELECTED_FROM}
    text = (
        "# Many pictures, where steps matter\n\n"
        f"`{command()}`: {len(found)} prompts. What vanilla samples lack in sharpness: "
        + ", ".join(f"{value:.2f} in {steps} steps" for steps, value in blur.items())
        + ".\nThe judge's mean, and its paired difference to LiDAR's with a 95 % bootstrap interval over prompts.\n\n"
        "| kept | method | evaluations per picture | judge | less LiDAR's | diversity |\n|---|---|---|---|---|---|\n"
    )
    for method, kept in sorted(found[0], key=lambda row: row[1]):
        judge, diversity, cost = np.mean([line[method, kept] for line in found], axis=0)
        told = "-" if method == "LiDAR" else less_lidar(found, method, kept)
        spread = "-" if kept == 1 else f"{diversity:.2f}"
        text += f"| {kept} | {method} | {cost:.0f} | {judge:.2f} | {told} | {spread} |\n"
    return text


if __name__ == "__main__":
    main()
