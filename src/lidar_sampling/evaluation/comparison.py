"""Running methods on prompts and seeds: one line of JSON a prompt, seed and method, and a run that can be resumed.

A line holds what every image got from every judge, the guiding reward first, how different the images are, what they
cost, and where its pictures are if they were kept. Lines are appended whole, one file a shard, so a run that is
killed goes on where it was, and shards of a run may share a folder: each uses the lines of all others, however many
there were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .._contents import OpaqueError, contents, key
from .._cost import Cost
from .._files import natural_order, write_atomically
from .._geneval import parse
from .._media import save_sample
from .._result import Result
from .._sampler import LiDAR
from ..methods import Method
from ..rewards import name_of
from ..rewards.mixture import Mixture
from ..runs import agree, check_shard, identity, order, read_json
from .lines import Line as Line
from .lines import append as append
from .lines import key as key_of
from .lines import plain_guide
from .lines import read as read


def compare(
    lidar: LiDAR,
    prompts: Sequence[Mapping[str, Any]],
    methods: Mapping[str, Method],
    *,
    out: Path,
    images: int = 4,
    seeds: Sequence[int] = (0,),
    shard: tuple[int, int] = (0, 1),
    help_others: bool = False,
    pictures: int = 12,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[Line]:
    """Draw and judge what ``out`` does not hold yet; yields every line, old and new, of this shard.

    Args:
        lidar: pipeline, guiding reward, judges (its metrics) and settings of every method.
        prompts: GenEval metadata: ``prompt``, and what else there is for judges that read it.
        methods: by the names that results call them.
        out: folder of ``results-RANK.jsonl`` and of pictures.
        images: samples a prompt that every method returns.
        seeds: of all noise.
        shard: (rank, number): this run takes the prompts ``rank``, ``rank + number``, ...
        help_others: go on with what other shards have not drawn yet, when its own share is done.
        pictures: prompts of the first seed whose samples are kept as files.
        progress: called with (lines done, lines in all, what is under way).

    Raises:
        ValueError: a rank out of range, prompts that a judge cannot read, a tag that is not text, or ``out`` is
            damaged or was drawn otherwise.
    """
    rank, number = shard
    check_shard(rank, number)
    lidar.check_prompts(prompts)
    _check_tags(prompts)
    _check_twice(prompts)
    lidar = lidar.with_prompts([metadata["prompt"] for metadata in prompts])
    claim(out, lidar, images)
    drawn_by = {name: _settings(method) for name, method in methods.items()}
    done = _lines(out)
    for old in done.values():
        _check_line(out, old, prompts, drawn_by)
    path = out / f"results-{rank}.jsonl"
    numbered = list(enumerate(prompts))
    mine = order(numbered, rank, number) if help_others else numbered[rank::number]
    total, count = len(mine) * len(seeds) * len(methods), 0
    for seed in seeds:
        for index, metadata in mine:
            done = _lines(out) if number > 1 else done  # what other shards wrote in the meantime counts too
            taken = {line.get("pictures") for line in done.values()}
            for name, method in methods.items():
                line = done.get((metadata["prompt"], seed, name))
                if line is None:
                    if progress is not None:
                        progress(count, total, f"{name}: {metadata['prompt']}")
                    drawn = method.draw(lidar, [metadata["prompt"]], images=images, seed=seed)
                    result = lidar.judge(drawn, [metadata])
                    line = {**_line(lidar, result, metadata, seed, name), "drawn_by": drawn_by[name]}
                    place = f"pictures/{index:05d}/{name.replace('/', '-')}"
                    # A folder that went on with another list of prompts holds another prompt's pictures there.
                    if seed == seeds[0] and index < pictures and place not in taken:
                        _keep(result, out / place)
                        line["pictures"] = place
                    append(path, line)
                    done[key_of(line)] = line
                count += 1
                yield line


def claim(out: Path, lidar: LiDAR, images: int) -> None:
    """Write how the run in ``out`` draws, or refuse a folder whose lines were drawn otherwise.

    Raises:
        ValueError: they were; the message names what differs, and both values.
    """
    manifest = out / "run.json"
    now = identity(lidar, images=images)
    if not manifest.exists():
        out.mkdir(parents=True, exist_ok=True)
        judges = [name_of(judge) for judge in (*lidar.parts, *lidar.metrics)]
        how = {**asdict(lidar.settings), "images": images, "judges": judges, "identity": now}
        write_atomically(manifest, (json.dumps(how, indent=1) + "\n").encode())
        return
    before = read_json(manifest)
    mend = "compare in one folder only what is drawn alike"
    if "identity" not in before:
        raise ValueError(f"{manifest} is of an older version, which did not say what drew the lines: {mend}")
    agree(out, before["identity"], now, mend, "drawn")


def _check_twice(prompts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a prompt that comes twice and asks for two things: lines are known by their prompt."""
    asks: dict[str, Any] = {}
    for metadata in prompts:
        if asks.setdefault(metadata["prompt"], _asks(metadata)) != _asks(metadata):
            raise ValueError(f"{metadata['prompt']!r} comes twice, with two metadata: compare them in two folders")


