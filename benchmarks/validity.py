"""Measure why guided samples are less often valid molecules: the effects of bank, floor and strength of the tilt.

    python -m benchmarks.validity --out docs/results/molecules/validity.md

The program changes one thing at a time in ring-count guidance of the embedded model: single-site, n = 1,024, 32
steps. Each row also shows the effective number of members of the tilted bank, ``1 / sum w^2`` with ``w`` the softmax
of the scaled rewards: the samples are drawn toward the law of that few members.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lidar_sampling import LookaheadBank
from lidar_sampling.discrete import TokenLiDAR, TokenResult, molecules

from ._command import command

HEAD = ("changed", "of the bank valid", "it weighs as", "valid", "novel", "rings", "rings, novel")


def main() -> None:
    """Draw and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="file of the table")
    arguments = parser.parse_args()
    model: Any = molecules.load_model()
    reward = molecules.reward("ring-count")
    lidar = TokenLiDAR(model, reward=reward, n=1024, lookahead_steps=8, steps=32, reward_scale=1.5)
    banks = {steps: lidar.with_settings(lookahead_steps=steps).look(seed=arguments.seed) for steps in (8, 16, 32)}

    rows = [row("plain", None, lidar.vanilla(arguments.samples, seed=arguments.seed), 0.0)]

    def show_guided(name: str, bank: LookaheadBank, sampler: TokenLiDAR = lidar) -> None:
        result = sampler(arguments.samples, seed=arguments.seed, bank=bank)
        rows.append(row(name, bank, result, sampler.settings.reward_scale))
        print(rows[-1], flush=True)

    for steps, bank in banks.items():
        show_guided(f"bank of {steps} steps", bank)
    valid = banks[8].reward() >= 0
    show_guided("bank of 8 steps, valid alone", banks[8].subset(valid.nonzero().flatten()))
    for floor in (0.1, 0.4):
        show_guided(f"floor {floor}", banks[8], lidar.with_settings(floor=floor))
    low = molecules.reward("ring-count", invalid=-6.0)
    harsh = banks[8].with_rewards({reward.name: low(banks[8].samples)})
    show_guided("invalid -6", harsh)
    for reward_scale in (1.0, 0.75, 0.5):
        show_guided(f"reward_scale {reward_scale}", banks[8], lidar.with_settings(reward_scale=reward_scale))
    show_guided("scale 0.5", banks[8], lidar.with_settings(scale=0.5))
    arguments.out.write_text(table(rows, arguments.samples))


def row(name: str, bank: LookaheadBank | None, result: TokenResult, reward_scale: float) -> list[str]:
    """Return the row of one run."""
    strings = molecules.decode(molecules.smiles_tokenizer(), result.tokens)
    summary = molecules.summarize(strings, result.rewards.tolist(), molecules.load_known())
    cells = ["", ""]
    if bank is not None:
        weights = (reward_scale * bank.reward()).softmax(0)
        cells = [f"{int((bank.reward() >= 0).sum())} of {len(bank)}", f"{1 / weights.square().sum().item():.0f}"]
    counts = [str(summary.valid), str(summary.novel)]
    return [name, *cells, *counts, f"{summary.reward:.2f}", f"{summary.reward_novel:.2f}"]


def table(rows: list[list[str]], samples: int) -> str:
    """Return the table as Markdown."""
    lines = [
        "# What validity has to do with",
        "",
        f"`{command()}`: {samples} samples by ring count, single-site, n = 1,024, reward_scale",
        "1.5, 32 steps, one seed; a bank of 8 steps, unless it says another.",
        "",
        f"| {' | '.join(HEAD)} |",
        "|" + "---|" * len(HEAD),
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
