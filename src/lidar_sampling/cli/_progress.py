"""The progress of a run, with the time left: a bar on a terminal, one line per minute elsewhere."""

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
    """Yield a callback that shows the progress of a run on stderr; None if nothing is to be shown."""
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
    with _bar(remaining=True) as move:
        yield move


@contextmanager
def _bar(*, remaining: bool = False) -> Iterator[Callable[[str, float, int], None]]:
    """Yield a callback (description, done, total) that moves a bar on stderr.

    The description of a run says how long it still takes; with ``remaining`` the bar estimates that by its own pace.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn()] if remaining else []
    with Progress(*columns, console=console(stderr=True), transient=True, get_time=time.monotonic) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total)


class _Lines:
    """A callback that reports the progress of a run in a line on stderr, once per minute."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, now: Progress) -> None:
        if time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            under_way = f"; {now.what}, {now.phase} {now.part:.0%}" if now.phase else ""
            warn(f"{in_words(now)}{under_way}")


def in_words(now: Progress) -> str:
    """Return how much is done, its cost, and how long the rest takes; at first only for the current phase.

    >>> from lidar_sampling.runs import Progress
    >>> from lidar_sampling import Cost
    >>> in_words(Progress(3, 12, "a cat", cost=Cost(network_evaluations=12000, reward_calls=150), left=75.0))
    '3/12, 12,000 network evaluations, 150 reward calls, about 1 min 15 s left'
    >>> in_words(Progress(0, 1, "a cat", "sampling", 0.25, phase_left=9.0))
    '0/1, 0 network evaluations, about 9 s of sampling left'
    """
    cost = now.cost
    parts = [f"{now.done}/{now.total}", f"{cost.network_evaluations:,} network evaluations"]
    parts += [f"{cost.reward_calls:,} reward calls"] if cost.reward_calls else []
    if now.left is not None:
        parts.append(f"about {spell_seconds(now.left)} left")
    elif now.phase_left is not None:
        parts.append(f"about {spell_seconds(now.phase_left)} of {now.phase} left")
    return ", ".join(parts)
