"""The orders of a desk in their folders: accepted, ended, forgotten, or reported as lost after a restart."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

from .._files import write_json
from ..runs import Job
from .banks import Banks
from .order import Fault, Order, State

_log = logging.getLogger(__name__)


class Shelf:
    """A shelf, which keeps each order in its own folder.

    Args:
        folder: folder of all orders.
        banks: banks of the desk.
        most: most ended orders to keep; older ones are removed.
    """

    def __init__(self, folder: Path, banks: Banks, most: int) -> None:
        self.folder, self.most = folder, most
        self.orders: dict[str, Order] = {order.id: order for order in _read_orders(folder, banks)}
        self.counts: Counter[State] = Counter()  # counts of orders that ended since the desk opened
        self._ended = deque(self.orders)
        self._last = max((int(name.split("-")[0]) for name in self.orders), default=0)
        self._lock = threading.Lock()

    def accept(self, job: Job, client: str, live: bool) -> Order:
        """Record a Job under a new id."""
        with self._lock:
            self._last += 1
            name = f"{self._last:06d}-{secrets.token_hex(8)}"  # ids sort by time and cannot be guessed
        order = Order(name, job, self.folder / name, client, live)
        order.folder.mkdir(parents=True)
        write_json(order.folder / "job.json", job.to_json())
        self.orders[name] = order
        return order

    def end(self, order: Order, state: State, problem: str = "", fault: Fault = "") -> None:
        """Record and report how an order ended; remove it if it was forgotten."""
        order.end(state, problem, fault)
        with self._lock:
            self.counts[state] += 1
            self._ended.append(order.id)
            forgotten = order.id not in self.orders
        if forgotten:
            shutil.rmtree(order.folder, ignore_errors=True)

    def forget(self, order: Order) -> None:
        """Remove an order with its pictures once it has ended; its bank stays."""
        with self._lock:
            self.orders.pop(order.id, None)
        if order.ended:
            shutil.rmtree(order.folder, ignore_errors=True)

    def tidy(self) -> None:
        """Remove the oldest ended orders above the limit."""
        while len(self._ended) > self.most:
            if (order := self.orders.pop(self._ended.popleft(), None)) is not None:
                shutil.rmtree(order.folder, ignore_errors=True)


def _read_orders(jobs: Path, banks: Banks) -> Iterator[Order]:
    """Yield the orders of earlier desks, oldest first; an order that did not end is lost."""
    for folder in sorted(jobs.glob("*-*")):
        try:
            order = Order(folder.name, Job.read(folder / "job.json"), folder)
        except (OSError, ValueError) as error:
            _log.warning("order %s is left out: %s", folder.name, error)
            continue
        if (folder / "end.json").is_file():
            end = json.loads((folder / "end.json").read_text())
            order.state, order.problem, order.notes = end["state"], end["problem"], end["notes"]
            order.fault, name = end.get("fault", ""), end.get("bank")
            order.bank = None if name is None else banks.recall(name, order.job.reward)
        else:
            order.end("lost", "its process ended before it was done: ask again", "server")
        yield order
