"""One accepted Job: its state, its progress and its outcome."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .._files import write_json
from .._live import Glimpse
from ..runs import Job, Progress

_log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
Fault = Literal["", "request", "time", "server"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "lost")


@dataclass(frozen=True)
class Bank:
    """The bank of an order with its gallery.

    Attributes:
        file: file of the bank.
        pictures: a file for each member.
        rewards: reward -> scores of the members, the guiding reward first if it has scored them.
        drawn: whether it was drawn for this order instead of found.
    """

    file: Path
    pictures: list[Path]
    rewards: dict[str, list[float]]
    drawn: bool

    @property
    def id(self) -> str:
        """The id of the bank."""
        return self.file.stem

    def best_first(self) -> list[int]:
        """Return the members, best first by the guiding reward."""
        values = next(iter(self.rewards.values()))
        return sorted(range(len(values)), key=lambda i: -values[i])


@dataclass(eq=False)
class Order:
    """An accepted Job and its state; several threads may read it.

    Attributes:
        id: id of the order, also after a restart.
        job: what to draw, for one prompt.
        folder: folder with ``job.json``, ``end.json`` after the end, and the engine's output in ``out``.
        client: who sent it; clients are served in turn.
        live: whether to show unfinished samples, at the cost of a decode each.
        state: waiting, running, done, failed, cancelled; or lost, if its process ended first.
        progress: progress of a running order.
        phase: its current phase.
        glimpse: unfinished samples.
        bank: the bank that guides it, once it is there.
        scores: the guiding reward of each sample; empty before the samples are drawn, and after a restart.
        notes: warnings of the library.
        problem: reason of a failure.
        fault: cause of a failure: the request, the time limit or the server.
        since: time of acceptance, in seconds since 1970.
        begun: the same on the monotonic clock, for durations.
    """

    id: str
    job: Job
    folder: Path
    client: str = ""
    live: bool = True
    state: State = "waiting"
    progress: Progress | None = None
    glimpse: Glimpse | None = None
    bank: Bank | None = None
    scores: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    fault: Fault = ""
    version: int = 0
    since: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _listeners: list[Callable[[], object]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether the order has ended."""
        return self.state in ENDED

    @property
    def out(self) -> Path:
        """The folder of pictures and result.json."""
        return self.folder / "out"

    def result(self) -> dict[str, Any]:
        """Return the contents of ``result.json``: rewards, costs, trace, files relative to :attr:`out`.

        Raises:
            ValueError: the order is not done.
        """
        if self.state != "done":
            raise ValueError(f"order {self.id} is {self.state}" + (f": {self.problem}" if self.problem else ""))
        return json.loads((self.out / "result.json").read_text())["prompts"][0]

    def tell(self, **changes: Any) -> None:
        """Change attributes, and wake those who wait."""
        with self._changed:
            for name, value in changes.items():
                setattr(self, name, value)
            self.version += 1
            self._changed.notify_all()
            listeners = [*self._listeners]
        for listener in listeners:
            listener()

    def end(self, state: State, problem: str = "", fault: Fault = "") -> None:
        """Record and report how the order ended."""
        bank = None if self.bank is None else self.bank.id
        end = {"state": state, "problem": problem, "fault": fault, "notes": self.notes, "bank": bank}
        try:
            write_json(self.folder / "end.json", end)
        except OSError as error:  # those who wait must hear of it all the same
            _log.warning("the end of order %s is not kept: %s", self.id, error)
        self.tell(state=state, problem=problem, fault=fault, progress=None, glimpse=None)

    def wait(self, version: int = -1, timeout: float | None = None) -> int:
        """Wait for a change after ``version``, or for ``timeout`` seconds; return the current version."""
        with self._changed:
            self._changed.wait_for(lambda: self.version > version or self.ended, timeout)
            return self.version

    @contextmanager
    def listen(self, listener: Callable[[], object]) -> Iterator[None]:
        """Call ``listener`` at every change, in the drawing thread, within this block."""
        with self._changed:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(listener)
