"""Comparisons from Python: one line of JSON per prompt, seed and method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._sampler import LiDAR
from ..methods import Method
from ..runs import Job, check_shard, share, work
from ..runs._comparison import Comparison
from ..runs._lines import Line, files_of
from ..runs._lines import read as read


def lines_of(job: Job, out: Path) -> list[Line]:
    """Return the lines in ``out`` of a comparison's prompts and methods, with the tags that its prompts have now.

    Raises:
        ValueError: a line is damaged; the message names it.
    """
    wanted = {line["prompt"]: line.get("tag", "") for line in job.lines()}
    found = [
        {**line, "tag": wanted[line["prompt"]]}
        for line in read(*files_of(out))
        if line["method"] in job.methods and line["prompt"] in wanted and line["seed"] in job.seeds
    ]
    return sorted(found, key=lambda line: list(job.methods).index(line["method"]))


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
    """Draw and judge what ``out`` does not hold yet; yield every line of this shard, those already there first.

    Args:
        lidar: pipeline, guiding reward, judges (its metrics) and settings of every method.
        prompts: GenEval metadata: ``prompt``, and further keys for judges that read them.
        methods: methods by the names that they have in the results.
        out: folder of ``results-RANK.jsonl`` and of pictures.
        images: samples per prompt that every method returns.
        seeds: seeds of all noise.
        shard: (rank, number): this run takes the prompts ``rank``, ``rank + number``, ...
        help_others: when this share is done, draw prompts that other shards have not drawn yet.
        pictures: number of prompts whose samples of the first seed are kept as files.
        progress: called with (lines done, lines in all, current work).

    Raises:
        ValueError: a rank is out of range, a judge cannot read a prompt, a tag is not text, or ``out`` is damaged or
            was drawn with other settings.
        RewardError: a reward failed; the lines of the other prompts are kept.
    """
    rank, number = shard
    check_shard(rank, number)
    task = Comparison(prompts, methods, out, images=images, seeds=seeds, pictures=pictures, rank=rank)
    task.begin(lidar, shared=number > 1)
    tell = None if progress is None else (lambda now: progress(now.done, now.total, now.what))
    for _, line in work(task, share(task, shard, help_others=help_others), tell):
        yield line
