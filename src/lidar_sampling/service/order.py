"""One accepted Job: where it is, what is to be seen of it, and what became of it."""

from __future__ import annotations

import json
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

State = Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
Fault = Literal["", "request", "time", "server"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "lost")


@dataclass(frozen=True)
class Bank:
    """The bank of an order, as people look at it.

    Attributes:
        file: where it is kept.
        pictures: a file for each member.
        rewards: of the members by each reward that scored them, the guiding one first.
        drawn: whether it was drawn for this order, and not found.
    """

    file: Path
    pictures: list[Path]
    rewards: dict[str, list[float]]
    drawn: bool

    @property
    def id(self) -> str:
        """What names it."""
        return self.file.stem

    def best_first(self) -> list[int]:
        """Return the members by falling guiding reward."""
        values = next(iter(self.rewards.values()))
        return sorted(range(len(values)), key=lambda i: -values[i])


@dataclass(eq=False)
class Order:
    """A Job that was accepted, with what is known of it; several threads may look at it.

    Attributes:
        id: names it, also after a restart.
        job: what to draw, of one prompt.
        folder: holds ``job.json``, when it ended ``end.json``, and in ``out`` what the engine wrote.
        client: who sent it; clients are served by turns.
        live: whether somebody looks at samples under way, which cost a decode each.
        state: waiting, running, done, failed, cancelled; or lost, when the process that drew it ended before.
        progress: of the one that runs.
        phase: of it.
        glimpse: samples under way.
        bank: that guides it, as soon as it is there.
        notes: what the library warned of.
        problem: why it failed.
        fault: of a failure: of the request, of the time that it took, or of the server.
        since: when it was accepted, in seconds since 1970.
        begun: the same by the clock that durations are read from.
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
        """Whether nothing more will come of it."""
        return self.state in ENDED

    @property
    def out(self) -> Path:
        """The folder of pictures and result.json."""
        return self.folder / "out"

    def result(self) -> dict[str, Any]:
        """Return what ``result.json`` says of the prompt: rewards, costs, trace, files relative to :attr:`out`.

        Raises:
            ValueError: the order is not done.
        """
        if self.state != "done":
            raise ValueError(f"order {self.id} is {self.state}" + (f": {self.problem}" if self.problem else ""))
        return json.loads((self.out / "result.json").read_text())["prompts"][0]

    def tell(self, **changes: Any) -> None:
        """Change what is known, and wake who waits."""
        with self._changed:
            for name, value in changes.items():
                setattr(self, name, value)
            self.version += 1
            self._changed.notify_all()
            listeners = [*self._listeners]
        for listener in listeners:
            listener()

    def end(self, state: State, problem: str = "", fault: Fault = "") -> None:
        """Write down and tell how it ended."""
        bank = None if self.bank is None else self.bank.id
        end = {"state": state, "problem": problem, "fault": fault, "notes": self.notes, "bank": bank}
        write_json(self.folder / "end.json", end)
        self.tell(state=state, problem=problem, fault=fault, progress=None, glimpse=None)

    def wait(self, version: int = -1, timeout: float | None = None) -> int:
        """Wait until more is known than at ``version``, or so many seconds; return the version that is reached."""
        with self._changed:
            self._changed.wait_for(lambda: self.version > version or self.ended, timeout)
            return self.version

    @contextmanager
    def listen(self, listener: Callable[[], object]) -> Iterator[None]:
        """Call ``listener`` in the thread that draws whenever more is known, within this block."""
        with self._changed:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(listener)
