"""The queue of waiting orders: clients take turns, and each client's oldest order comes first."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from .order import Order


class Turns:
    """A queue that serves clients in turn, however many orders each of them sends.

    Example:
        >>> from pathlib import Path
        >>> from ..runs import Job
        >>> turns = Turns()
        >>> for name, client in (("1", "a"), ("2", "a"), ("3", "a"), ("4", "b")):
        ...     turns.add(Order(name, Job(prompts=["a cat"]), Path(), client))
        >>> [order.id for order in turns], turns.take().id, turns.take().id, len(turns)
        (['1', '4', '2', '3'], '1', '4', 2)
    """

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Order]] = OrderedDict()  # the client whose turn is next comes first

    def __len__(self) -> int:
        return sum(map(len, [*self._of.values()]))

    def __iter__(self) -> Iterator[Order]:
        """Yield the orders in the order of their turns, as of now."""
        queues = [deque(queue) for queue in self._of.values()]
        while queues:
            for queue in queues:
                yield queue.popleft()
            queues = [queue for queue in queues if queue]

    def of(self, client: str) -> int:
        """Return how many orders of a client wait."""
        return len(self._of.get(client, ()))

    def add(self, order: Order) -> None:
        """Add an order to the queue."""
        self._of.setdefault(order.client, deque()).append(order)

    def take(self, order: Order | None = None) -> Order:
        """Take the next order, or a given one to draw together with it; this uses up its client's turn."""
        order = next(iter(self)) if order is None else order
        queue = self._of.pop(order.client)
        queue.remove(order)
        if queue:
            self._of[order.client] = queue
        return order

    def remove(self, order: Order) -> bool:
        """Remove an order from the queue; return whether it was waiting."""
        queue = self._of.get(order.client, deque())
        if order not in queue:
            return False
        queue.remove(order)
        if not queue:
            del self._of[order.client]
        return True
