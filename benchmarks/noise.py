"""Measure what stochastic steps cost in quality: glyph without guidance, by noise and number of steps.

    python -m benchmarks.noise --prompts 24 --out docs/results/noise

The same prompts and starting noise with every noise of :func:`lidar_sampling.stochastic`; ``ddpm:0`` is the
deterministic sampler, DDIM with eta 0, and ``ddpm`` DDIM with eta 1. Nothing guides, so all judges are held out.
Results are kept in results.jsonl, and a stopped run continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lidar_sampling import LiDAR, glyph
from lidar_sampling.evaluation.statistics import bootstrap, interval
from lidar_sampling.runs._lines import fill, read_objects

from ._command import command

NOISES = ("ddpm:0", "ddpm:0.5", "ddpm", "cps:0.3", "cps:0.7", "cps")
STEPS = (10, 25, 50)
JUDGES = ("glyph", "glyph-heldout", "geneval")


def main() -> None:
    """Draw what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24, help="prompts, spread over the six tags (default 24)")
    parser.add_argument("--images", type=int, default=2, help="images per prompt (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and table.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lidar = LiDAR.from_pretrained("glyph", device=arguments.device, eta=0.0)
    chosen = glyph.spread(glyph.prompts(), arguments.prompts // 6)

    def draw(unit: Mapping[str, Any]) -> dict[str, Any]:
        sampler = lidar.with_settings(noise=unit["noise"], steps=unit["steps"])
        result = sampler.vanilla(unit["prompt"], images=arguments.images, seed=arguments.seed)
        return {judge: float(result.rewards[judge].nanmean()) for judge in JUDGES}

    units = [
        {"prompt": line["prompt"], "tag": line["tag"], "steps": steps, "noise": noise}
        for line in chosen
        for steps in STEPS
        for noise in NOISES
    ]
    path = arguments.out / "results.jsonl"
    for number, line in enumerate(fill(path, units, draw), 1):
        print(f"{number}/{len(units)} {line['prompt']}, {line['steps']} steps, {line['noise']}", flush=True)
    (arguments.out / "table.md").write_text(table(read_objects(path), arguments))


def table(lines: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return each noise beside the deterministic sampler with as many steps, paired over prompts, as Markdown."""
    cells_of: dict[str, set[tuple[int, str]]] = {line["prompt"]: set() for line in lines}
    for line in lines:
        cells_of[line["prompt"]].add((line["steps"], line["noise"]))
    whole = {prompt for prompt, cells in cells_of.items() if len(cells) == len(STEPS) * len(NOISES)}
    lines = [line for line in lines if line["prompt"] in whole]
    text = (
        f"# Stochastic steps on glyph\n\n`{command()}`: vanilla, {arguments.images} images of each of "
        f"{len(whole)} prompts,\none seed. Differences are to `ddpm:0`, the deterministic sampler, in "
        "as many steps; 95 % bootstrap intervals over prompts.\n\n"
        "| steps | noise | held-out reward | difference | GenEval | difference |\n|---|---|---|---|---|---|\n"
    )
    for steps in STEPS:
        for noise in NOISES:
            mine, still = (
                {line["prompt"]: line for line in lines if (line["steps"], line["noise"]) == (steps, which)}
                for which in (noise, NOISES[0])
            )
            cells = []
            for judge in JUDGES[1:]:
                values = np.array([mine[prompt][judge] for prompt in still])
                cells.append(f"{values.mean():.3f}")
                apart = values - np.array([line[judge] for line in still.values()])
                tags = [line["tag"] for line in still.values()]
                cells.append("" if noise == NOISES[0] else str(interval(bootstrap(apart[:, None], tags)[:, 0])))
            text += f"| {steps} | {noise} | " + " | ".join(cells) + " |\n"
    return text


if __name__ == "__main__":
    main()