def _check_line(
    out: Path, line: Line, prompts: Sequence[Mapping[str, Any]], drawn_by: Mapping[str, str | None]
) -> None:
    """Refuse a line that was judged by other metadata, or drawn by a method of the same name with other settings.

    Raises:
        ValueError: it was; the message names the prompt or the method.
    """
    name, other = line["method"], "choose another --out"
    own = [metadata for metadata in prompts if metadata["prompt"] == line["prompt"]]
    if own and line.get("asks") != (now := _asks(own[0])):
        raise ValueError(f"{out} holds {line['prompt']!r} judged by {line.get('asks')}, now it is {now}: {other}")
    if name in drawn_by and line.get("drawn_by") != drawn_by[name]:
        raise ValueError(
            f"{out} holds lines of {name!r} with other settings than it has now: {other}, or another name"
        )


def _check_tags(prompts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a tag that is not text: tables are made by tag."""
    for metadata in prompts:
        if not isinstance(tag := metadata.get("tag", ""), str):
            raise ValueError(f"the tag of {metadata['prompt']!r} is {tag!r}: give text, or leave the tag out")


def _settings(method: Method) -> str | None:
    """The fields that tell a method from another of the same name; None where that cannot be told."""
    try:
        return key(contents(method))[:32] if is_dataclass(method) else None
    except OpaqueError:
        return None


def _lines(out: Path) -> dict[tuple[str, int, str], Line]:
    """Return what ``out`` holds, by prompt, seed and method."""
    return {key_of(line): line for line in read(*sorted(out.glob("results-*.jsonl"), key=natural_order))}


def _asks(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """What metadata asks for beyond what the prompt itself says; None if nothing."""
    asks = {name: value for name, value in metadata.items() if name not in ("prompt", "tag")}
    own = parse(metadata["prompt"]) or {}
    return asks if asks and any(own.get(name) != value for name, value in asks.items()) else None


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
    spread = None if looking is None else diversity(looking.features(result.images[0].clone()).cpu())
    cost = sum((part for phase, part in result.cost.items() if phase != "scoring"), Cost())
    asks = _asks(metadata)
    return {
        "prompt": metadata["prompt"],
        "tag": metadata.get("tag", ""),
        **({"asks": asks} if asks else {}),
        "seed": seed,
        "method": name,
        "images": result.images.shape[1],
        "guide": _guide(lidar.reward),
        "rewards": {
            judge: [v if math.isfinite(v) else None for v in values[0].tolist()]
            for judge, values in result.rewards.items()
        },
        "diversity": spread if spread is None or math.isfinite(spread) else None,
        "cost": vars(cost),
    }


def _guide(reward: Any) -> dict[str, Any]:
    """Return what guided: a reward by its name, or a mixture with what makes its sum of the parts.

    Values are those that JSON gives back, so that a line in memory equals the line that is read.
    """
    if not isinstance(reward, Mixture):
        return {"name": name_of(reward)}
    return plain_guide({"name": name_of(reward), "weights": reward.weights, "calibration": reward.calibration})


def _keep(result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k, sample in enumerate(result.images[0]):
        save_sample(sample, folder / f"{k:04d}", sampling_rate=result.sampling_rate)
