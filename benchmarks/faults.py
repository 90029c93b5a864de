"""Kill generate, compare and look at random moments, restart them, and count what is lost or drawn twice.

    python -m benchmarks.faults --kills 50

A command draws a few prompts with a tiny pipeline, in a process that is forked from this one, so that it need not
import anything. It gets SIGKILL after a random part of the time that it takes undisturbed. Then everything in the
folder is read: what was whole before must still be there, untouched, and nothing may be half-written. The same
command is started again (``generate`` with ``--resume``) and killed again, until a process reaches its end. Its
status must be 0, and the folder must hold the same as an undisturbed run. Then the next folder follows.

    kills       processes that were killed while they ran
    kept        prompts (for compare: lines) that these processes had finished
    drawn       prompts in the finished folders
    lost        prompts that were whole before a process and not after it
    double      prompts that were drawn again although they were whole; for compare also lines that come twice
    half        files under their final name that cannot be read
    different   prompts that differ from the undisturbed run: by more than 1 of 255, or 1e-4 of a number
    ended       processes by exit status: 0, or minus the signal
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Kept = dict[str, tuple[Any, Any]]
"""For each prompt that is there: a mark of whether its files were touched, and their contents."""

PROMPTS = [f"a {colour} {thing}" for thing in ("cat", "dog", "cup") for colour in ("red", "green", "blue")]
OURS = ("seconds", "peak_memory")  # values that depend on the clock or the machine's memory


@dataclass
class Tally:
    """The outcome of the kills of one command: the columns of the table."""

    command: str
    kills: int = 0
    kept: int = 0
    drawn: int = 0
    lost: int = 0
    double: int = 0
    half: int = 0
    different: int = 0
    ended: Counter[int] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """The faults, of which there should be none."""
        return self.lost + self.double + self.half + self.different


@dataclass(frozen=True)
class Command:
    """A command to kill, and how to read its output."""

    name: str
    arguments: Sequence[str]
    again: Sequence[str]  # arguments added to continue
    read: Callable[[Path], Kept]
    twice: Callable[[Path], int] = lambda _: 0


def commands(model: Path, prompts: Sequence[str] = PROMPTS) -> dict[str, Command]:
    """Return the commands to kill by name, with the pipeline saved in ``model``."""
    file = model.parent / "prompts.txt"
    file.write_text("\n".join(prompts) + "\n")
    common = ["--prompts", str(file), "--model", str(model), "--reward", "brightness", "--device", "cpu", "--quiet"]
    drawing = [*common, "--n", "4", "--steps", "4", "--images", "2"]
    return {
        "generate": Command(
            "generate",
            ["generate", *drawing, "--scale", "1", "--reward-scale", "5", "--batch-size", "4"],
            ["--resume"],
            lambda out: _pictures(out, prompts),
        ),
        "compare": Command("compare", ["compare", *drawing, "--methods", "vanilla,lidar"], [], _lines, _twice),
        "look": Command("look", ["look", *common, "--n", "6"], [], _banks),
    }


def load_once() -> None:
    """Import all that the commands use, so that processes forked from this one need not."""
    import diffusers  # noqa: F401

    from lidar_sampling import evaluation, runs, testing  # noqa: F401
    from lidar_sampling.cli import main  # noqa: F401

    torch.set_num_threads(1)  # no thread of ours is alive where we fork


def start(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """Start the command line in a process forked from this one, what it prints in ``log``; return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (process := os.fork()) != 0:
        return process
    status = 70
    try:
        where = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(where, 1)
        os.dup2(where, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update(environment or {})
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background switches off
        from lidar_sampling.cli import main

        main(list(arguments))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


def end_of(process: int, within: float | None = None) -> int | None:
    """Return how a process ended, its status or minus its signal; None if it runs on after ``within`` seconds."""
    until = None if within is None else time.monotonic() + within
    while True:
        found, status = os.waitpid(process, 0 if until is None else os.WNOHANG)
        if found == process:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() >= until:
            return None
        time.sleep(0.002)


def run_undisturbed(command: Command, folder: Path) -> tuple[Kept, float]:
    """Run a command to its end twice; return its output, and the seconds of the second run."""
    for name in ("first", "second"):
        begin = time.monotonic()
        log = folder / f"{command.name}-{name}.log"
        status = end_of(start([*command.arguments, "--out", str(folder / f"{command.name}-{name}")], log))
        if status != 0:
            raise RuntimeError(f"{command.name} ended with {status}: {log.read_text()}")
    return command.read(folder / f"{command.name}-second"), time.monotonic() - begin


def kill(command: Command, kills: int, folder: Path, seed: int = 0) -> Tally:
    """Kill a command at random moments and restart it, as the module describes; return the tally."""
    tally, moment = Tally(command.name), random.Random(f"{command.name} {seed}")
    whole, seconds = run_undisturbed(command, folder)
    number = 0
    while tally.kills < kills:
        out, before = folder / f"{command.name}-{number}", Kept()
        number += 1
        while True:
            log = folder / "log"
            process = start(
                [*command.arguments, *(command.again if before or out.exists() else ()), "--out", str(out)], log
            )
            within = moment.uniform(0, seconds) if tally.kills < kills else None
            status = end_of(process, within)
            if status is None:
                os.kill(process, signal.SIGKILL)
                status = end_of(process)
            tally.kills += status == -signal.SIGKILL
            tally.ended[int(status or 0)] += 1
            before = _compare(tally, command, out, before, count=status == -signal.SIGKILL)
            if status == -signal.SIGKILL:
                continue
            if status != 0:
                tally.said.append(log.read_text().strip())
                break
            tally.drawn += len(before)
            tally.double += command.twice(out)
            for prompt in {**whole, **before}:
                if prompt not in before or prompt not in whole or not same(before[prompt][1], whole[prompt][1]):
                    tally.different += 1
                    tally.said.append(f"{prompt} differs")
            break
        shutil.rmtree(out)
    return tally


def _compare(tally: Tally, command: Command, out: Path, before: Kept, *, count: bool) -> Kept:
    """Read the output of a process, count what is lost, double or half, and return the output."""
    try:
        now = command.read(out) if out.exists() else Kept()
    except Exception as error:
        tally.half += 1
        tally.said.append(f"{type(error).__name__}: {error}")
        return before
    for prompt, (touched, _) in before.items():
        tally.lost += prompt not in now
        tally.double += prompt in now and now[prompt][0] != touched
    tally.kept += (len(now) - len(before)) * count
    return now


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal up to rounding and values that depend on the clock."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in {**one, **other} if name not in OURS]
        return all(name in one and name in other and same(one[name], other[name]) for name in names)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):  # pixels
        return one.shape == other.shape and int(np.abs(one.astype(int) - other).max()) <= 1
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-5 + 1e-4 * abs(one)
    return bool(one == other)


