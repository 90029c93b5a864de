"""The engine on this machine: group, draw, judge and keep the units of a Job, or continue a run.

A task (:class:`Pictures`, :class:`Comparison`, :class:`Banks`) says what to draw and how to keep it. The loop is the
same for all tasks, and for every worker on Ray.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .._cost import Cost
from .._files import check_writable
from .._hooks import DivergedError
from .._profile import profiled
from .._sampler import LiDAR
from ..rewards import RewardError
from ._banks import Banks
from ._comparison import Comparison
from ._folder import check_overwrite
from ._pictures import Pictures
from ._shards import check_shard, order
from .job import Job
from .worker import load_sampler, on_this_machine

_log = logging.getLogger(__name__)

Record = dict[str, Any]

COSTS_ITS_UNIT = (RewardError, DivergedError)
"""Errors of one unit, which the next unit need not have."""

_MOST_FAILED = 3
"""If this many units fail at the beginning of a run, the fault is not in the units."""


class Task(Protocol):
    """A kind of run: what a Job draws and what it writes. A unit is drawn and kept whole, or not at all."""

    units: Sequence[Any]
    lidar: LiDAR
    out: Path
    helps: bool  # whether a process that has finished its share goes on with those of others
    together: int  # most units that are drawn together; before begin, an estimate from the Job
    indexed: bool  # whether the files show what is finished

    def begin(self, lidar: LiDAR, *, shared: bool = False, resume: bool = False, overwrite: bool = False) -> None:
        """Take the folder and make the sampler ready, or refuse before anything is drawn."""

    def index(self, unit: Any) -> int:
        """Return the number of the unit's prompt."""

    def find_record(self, unit: Any) -> Record | None:
        """Return the record of a unit if it is there, whichever process drew it."""

    def fits(self, group: Sequence[Any], unit: Any) -> bool:
        """Return whether a unit can be drawn together with others."""

    def draw(self, group: Sequence[Any], lidar: LiDAR) -> list[Record]:
        """Draw, judge and keep units that fit together (:meth:`fits`); return their records."""

    def cost(self, record: Record) -> Cost:
        """Return what a record cost."""

    def evaluations(self, unit: Any, lidar: LiDAR) -> float:
        """Return the network evaluations that a unit will cost."""

    def describe(self, unit: Any) -> str:
        """Return the name of a unit, for messages."""

    def complete(self, rank: int, number: int) -> bool:
        """Return whether every unit is there, once this process has finished its share."""

    def abandon(self) -> None:
        """Remove the files of a run that has kept nothing."""

    def collect(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the result over all units; return it."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        done: units that are finished.
        total: all units of this process.
        what: name of the current unit.
        phase: its phase: lookahead, sampling.
        part: finished part of that phase, 0 to 1.
        cost: cost of everything that this process has drawn.
        left: estimated seconds until the end; None before the first unit is finished.
        phase_left: estimated seconds until the end of the phase; None at its beginning.
    """

    done: int
    total: int
    what: str
    phase: str = ""
    part: float = 0.0
    cost: Cost = field(default_factory=Cost)
    left: float | None = None
    phase_left: float | None = None


Tell = Callable[[Progress], None]


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        task: the task, with the sampler that drew it.
        complete: whether every unit of the Job is there, whichever process drew it; for banks, every unit of this
            process.
        result: the result of the task if it is complete; for ``generate`` the contents of ``result.json``.
        cost: cost of everything that this process drew.
    """

    task: Task
    complete: bool
    result: dict[str, Any]
    cost: Cost


def task_of(job: Job, out: str | Path, *, rank: int = 0) -> Task:
    """Return the task of a Job; ``rank`` names the files of this process when several write lines."""
    if job.task == "compare":
        return Comparison.of(job, Path(out), rank=rank)
    return Banks(job, Path(out)) if job.task == "look" else Pictures(job, Path(out))


def run(
    job: Job,
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    tell: Tell | None = None,
    lidar: LiDAR | None = None,
) -> Outcome:
    """Draw what a Job asks for and ``out`` does not hold yet, and write the result over all units.

    Args:
        job: what to draw; a budget must be settled (:func:`lidar_sampling.evaluation.budget.settle`).
        out: folder to write.
        shard: (rank, number of processes). Each draws its own share of the prompts; the last to finish writes
            ``result.json``. For a comparison, each then draws what the others have not drawn yet.
        resume: continue the run in ``out``, if it is the same. Shards and comparisons always do.
        overwrite: delete the run in ``out`` first; of pictures alone.
        profile: also measure where the time goes.
        tell: called before each unit, after every step and after each unit.
        lidar: the sampler, if it is already loaded.

    Raises:
        FileExistsError, ValueError: ``out`` cannot be written, or holds something else.
        RewardError: a reward failed on some prompts; the others are there.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "out"
        >>> how = {"steps": 2, "n": 2, "lookahead": "dpm:2"}
        >>> outcome = run(Job(prompts=["a photo of a cat"], settings=how, images=1), out)
        >>> sorted(path.name for path in out.iterdir())
        ['00000', 'grid.png', 'result.json', 'run.json']
    """
    check_shard(*shard)
    check_writable(out)
    if overwrite:
        check_overwrite(job, out)
    job = on_this_machine(job)
    task = task_of(job, out, rank=shard[0])
    task.begin(lidar or load_sampler(job), shared=shard[1] > 1, resume=resume, overwrite=overwrite)
    cost = Cost()
    banks: list[Record] = []
    try:
        with profiled() if profile else nullcontext() as found:
            for _, record, drawn in _work(task, share(task, shard), tell):
                cost += task.cost(record) if drawn else Cost()
                if job.task == "look":
                    banks.append(record)
    except BaseException:
        task.abandon()
        raise
    complete = task.complete(*shard)
    extra: dict[str, Any] = {"banks": banks} if job.task == "look" else {}
    if found is not None and found.seconds:
        extra["profile"] = found.report()
    return Outcome(task, complete, task.collect(extra) if complete else {}, cost)


def share(task: Task, shard: tuple[int, int], *, help_others: bool = True) -> list[Any]:
    """Return the units of a task in the order of one of several processes.

    Its own share comes first. If the task helps others, their shares follow.
    """
    rank, number = shard
    prompts = sorted({task.index(unit) for unit in task.units})
    mine = order(prompts, rank, number) if help_others and task.helps else prompts[rank::number]
    place = {index: k for k, index in enumerate(mine)}
    units = [unit for unit in task.units if task.index(unit) in place]
    return sorted(units, key=lambda unit: place[task.index(unit)])


def work(task: Task, units: Sequence[Any], tell: Tell | None = None) -> Iterator[tuple[Any, Record]]:
    """Draw the missing units in full batches; yield every unit and its record, existing ones first.

    A unit on which a reward or the network fails is left out and named. If the first units all fail, the run ends,
    since the fault is not in the prompts.

    Args:
        task: a task that has begun.
        units: units of the task.
        tell: called before each unit, after every step and after each unit.

    Raises:
        RewardError: a reward failed on some units; the others are there.
        DivergedError: the same for the network, if it failed on the first of the units left out.
    """
    for unit, record, _ in _work(task, units, tell):
        yield unit, record


def _work(task: Task, units: Sequence[Any], tell: Tell | None) -> Iterator[tuple[Any, Record, bool]]:
    """Do the same as :func:`work`, and yield for each unit also whether it was drawn now."""
    todo = []
    for unit in units:
        if (record := task.find_record(unit)) is None:
            todo.append(unit)
        else:
            yield unit, record, False
    pace = _Pace(task, todo, len(units), tell)
    lidar = task.lidar if tell is None else task.lidar.with_progress(pace.step)
    failed: list[tuple[Any, Exception]] = []
    for group in in_groups(task, todo):
        there = [(unit, record) for unit in group if (record := task.find_record(unit)) is not None]  # by others
        pace.skip([unit for unit, _ in there])
        for unit, record in there:
            group.remove(unit)
            yield unit, record, False
        if not group:
            continue
        pace.begin(group)
        outcomes = list(draw_each(task, group, lidar))
        drawn = [(unit, outcome) for unit, outcome in outcomes if not isinstance(outcome, Exception)]
        for unit, outcome in outcomes:
            if isinstance(outcome, Exception):
                failed.append((unit, outcome))
                _log.warning("%r is left out: %s", task.describe(unit), outcome)
        pace.end(drawn)
        for unit, record in drawn:
            yield unit, record, True
        if len(failed) >= _MOST_FAILED and pace.drawn == 0:
            break
    if failed:
        (unit, error), missing = failed[0], sum(task.find_record(unit) is None for unit in units)
        raise type(error)(
            f"{missing} of {len(units)} prompts are not in {task.out}, first {task.describe(unit)!r}: {error}"
        ) from error


def in_groups(task: Task, todo: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield groups of units to draw together, so that batches are full."""
    group: list[Any] = []
    for unit in todo:
        if group and not task.fits(group, unit):
            yield group
            group = []
        group.append(unit)
    if group:
        yield group


def draw_each(task: Task, group: list[Any], lidar: LiDAR) -> Iterator[tuple[Any, Record | Exception]]:
    """Draw a group; if one of its units fails, draw each alone. Yield the outcome of each."""
    try:
        records = task.draw(group, lidar)
    except COSTS_ITS_UNIT as error:
        if len(group) == 1:
            yield group[0], error
            return
        for unit in group:
            yield from draw_each(task, [unit], lidar)
        return
    yield from zip(group, records, strict=True)


class _Pace:
    """Counts of finished work and its cost, and an estimate of the time left by network evaluations."""

    def __init__(self, task: Task, todo: Sequence[Any], total: int, tell: Tell | None) -> None:
        self.task, self.total, self.tell = task, total, tell
        self.done, self.drawn, self.cost = total - len(todo), 0, Cost()
        self.what = ""
        self._of = (lambda unit: task.evaluations(unit, task.lidar)) if tell is not None else (lambda _: 0.0)
        self._left, self._behind = sum(map(self._of, todo)), 0.0
        self._seconds, self._since = 0.0, time.monotonic()
        self._phase, self._phase_since, self._part, self._first = "", self._since, 0.0, 0.0

    def begin(self, group: Sequence[Any]) -> None:
        """Report which units come next."""
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        self.what, self._since = self.task.describe(group[0]) + more, time.monotonic()
        self.step("", 0, 1)

    def step(self, phase: str, done: float, total: int) -> None:
        """Report how far the current units are."""
        if self.tell is not None:
            part = done / total if total else 0.0
            rest = self.phase_left(phase, part)
            self.tell(Progress(self.done, self.total, self.what, phase, part, self.cost, self.seconds_left(), rest))

    def end(self, drawn: Sequence[tuple[Any, Record]]) -> None:
        """Count units that were drawn together."""
        self._seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        self._behind += sum(self._of(unit) for unit, _ in drawn)
        self.cost = sum((self.task.cost(record) for _, record in drawn), self.cost)
        self.drawn += len(drawn)
        self.skip([unit for unit, _ in drawn])

    def skip(self, units: Sequence[Any]) -> None:
        """Count units that were there already."""
        self.done += len(units)
        self._left -= sum(map(self._of, units))
        self.step("", 0, 1)

    def seconds_left(self) -> float | None:
        """Return the estimated seconds that are left; None if nothing was drawn yet."""
        if not self._behind:
            return None
        since = time.monotonic() - self._since
        return max(0.0, self._left * self._seconds / self._behind - since)

    def phase_left(self, phase: str, part: float) -> float | None:
        """Return the estimated seconds until the phase ends, from its pace so far; None at its beginning."""
        now = time.monotonic()
        if phase != self._phase or part < self._part:
            self._phase, self._phase_since, self._first = phase, now, part
        self._part = part
        if not phase or part <= self._first:
            return None
        return (now - self._phase_since) * (1 - part) / (part - self._first)
