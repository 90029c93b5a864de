"""The desk: it accepts Jobs, draws them one after another on one thread, and keeps models and banks loaded.

``folder/jobs/ID/``   an order: ``job.json`` once it is accepted, ``end.json`` once it has ended, ``out/`` as
                      ``lidar generate`` writes it
``folder/banks/``     the store that all orders share: an order that finds its bank here draws only phase 2
``folder/galleries/`` pictures of the members of banks

Clients are served in turn. If the process ends before an accepted order does, the order is later reported as lost.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from .._files import check_writable
from .._forecast import Rates
from .._sampler import LiDAR
from ..runs import Job
from .banks import Banks
from .drawing import FAILS_ALONE, Drawing, StoppedError, fault_of, fits, tell_warnings
from .order import Fault, Order, State
from .samplers import Samplers
from .shelf import Shelf
from .turns import Turns

_log = logging.getLogger(__name__)

_COSTS_ITS_ORDER = (ValueError, TypeError, OSError, RuntimeError, MemoryError, ArithmeticError, LookupError)
_LATEST = 0.2  # weight of the latest order in the mean duration


class FullError(RuntimeError):
    """The queue is full."""


class Desk:
    """A desk, which draws orders one after another.

    Args:
        folder: folder of orders and banks, for one desk at a time.
        places: most orders that may wait.
        most_each: most of them from one client; 0 for no limit.
        most_orders: most ended orders to keep, with their pictures; older ones are removed.
        most_bytes: most bytes of banks and galleries; the least recently used are removed.
        samplers: number of samplers that stay loaded, each a model with its rewards.
        seconds: most seconds to draw an order; 0 for no limit.

    Example:
        >>> import tempfile
        >>> with Desk(tempfile.mkdtemp()) as desk:
        ...     how = {"steps": 2, "n": 2, "lookahead": "dpm:2"}
        ...     order = desk.submit(Job(prompts=["a photo of a cat"], settings=how, images=1))
        ...     while not order.ended:
        ...         _ = order.wait(timeout=60)
        >>> order.state, order.result()["lidar"]["images"]
        ('done', ['00000/samples/0000.png'])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        places: int = 8,
        most_each: int = 0,
        most_orders: int = 500,
        most_bytes: int = 4 << 30,
        samplers: int = 2,
        seconds: float = 0.0,
    ) -> None:
        self.folder, self.places, self.most_each = Path(folder).absolute(), places, most_each or places
        self.seconds = seconds
        check_writable(self.folder, "--folder")
        self.banks = Banks(self.folder, most_bytes)
        self.store = self.banks.store
        self.pace = 1.0  # recent mean of seconds per order
        self.on_end: Callable[[Order, float], None] = lambda order, seconds: (
            None
        )  # including the time since it was accepted
        self._samplers = Samplers(self.store, samplers)
        self._waiting, self._errands = Turns(), deque[Callable[[], None]]()
        self._ready, self._closing = threading.Condition(), False
        self._group: list[Order] = []  # that is drawn now
        self._shelf = Shelf(self.folder / "jobs", self.banks, most_orders)
        self.orders, self.counts = self._shelf.orders, self._shelf.counts
        self._thread = threading.Thread(target=self._work, name="lidar-desk", daemon=True)
        self._thread.start()

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """How many orders wait."""
        return len(self._waiting)

    @property
    def closing(self) -> bool:
        """Whether it accepts nothing more."""
        return self._closing

    @property
    def alive(self) -> bool:
        """Whether its thread draws what comes."""
        return self._thread.is_alive()

    def submit(self, job: Job, *, client: str = "", live: bool = True) -> Order:
        """Accept a Job of one prompt; its id is known from now on, also after a restart.

        Args:
            job: what to draw: pictures, or with the task ``look`` only a bank.
            client: who asks; clients are served in turn.
            live: whether to show unfinished samples, at the cost of a decode each.

        Raises:
            FullError: the queue is full.
            ValueError: the Job is not for pictures or the bank of one prompt.
        """
        if job.task == "compare" or len(job) != 1:
            raise ValueError(f"the desk draws one prompt, got {len(job)} to {job.task}")
        with self._ready:
            self.check_room(client)
            order = self._shelf.accept(job, client, live)
            self._waiting.add(order)
            self._ready.notify()
        return order

    def check_room(self, client: str = "") -> None:
        """Refuse an order if the queue is full.

        Raises:
            FullError: the queue is full, in all or for this client.
        """
        if self._closing:
            raise FullError("the desk is closing")
        if (all_of := len(self._waiting)) >= self.places:
            raise FullError(f"{all_of} orders are waiting, and no more may: ask again later")
        if (own := self._waiting.of(client)) >= self.most_each:
            raise FullError(f"{own} orders of yours are waiting, and no more may: ask again later")

    def position(self, order: Order) -> int:
        """Return how many orders will be drawn before this one."""
        with self._ready:
            before = [*self._waiting]
        return before.index(order) + (self.running is not None) if order in before else 0

    def cancel(self, order: Order) -> None:
        """Stop an order: at once if it waits, within a step if it runs. An ended order is left as it is."""
        order.stop.set()
        with self._ready:
            waits = self._waiting.remove(order)
        if waits:
            self._end(order, "cancelled")

    def forget(self, order: Order) -> None:
        """Cancel an order, and remove it with its pictures once it is no longer being drawn; its bank stays."""
        self.cancel(order)
        self._shelf.forget(order)

    def rates(self, job: Job) -> Rates | None:
        """Return the measured speed of a Job's sampler; None before it is measured."""
        return self._samplers.rates(job)

    def warm(self, job: Job) -> Future[LiDAR]:
        """Load the sampler of a Job and measure its speed once nothing waits; return a future of the sampler."""
        coming: Future[LiDAR] = Future()

        def errand() -> None:
            try:
                coming.set_result(self._samplers.measure(job))
            except Exception as error:
                coming.set_exception(error)

        with self._ready:
            self._errands.append(errand)
            self._ready.notify()
        return coming

    def sampler(self, job: Job) -> LiDAR | None:
        """Return the loaded sampler of a Job with its settings; None if it is not loaded."""
        return self._samplers.get(job)

    def check_with(self, check: Callable[[Job, LiDAR], object]) -> None:
        """Let ``check`` refuse Jobs, by what it raises, once their samplers are loaded and before anything is drawn.

        It is called with a Job and its sampler, also for the Jobs of :meth:`warm`.
        """
        self._samplers.check = check

    @property
    def running(self) -> Order | None:
        """The order that is drawn now, the first of those that are drawn together."""
        return next(iter(self._group), None)

    def stop(self, *, finish: bool = True) -> None:
        """Accept no more orders, drop waiting ones, and finish or stop the running one. Return at once."""
        with self._ready:
            self._closing = True
            waiting = [*self._waiting]
            for order in waiting:
                self._waiting.remove(order)
            self._ready.notify()
        for order in waiting:
            self._end(order, "lost", "the server was stopped before this order's turn: ask again", "server")
        for order in () if finish else self._group:
            order.stop.set()

    def close(self, *, finish: bool = True) -> None:
        """Stop as :meth:`stop` does, and wait until nothing is running."""
        self.stop(finish=finish)
        self._thread.join()

    def _work(self) -> None:
        while True:
            group: list[Order] = []
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._errands or self._closing)
                if self._waiting:
                    group = self._group = self._take()
                elif self._closing:
                    return
                else:
                    errand = self._errands.popleft()
            if not group:
                errand()
                continue
            begun = time.monotonic()
            try:
                self._carry_out(group)
            finally:
                self._group = []
                self.pace += _LATEST * ((time.monotonic() - begun) / len(group) - self.pace)
                self._tidy()

    def _take(self) -> list[Order]:
        """Take the next order, and those that can be drawn together with it."""
        group = [self._waiting.take()]
        for order in [*self._waiting]:
            if fits(group, order):
                group.append(self._waiting.take(order))
        return group

    def _carry_out(self, group: list[Order]) -> None:
        for order in group:
            order.tell(state="running")
        try:
            with tell_warnings(lambda text: _note(group, text)):
                Drawing(group, self.seconds).draw(self._samplers, self.banks)
        except FAILS_ALONE as error:
            if len(group) == 1:
                self._fail(group, error)
                return
            for order in group:
                shutil.rmtree(order.out, ignore_errors=True)
                self._carry_out([order])
        except StoppedError:
            for order in group:
                self._end(order, "cancelled")
        except _COSTS_ITS_ORDER as error:
            self._fail(group, error)
        except BaseException as error:
            self._fail(group, error)
            raise
        else:
            for order in group:
                self._end(order, "cancelled" if order.stop.is_set() and len(group) > 1 else "done")

    def _fail(self, group: list[Order], error: BaseException) -> None:
        _log.info("order %s failed", group[0].id, exc_info=error)
        problem = " ".join(str(error).split()) or type(error).__name__
        for order in group:
            self._end(order, "failed", problem, fault_of(error))

    def _end(self, order: Order, state: State, problem: str = "", fault: Fault = "") -> None:
        self._shelf.end(order, state, problem, fault)
        self.on_end(order, time.monotonic() - order.begun)

    def _tidy(self) -> None:
        """Remove orders and banks above the limits, except banks that waiting orders need."""
        with self._ready:
            needed = {Path(path).stem for order in self._waiting for path in order.job.banks}
        try:
            self._shelf.tidy()
            self.banks.trim(needed)
        except OSError as error:  # there is a next time
            _log.warning("old orders and banks stay where they are: %s", error)


def _note(group: list[Order], text: str) -> None:
    for order in group:
        if text not in order.notes:
            order.tell(notes=[*order.notes, text])
