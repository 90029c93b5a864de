"""Guidance by a mixture of two rewards: the counterpart of table 6 of the LiDAR paper, on glyph.

    python -m benchmarks.mixtures --prompts 18 --out docs/results/mixtures.md

Each prompt has one bank, scored by both of glyph's CLIPs; each mixture guides by it from the same noise. Both CLIPs
guide here, so only GenEval's verdict is held out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from lidar_sampling import LiDAR, glyph, rewards
from lidar_sampling.evaluation.statistics import Interval, bootstrap, interval
from lidar_sampling.rewards import Mixture

from ._command import command

PARTS = ("glyph", "glyph-heldout")
SHARES = (1.0, 0.9, 0.5, 0.1, 0.0)

HEADER = """# Mixtures of two rewards

`{command}`: LiDAR on glyph, guided by a mixture of its two CLIPs, each standardised over the
bank of the prompt. Gains over plain samples of the same noise, paired; 95 % bootstrap intervals over prompts. Both
CLIPs guide, so only the last column is held out.

"""


def main() -> None:
    """Draw, judge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=18, help="prompts, spread over the six tags (default 18)")
    parser.add_argument("--hard", action="store_true", help="prompts of colour and position together instead")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default 25)")
    parser.add_argument("--n", type=int, default=24, help="lookahead samples per prompt (default 24)")
    parser.add_argument(
        "--reward-scale", type=float, default=10.0, help="lambda, in 1 / standard deviation (default 10)"
    )
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="file of the table")
    arguments = parser.parse_args()

    if arguments.hard:
        everything = [line for line in glyph.prompts("hard") if line["tag"] == "color_position"]
        chosen = glyph.spread(everything, arguments.prompts)
    else:
        chosen = glyph.spread(glyph.prompts(), arguments.prompts // 6)
    clips = [rewards.load(name) for name in PARTS]
    lidar = LiDAR.from_pretrained(
        "glyph",
        reward=Mixture(dict.fromkeys(PARTS, 0.5), rewards=clips),
        metrics=[glyph.Judge()],
        n=arguments.n,
        steps=arguments.steps,
        reward_scale=arguments.reward_scale,
    )
    gains: dict[float, list[list[float]]] = {share: [] for share in SHARES}
    for k, line in enumerate(chosen):
        prompt, how = line["prompt"], {"images": arguments.images, "seed": arguments.seed}
        (bank,) = lidar.look([prompt], seed=arguments.seed)
        plain = means(lidar.vanilla(prompt, **how).rewards)
        for share in SHARES:
            lidar.reward = Mixture(dict(zip(PARTS, (share, 1 - share), strict=True)), rewards=clips)
            guided = lidar(prompt, banks=bank, **how)
            gains[share].append([a - b for a, b in zip(means(guided.rewards), plain, strict=True)])
        print(f"{k + 1}/{len(chosen)} {prompt}", flush=True)
    arguments.out.write_text(table(gains, [line["tag"] for line in chosen], arguments))


def means(scores: dict[str, Tensor]) -> list[float]:
    """Return the mean scores of a prompt's samples, by both parts and GenEval."""
    return [scores[name].mean().item() for name in (*PARTS, "geneval")]


def table(rows: dict[float, list[list[float]]], tags: list[str], arguments: argparse.Namespace) -> str:
    """Return the table as Markdown."""
    lines = ["| share of glyph | share of glyph-heldout | glyph | glyph-heldout | GenEval |", "|---|---|---|---|---|"]
    for share, gains in rows.items():
        draws = bootstrap(np.array(gains), tags)
        cells: list[Interval] = [interval(draws[:, j]) for j in range(draws.shape[1])]
        lines.append(f"| {share:g} | {1 - share:g} | " + " | ".join(map(str, cells)) + " |")
    how = f"{len(tags)} prompts x {arguments.images} images, {arguments.steps} steps, n = {arguments.n}, "
    return (
        HEADER.format(command=command())
        + how
        + f"reward_scale {arguments.reward_scale:g}.\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
