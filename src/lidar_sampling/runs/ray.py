"""The engine on a Ray cluster: the tasks of :mod:`lidar_sampling.runs.local`, drawn by actors.

A worker holds the pipeline and draws both phases, so that banks are never sent; it writes into ``out``, which all
hosts share. The driver holds only numbers of units. It gives each worker that has answered one group to draw and one
that waits. Ray places the processes and handles machines that come and go.

A lost worker is replaced, and its units are drawn again. Its oldest group is to blame, since a worker draws one group
after the other. The units of that group are drawn alone from then on, and a unit that was to blame three times is
given up. If an answer is lost on its way, a unit is drawn twice, but kept once.

Rewards may be separate actors, one per host, shared by several workers: :class:`RayReward`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .._cost import Cost
from .._files import check_writable
from .._values import accepts
from ..rewards import RewardError
from ._folder import check_overwrite, contents_of, sweep
from ._ray_actors import Drawn, Judge, Worker
from ._ray_actors import RayReward as RayReward
from .job import Job
from .local import Outcome, Progress, Record, Tell, task_of

_log = logging.getLogger(__name__)

TRIES = 3  # attempts per unit whose worker is lost
WINDOW = 2  # groups per worker: the one that it draws, and the next
_TICK, _REACH = 5.0, 10.0  # seconds between two reports, and until an address must answer
_NAMED = 10  # most units that an error names
_QUIET = {  # set before Ray is imported: no telemetry, and nothing from Ray on our stdout
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # gRPC answers this with settings, type 4


def run(
    job: Job,
    out: str | Path,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float | None = None,
    judge_gpus: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tell: Tell | None = None,
) -> Outcome:
    """Draw a Job on a Ray cluster, except what ``out`` already holds, and write the result over all units.

    Args:
        job: what to draw; a budget must be settled (:func:`lidar_sampling.evaluation.budget.settle`).
        out: folder to write, on a disk that all hosts share under the same path.
        address: address of a running cluster, ``HOST:PORT``, or ``auto`` for this machine's cluster; None starts Ray
            on this machine. A process that has already joined a cluster stays in it.
        workers: number of workers; fewer draw while the cluster has no room. None takes one per GPU, or one per two
            CPUs if workers take no GPU, and at most one per group of prompts.
        gpus: GPUs per worker, possibly a fraction; None takes one if the cluster has any and the Job does not ask for
            the CPU. Ray only counts GPUs; it does not limit memory.
        judge_gpus: share of a GPU for each judge, an actor per host and reward; 0 takes the CPU. Judges get pictures
            in 8 bits, which changes scores slightly. None computes rewards in the workers.
        resume: continue the run in ``out``, if it is the same. Workers share the folder as shards do, so they always
            continue, and you can simply restart a killed driver.
        overwrite: delete the run in ``out`` first; of pictures alone.
        tell: called when a worker answers, and every few seconds.

    Raises:
        FileExistsError, OSError, ValueError: ``out`` cannot be written or holds something else, no cluster answers at
            ``address``, or the Job cannot be drawn.
        ImportError: Ray is not installed.
        RewardError: a reward failed on some prompts; the others are there.
        RuntimeError: some prompts ended their process three times (the others are there), or workers die while
            loading.
    """
    for name, value in (("gpus", gpus), ("judge_gpus", judge_gpus)):
        if value is not None and not (accepts(float, value) and 0 <= value < math.inf):
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    if workers is not None and not (accepts(int, workers) and workers >= 1):
        raise ValueError(f"workers must be a whole number of at least 1, got {workers!r}")
    if job.device is not None and ":" in job.device:
        raise ValueError(f"Ray gives each worker its own GPU, got --device {job.device!r}: use cuda")
    check_writable(out)
    if overwrite:
        check_overwrite(job, out)
    folder = Path(out).resolve()
    if job.task == "generate" and folder.is_dir() and contents_of(folder) and not (folder / "run.json").is_file():
        raise FileExistsError(
            f"{out} is not empty and holds no run of lidar, so it is left alone: choose another --out"
        )
    with _cluster(address) as ray:
        if gpus is None:
            gpus = 1.0 if job.device != "cpu" and ray.cluster_resources().get("GPU") else 0.0
        if address is None and gpus > (there := ray.cluster_resources().get("GPU", 0)):
            raise ValueError(f"this machine has {there:g} GPUs and a worker should get {gpus:g}: give gpus=0")
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        if gpus == 0 and job.device is None:
            job = replace(job, device="cpu")
        crew = _Crew(ray, _at_home(job), folder, gpus=gpus, judge_gpus=judge_gpus, workers=workers, tell=tell)
        with crew.sign_in():
            crew.work()
    return crew.outcome()


def _at_home(job: Job) -> Job:
    """Return the Job with absolute paths: a worker of a cluster that runs already begins in another folder."""
    model = job.model
    if model != "glyph" and Path(model).is_dir():  # else a hub id
        model = str(Path(model).resolve())
    store = job.store and str(Path(job.store).resolve())
    return replace(job, model=model, store=store, banks=tuple(str(Path(bank).resolve()) for bank in job.banks))


@dataclass(eq=False)
class _Hired:
    """A worker: its actor, its batch of prompts (known once it answers), and its groups, oldest first."""

    actor: Any
    size: int = 0
    flying: dict[Any, list[int]] = field(default_factory=dict)


class _Crew:
    """The workers of a run, the units left to draw, and the outcomes. Units are given by number."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        out: Path,
        *,
        gpus: float,
        judge_gpus: float | None,
        workers: int | None,
        tell: Tell | None,
    ) -> None:
        self.ray, self.job, self.out, self.gpus, self.tell = ray, job, out, gpus, tell
        self.task = task_of(job, out)
        self.total, self.seen, self.done, self.drawn = len(self.task.units), 0, 0, 0
        self.cost = Cost()
        self.again: deque[list[int]] = deque()
        self.rest = self._find_missing()
        if job.task == "compare":  # read its lines once, not again after each new line
            missing = list(self.rest)
            self.seen, self.rest = self.total - len(missing), self._count_seen(missing)
        self.blamed: dict[int, int] = {}
        self.failed: dict[int, str] = {}
        self.begun = False  # whether a worker has taken the folder
        self.refused = 0  # groups in which every unit failed
        self.by_reward = True  # whether all failures are of rewards
        self.records: dict[int, Record] = {}  # of banks
        self.hired: list[_Hired] = []
        self.waiting: dict[Any, _Hired] = {}
        self.ranks = self.stillborn = 0
        self.crew = secrets.token_hex(4)
        text = json.dumps(job.to_json())
        # The same name after a restart, so that a killed driver leaves one file and not many.
        self.sign = f".run.json.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.dtype = job.dtype
        nodes = [node for node in ray.nodes() if node["Alive"]]
        named = [*(job.reward if isinstance(job.reward, dict) else filter(None, [job.reward])), *(job.metrics or ())]
        if judge_gpus is not None and not named:
            raise ValueError("judge_gpus needs rewards that the Job names, and this Job names none: give --reward")
        self.wanted = _room(nodes, gpus, len(named) * (judge_gpus or 0), wanted=workers)
        if workers is None:
            self.wanted = min(self.wanted, math.ceil(self.total / self.task.together))
        self.pace: deque[tuple[float, int]] = deque(maxlen=max(64, 4 * self.wanted))
        self.given = ray.put(text)
        self.judges: list[Any] = []
        self.stand_ins: dict[str, dict[str, Any]] = {}
        self.named, self.judge_gpus, self.nodes = named, judge_gpus, nodes

    @contextmanager
    def sign_in(self) -> Iterator[None]:
        """Keep a file in the folder by which workers recognise it during this block; leave no empty folder behind."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            for worker in list(self.hired):
                self._dismiss(worker)
            for judge in self.judges:
                self.ray.kill(judge)
            with suppress(OSError):
                (self.out / self.sign).unlink()
                self.out.rmdir()  # only if it is empty

    def work(self) -> None:
        """Draw until every unit is finished or has failed."""
        self._say()
        if self.judge_gpus is not None:
            self._place_judges(self.judge_gpus)
        while True:
            while len(self.hired) < min(self.wanted, max(self._count_left(), 0 if self.begun else 1)):
                self._hire()
            self._give()
            self._say()  # now, since a worker is idle between its answer and the next group
            if self.begun and not self._count_left():
                break
            found, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=_TICK)
            if found:
                found, _ = self.ray.wait(list(self.waiting), num_returns=len(self.waiting), timeout=0)
            for ref in found:
                if ref in self.waiting:  # its worker has not been lost meanwhile
                    self._hear(ref)
            if not self.drawn and self.refused >= max(1, sum(worker.size > 0 for worker in self.hired)):
                break  # the fault is not in the prompts

    def outcome(self) -> Outcome:
        """Return the outcome of the run, or raise an error for missing units."""
        sweep(self.out)
        if self.failed:
            first, *more = sorted(self.failed)
            others = ", ".join(repr(self._describe(number)) for number in more[: _NAMED - 1])
            left = f", and {len(more) - _NAMED + 1} more" if len(more) >= _NAMED else ""
            missing = f"{self.total - self.done} of {self.total} prompts are not in {self.out}"
            raise (RewardError if self.by_reward else RuntimeError)(
                f"{missing}, first {self._describe(first)!r}: {self.failed[first]}"
                + (f"; also {others}{left}" if more else "")
            )
        extra = {"banks": [self.records[n] for n in sorted(self.records)]} if self.job.task == "look" else {}
        task = task_of(replace(self.job, dtype=self.dtype), self.out)
        return Outcome(task, True, task.collect(extra), self.cost)

    def _find_missing(self) -> Iterator[int]:
        """Yield the numbers of missing units one by one, without a list of possibly a million."""
        for number, unit in enumerate(self.task.units):
            self.seen += 1
            if self.task.find_record(unit) is None:
                yield number
            else:
                self.done += 1

    def _count_seen(self, numbers: list[int]) -> Iterator[int]:
        for number in numbers:
            self.seen += 1
            yield number

    def _count_left(self) -> int:
        return self.total - self.done - len(self.failed)

    def _place_judges(self, share: float) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        device = "cpu" if share == 0 else self.job.device
        guides = self.job.reward if isinstance(self.job.reward, dict) else [self.job.reward]
        hosts = [node["NodeID"] for node in self.nodes if node["Resources"].get("GPU" if share else "CPU", 0) > 0]
        if not hosts:
            raise ValueError(f"no host of the cluster has a GPU, of which judges should get {share:g}: give them 0")
        for name in self.named:
            places, ready = {}, []
            for host in hosts:
                places[host] = f"lidar-{self.crew}-{name}-{host[:12]}"
                judge = (
                    self.ray.remote(Judge)
                    .options(
                        name=places[host],
                        num_cpus=0,
                        num_gpus=share,
                        max_restarts=-1,
                        max_task_retries=3,
                        scheduling_strategy=NodeAffinitySchedulingStrategy(host, soft=True),
                    )
                    .remote(name, self.job.fast if name in guides else None, device)
                )
                self.judges.append(judge)
                ready.append(judge.ready.remote(self.given))
            try:
                self.stand_ins[name] = {**self.ray.get(ready)[0], "places": places}
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause or error from None
            except self.ray.exceptions.RayError as error:
                raise RuntimeError(f"the judge of {name!r} cannot be started: {_first_line(error)}") from None

    def _hire(self) -> None:
        (self.out / self.sign).touch()
        actor = (
            self.ray.remote(Worker)
            .options(num_cpus=1, num_gpus=self.gpus, max_restarts=0, max_task_retries=0)
            .remote(self.given, str(self.out), self.ranks, self.sign, self.stand_ins)
        )
        self.ranks += 1
        worker = _Hired(actor)
        self.hired.append(worker)
        self.waiting[actor.ready.remote()] = worker

    def _dismiss(self, worker: _Hired) -> None:
        self.hired.remove(worker)
        self.waiting = {ref: other for ref, other in self.waiting.items() if other is not worker}
        self.ray.kill(worker.actor)

    def _give(self) -> None:
        """Give groups to workers that have answered, idle ones first; the last groups go only to idle ones."""
        for depth in range(WINDOW):
            for worker in [worker for worker in self.hired if worker.size and len(worker.flying) == depth]:
                if depth and not self.again and self.total - self.seen < sum(each.size for each in self.hired):
                    return
                numbers = self.again.popleft() if self.again else list(islice(self.rest, worker.size))
                if not numbers:
                    return
                if not self.pace:
                    self.pace.append((time.monotonic(), 0))
                ref = worker.actor.draw.remote(numbers)
                worker.flying[ref], self.waiting[ref] = numbers, worker

    def _hear(self, ref: Any) -> None:
        """Handle the answer of a worker: it is ready, has drawn, or is lost."""
        worker = self.waiting.pop(ref)
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause or error
            if isinstance(cause, ValueError | TypeError | OSError | ImportError):  # others would fail the same way
                raise cause from None
            self._lose(worker, cause)
        except self.ray.exceptions.RayError as error:
            self._lose(worker, error)
        else:
            if ref in worker.flying:
                del worker.flying[ref]
                self._count(answer)
            else:
                worker.size, self.dtype, self.stillborn, self.begun = answer.size, answer.dtype, 0, True

    def _count(self, answer: list[Drawn]) -> None:
        for drawn in answer:
            if drawn.problem:
                self._fail(drawn.number, drawn.problem)
                continue
            self.done, self.drawn, self.cost = self.done + 1, self.drawn + 1, self.cost + drawn.cost
            if drawn.record is not None:
                self.records[drawn.number] = drawn.record
        self.refused += all(drawn.problem for drawn in answer)
        self.pace.append((time.monotonic(), len(answer)))

    def _lose(self, worker: _Hired, error: BaseException) -> None:
        """Put back the groups of a lost worker. The oldest group is to blame, unless the whole host was lost."""
        reason, groups = _first_line(error), list(worker.flying.values())
        self._dismiss(worker)
        _log.warning("a worker was lost, and is replaced: %s", reason)
        if not worker.size:
            self.stillborn += 1
            if self.stillborn > 2 * self.wanted:
                raise RuntimeError(f"{self.stillborn} workers were lost while they loaded, the last one: {reason}")
        for k, group in enumerate(groups):
            there = {number: self.task.find_record(self.task.units[number]) for number in group}
            for record in filter(None, there.values()):
                self.done, self.drawn, self.cost = self.done + 1, self.drawn + 1, self.cost + self.task.cost(record)
            missing = [number for number, record in there.items() if record is None]
            if k or _is_of_host(error):
                self.again.extend([missing] if missing else [])
                continue
            for number in missing:
                self.blamed[number] = self.blamed.get(number, 0) + 1
                if self.blamed[number] < TRIES:
                    self.again.append([number])
                else:
                    self.by_reward = False
                    self._fail(number, f"its process ended {TRIES} times, the last time: {reason}")

    def _fail(self, number: int, problem: str) -> None:
        self.failed[number] = problem
        _log.warning("%r is left out: %s", self._describe(number), problem)

    def _describe(self, number: int) -> str:
        return self.task.describe(self.task.units[number])

    def _say(self) -> None:
        """Report how far the run is, and how long the rest takes at the pace of the last answers."""
        if self.tell is None:
            return
        flying = [number for worker in self.hired for group in worker.flying.values() for number in group]
        ready = sum(worker.size > 0 for worker in self.hired)
        what = self._describe(min(flying)) + (f" and {len(flying) - 1} more" if flying[1:] else "") if flying else ""
        phase = f"({ready} of {self.wanted} workers)" if ready else "starting workers"
        left = None
        if (made := sum(count for _, count in islice(self.pace, 1, None))) and self.pace:
            pace = made / (time.monotonic() - self.pace[0][0])
            left = self._count_left() / pace
        part = self.done / self.total
        self.tell(Progress(self.done, self.total, what, phase, part, self.cost, left))


def _room(nodes: list[Mapping[str, Any]], gpus: float, judges: float, *, wanted: int | None) -> int:
    """Return the number of workers: as many as wanted, or as the hosts have room for, at least one."""
    if wanted is not None:
        return wanted
    if not gpus:
        return max(1, int(sum(node["Resources"].get("CPU", 0) for node in nodes)) // 2)
    free = [node["Resources"]["GPU"] - judges for node in nodes if node["Resources"].get("GPU")]
    return max(1, sum(int(max(0.0, each) / gpus + 1e-6) for each in free))


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Join a cluster or start Ray on this machine, and yield Ray; leave or stop it afterwards.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no cluster answers at the address.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ImportError("Ray is not installed: pip install 'lidar-sampling[ray]'") from None
    import ray.exceptions

    if address not in (None, "auto"):
        _check_reachable(address)
    if ray.is_initialized():
        yield ray
        return
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        how["include_dashboard"] = False
    try:
        ray.init(address or "local", **how)
    except Exception as error:
        if address is None:
            raise RuntimeError(f"Ray cannot be started on this machine: {_first_line(error)}") from None
        raise ValueError(_no_cluster(address, _first_line(error))) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: Any) -> None:
    """Refuse an address where no gRPC server listens; Ray itself would wait there for minutes."""
    host, _, port = str(address).rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdecimal()):
        raise ValueError(f"the address of a Ray cluster must be HOST:PORT or auto, got {address!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH) as line:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                line.sendall(_HELLO)
                if line.recv(9, socket.MSG_WAITALL)[3:4] != b"\x04":
                    raise OSError("something else listens there")
    except (OSError, OverflowError) as error:
        raise ValueError(_no_cluster(address, str(error))) from None


def _no_cluster(address: str, why: str) -> str:
    return (
        f"no Ray cluster answers at {address!r} ({why}): start one with 'ray start --head', or leave the address out"
    )


def _is_of_host(error: BaseException) -> bool:
    """Return whether a worker was lost with its host, for which no prompt is to blame."""
    return "node has died" in str(error) or type(error).__name__ in ("NodeDiedError", "LocalRayletDiedError")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "creation task" in lines[0] else lines[0]  # the following lines are output of the process
