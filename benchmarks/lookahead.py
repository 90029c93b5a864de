"""Does a bank of N-step samples rank like 50-step samples from the same noise? On glyph, by Kendall's tau.

    python -m benchmarks.lookahead --prompts 12 --out docs/results/lookahead.md

Each prompt has 24 noises, each solved by ``dpm:N`` for N = 3, 5, 8, 10 and by ``dpm:50``. Agreement is Kendall's
tau-b (Kendall 1945) between the two rewards over the noises of a prompt: 1 is the same order, 0 is no relation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from benchmarks.quality import pictures_of
from lidar_sampling import LiDAR, LookaheadBank, glyph, rewards
from lidar_sampling.evaluation.statistics import bootstrap, interval

from ._command import command

STEPS, REFERENCE, JUDGES = (3, 5, 8, 10), 50, ("glyph", "glyph-heldout")

HEADER = """# How few steps a lookahead may take

`{command}`: Kendall's tau between the rewards of N-step samples and of
50-step samples from the same noise, on glyph with `dpm:N`; the last columns are mean rewards.

"""


def main() -> None:
    """Draw, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12, help="prompts, spread over the six tags (default 12)")
    parser.add_argument("--n", type=int, default=24, help="noises per prompt (default 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="file of the table")
    arguments = parser.parse_args()

    chosen = glyph.spread(glyph.prompts(), arguments.prompts // 6)
    texts = [metadata["prompt"] for metadata in chosen]
    heldout = rewards.load(JUDGES[1], device=arguments.device)
    banks: dict[int, list[LookaheadBank]] = {}
    for steps in (*STEPS, REFERENCE):
        lidar = LiDAR.from_pretrained(
            "glyph", device=arguments.device, lookahead=f"dpm:{steps}", n=arguments.n, metrics=[]
        )
        start = time.perf_counter()
        banks[steps] = [judge(bank, lidar, heldout) for bank in lidar.look(texts, seed=arguments.seed)]
        print(f"dpm:{steps}: {time.perf_counter() - start:.0f} s", flush=True)
    tags = [metadata["tag"] for metadata in chosen]
    arguments.out.write_text(table(banks, tags, arguments.n))


def judge(bank: LookaheadBank, lidar: LiDAR, heldout: rewards.Reward) -> LookaheadBank:
    """Return the bank with the held-out reward beside the guiding one."""
    pictures = pictures_of(lidar.pipe, bank)
    scores = rewards.score(heldout, images=pictures, prompts=[bank.prompt] * len(bank))
    return bank.with_rewards({JUDGES[1]: scores})


def table(banks: dict[int, list[LookaheadBank]], tags: list[str], n: int) -> str:
    """Return the table as Markdown."""
    head = ["steps", *(f"tau, {judge}" for judge in JUDGES), *(f"mean {judge}" for judge in JUDGES)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for steps, row in banks.items():
        cells = []
        for judge in JUDGES:
            taus = [
                kendalltau(bank.reward(judge), full.reward(judge)).statistic
                for bank, full in zip(row, banks[REFERENCE], strict=True)
            ]
            cells.append(str(interval(bootstrap(np.array(taus)[:, None], tags)[:, 0])))
        for judge in JUDGES:
            means = np.array([bank.reward(judge).mean().item() for bank in row])
            cells.append(str(interval(bootstrap(means[:, None], tags)[:, 0])))
        lines.append(f"| {steps} | " + " | ".join(cells) + " |")
    return (
        HEADER.format(command=command())
        + f"{len(tags)} prompts x {n} noises; 95 % bootstrap intervals over prompts.\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
