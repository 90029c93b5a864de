"""The task ``compare``: methods on the same prompts and seeds, a line of JSON per prompt, seed and method.

A line holds the reward of every image by every judge, the guiding reward first, the diversity of the images, their
cost, and where the pictures are if they were kept. Lines are appended whole, to one file per shard. A killed run
therefore continues where it was, and shards may share a folder: each uses the lines of all others.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .._contents import OpaqueError, contents, key
from .._cost import Cost
from .._files import write_once
from .._geneval import parse
from .._media import save_sample
from .._result import Result
from .._sampler import LiDAR
from ..methods import Method
from ..methods import load as load_method
from ..rewards import diversity, features_of, name_of
from ..rewards.mixture import Mixture
from ._folder import check_kept, mark_of
from ._identity import agree, identity, read_json
from ._lines import Line, append, files_of, plain_guide, read
from ._lines import key as key_of
from .job import Job

_log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """A line to draw: the number of its prompt, its seed and its method."""

    number: int
    seed: int
    method: str


class Comparison:
    """The task ``compare``: a unit is a prompt, seed and method, its record a line.

    Args:
        prompts: GenEval metadata: ``prompt``, and further keys for judges that read them.
        methods: methods by the names that they have in the results.
        out: folder of ``results-RANK.jsonl`` and of pictures.
        images: samples per prompt that every method returns.
        seeds: seeds of all noise.
        pictures: number of prompts whose samples of the first seed are kept as files.
        rank: rank of this process, which names its file.
        job: the Job that run.json records; None if the lines are made from Python.
    """

    helps = indexed = True
    together = 1

    def __init__(
        self,
        prompts: Sequence[Mapping[str, Any]],
        methods: Mapping[str, Method],
        out: Path,
        *,
        images: int,
        seeds: Sequence[int],
        pictures: int,
        rank: int = 0,
        job: Job | None = None,
    ) -> None:
        self.prompts, self.methods, self.out, self.images = list(prompts), dict(methods), out, images
        self.first_seed, self.pictures, self.job = seeds[0] if len(seeds) else 0, pictures, job
        self.file = out / f"results-{rank}.jsonl"
        self.units: Sequence[Unit] = [
            Unit(number, seed, name) for seed in seeds for number in range(len(prompts)) for name in methods
        ]
        self._evaluations: dict[str, float] = {}
        self._lines: dict[tuple[str, int, str], Line] = {}
        self._seen: dict[Path, int] = {}
        self._drawn_by = {name: _settings(method) for name, method in methods.items()}

    @classmethod
    def of(cls, job: Job, out: Path, *, rank: int = 0) -> Comparison:
        """Return the task of a Job whose budget is settled."""
        methods = {name: load_method(name) for name in job.methods}
        return cls(
            job.lines(),
            methods,
            out,
            images=job.images,
            seeds=job.seeds,
            pictures=job.pictures,
            rank=rank,
            job=job,
        )

    def begin(self, lidar: LiDAR, *, shared: bool = False, resume: bool = True, overwrite: bool = False) -> None:
        """Take the folder and make the sampler ready, or refuse before anything is drawn."""
        lidar.check_prompts(self.prompts)
        _check_tags(self.prompts)
        _check_twice(self.prompts)
        self.lidar = lidar.with_prompts([metadata["prompt"] for metadata in self.prompts])
        self._claim()
        self._mark = mark_of(self.out)
        self._read()
        for line in self._lines.values():
            self._check_line(line)
        if lidar.store is not None:
            _log.warning(
                "a store holds banks for several methods, so only the first of them pays for one: "
                "do not compare costs"
            )

    def index(self, unit: Unit) -> int:
        """Return the number of the unit's prompt."""
        return unit.number

    def find_record(self, unit: Unit) -> Line | None:
        """Return the line if it is there, whichever process drew it."""
        found = self._line_of(unit)
        if found is None and self._seen != self._sizes():  # others write too, possibly to the file of this process
            self._read()
            found = self._line_of(unit)
        return found

    def fits(self, group: Sequence[Unit], unit: Unit) -> bool:
        """Return whether a line can be drawn with others: it cannot, since its time and memory are measured."""
        return not group

    def draw(self, group: Sequence[Unit], lidar: LiDAR) -> list[Line]:
        """Draw, judge and keep one line."""
        (unit,) = group
        metadata, method = self.prompts[unit.number], self.methods[unit.method]
        drawn = method.draw(lidar, [metadata["prompt"]], images=self.images, seed=unit.seed)
        result = lidar.judge(drawn, [metadata])
        line = {**_line(lidar, result, metadata, unit.seed, unit.method), "drawn_by": self._drawn_by[unit.method]}
        if (theirs := self.find_record(unit)) is not None:  # the same seed gives the same samples
            return [theirs]
        check_kept(self.out, self._mark)
        place = f"pictures/{unit.number:05d}/{unit.method.replace('/', '-')}"
        # A folder continued with another list of prompts may hold another prompt's pictures here.
        taken = any(other.get("pictures") == place for other in self._lines.values())
        if unit.seed == self.first_seed and unit.number < self.pictures and not taken:
            _keep(result, self.out / place)
            line["pictures"] = place
        written = append(self.file, line)
        if written.start == self._seen.get(self.file, 0):  # nobody else wrote there
            self._seen[self.file] = written.stop
        self._lines[key_of(line)] = line
        return [line]

    def cost(self, record: Line) -> Cost:
        """Return what a line cost to draw."""
        return Cost(**record["cost"])

    def evaluations(self, unit: Unit, lidar: LiDAR) -> float:
        """Return the network evaluations that a unit will cost."""
        if unit.method not in self._evaluations:
            ask = getattr(self.methods[unit.method], "cost", None)  # a method of the user need not have this
            self._evaluations[unit.method] = (
                1.0 if ask is None else ask(lidar, images=self.images).network_evaluations
            )
        return self._evaluations[unit.method]

    def describe(self, unit: Unit) -> str:
        """Return the name of a unit, for messages."""
        return f"{unit.method}: {self.prompts[unit.number]['prompt']}"

    def complete(self, rank: int, number: int) -> bool:
        """Return whether all lines are there, whichever process drew them."""
        return all(self.find_record(unit) is not None for unit in self.units)

    def abandon(self) -> None:
        """Leave the folder as it is: lines of the same run may be added at any time."""

    def collect(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return nothing: :func:`lidar_sampling.evaluation.publish` makes tables of the lines."""
        return {}

    def _line_of(self, unit: Unit) -> Line | None:
        return self._lines.get((self.prompts[unit.number]["prompt"], unit.seed, unit.method))

    def _read(self) -> None:
        self._seen = self._sizes()
        self._lines = {key_of(line): line for line in read(*self._seen)}

    def _sizes(self) -> dict[Path, int]:
        return {path: path.stat().st_size if path.exists() else 0 for path in files_of(self.out)}

    def _claim(self) -> None:
        """Write the settings of the run into the folder, or refuse a folder with lines of other settings.

        Raises:
            ValueError: settings differ; the message names the field and both values.
        """
        lidar, manifest = self.lidar, self.out / "run.json"
        now = identity(lidar, images=self.images)
        self.out.mkdir(parents=True, exist_ok=True)
        judges = [name_of(judge) for judge in (*lidar.parts, *lidar.metrics)]
        how: dict[str, Any] = {**asdict(lidar.settings), "images": self.images, "judges": judges}
        if self.job is not None:
            how["job"] = self.job.to_json()
        if write_once(manifest, (json.dumps({**how, "identity": now}, indent=1) + "\n").encode()):
            return
        before = read_json(manifest)
        mend = "compare in one folder only what has the same settings"
        if "identity" not in before:
            raise ValueError(f"{manifest} is of an older version, which did not say what drew the lines: {mend}")
        agree(self.out, before["identity"], now, mend, "drawn")

    def _check_line(self, line: Line) -> None:
        """Refuse a line that was judged by other metadata, or drawn by a method of this name with other settings.

        Raises:
            ValueError: the line differs; the message names the prompt or the method.
        """
        name, other = line["method"], "choose another --out"
        own = [metadata for metadata in self.prompts if metadata["prompt"] == line["prompt"]]
        if own and line.get("asks") != (now := _asks(own[0])):
            raise ValueError(
                f"{self.out} holds {line['prompt']!r} judged by {line.get('asks')}, now it is {now}: {other}"
            )
        if name in self._drawn_by and line.get("drawn_by") != self._drawn_by[name]:
            raise ValueError(
                f"{self.out} holds lines of {name!r} with other settings than it has now: {other}, or another name"
            )


def _check_twice(prompts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a prompt that comes twice with different metadata, since a line is identified by its prompt."""
    asks: dict[str, Any] = {}
    for metadata in prompts:
        if asks.setdefault(metadata["prompt"], _asks(metadata)) != _asks(metadata):
            raise ValueError(f"{metadata['prompt']!r} comes twice, with two metadata: compare them in two folders")


def _check_tags(prompts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a tag that is not text, since tables are made by tag."""
    for metadata in prompts:
        if not isinstance(tag := metadata.get("tag", ""), str):
            raise ValueError(f"the tag of {metadata['prompt']!r} is {tag!r}: give text, or leave the tag out")


def _settings(method: Method) -> str | None:
    """Return the settings that distinguish methods of the same name; None if they are unknown."""
    try:
        return key(contents(method))[:32] if is_dataclass(method) else None
    except OpaqueError:
        return None


def _asks(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what metadata asks for beyond the prompt's own text; None if nothing."""
    asks = {name: value for name, value in metadata.items() if name not in ("prompt", "tag")}
    own = parse(metadata["prompt"]) or {}
    return asks if asks and any(own.get(name) != value for name, value in asks.items()) else None


def _line(lidar: LiDAR, result: Result, metadata: Mapping[str, Any], seed: int, name: str) -> Line:
    features = features_of([*lidar.metrics, *lidar.parts], result.images[0])
    spread = None if features is None else diversity(features)
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
    """Return the guide of a line: a reward by its name, or a mixture with its weights and calibration.

    Values survive JSON unchanged, so that a line in memory equals the line read from the file.
    """
    if not isinstance(reward, Mixture):
        return {"name": name_of(reward)}
    return plain_guide({"name": name_of(reward), "weights": reward.weights, "calibration": reward.calibration})


def _keep(result: Result, folder: Path) -> None:
    """Write the samples to ``folder``, each atomically, even if another process writes the same."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.part"
    try:
        part.mkdir()
        for k, sample in enumerate(result.images[0]):
            file = save_sample(sample, part / f"{k:04d}", sampling_rate=result.sampling_rate)
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
