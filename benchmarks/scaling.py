"""Measure how the cost grows with the size of the bank, its steps, images and prompts; fit straight lines.

    python -m benchmarks.scaling --out docs/results/scaling

The program draws on glyph in 10 steps, without judges. One of the four numbers varies while the others stay fixed.
Each setting is one run; its seconds are those of both phases without scoring the result, on one thread by the
process's own clock. Beside the figure is a table of the slopes, of the largest distance of a point from its line, and
of the peak memory, which should grow only by the bank and the images kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.clock import now
from lidar_sampling import Cost, LiDAR, glyph
from lidar_sampling.runs._lines import fill, read_objects

from ._command import command

SWEEPS: dict[str, list[int]] = {
    "n": [3, 16, 64, 256, 1024, 4096],
    "lookahead steps": [1, 2, 4, 8, 16],
    "images": [1, 4, 16, 64],
    "prompts": [1, 2, 4, 8],
}
FIXED = {"n": 16, "lookahead steps": 4, "images": 4, "prompts": 1}


def main() -> None:
    """Draw what is missing; write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=4096, help="largest n (default 4096)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl, table.md and figure.svg")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    lidar = LiDAR.from_pretrained("glyph", device=arguments.device, metrics=[], steps=10)
    lidar.with_settings(n=16)("a photo of a cat")  # a first call loads more
    units = [{"what": what, "value": value} for what, values in SWEEPS.items() for value in values]
    units = [unit for unit in units if unit["what"] != "n" or unit["value"] <= arguments.most]
    for line in fill(path, units, lambda unit: measure(lidar, {**FIXED, unit["what"]: unit["value"]})):
        print(line, flush=True)
    lines = read_objects(path)
    (arguments.out / "table.md").write_text(table(lines))
    draw_figure(lines, arguments.out / "figure.svg")


def measure(lidar: LiDAR, how: dict[str, int]) -> dict[str, Any]:
    """Return seconds, evaluations and peak of one run."""
    texts = [metadata["prompt"] for metadata in glyph.prompts()[: how["prompts"]]]
    sampler = lidar.with_settings(n=how["n"], lookahead=f"dpm:{how['lookahead steps']}")
    device = torch.device(lidar.pipe.device)
    start = now(device)
    result = sampler.draw_guided(texts, how["images"], 0, None)
    seconds = now(device) - start
    cost = sum(result.cost.values(), Cost())
    return {
        "seconds": seconds,
        "evaluations": cost.network_evaluations,
        "peak_mib": cost.peak_memory / 2**20,
        "bank_mib": sum(bank.samples.nbytes for bank in result.banks) / 2**20,
        "images_mib": result.images.nbytes / 2**20,
    }


def rows_of(lines: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Return the lines of one sweep, in the order of its values."""
    return sorted((line for line in lines if line["what"] == what), key=lambda line: line["value"])


def line_of(rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Return slope and start of the line with least squared relative errors, and the largest relative distance."""
    x = np.array([row["value"] for row in rows], float)
    y = np.array([row["seconds"] for row in rows])
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    return float(slope), float(start), float(np.max(np.abs(slope * x + start - y) / y))


def table(lines: list[dict[str, Any]]) -> str:
    """Return slopes and peaks as Markdown."""
    text = (
        f"# How the cost grows\n\n`{command()}`, {torch.get_num_threads()} threads: glyph, 10\n"
        "steps; what does not vary is n = 16, 4 lookahead steps, 4 images, 1 prompt. `off` is the largest distance\n"
        "of a point from the line, of its seconds; peaks are MiB beyond what was held.\n\n"
        "| what | from, to | seconds | a unit, s | off | network evaluations | peak | of it bank | images |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    for what in SWEEPS:
        rows = rows_of(lines, what)
        slope, _, off = line_of(rows)
        first, last = rows[0], rows[-1]

        def both(key: str, form: str, first: dict[str, Any] = first, last: dict[str, Any] = last) -> str:
            return f"{first[key]:{form}}, {last[key]:{form}}"

        cells = [both("value", "d"), both("seconds", ".1f"), f"{slope:.3f}", f"{100 * off:.0f} %"]
        cells += [
            both("evaluations", "d"),
            both("peak_mib", ".0f"),
            both("bank_mib", ".1f"),
            both("images_mib", ".1f"),
        ]
        text += f"| {what} | " + " | ".join(cells) + " |\n"
    return text


def draw_figure(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds against each number, with the fitted line."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SWEEPS), figsize=(13, 3.2), layout="constrained")
    for ax, what in zip(axes, SWEEPS, strict=True):
        rows = rows_of(lines, what)
        x = np.array([row["value"] for row in rows], float)
        slope, start, _ = line_of(rows)
        ax.plot(x, slope * x + start, color="0.7", lw=1)
        ax.plot(x, [row["seconds"] for row in rows], "o", ms=4)
        ax.set(xlabel=what, ylabel="seconds", ylim=(0, None), xlim=(0, None))
    figure.savefig(path)


if __name__ == "__main__":
    main()
