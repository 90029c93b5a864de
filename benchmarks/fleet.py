"""Simulate a million prompts on a thousand GPUs: hours, lost work, the tail, files, memory of the driver.

    python -m benchmarks.fleet
    python -m benchmarks.fleet --prompts 100000 --gpus 64 --preemptions 0.5

Nothing is drawn: an event simulation checks the arithmetic of docs/scale.md. A worker is one GPU. It loads the
weights from shared storage of limited bandwidth, one copy per host or one per GPU, and then draws prompt after
prompt.

    queue    a driver hands out prompts: a worker has at most `window`, and each answer takes the driver `answer` s
    shards   worker k draws the prompts k, k + GPUs, ... alone; its scheduler starts it again after a fault
    help     a shard that is done goes through the others' prompts from the end and draws unfinished ones, as
             in :func:`lidar_sampling.runs.order`; it does not know what others are drawing

Three events end a worker's life: its own fault (exponential, `faults` per GPU-hour; it restarts from the host's
copy), the loss of its host (exponential, `preemptions` per host-hour; another host comes after `replacement` seconds
and loads the weights), and a prompt that kills its process (`killers` of them, at the end of their seconds). The end
of a life loses the prompt being drawn; this prompt has one try less and is drawn again, or given up after `tries`.
GPU-hours count from the start to the end of the run, less the time without a host; those of a shard end with the
shard.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

FINISH, READY, FAULT, PREEMPT, RETURN = range(5)
HOUR = 3600.0


def _field(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Fleet:
    """The prompts and the machines; times are in seconds."""

    prompts: int = _field(1_000_000, "number of prompts")
    gpus: int = _field(1_000, "number of workers, one per GPU")
    per_host: int = _field(8, "GPUs per host")
    seconds: float = _field(30.0, "mean seconds of a prompt: both phases, all its images")
    spread: float = _field(0.1, "standard deviation of a prompt's seconds, relative (gamma distribution)")
    slow: float = _field(0.02, "standard deviation of a GPU's seconds, relative (normal, at least half the mean)")
    weights: float = _field(7e9, "bytes of weights that a worker loads")
    storage: float = _field(10e9, "bytes per second from shared storage, for all workers together")
    copies: str = _field("host", "who copies weights from shared storage: host, or gpu")
    start: float = _field(60.0, "seconds from weights on the host to a ready worker")
    faults: float = _field(1 / 51_000, "faults of one worker per GPU-hour (default: 419 in 54 days on 16,384 GPUs)")
    preemptions: float = _field(0.08, "losses of a spot host per host-hour (default 0.08: 100 GPUs lose one an hour)")
    replacement: float = _field(300.0, "seconds until another host takes the place of a lost one")
    answer: float = _field(1.2e-3, "seconds of the driver per answer")
    window: int = _field(2, "most prompts with a worker")
    killers: int = _field(10, "prompts that kill their process")
    tries: int = _field(3, "tries per prompt")
    queue: bool = True
    help: bool = False  # for shards


@dataclass
class Outcome:
    """The outcome; times are in seconds."""

    done: bytearray  # how often each prompt was finished
    given_up: list[int] = field(default_factory=list)
    wall: float = 0.0
    loaded: float = 0.0  # when the last worker was ready for the first time
    drawn: float = 0.0  # GPU time in prompts that were finished
    lost: float = 0.0  # GPU time in prompts that were not
    twice: float = 0.0  # GPU time in prompts that another finished first
    restarting: float = 0.0  # GPU time between two lives, less the time without a host
    absent: float = 0.0  # GPU time without a host
    exposed: float = 0.0  # GPU time in which a worker could fail
    faults: int = 0
    preempted: int = 0  # hosts
    killed: int = 0
    driver: float = 0.0  # time in which the driver was busy
    idle: float = 0.0  # GPU time of ready workers without a prompt (queue), or after their last (shards)
    tail: float = 0.0  # from the first worker without work to the end
    held: float = 0.0


def simulate(fleet: Fleet, seed: int = 0) -> Outcome:
    """Simulate a fleet event by event, and return the outcome.

    Raises:
        ValueError: a number is out of range.
    """
    _check(fleet)
    rng = np.random.default_rng(seed)
    durations = _durations(fleet, rng).tolist()
    speed = np.maximum(rng.normal(1, fleet.slow, fleet.gpus), 0.5).tolist() if fleet.slow else [1.0] * fleet.gpus
    killers = set(rng.choice(fleet.prompts, fleet.killers, replace=False).tolist())
    wait = _waits(rng)
    n, out = fleet.gpus, Outcome(bytearray(fleet.prompts))
    shared: deque[int] = deque(range(fleet.prompts))
    todo = [shared if fleet.queue else deque(range(k, fleet.prompts, n)) for k in range(n)]
    hosts = [range(first, min(first + fleet.per_host, n)) for first in range(0, n, fleet.per_host)]
    window, answer = (fleet.window, fleet.answer) if fleet.queue else (1, 0.0)
    life, up, died = [0] * n, [-1.0] * n, [-1.0] * n  # number of the life; when it began, when the last one ended
    current, began = [-1] * n, [0.0] * n
    held: list[deque[tuple[int, float]]] = [deque() for _ in range(n)]  # prompt of the worker, and since when
    idle: dict[int, float] = {}  # workers without work, and since when
    tries: dict[int, int] = {}
    gone: set[int] = set()  # given up
    place = [fleet.prompts] * n  # for a shard that helps: it has looked at all prompts from here on
    driver_free, link_free, left = 0.0, 0.0, fleet.prompts
    events: list[tuple[float, int, int, int]] = []  # time, kind, worker or host, life
    absences: list[tuple[float, int]] = []  # when hosts were lost, and with how many GPUs

    def take(w: int, now: float) -> None:
        """Answer worker ``w``: give it prompts until its window is full."""
        nonlocal driver_free
        driver_free = max(driver_free, now) + answer
        out.driver += answer
        while fleet.help and todo[w] and out.done[todo[w][0]]:
            todo[w].popleft()
        if fleet.help and not todo[w]:
            place[w] = out.done.rfind(0, 0, place[w]) if place[w] > 0 else -1
            if place[w] >= 0 and place[w] not in gone:
                todo[w].append(place[w])
        while todo[w] and len(held[w]) + (current[w] >= 0) < window:
            held[w].append((todo[w].popleft(), driver_free))
        begin(w, now)

    def begin(w: int, now: float) -> None:
        if current[w] >= 0:
            return
        if not held[w]:
            idle.setdefault(w, now)
            if not fleet.queue and up[w] >= 0:  # the shard is done and frees its GPU
                out.exposed += now - up[w]
                up[w] = -1.0
            return
        out.idle += now - idle.pop(w, now)
        current[w], since = held[w].popleft()
        began[w] = max(now, since)
        heapq.heappush(events, (began[w] + durations[current[w]] * speed[w], FINISH, w, life[w]))

    def end(w: int, now: float) -> None:
        """End the life of worker ``w``: its prompts go back, the current one with one try less."""
        nonlocal left
        life[w] += 1
        if up[w] >= 0:
            out.exposed += now - up[w]
        elif died[w] >= 0:
            out.restarting += now - died[w]
        up[w], died[w] = -1.0, now
        out.idle += now - idle.pop(w, now)
        todo[w].extendleft(prompt for prompt, _ in reversed(held[w]))
        held[w].clear()
        prompt, current[w] = current[w], -1
        if prompt >= 0:
            out.lost += max(now - began[w], 0.0)
            tries[prompt] = tries.get(prompt, 0) + 1
            if tries[prompt] < fleet.tries:
                todo[w].appendleft(prompt)
            else:
                out.given_up.append(prompt)
                gone.add(prompt)
                left -= 1

    def offer(now: float) -> None:
        """Give returned prompts to workers without work."""
        for w in list(idle)[: len(shared)] if fleet.queue else ():
            take(w, now)

    for h in range(len(hosts)):
        heapq.heappush(events, (0.0, RETURN, h, 0))
    now = 0.0
    while left:
        now, kind, who, number = heapq.heappop(events)
        if kind == FINISH:
            if life[who] != number:
                continue
            prompt = current[who]
            if prompt in killers:
                out.killed += 1
                end(who, now)
                offer(now)
                heapq.heappush(events, (now + fleet.start, READY, who, life[who]))
                continue
            if out.done[prompt]:
                out.twice += now - began[who]
            else:
                out.drawn += now - began[who]
                left -= 1
            out.done[prompt] = min(out.done[prompt] + 1, 255)
            current[who] = -1
            if held[who]:
                begin(who, now)  # while the driver answers
            take(who, now)
        elif kind == READY:
            if life[who] != number:
                continue
            if died[who] >= 0:
                out.restarting += now - died[who]
                died[who] = -1.0
            elif number == 0:
                out.loaded = max(out.loaded, now)
            up[who] = now
            if fleet.faults:
                heapq.heappush(events, (now + wait(HOUR / fleet.faults), FAULT, who, life[who]))
            take(who, now)
        elif kind == FAULT:
            if life[who] != number or up[who] < 0:
                continue
            out.faults += 1
            end(who, now)
            offer(now)
            heapq.heappush(events, (now + fleet.start, READY, who, life[who]))
        elif kind == PREEMPT:
            lost = [w for w in hosts[who] if fleet.queue or w not in idle]
            if not lost:
                continue
            out.preempted += 1
            for w in lost:
                end(w, now)
                died[w] = now + fleet.replacement
            offer(now)
            absences.append((now, len(lost)))
            heapq.heappush(events, (now + fleet.replacement, RETURN, who, 0))
        else:
            for k, w in enumerate(w for w in hosts[who] if fleet.queue or w not in idle):
                if k == 0 or fleet.copies == "gpu":
                    link_free = max(link_free, now) + fleet.weights / fleet.storage
                heapq.heappush(events, (link_free + fleet.start, READY, w, life[w]))
            if fleet.preemptions:
                heapq.heappush(events, (now + wait(HOUR / fleet.preemptions), PREEMPT, who, 0))
    out.wall = max(now, driver_free)
    out.exposed += sum(out.wall - since for since in up if since >= 0)
    out.absent = sum(number * min(fleet.replacement, out.wall - since) for since, number in absences)
    out.twice += sum(max(out.wall - since, 0.0) for since, prompt in zip(began, current, strict=True) if prompt >= 0)
    out.restarting += sum(max(out.wall - since, 0.0) for since in died if since >= 0)
    out.idle += sum(out.wall - since for since in idle.values())
    out.tail = max((out.wall - since for since in idle.values()), default=0.0)
    out.held = n * out.wall - out.absent - (0.0 if fleet.queue else out.idle)
    return out


def _check(fleet: Fleet) -> None:
    counts = {name: getattr(fleet, name) for name in ("prompts", "gpus", "per_host", "window", "tries")}
    if wrong := {name: value for name, value in counts.items() if value < 1}:
        raise ValueError(f"these must be at least 1, got {wrong}")
    positive = {name: getattr(fleet, name) for name in ("seconds", "storage")}
    if wrong := {name: value for name, value in positive.items() if not value > 0}:
        raise ValueError(f"these must be above 0, got {wrong}")
    names = ("spread", "slow", "weights", "start", "faults", "preemptions", "replacement", "answer", "killers")
    if wrong := {name: value for name in names if not (value := getattr(fleet, name)) >= 0}:
        raise ValueError(f"these must not be negative, got {wrong}")
    if fleet.copies not in ("host", "gpu"):
        raise ValueError(f"copies must be host or gpu, got {fleet.copies!r}")
    if fleet.help and (fleet.queue or fleet.killers):
        raise ValueError("help is for shards, without killers: a prompt's tries are not known to other shards")
    if fleet.killers > fleet.prompts:
        raise ValueError(f"killers must be at most prompts, got {fleet.killers} of {fleet.prompts}")


def _durations(fleet: Fleet, rng: np.random.Generator) -> np.ndarray:
    if not fleet.spread:
        return np.full(fleet.prompts, fleet.seconds)
    return rng.gamma(fleet.spread**-2, fleet.seconds * fleet.spread**2, fleet.prompts)


def _waits(rng: np.random.Generator) -> Callable[[float], float]:
    return lambda mean: float(rng.exponential(mean))


CALM = {"spread": 0.0, "slow": 0.0, "weights": 0.0, "start": 0.0, "faults": 0.0, "preemptions": 0.0, "killers": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing goes wrong": CALM,
    "reserved, queue": {"preemptions": 0.0},
    "reserved, weights copied by each GPU": {"preemptions": 0.0, "copies": "gpu"},
    "reserved, static shards": {"preemptions": 0.0, "queue": False},
    "reserved, static shards that help": {"preemptions": 0.0, "queue": False, "help": True, "killers": 0},
    "spot, queue": {},
    "spot, static shards": {"queue": False},
}


def hours_table(fleet: Fleet, seed: int) -> str:
    """Return the simulated settings as Markdown."""
    text = (
        "| | GPU-hours | wall, h | all loaded, min | faults, hosts lost | lost drawing | drawn again | restarting "
        "| driver busy | tail, min | idle, GPU-hours | given up |\n" + "|---" * 12 + "|\n"
    )
    for name, changes in SETTINGS.items():
        settings = replace(fleet, **changes)
        out = simulate(settings, seed)
        missing = [prompt for prompt, count in enumerate(out.done) if not (count == 1 or (settings.help and count))]
        if sorted(out.given_up) != missing:
            raise RuntimeError(f"{name}: {len(missing)} prompts not drawn once, {len(out.given_up)} given up")
        cells = [
            f"{out.held / HOUR:,.0f}",
            f"{out.wall / HOUR:.2f}",
            f"{out.loaded / 60:.1f}",
            f"{out.faults}, {out.preempted}",
            f"{100 * out.lost / out.held:.3f} %",
            f"{100 * out.twice / out.held:.3f} %",
            f"{100 * out.restarting / out.held:.3f} %",
            f"{100 * out.driver / out.wall:.1f} %" if settings.queue else "none",
            f"{out.tail / 60:.1f}",
            f"{out.idle / HOUR:,.1f}",
            f"{len(out.given_up)}",
        ]
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    return text


IMAGES = 4
PNG = 1.5e6  # bytes of a 1024 x 1024 photograph
BANK = 50 * 4 * 128 * 128  # numbers: n = 50 latents of a picture of 1024 x 1024
PICTURES = 50 * 3 * 1024 * 1024  # bytes of a prompt's pictures for rewards, as uint8


def entry(rng: np.random.Generator, *, index: int = 0, steps: int = 40, n: int = 50) -> dict[str, Any]:
    """Return numbers like those of a prompt's ``result.json``: 50 steps, 40 of them guided, three rewards."""
    folder = f"{index // 1000:04d}/{index:07d}"

    def numbers(count: int) -> list[float]:
        return rng.normal(10, 3, count).astype(np.float32).tolist()

    cost = dict.fromkeys(("network_evaluations", "backward_passes", "decodes", "reward_calls", "peak_memory"), 500)
    phases = ("lookahead", "sampling", "scoring")
    step = ("ess", "ess_tilted", "shift_norm", "log_efr")
    return {
        "prompt": "a photo of a dog right of a teddy bear",
        "folder": folder,
        "methods": ["lidar"],
        "lidar": {
            "images": [f"{folder}/samples/{k:04d}.png" for k in range(IMAGES)],
            "rewards": {name: numbers(IMAGES) for name in ("image-reward", "clip", "geneval")},
            "cost": {phase: {**cost, "seconds": float(rng.random())} for phase in phases},
        },
        "trace": [
            dict(zip(("timestep", "time", "alpha", "sigma"), rng.random(4).tolist(), strict=True))
            | {name: numbers(IMAGES) for name in step}
            for _ in range(steps)
        ],
        "bank": {"image-reward": numbers(n)},
    }


