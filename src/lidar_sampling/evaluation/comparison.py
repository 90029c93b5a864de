"""Running methods on prompts and seeds: one line of JSON a prompt, seed and method, and a run that can be resumed.

A line holds what every image got from every judge, the guiding reward first, how different the images are, what they
cost, and where its pictures are if they were kept. Lines are appended whole, one file a shard, so a run that is
killed goes on where it was, and shards of a run may share a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .._bank import write_atomically
from .._cost import Cost
from .._media import save_sample
from .._result import Result
from .._sampler import LiDAR
from ..methods import Method
from ..rewards import name_of

Line = dict[str, Any]


def compare(
    lidar: LiDAR,
    prompts: Sequence[Mapping[str, Any]],
    methods: Mapping[str, Method],
    *,
    out: Path,
    images: int = 4,
    seeds: Sequence[int] = (0,),
    shard: tuple[int, int] = (0, 1),
    pictures: int = 12,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[Line]:
    """Draw and judge what ``out`` does not hold yet; yields every line, old and new, of this shard.

    Args:
        lidar: pipeline, guiding reward, judges (its metrics) and settings of every method.
        prompts: GenEval metadata, of which ``prompt`` and ``tag`` are used.
        methods: by the names that results call them.
        out: folder of ``results-RANK.jsonl`` and of pictures.
        images: samples a prompt that every method returns.
        seeds: of all noise.
        shard: (rank, number): this run takes the prompts ``rank``, ``rank + number``, ...
        pictures: prompts of the first seed whose samples are kept as files.
        progress: called with (lines done, lines in all, what is under way).

    Raises:
        ValueError: ``out`` holds a run with other arguments.
    """
    rank, number = shard
    out.mkdir(parents=True, exist_ok=True)
    _agree(out / "run.json", lidar, images)
    path = out / f"results-{rank}.jsonl"
    done = {_key(line): line for line in read(path)}
    taken = {line.get("pictures") for line in done.values()}
    mine = list(enumerate(prompts))[rank::number]
    total, count = len(mine) * len(seeds) * len(methods), 0
    for seed in seeds:
        for index, metadata in mine:
            for name, method in methods.items():
                line = done.get((metadata["prompt"], seed, name))
                if line is not None and line["images"] != images:
                    raise ValueError(
                        f"{path} holds {line['images']} images a prompt, not {images}: choose another --out"
                    )
                if line is None:
                    if progress is not None:
                        progress(count, total, f"{name}: {metadata['prompt']}")
                    result = lidar.judge(method.draw(lidar, [metadata["prompt"]], images=images, seed=seed))
                    line = _line(lidar, result, metadata, seed, name)
                    place = f"pictures/{index:05d}/{name.replace('/', '-')}"
                    # A folder that went on with another list of prompts holds another prompt's pictures there.
                    if seed == seeds[0] and index < pictures and place not in taken:
                        _keep(result, out / place)
                        line["pictures"] = place
                    append(path, line)
                count += 1
                yield line


def _agree(manifest: Path, lidar: LiDAR, images: int) -> None:
    """Write how the run draws, or refuse a folder whose lines were drawn otherwise."""
    judges = [name_of(judge) for judge in (*lidar.parts, *lidar.metrics)]
    how = {**asdict(lidar.settings), "window": list(lidar.settings.window), "images": images, "judges": judges}
    if not manifest.exists():
        write_atomically(manifest, (json.dumps(how, indent=1) + "\n").encode())
        return
    before = json.loads(manifest.read_text())
    if before != how:
        other = next(key for key in {**before, **how} if before.get(key) != how.get(key))
        raise ValueError(
            f"{manifest.parent} was drawn with {other}={before.get(other)!r}, now it is {how.get(other)!r}: "
            f"compare in one folder only what is drawn alike"
        )


def read(*paths: Path) -> list[Line]:
    """The lines of result files; a last line that a killed run cut off is left out, to be drawn again."""
    lines = []
    for path in paths:
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def append(path: Path, line: Line) -> None:
    """Write a line of its own, also behind one that a killed run cut off."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def diversity(features: Tensor) -> float:
    """The mean of 1 - cosine over pairs of unit features (m, d); 0 for one image or for copies.

    >>> import torch
    >>> diversity(torch.eye(3))
    1.0
    """
    m = len(features)
    if m < 2:
        return 0.0
    cosines = features @ features.T
    return float(1 - (cosines.sum() - cosines.diagonal().sum()) / (m * (m - 1)))


def _line(lidar: LiDAR, result: Result, metadata: Mapping[str, Any], seed: int, name: str) -> Line:
    looking = next((judge for judge in (*lidar.metrics, lidar.reward) if hasattr(judge, "features")), None)
    spread = None if looking is None else diversity(looking.features(result.images[0]).cpu())
    cost = sum((part for phase, part in result.cost.items() if phase != "scoring"), Cost())
    return {
        "prompt": metadata["prompt"],
        "tag": metadata.get("tag", ""),
        "seed": seed,
        "method": name,
        "images": result.images.shape[1],
        "rewards": {
            judge: [None if v != v else v for v in values[0].tolist()] for judge, values in result.rewards.items()
        },
        "diversity": spread,
        "cost": vars(cost),
    }


def _keep(result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, sample in enumerate(result.images[0]):
        save_sample(sample, folder / f"{k:04d}", sampling_rate=result.sampling_rate)


def _key(line: Line) -> tuple[str, int, str]:
    return line["prompt"], line["seed"], line["method"]
