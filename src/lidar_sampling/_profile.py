"""Where the time goes: parts of a block, timed without waiting for the device, beside their best times."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._batches import is_out_of_memory

WORK = ("network", "decode", "reward")  # the parts that are work; all else is overhead

Again = Callable[[int], Callable[[], Any]]
"""From a batch size to the same work on a batch of that size."""


@dataclass
class Profile:
    """The times that :func:`profiled` measured.

    Attributes:
        seconds: phase -> part -> seconds; ``overhead`` is what no part accounts for. A part that holds another, as a
            gradient holds the decoder, counts without it.
        rows: phase -> part -> rows of the batches that it worked on.
    """

    seconds: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    rows: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    _again: dict[tuple[str, str], tuple[int, Again]] = field(default_factory=dict)

    def best(self) -> dict[tuple[str, str], float]:
        """Measure the seconds per row of each (phase, part) that is work, now, at the best of three batch sizes.

        They are half, once and twice the size that was used; it takes a dozen batches of each.
        """
        return {key: min(_seconds_a_row(again, rows)) for key, (rows, again) in self._again.items()}

    def report(self) -> dict[str, Any]:
        """Return what was seen beside what the same work takes at its :meth:`best`, as JSON values.

        Returns:
            ``parts``: phase, part, seconds, rows, and ``best``, seconds per row, None where a part is overhead;
            ``seconds`` of all parts; ``ideal``, the rows of all work at their best; ``ratio`` of the two.
        """
        best = self.best()
        parts: list[dict[str, Any]] = [
            {
                "phase": phase,
                "part": part,
                "seconds": seconds,
                "rows": self.rows[phase][part],
                "best": best.get((phase, part)),
            }
            for phase, found in self.seconds.items()
            for part, seconds in found.items()
        ]
        seconds = sum(part["seconds"] for part in parts)
        ideal = sum(part["rows"] * part["best"] for part in parts if part["best"] is not None)
        return {"parts": parts, "seconds": seconds, "ideal": ideal, "ratio": seconds / ideal if ideal else None}


@contextmanager
def profiled(device: torch.device | str | None = None) -> Iterator[Profile]:
    """Time the parts of whatever this library does in the block; filled when it ends.

    Work that a thread of its own does, as with ``overlap``, is not seen: only what the block waits for counts.

    Args:
        device: where the work is done; None takes that of the pipeline that works in the block. On CUDA its own
            events are the clock, so nothing waits for it.

    Example:
        >>> from lidar_sampling import LiDAR, testing
        >>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=5)
        >>> with profiled() as profile:
        ...     result = lidar("a cat", images=2)
        >>> sorted(profile.seconds), profile.rows["sampling"]["decode"]
        (['lookahead', 'sampling', 'scoring'], 2)
    """
    profile = Profile()
    clock = _Clock(None if device is None else torch.device(device), profile)
    token = _current.set(clock)
    try:
        yield profile
    finally:
        _current.reset(token)
        clock.stop()


@contextmanager
def time_part(
    part: str, rows: int = 0, again: Again | None = None, *, device: torch.device | None = None
) -> Iterator[None]:
    """Count the block as ``part`` of the profile under way, if there is one.

    The outermost part is the phase. ``again`` does the same work once more, to see how fast it can be; ``device`` is
    where the block works, for a profile that was given no device.
    """
    clock = _current.get()
    if clock is None:
        yield
        return
    clock.device = clock.device or device
    clock.enter(part, rows, again)
    try:
        yield
    finally:
        clock.leave()


@contextmanager
def time_modules(modules: Mapping[str, Sequence[nn.Module]]) -> Iterator[None]:
    """Count the calls of modules as parts by their names, while there is a profile."""
    clock = _current.get()
    if clock is None:
        yield
        return

    def before(part: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = len(next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)))

        def again(size: int) -> Callable[[], Any]:
            return partial(module.forward, *_tile(args, rows, size), **_tile(kwargs, rows, size))

        clock.enter(part, rows, again if part in WORK else None)

    with ExitStack() as handles:
        for part, listed in modules.items():
            for module in listed:
                hook = module.register_forward_pre_hook(partial(before, part), with_kwargs=True)
                handles.callback(hook.remove)
                handles.callback(module.register_forward_hook(lambda *_: clock.leave(), always_call=True).remove)
        yield


class _Clock:
    """Stamps at every change of part; the time between two stamps belongs to the innermost part."""

    def __init__(self, device: torch.device | None, profile: Profile) -> None:
        self.device, self.profile = device, profile
        self.stack: list[str] = []
        self.stamps: list[tuple[float, Any, tuple[str, str] | None]] = []  # host's time, device's event, place

    def enter(self, part: str, rows: int, again: Again | None) -> None:
        self.stack.append(part)
        phase = self.stack[0]
        if rows:
            self.profile.rows[phase][part] += rows
        if again is not None:
            self.profile._again.setdefault((phase, part), (rows, again))
        self._stamp()

    def leave(self) -> None:
        self.stack.pop()
        self._stamp()

    def _stamp(self) -> None:
        event = None
        if self._on_cuda():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        place = (self.stack[0], self.stack[-1] if len(self.stack) > 1 else "overhead") if self.stack else None
        self.stamps.append((time.perf_counter(), event, place))

    def _on_cuda(self) -> bool:
        return self.device is not None and self.device.type == "cuda"

    def stop(self) -> None:
        if self._on_cuda():
            torch.cuda.synchronize(self.device)
        for (start, first, place), (end, second, _) in zip(self.stamps, self.stamps[1:], strict=False):
            if place is not None:
                phase, part = place
                by_device = first is not None and second is not None
                self.profile.seconds[phase][part] += first.elapsed_time(second) / 1000 if by_device else end - start


_current: ContextVar[_Clock | None] = ContextVar("profile", default=None)


def _seconds_a_row(again: Again, rows: int) -> Iterator[float]:
    for size in sorted({max(1, rows // 2), rows, 2 * rows}):
        try:
            with torch.no_grad():
                run = again(size)
                run()
                yield statistics.median(_seconds(run) for _ in range(3)) / size
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise


def _seconds(run: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _tile(value: Any, rows: int, size: int) -> Any:
    """Return the arguments of a batch of ``rows`` as those of a batch of ``size``."""
    if isinstance(value, Tensor):
        chosen = torch.arange(size, device=value.device) % max(rows, 1)
        return value.detach()[chosen] if value.dim() and len(value) == rows else value.detach()
    if isinstance(value, dict):
        return {key: _tile(item, rows, size) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_tile(item, rows, size) for item in value)
    return value
