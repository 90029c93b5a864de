"""Gains, diversity and cost of a comparison side by side: what each method gains, and what it does to a set.

    python -m benchmarks.fronts docs/results/fronts/rivals

Prints a table of the lines that ``lidar compare`` left in a folder: paired gains over vanilla, diversity, and the
held-out gain over best-of-N, with 95 % bootstrap intervals over the prompts that all three have.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from lidar_sampling.evaluation.rows import estimate
from lidar_sampling.runs._lines import files_of, read

BASE, RIVAL = "vanilla", "best-of-12@10"
JUDGES = ("glyph", "glyph-heldout", "geneval")


def less(row: dict[str, Any], other: dict[str, Any], prompts: list[str], judge: str) -> str:
    """Return the paired difference of two methods in the mean over the pictures of a prompt."""
    gains = [np.mean(row[prompt]["rewards"][judge]) - np.mean(other[prompt]["rewards"][judge]) for prompt in prompts]
    return "-" if row is other else str(estimate(np.array(gains), ["all"] * len(prompts)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a comparison that has vanilla and best-of-12@10")
    found: dict[str, dict[str, Any]] = {}
    for line in read(*files_of(parser.parse_args().folder)):
        found.setdefault(line["method"], {})[line["prompt"]] = line
    print("| method | prompts | guiding | held-out | GenEval | diversity | held-out less best-of-12's ", end="")
    print("| evaluations | reward calls |\n" + "|---" * 9 + "|")
    for name, row in found.items():
        prompts = sorted(set(row) & set(found[BASE]) & set(found[RIVAL]))
        gains = [less(row, found[BASE], prompts, judge) for judge in JUDGES]
        spread = np.mean([row[prompt]["diversity"] for prompt in prompts])
        cost = row[prompts[0]]["cost"]
        back = f" and {cost['backward_passes']} back" if cost["backward_passes"] else ""
        cells = [f"`{name}`", str(len(prompts)), *gains, f"{spread:.3f}", less(row, found[RIVAL], prompts, JUDGES[1])]
        print("| " + " | ".join([*cells, f"{cost['network_evaluations']}{back}", str(cost["reward_calls"])]) + " |")


if __name__ == "__main__":
    main()
