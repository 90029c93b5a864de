"""Many molecules: guidance against selection as more are kept, on a model that needs its steps.

    python -m benchmarks.many_molecules --out docs/results/many

In 8 steps the embedded model writes fewer valid molecules than in 32. LiDAR draws M samples in 32 steps, guided to
many rings by one bank of 8-step samples. Selection gets the network evaluations that LiDAR takes, bank included, and
keeps the best M of as many samples as they buy in 32, 16 and 8 steps. Invalid strings have the reward -1, so
selection keeps none of them while there are others. Two numbers count, both per kept sample: the rings of valid
samples, 0 for invalid ones; and the share of the kept that are new molecules, each counted once.

Samples do not depend on one another, so pools are drawn once per seed, and every M takes the mean over its shares.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lidar_sampling.discrete import TokenLiDAR, TokenResult, molecules

from ._command import command
from ._differences import draw_differences

STEPS, LOOKAHEAD = 32, 8
SELECTED_FROM = (32, 16, 8)  # steps of the samples that selection draws

Row = tuple[int, str]


class Pool(NamedTuple):
    """Samples: rewards (m,), -1 where invalid, and their strings."""

    rewards: Tensor
    strings: list[str]

    def kept(self, best: int, of: int) -> tuple[float, float, float]:
        """Return rings, the valid share and the new share of the best of each ``of`` samples, a mean over blocks."""
        found = []
        for start in range(0, len(self.rewards) - of + 1, of):
            order = self.rewards[start : start + of].argsort(descending=True, stable=True)[:best] + start
            rewards = self.rewards[order].tolist()
            summary = molecules.summarize([self.strings[i] for i in order.tolist()], rewards, molecules.load_known())
            found.append((sum(max(r, 0.0) for r in rewards) / best, summary.valid / best, summary.novel / best))
        rings, valid, new = np.mean(found, axis=0)
        return float(rings), float(valid), float(new)


def pool(result: TokenResult) -> Pool:
    """Return the samples of a result."""
    return Pool(result.rewards, molecules.decode(molecules.smiles_tokenizer(), result.tokens))


def measure(lidar: TokenLiDAR, kept: list[int], seed: int) -> dict[Row, tuple[float, float, float, float]]:
    """Return rings, valid share, new share and evaluations per kept sample, by M and method."""
    most, bank = max(kept), lidar.settings.n * LOOKAHEAD
    guided = pool(lidar(most, seed=seed))
    pools = {
        steps: pool(lidar.with_settings(steps=steps).vanilla((most * STEPS + bank) // steps, seed=seed + 1000))
        for steps in SELECTED_FROM
    }
    found = {}
    for count in kept:
        budget = count * STEPS + bank
        found[count, "plain"] = (*pools[STEPS].kept(count, count), STEPS)
        found[count, "lidar"] = (*guided.kept(count, count), budget / count)
        for steps, drawn in pools.items():
            found[count, f"best M of N@{steps}"] = (*drawn.kept(count, budget // steps), budget / count)
    return found


def table(found: list[dict[Row, Any]], n: int, reward_scale: float) -> str:
    """Return the means over seeds, with the least and the most, as Markdown."""
    text = (
        "# Many molecules\n\n"
        f"`{command()}`: a bank of {n} samples of {LOOKAHEAD} steps, reward_scale "
        f"{reward_scale:g}, single-site guidance. Mean over\n{len(found)} seeds [least, most].\n\n"
        "| kept | method | evaluations per sample | rings | valid | new |\n|---|---|---|---|---|---|\n"
    )
    for kept, method in sorted(found[0], key=lambda row: row[0]):
        *values, costs = zip(*(seed[kept, method] for seed in found), strict=True)
        cells = [f"{np.mean(each):.2f} [{min(each):.2f}, {max(each):.2f}]" for each in values]
        text += f"| {kept} | {method} | {np.mean(costs):.0f} | " + " | ".join(cells) + " |\n"
    return text


def main() -> None:
    """Draw, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="size of the bank (default 256)")
    parser.add_argument("--reward-scale", type=float, default=1.5, help="the paper's (default 1.5)")
    parser.add_argument("--kept", type=int, nargs="+", default=[4, 16, 64, 256, 1024], help="samples that are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder of molecules.md and molecules.svg")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lidar = TokenLiDAR(
        molecules.load_model(),
        reward=molecules.reward("ring-count"),
        n=arguments.n,
        lookahead_steps=LOOKAHEAD,
        steps=STEPS,
        reward_scale=arguments.reward_scale,
    )
    found = [measure(lidar, sorted(arguments.kept), seed) for seed in range(arguments.seeds)]
    (arguments.out / "molecules.md").write_text(table(found, arguments.n, arguments.reward_scale))
    lines = {}
    for steps in SELECTED_FROM:
        lines[f"best M of N, {steps} steps"] = [
            (kept, float(np.mean(less)), min(less), max(less))
            for kept in sorted(arguments.kept)
            for less in [[seed[kept, f"best M of N@{steps}"][0] - seed[kept, "lidar"][0] for seed in found]]
        ]
    draw_differences(lines, arguments.out / "molecules.svg", title="molecules, guided to many rings", unit="rings")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
