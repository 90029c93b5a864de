"""The task ``generate``: pictures of every prompt in a folder each, and a result over all prompts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .._bank import BankError, BankStore, LookaheadBank
from .._contents import contents, digest
from .._cost import Cost
from .._files import open_whole, write_json
from .._result import Result
from .._sampler import LiDAR
from .._settings import OF_BANKS
from ..methods import Guided, draws_banks
from ..methods import load as load_method
from ..methods._face import bank_cost, sampling_cost
from ..rewards import name_of
from ._folder import Folder, place_of, read_record
from ._grid import draw_grid
from ._identity import identity, read_json
from ._summary import Means, cost_of, versions
from .job import Job

_log = logging.getLogger(__name__)

Record = dict[str, Any]

MOST_ENTRIES = 1000
"""With more prompts than this, entries go to ``entries.jsonl`` instead of ``result.json``."""


class Pictures:
    """The task ``generate``: a unit is the number of a prompt, its record the entry of its folder."""

    helps, indexed = False, True

    def __init__(self, job: Job, out: Path) -> None:
        self.job, self.out = job, out
        self.units: Sequence[int] = range(len(job))
        self.together, self._evaluations = max(1, job.batch_size // job.images), 0.0

    def begin(self, lidar: LiDAR, *, shared: bool = False, resume: bool = False, overwrite: bool = False) -> None:
        """Take the folder and make the sampler ready, or refuse before anything is drawn."""
        job, name = self.job, self.job.methods[-1]
        method = None if name == "lidar" else load_method(name)
        _warn_of_own(job, name, method)
        _warn_of_no_bank(job, name, method)
        self._banks = find_banks(job.banks, job.texts()) if job.banks else None
        drawn_by: Any = method
        if self._banks is not None:
            drawn_by = {
                prompt: [digest(bank.samples), contents(dict(bank.rewards))] for prompt, bank in self._banks.items()
            }
        for some in _batch(map(job.line, self.units), MOST_ENTRIES):
            lidar.check_prompts(some)
        self.lidar = lidar.with_prompts(job.texts()).with_only(job.only).with_bank_seed(job.bank_seed)
        self.together = max(1, lidar.batch_size // len(job.only or range(job.images)))
        asked = {
            "images": job.images,
            **_told_apart(job),
            "seed": job.seeds[0],
            "vanilla": len(job.methods) > 1,
        }
        how = {"method": name, "drawn_by": contents(drawn_by, "method"), **asked}
        self.folder = Folder(
            self.out,
            {**job.to_json(), "settings": asdict(lidar.settings)},
            identity=identity(self.lidar, prompts=_identify_prompts(job), **how),
            resume=resume,
            overwrite=overwrite,
            shared=shared,
            count=len(job),
        )

    def index(self, unit: int) -> int:
        """Return the number of the unit's prompt."""
        return unit

    def find_record(self, unit: int) -> Record | None:
        """Return the entry of a prompt if it is there, whichever process drew it."""
        name = place_of(unit, len(self.units))
        return read_record(self.out, name, self.job.text(unit), self.job.methods)

    def fits(self, group: Sequence[int], unit: int) -> bool:
        """Return whether a prompt can be drawn together with others: it can unless it is among them already."""
        text = self.job.text(unit)
        return len(group) < self.together and all(self.job.text(other) != text for other in group)

    def draw(self, group: Sequence[int], lidar: LiDAR) -> list[Record]:
        """Draw, judge and keep prompts that fit together (:meth:`fits`); return their entries."""
        lines = [self.job.line(unit) for unit in group]
        banks = None if self._banks is None else [self._banks[line["prompt"]] for line in lines]
        return [
            self.folder.put(unit, self.job.methods[-1], result, vanilla, line, self.job)
            for unit, line, (result, vanilla) in zip(
                group, lines, draw_judged(self.job, lidar, lines, banks), strict=True
            )
        ]

    def cost(self, record: Record) -> Cost:
        """Return what a record cost to draw and judge."""
        return sum((cost_of(record[name]["cost"]) for name in record["methods"]), Cost())

    def evaluations(self, unit: int, lidar: LiDAR) -> float:
        """Return the network evaluations that a unit will cost."""
        if not self._evaluations:
            costs = [cost_of_method(self.job, name, lidar) for name in self.job.methods]
            self._evaluations = sum(cost.network_evaluations for cost in costs)
        return self._evaluations

    def describe(self, unit: int) -> str:
        """Return the name of a unit, for messages."""
        return self.job.text(unit)

    def complete(self, rank: int, number: int) -> bool:
        """Record that share ``rank`` of ``number`` is done; return whether it was the last one."""
        if number == 1:
            return True
        shares = self.out / "shares"
        shares.mkdir(exist_ok=True)
        (shares / f"{rank}-of-{number}").touch()
        return all((shares / f"{each}-of-{number}").exists() for each in range(number))

    def abandon(self) -> None:
        """Remove the files of a run that has kept nothing."""
        self.folder.abandon()

    def collect(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write ``result.json``, ``grid.png`` and, above 1,000 prompts, ``entries.jsonl``.

        Returns the values of the first.

        Args:
            extra: further values for ``result.json``, such as a profile.

        Raises:
            ValueError: a prompt is missing, or the folder holds another run.
        """
        mend = "restore it, or choose another --out"
        manifest = read_json(self.out / "run.json", {"settings": dict}, mend=mend)
        many, file = len(self.units) > MOST_ENTRIES, self.out / "entries.jsonl"
        means = {name: Means() for name in self.job.methods}
        first: list[Record] = []
        with open_whole(file) if many else nullcontext() as lines:
            for entry in self._entries():
                for name, mean in means.items():
                    mean.add(entry[name])
                if lines is not None:
                    lines.write(json.dumps(entry).encode() + b"\n")
                if len(first) < MOST_ENTRIES:
                    first.append(entry)
        whole = {
            "versions": versions(),
            "job": self.job.to_json(),
            "settings": manifest["settings"],
            "mean": {name: mean.row() for name, mean in means.items()},
            **({"entries": file.name, "count": len(self.units)} if many else {}),
            "prompts": first,
            **(extra or {}),
        }
        write_json(self.out / "result.json", whole)
        try:
            if not first[0][self.job.methods[-1]]["images"][0].endswith(".wav"):  # audio has no picture
                grid = draw_grid(self.out, first)
                with open_whole(self.out / "grid.png") as content:
                    grid.save(content, format="PNG")
        except Exception as error:  # the pictures and their numbers are already written
            _log.warning("grid.png was left out: %s", " ".join(str(error).split()))
        return whole

    def _entries(self) -> Iterator[Record]:
        for unit in self.units:
            entry = self.find_record(unit)
            if entry is None:
                raise ValueError(f"{self.out} does not hold {self.describe(unit)!r} of this run: finish it first")
            yield entry


def draw_judged(
    job: Job, lidar: LiDAR, lines: Sequence[Mapping[str, Any]], banks: list[LookaheadBank] | None
) -> list[tuple[Result, Result | None]]:
    """Draw prompts together by a Job, and judge them.

    Args:
        job: the Job, with methods, images and seed.
        lidar: the sampler, with the changes of the Job.
        lines: the prompts, with their metadata for judges.
        banks: banks of the prompts for methods that guide; None lets the methods draw their own.

    Returns:
        For each prompt its samples by the Job's last method, and plain samples if the Job draws them too.
    """
    texts = [line["prompt"] for line in lines]
    results: dict[str, list[Any]] = {}
    for name in reversed(job.methods):
        method: Any = load_method(name)
        if banks is not None and isinstance(method, Guided):
            drawn = method.sampler(lidar).draw_guided(texts, job.images, job.seeds[0], banks)
        else:
            drawn = method.draw(lidar, texts, images=job.images, seed=job.seeds[0])
        results[name] = lidar.judge(drawn, lines).split()
    found = results[job.methods[-1]]
    plain = results["vanilla"] if len(results) > 1 else [None] * len(found)
    for result, vanilla in zip(found, plain, strict=True):
        if vanilla is not None:
            _warn_of_coarse(result, vanilla, name_of(lidar.reward))
    return list(zip(found, plain, strict=True))


def cost_of_method(job: Job, name: str, lidar: LiDAR) -> Cost:
    """Return what one prompt of a Job will cost by a method: the images and the bank, as far as the Job draws them.

    Args:
        job: the Job.
        name: one of its methods.
        lidar: its sampler.
    """
    method, images = load_method(name), len(job.only) or job.images
    if job.task == "look":
        return bank_cost(lidar)
    if job.banks and isinstance(method, Guided):
        return sampling_cost(method.sampler(lidar), images)
    return method.cost(lidar, images=images)


def _told_apart(job: Job) -> dict[str, Any]:
    """Return the fields that only some Jobs set; without them, folders of older runs keep their identity."""
    found = {"only": list(job.only) or None, "bank_seed": job.bank_seed}
    return {name: value for name, value in found.items() if value is not None}


def _identify_prompts(job: Job) -> Any:
    """Return what identifies the prompts of a run: the prompts, or for many prompts a digest."""
    if len(job) <= MOST_ENTRIES:
        return job.lines()
    digest = hashlib.sha256()
    for index in range(len(job)):
        digest.update(json.dumps(job.line(index)).encode() + b"\n")
    return f"{len(job)} prompts, sha256 {digest.hexdigest()}"


def _warn_of_own(job: Job, name: str, method: Any) -> None:
    """Warn of settings that the method does not read, since it has fields of its own of these names."""
    if not is_dataclass(method) or "lidar" in name.partition(":")[0].split("+"):  # a guided sampler reads them, too
        return
    own = {field.name: getattr(method, field.name) for field in fields(method)}
    for setting, value in job.settings.items():
        if own.get(setting) is not None:
            kind, colon, rest = name.partition(":")
            _log.warning(
                "%s has a %s of its own, %s, and does not read the setting %s=%s: give it as %s",
                name,
                setting,
                own[setting],
                setting,
                value,
                f"{kind}:{setting}={value}" + (f",{rest}" if colon else ""),
            )


def _warn_of_no_bank(job: Job, who: str, method: Any) -> None:
    """Warn of what concerns banks alone where the method draws none."""
    if method is None or draws_banks(method):
        return
    asked = [name for name in job.settings if name in OF_BANKS and getattr(method, name, None) is None]
    asked += [field for field in ("bank_seed", "store", "banks") if getattr(job, field) not in (None, ())]
    if asked:
        _log.warning("%s draws no bank and does not read %s", who, ", ".join(asked))


def _warn_of_coarse(result: Result, vanilla: Result, reward: str) -> None:
    """Warn if all few-step samples of a prompt are worse than full samples, since guidance then leads nowhere."""
    for bank in result.banks:
        if reward in bank.rewards and reward in vanilla.rewards:
            best, mean = float(bank.reward(reward).max()), float(vanilla.rewards[reward].mean())
            if best < mean:
                _log.warning(
                    "coarse lookahead: the best of the bank of %r has %s %.3g, less than vanilla's mean %.3g: take "
                    "more steps, as dpm:N, or a distilled model",
                    bank.prompt,
                    reward,
                    best,
                    mean,
                )


def _batch(lines: Iterable[Record], size: int) -> Iterator[list[Record]]:
    lines = iter(lines)
    while some := list(islice(lines, size)):
        yield some


def find_banks(places: Sequence[str], prompts: Sequence[str]) -> dict[str, LookaheadBank]:
    """Return the one bank of each prompt from bank files and folders of banks.

    Raises:
        BankError: a prompt has no bank, or several.
    """
    paths = [Path(place) for place in places]
    named = [(path, LookaheadBank.load(path)) for path in paths if not path.is_dir()]
    stores = [BankStore(path) for path in paths if path.is_dir()]
    banks = {}
    for prompt in prompts:
        stored = [(file, LookaheadBank.load(file)) for store in stores for file in store.find(prompt)]
        matching = [(file, bank) for file, bank in (*named, *stored) if bank.prompt == prompt]
        if not matching:
            raise BankError(f"no bank of {prompt!r} in {', '.join(places)}: draw one with 'lidar look'")
        if len(matching) > 1:
            files = ", ".join(str(file) for file, _ in matching)
            raise BankError(f"{len(matching)} banks of {prompt!r}: name one file with --banks, of {files}")
        banks[prompt] = matching[0][1]
    return banks