def storage_table(fleet: Fleet, wall: float) -> str:
    """Return bytes, files and bandwidth as Markdown, spread over the run of ``wall`` seconds."""
    whole = entry(np.random.default_rng(0))
    short = {key: value for key, value in whole.items() if key not in ("trace", "bank")}
    text = "| what | per prompt | all | MB/s on average |\n|---|---|---|---|\n"
    for name, size in {
        "pictures, PNG": IMAGES * PNG,
        "banks, float32": 4 * BANK,
        "banks, half precision": 2 * BANK,
        "pictures for rewards, uint8, not stored": PICTURES,
        "`result.json` with trace and bank": len(json.dumps(whole, indent=1)),
        "the same as one line": len(json.dumps(whole)) + 1,
        "the same without trace and bank": len(json.dumps(short)) + 1,
    }.items():
        total = size * fleet.prompts
        text += f"| {name} | {_bytes(size)} | {_bytes(total)} | {total / wall / 1e6:,.2f} |\n"
    per_prompt = IMAGES + 3  # result.json, metadata.jsonl, a bank
    nested = -(-fleet.prompts // 1000)
    text += (
        "\n| metadata | |\n|---|---|\n"
        f"| files | {per_prompt} per prompt, {per_prompt * fleet.prompts:,}; "
        f"{per_prompt * fleet.prompts / wall:,.0f} made per second |\n"
        f"| folders | 2 per prompt, {2 * fleet.prompts:,} |\n"
        f"| entries of the largest folder, flat | {fleet.prompts:,} of prompts, {fleet.prompts:,} of banks |\n"
        f"| nested | {max(nested, min(fleet.prompts, 1000)):,} of prompts, {-(-fleet.prompts // 256):,} of banks |\n"
    )
    return text


def _bytes(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def measure_memory(make: Callable[[], object]) -> int:
    """Return the bytes that Python holds for the result of ``make``."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = make()
        size = tracemalloc.get_traced_memory()[0] - before
        del kept
    finally:
        tracemalloc.stop()
    return size


def memory_table(fleet: Fleet, count: int = 100_000, entries: int = 500) -> str:
    """Return a driver's bytes per prompt, measured on ``count`` prompts and ``entries`` entries, as Markdown."""
    prompts = [f"a photo of {k} clocks on a wooden table in the late afternoon" for k in range(count)]
    rng = np.random.default_rng(0)
    whole = [json.dumps(entry(rng, index=k)) for k in range(entries)]
    makers: dict[str, tuple[Callable[[], object], int]] = {
        "finished: a bytearray": (lambda: bytearray(count), count),
        "finished: a set of indices": (lambda: set(_fresh(count)), count),
        "prompts: a list of texts": (lambda: [text + "." for text in prompts], count),
        "prompts: a list of dictionaries": (lambda: [_metadata(text) for text in prompts], count),
        "entries without trace and bank": (lambda: [_short(line) for line in whole], entries),
        "entries": (lambda: [json.loads(line) for line in whole], entries),
    }
    text = "| the driver holds | per prompt | all |\n|---|---|---|\n"
    for name, (make, number) in makers.items():
        size = measure_memory(make) / number
        text += f"| {name} | {_bytes(size)} | {_bytes(size * fleet.prompts)} |\n"
    return text


def _fresh(count: int) -> Iterable[int]:
    return (1_000_000 + k for k in range(count))  # above the integers that Python shares


def _metadata(text: str) -> dict[str, Any]:
    line = {"prompt": text, "tag": "two_object", "include": [{"class": "clock", "count": 2}]}
    parsed: dict[str, Any] = json.loads(json.dumps(line))
    return parsed


def _short(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in ("trace", "bank")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for item in dataclasses.fields(Fleet):
        if item.name not in ("queue", "help"):
            option = "--" + item.name.replace("_", "-")
            text = item.metadata["help"] + (
                "" if "default" in item.metadata["help"] else f" (default {item.default})"
            )
            parser.add_argument(option, type=type(item.default), default=item.default, help=text)
    parser.add_argument("--seed", type=int, default=0)
    values = vars(parser.parse_args(arguments))
    seed = values.pop("seed")
    fleet = Fleet(**values)
    try:
        _check(fleet)
    except ValueError as error:
        parser.error(str(error))
    wall = fleet.prompts * fleet.seconds / fleet.gpus
    print(hours_table(fleet, seed))
    if fleet.answer:
        limit = fleet.seconds / fleet.answer
        print(f"A driver that needs {1e3 * fleet.answer:g} ms per answer keeps up with {limit:,.0f} GPUs.\n")
    print(storage_table(fleet, wall))
    print(memory_table(fleet))


if __name__ == "__main__":
    main()