def _pictures(out: Path, prompts: Sequence[str]) -> Kept:
    """Read every prompt of ``generate``; every folder with the name of a prompt must be whole."""
    from lidar_sampling.runs._folder import place_of, read_record

    kept = Kept()
    for index, prompt in enumerate(prompts):
        name = place_of(index, len(prompts))
        if not (out / name).exists():
            continue
        entry = read_record(out, name, prompt, ["lidar"])
        if entry is None:
            raise ValueError(f"{out / name} is not whole")
        json.loads((out / name / "metadata.jsonl").read_text())
        pixels = [_read_picture(out / file) for file in entry["lidar"]["images"]]
        kept[prompt] = (_stamp(out / name / "result.json"), (pixels, entry["lidar"]["rewards"], entry["bank"]))
    _check_whole(out)
    return kept


def _lines(out: Path) -> Kept:
    """Read every line of ``compare`` with its pictures."""
    from lidar_sampling.runs._lines import read

    kept = Kept()
    for line in read(*sorted(out.glob("results-*.jsonl"))):
        folder = out / line["pictures"] if "pictures" in line else None
        files = sorted(folder.iterdir()) if folder else []
        if folder and len(files) != line["images"]:
            raise ValueError(f"{folder} holds {len(files)} pictures, not {line['images']}")
        pixels = [_read_picture(file) for file in files]
        kept[f"{line['method']}: {line['prompt']}"] = (line["cost"]["seconds"], (line, pixels))
    _check_whole(out)
    return kept


def _twice(out: Path) -> int:
    """Return how many lines of ``compare`` come twice or are cut off."""
    texts = [text for file in out.glob("results-*.jsonl") for text in file.read_bytes().splitlines() if text.strip()]
    return len(texts) - len(_lines(out))


def _banks(out: Path) -> Kept:
    """Read every bank of ``look``."""
    from lidar_sampling import LookaheadBank

    kept = Kept()
    for file in out.rglob("[!.]*.safetensors"):
        bank = LookaheadBank.load(file)
        rewards = {name: values.tolist() for name, values in bank.rewards.items()}
        kept[bank.prompt] = (_stamp(file), (bank.samples.tolist(), rewards))
    return kept


def _check_whole(out: Path) -> None:
    """Read the other files of a run, as far as they are there."""
    for file in [*out.glob("*.json"), *out.glob("*.png"), *out.glob("figures/*.png"), *out.glob("report.html")]:
        if file.name.startswith("."):
            continue
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".png":
            _read_picture(file)
        elif "</html>" not in file.read_text():
            raise ValueError(f"{file} is cut off")


def _read_picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)


def _stamp(file: Path) -> tuple[int, int]:
    told = file.stat()
    return told.st_ino, told.st_mtime_ns


def table(tallies: Sequence[Tally]) -> str:
    """Return the tallies as a table in Markdown."""
    names = ["kills", "kept", "drawn", "lost", "double", "half", "different"]
    rows = [["command", *names, "ended"]]
    for tally in tallies:
        ended = ", ".join(f"{count} x {status}" for status, count in sorted(tally.ended.items()))
        rows.append([tally.command, *(str(getattr(tally, name)) for name in names), ended])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Kill the commands and print the table; the status is 1 if anything was lost, double, half or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--commands", default="generate,compare,look", help="comma separated")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    load_once()
    from lidar_sampling import testing

    tallies = []
    with tempfile.TemporaryDirectory() as name:
        testing.tiny_stable_diffusion().save_pretrained(Path(name) / "model")
        known = commands(Path(name) / "model")
        for command in asked.commands.split(","):
            begin = time.monotonic()
            tallies.append(kill(known[command], asked.kills, Path(name), asked.seed))
            for line in tallies[-1].said:
                print(f"{command}: {line}", file=sys.stderr)
            print(f"{command}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    print(table(tallies))
    return 1 if any(tally.faults for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
