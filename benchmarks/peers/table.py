"""The results as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.peers.ideal import best

VANILLA, PUBLISHED = "vanilla", "LiDAR, as published"
COUNTS = ("network_evaluations", "backward_passes", "decodes", "reward_calls")
HEAD = (
    "method",
    "seconds (range)",
    "over vanilla",
    "published LiDAR over it",
    "over the ideal",
    "peak memory, GiB",
    "evaluations",
    "backward passes",
    "decodes",
    "reward calls",
    "",
)
LEGEND = """\
Seconds are medians over the runs{clock}. Peak memory is what came beyond the models. Evaluations and
backward passes count both branches of guidance. Of Universal Guidance and DATE a few steps are timed, and seconds and
counts scaled linearly to all. Times hold no text encoding to speak of, and no scoring of the final images. Phases are
those of the last run. From `fast` on the rows pull levers: on a GPU compilation, CUDA graphs and a half-precision
reward, on a CPU networks and reward in bfloat16; a preview is a small decoder for the bank's rewards."""


def table(results: dict[str, Any]) -> str:
    """Return the results of all shapes as Markdown."""
    where = results["machine"]
    lines = [
        "# Peers",
        "",
        f"`python -m benchmarks.peers --device {where['kind']}`: {where['name']}, threads: {where['threads']}; "
        f"torch {where['torch']}, diffusers {where['diffusers']}, transformers {where['transformers']}.",
        "",
        LEGEND.format(clock=", in CPU time of the process" if where["clock"] == "process" else ""),
    ]
    for name, shape in results["shapes"].items():
        asked = ", ".join(f"{option.replace('_', ' ')} {value}" for option, value in shape["options"].items())
        lines += ["", f"## {name}", "", f"{asked}; {shape['minutes']:.1f} minutes in all.", ""]
        lines += [f"Not measured: {shape['error']}"] if "error" in shape else _shape(shape)
    return "\n".join(lines) + "\n"


def _shape(shape: dict[str, Any]) -> list[str]:
    """Return the rows of one shape, and the terms of its ideal."""
    medians = {name: statistics.median(row["seconds"]) for name, row in shape["rows"].items() if "error" not in row}
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name, row in shape["rows"].items():
        cells = [row["error"], *[""] * (len(HEAD) - 2)] if "error" in row else _cells(name, row, medians, shape)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if shape["ideal"] is None:
        return lines
    terms = []
    for part, count in shape["work"].items():
        fastest = best(shape["units"], part)
        terms.append(f"{count} x {1e3 * fastest.seconds:.2f} ms ({part}, {fastest.size} at once)")
    return [*lines, "", f"Ideal of LiDAR: {' + '.join(terms)} = {shape['ideal']:.2f} s."]


def _cells(name: str, row: dict[str, Any], medians: dict[str, float], shape: dict[str, Any]) -> list[str]:
    seconds, taken = row["seconds"], medians[name]
    span = f" ({min(seconds):.2f}-{max(seconds):.2f})" if len(seconds) > 1 else ""
    notes = [row["note"], ", ".join(f"{phase} {taken:.2f}" for phase, taken in row["phases"].items())]
    return [
        f"{taken:.2f}{span}",
        f"{taken / medians[VANILLA]:.2f}" if VANILLA in medians else "",
        f"{medians[PUBLISHED] / taken:.2f}" if PUBLISHED in medians and name != VANILLA else "",
        f"{taken / shape['ideal']:.2f}" if shape["ideal"] else "",
        f"{row['cost']['peak_memory'] / 2**30:.2f}",
        *(str(row["cost"][count]) for count in COUNTS),
        "; ".join(filter(None, notes)),
    ]
