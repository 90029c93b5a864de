"""Find which method runs on which pipeline: each cell is a run on tiny weights; a refusal shows its reason.

    python -m benchmarks.methods --out docs/models-methods.md

Every pipeline of ``lidar_sampling.testing`` draws two samples of one prompt by every method, twice. A cell is ``yes``
if both runs are finite and equal, the number of samples is right, and the cost that the method states is what it
counts; else it is the first words of the error. Random weights show that a method runs, not that it helps.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidar_sampling import Cost, LiDAR, testing
from lidar_sampling._quiet import quieten
from lidar_sampling.methods import load

from ._command import command

METHODS = (
    "vanilla",
    "lidar",
    "best-of-3",
    "refine-4",
    "halving-8",
    "steered-4",
    "group-4:diverse=0",
    "threshold-2@4:parts=2",
    "fk",
    "fk+lidar",
    "das:reward_scale=1",
    "svdd-2",
    "beam-2x2",
    "rbf-2:start=2",
    "evo:population=(3,2,2),schedule=(0,0.4),elites=1",
    "search-1:rounds=1",
    "dts-3",
    "dfs-1",
    "safe-denoiser:worst=2",
    "spell:worst=2",
    "date",
    "ug",
    "ug:recurrence=2",
    "fmrg",
    "reno-2",
)
COUNTS = ("network_evaluations", "backward_passes", "decodes", "reward_calls")


class Level:
    """A reward for pictures, videos and sound: the mean of their values; it is differentiable."""

    name, modality = "level", "video"

    def __call__(self, *, images: Tensor, prompts: Any) -> Tensor:
        """Return the means (B,) of images (B, ...)."""
        return images.flatten(1).mean(1)


def main() -> None:
    """Run all cells, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one pipeline of lidar_sampling.testing.PIPELINES")
    parser.add_argument("--out", type=Path, help="file of the page")
    arguments = parser.parse_args()
    quieten()
    warnings.simplefilter("ignore")
    logging.getLogger("lidar_sampling").setLevel(logging.ERROR)
    rows = {}
    for key in [arguments.only] if arguments.only else testing.PIPELINES:
        start = time.perf_counter()
        rows[key] = {name: cell(key, name) for name in METHODS}
        good = sum(found in ("yes", "noise") for found in rows[key].values())
        print(f"{key}: {good} of {len(METHODS)}, {time.perf_counter() - start:.0f} s", flush=True)
    text = page(rows)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def cell(key: str, name: str) -> str:
    """Return ``yes``, ``noise`` if a method runs only with it, or why it fails even so."""
    if run(key, name, None) == "yes":
        return "yes"
    found = run(key, name, "ddpm")
    return "noise" if found == "yes" else found


def run(key: str, name: str, noise: str | None) -> str:
    """Return ``yes``, or why a method does not run on a pipeline."""
    tiny, method = testing.PIPELINES[key], load(name)
    pipe = tiny.make()
    how: dict[str, Any] = {"n": 4, "steps": 5, "lookahead": "own:3", "scale": 1.0, "reward_scale": 1.0}
    if type(pipe.scheduler).__name__.startswith("DDIM"):
        how["eta"] = 1.0
    images = 1 if name.startswith("halving") else 2
    try:
        lidar = LiDAR(pipe, reward=Level(), window=(1.0, 0.0), pipe_kwargs=dict(tiny.call), noise=noise, **how)
        first, second = (method.draw(lidar, ["a cat"], images=images, seed=0) for _ in range(2))
        told = method.cost(lidar, images=images)
    except Exception as error:
        return " ".join(str(error).split())
    counted = sum(first.cost.values(), Cost())
    if not bool(first.images.isfinite().all()):
        return "wrong: samples are not finite"
    if first.images.shape[:2] != (1, images):
        return f"wrong: samples of shape {tuple(first.images.shape)}"
    if not torch.allclose(first.images, second.images, atol=1e-4):
        return "wrong: the same seed gives other samples"
    for what in COUNTS:
        if getattr(told, what) != getattr(counted, what):
            return f"wrong: {getattr(told, what)} {what} foretold, {getattr(counted, what)} counted"
    return "yes"


def page(rows: dict[str, dict[str, str]]) -> str:
    """Return the table as Markdown, with the reasons of refusals below it."""
    reasons: dict[str, int] = {}
    text = (
        f"# Methods on pipelines\n\n`{command()}`: every cell is a run on the tiny weights of "
        "`lidar_sampling.testing`\n(random: a method runs or does not, nothing is said of how well). `noise` "
        'stands\nwhere `noise="ddpm"` is needed, since the scheduler remembers earlier steps. A number names the '
        "reason of a refusal below.\n\n"
    )
    text += "| pipeline | " + " | ".join(METHODS) + " |\n|" + "---|" * (len(METHODS) + 1) + "\n"
    for key, row in rows.items():
        cells = [
            found if found in ("yes", "noise") else str(reasons.setdefault(reason(found, key), len(reasons) + 1))
            for found in row.values()
        ]
        text += f"| {key} | " + " | ".join(cells) + " |\n"
    return text + "\n" + "".join(f"{number}. {why}\n" for why, number in reasons.items())


def reason(found: str, key: str) -> str:
    """Return a refusal without the name of the pipeline, so that one reason is one number."""
    return found.replace(type_name(key), "the pipeline")[:300]


def type_name(key: str) -> str:
    """Return the class of a tiny pipeline."""
    return type(testing.PIPELINES[key].make()).__name__


if __name__ == "__main__":
    main()
