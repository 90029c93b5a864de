"""Measure LiDAR's cost beside its peers: seconds and peak memory, on one machine, in one run, at the same shapes.

    python -m benchmarks.peers --device cuda
    python -m benchmarks.peers --device cpu --out docs/results/peers

The rows are the diffusers pipeline itself, LiDAR as published (``published.py``), Universal Guidance, DATE, FK
steering, and our LiDAR: with its defaults, and with every lever of ``rows.fast``. Weights are random except glyph's,
nothing comes from the hub, and text encoders are tiny. For methods that go back through the network only a few steps
are timed, and the others are assumed to cost the same. Every row is warmed up by two steps at its own batch sizes.

The ideal is the time of LiDAR's parts alone, each at the fastest of the batches tried: all evaluations of the
network, all decoding, all scoring. The first command takes about eight minutes on any GPU: rows and repeats that no
longer fit are left out, and the table says so. This may happen on an H100: an estimate from unit times, measured
before this program was written, is ten minutes for all rows.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.clock import now, of_process, settle
from benchmarks.peers.ideal import Times, best, unit_times, work_of
from benchmarks.peers.rows import FAST, FASTER, ROWS, Bench, Row, fast
from benchmarks.peers.shapes import SHAPES, Shape
from benchmarks.peers.table import table
from lidar_sampling import LiDAR
from lidar_sampling._quiet import quieten

DEFAULTS = {"images": 4, "steps": 100, "n": 50, "gradient_steps": 4}


def main() -> None:
    """Measure, print, and write table.md and results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", help=f"some of {','.join(SHAPES)}; sd15,sdxl on a GPU, glyph,reduced on a CPU")
    parser.add_argument("--images", type=int, help="images of the prompt (default 4)")
    parser.add_argument("--steps", type=int, help="denoising steps (default 100; on a CPU glyph 50, others 20)")
    parser.add_argument("--n", type=int, help="lookahead samples (default 50; on a CPU glyph 50, others 16)")
    parser.add_argument("--gradient-steps", type=int, help="timed steps of gradient methods (default 4; on a CPU 3)")
    parser.add_argument("--repeats", type=int, help="timed runs per row (default 3; sdxl 1)")
    parser.add_argument("--minutes", type=float, help="start no run that would end later (default 8 on a GPU)")
    parser.add_argument("--out", type=Path, help="folder of table.md and results.json")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    names = (arguments.shapes or {"cpu": "glyph,reduced", "cuda": "sd15,sdxl"}[device.type]).split(",")
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"unknown shape {unknown[0]!r}; known are {', '.join(SHAPES)}")
    given = {name: getattr(arguments, name) for name in (*DEFAULTS, "repeats")}
    asked = {name: value for name, value in given.items() if value is not None}
    for name, value in asked.items():
        if value < (least := 2 if "steps" in name else 1):
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")

    usual = 8.0 if device.type == "cuda" else math.inf
    minutes = usual if arguments.minutes is None else arguments.minutes
    if not minutes > 0:
        parser.error(f"--minutes must be positive, got {minutes}")

    quieten()
    end = time.perf_counter() + 60 * minutes
    results: dict[str, Any] = {"machine": machine(device), "shapes": {}}
    for place, name in enumerate(names):
        shape = SHAPES[name]
        options = {**DEFAULTS, "repeats": shape.repeats, **(shape.on_cpu if device.type == "cpu" else {}), **asked}
        tell(f"{name}: {options}")
        start = time.perf_counter()
        try:
            result = measure(shape, device, options, start + (end - start) / (len(names) - place))
        except Exception as error:
            result = {"options": options, **row_of_failure(error)}
        results["shapes"][name] = {**result, "minutes": (time.perf_counter() - start) / 60}
        settle(device)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            (arguments.out / "table.md").write_text(table(results))
    print(table(results))


def measure(shape: Shape, device: torch.device, options: dict[str, int], end: float) -> dict[str, Any]:
    """Measure the rows of one shape until ``end``, as JSON values; rows without levers get half the time."""
    half_time = (time.perf_counter() + end) / 2
    bench = Bench(shape, options["images"], options["gradient_steps"], device)
    changes = {"steps": options["steps"], "n": options["n"]}
    with tempfile.TemporaryDirectory() as folder:
        pipe = shape.pipe(device)
        pipe.set_progress_bar_config(disable=True)
        reward = partial(shape.reward, Path(folder), device)
        lidar = shape.sampler(pipe, reward(torch.float32), **changes)
        rows = time_rows(ROWS, bench, lidar, options["repeats"], half_time)
        units: Times = {}
        try:
            quick = shape.sampler(pipe, fast(pipe, reward, shape), **changes)
            rows |= time_rows(FASTER, bench, quick, options["repeats"], end)
            units = unit_times(quick)
        except Exception as error:
            rows.setdefault(FAST, row_of_failure(error))
    work = work_of(lidar, bench.images)
    ideal = sum(count * best(units, part).seconds for part, count in work.items())
    return {
        "options": options,
        "settings": {**asdict(lidar.settings), "batch_size": lidar.batch_size},
        "parameters": {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("unet", "vae")},
        "rows": rows,
        "units": units,
        "work": work,
        "ideal": ideal if math.isfinite(ideal) else None,
    }


def time_rows(rows: dict[str, Row], bench: Bench, lidar: LiDAR, repeats: int, end: float) -> dict[str, Any]:
    """Warm up each row, then run them in turn, ``repeats`` times; a row that fails is not run again.

    No run is started that would end after ``end`` if it took as long as the row's previous one.
    """
    few = lidar.with_settings(steps=2, lookahead=re.sub(r"\d+", "1", lidar.settings.lookahead))
    done: dict[str, Any] = {name: {"seconds": []} for name in rows}
    taken = dict.fromkeys(rows, 0.0)
    for turn in range(1 + repeats):
        for name, row in rows.items():
            if "error" in done[name] or time.perf_counter() + taken[name] > end:
                continue
            settle(bench.device)
            start = now(bench.device)
            try:
                run = row(bench, lidar if turn else few)
            except Exception as error:
                done[name] = row_of_failure(error)
                continue
            seconds = taken[name] = now(bench.device) - start
            tell(f"{'run' if turn else 'warm-up'}: {name}, {seconds:.1f} s")
            if turn:
                done[name]["seconds"].append(seconds if run.seconds is None else run.seconds)
                done[name] |= {"cost": vars(run.cost), "phases": run.phases, "note": run.note}
            else:
                done[name]["warm_up"] = seconds
    late = {"error": "left out: the time was up"}
    return {name: row if "error" in row or row["seconds"] else late for name, row in done.items()}


def row_of_failure(error: Exception) -> dict[str, Any]:
    """Return the entry of a row that could not be measured."""
    tell("".join(traceback.format_exception(error)))
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def tell(line: str) -> None:
    """Report progress."""
    print(line, file=sys.stderr, flush=True)


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device and the versions."""
    return {
        "kind": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "clock": "process" if of_process(device) else "wall",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers")},
    }


def cpu_name() -> str:
    """Return the name of the processor on Linux, elsewhere its architecture."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    main()
