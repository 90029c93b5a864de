"""What a run shows of itself while it goes on: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._values import spell_seconds
from ._screen import console, warn

if TYPE_CHECKING:
    from ..runs import Progress

_EVERY = 60  # seconds between two lines


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Yield what shows the progress of a run on stderr; None if nothing is to be shown."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with _bar() as move:

        def show(now: Progress) -> None:
            under_way = " ".join(f"{now.what} {now.phase}".split())
            move(f"{under_way}  [{in_words(now)}]", now.part, 1)

        yield show


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, float, int], None] | None]:
    """Yield a callback (phase, done, total) that moves a bar on stderr; None if there is nothing to show it on."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with _bar() as move:
        yield move


@contextmanager
def _bar() -> Iterator[Callable[[str, float, int], None]]:
    """Yield what moves a bar on stderr, by what to call it, how much is done and of how much."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


class _Lines:
    """Says where a run is in a line on stderr, every minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, now: Progress) -> None:
        if time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            under_way = f"; {now.what}, {now.phase} {now.part:.0%}" if now.phase else ""
            warn(f"{in_words(now)}{under_way}")


def in_words(now: Progress) -> str:
    """Return how much is done, what it cost, and how long the rest takes.

    >>> from lidar_sampling.runs import Progress
    >>> from lidar_sampling import Cost
    >>> in_words(Progress(3, 12, "a cat", cost=Cost(network_evaluations=12000, reward_calls=150), left=75.0))
    '3/12, 12,000 network evaluations, 150 reward calls, about 1 min 15 s left'
    """
    cost = now.cost
    parts = [f"{now.done}/{now.total}", f"{cost.network_evaluations:,} network evaluations"]
    parts += [f"{cost.reward_calls:,} reward calls"] if cost.reward_calls else []
    return ", ".join([*parts, *([] if now.left is None else [f"about {spell_seconds(now.left)} left"])])
