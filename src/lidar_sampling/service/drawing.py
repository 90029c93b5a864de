"""Drawing the orders of the desk, each into its own folder.

Orders that differ only in their prompt are drawn together, so that batches are full. Each gets the noise, and so the
pictures, that it would get alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .._bank import LookaheadBank
from .._guide import GuidanceError
from .._hooks import DivergedError
from .._live import Glimpse
from .._result import Result
from .._sampler import LiDAR
from ..methods import Guided
from ..methods import load as load_method
from ..rewards import RewardError, name_of
from ..rewards.mixture import Mixture
from ..runs import Job, Progress, task_of
from ..runs._folder import Folder
from ..runs._pictures import draw_judged
from .banks import Banks, members_of
from .order import Fault, Order
from .samplers import Samplers

_OF_REQUEST = (ValueError, TypeError, DivergedError, GuidanceError)  # faults that a different request would avoid
_GLIMPSES = 6  # side of an unfinished picture


class StoppedError(Exception):
    """No client wants the result any more."""


class OverdueError(RuntimeError):
    """Drawing took longer than allowed."""


def fits(group: Sequence[Order], order: Order) -> bool:
    """Return whether an order can be drawn together with others: it may differ only in its prompt."""
    first, job = group[0].job, order.job
    room = (first.batch_size or 1) // max(first.images, 1)
    if first.task != "generate" or first.banks or len(group) >= room:
        return False
    return _but_prompts(first) == _but_prompts(job) and all(other.job.text(0) != job.text(0) for other in group)


def _but_prompts(job: Job) -> dict[str, Any]:
    return {**job.to_json(), "prompts": None}


class Drawing:
    """A group of orders that are drawn, watched and stopped together.

    Args:
        orders: one, or several that fit together (:func:`fits`).
        seconds: most seconds to take; 0 for no limit.
    """

    def __init__(self, orders: Sequence[Order], seconds: float) -> None:
        self.orders, self.seconds, self._begun = list(orders), seconds, time.monotonic()
        self.job = orders[0].job

    def step(self, progress: Progress) -> None:
        """Report progress; stop if no client waits for it or its time is over.

        Raises:
            StoppedError, OverdueError: drawing must stop.
        """
        if all(order.stop.is_set() for order in self.orders):
            raise StoppedError
        if self.seconds and time.monotonic() - self._begun > self.seconds:
            raise OverdueError(f"it took more than {self.seconds:g} s: ask for fewer images or steps")
        for order in self.orders:
            order.tell(progress=progress)

    def show(self, glimpse: Glimpse) -> None:
        """Show each order its own unfinished samples."""
        for order in self.orders:
            rows = [k for k, text in enumerate(glimpse.prompts) if text == order.job.text(0)]
            if rows and order.live:
                own = glimpse._replace(prompts=[order.job.text(0)] * len(rows), images=glimpse.images[rows])
                order.tell(glimpse=own)

    def draw(self, samplers: Samplers, banks: Banks) -> None:
        """Draw the orders: their banks, and then what their Jobs ask for."""
        said = self.job.text(0) + (f" and {len(self.orders) - 1} more" if len(self.orders) > 1 else "")

        def step(phase: str, done: float, total: int) -> None:
            self.step(Progress(0, 1, said, phase, done / total if total else 0.0))

        step("loading", 0, 1)
        lidar = samplers.load(self.job).with_progress(step)
        method = load_method(self.job.methods[-1])
        found: list[LookaheadBank] | None = None
        if self.job.banks:
            found = self._load_bank(lidar, banks)
        elif isinstance(method, Guided):
            found = self._look(method.sampler(lidar), banks, [order.job for order in self.orders])
        if self.job.task == "look":
            return
        if any(order.live for order in self.orders):
            lidar = lidar.with_live_preview(self.show, every=max(1, lidar.settings.steps // _GLIMPSES))
        self._put(lidar, found)

    def _load_bank(self, lidar: LiDAR, banks: Banks) -> list[LookaheadBank]:
        """Return the bank that the Job names; draw it again to score it if the Job's reward has not scored it yet."""
        (order,), file = self.orders, Path(self.job.banks[0])  # such an order is drawn alone
        told = banks.job(file.stem)
        if told is not None and not banks.holds(file.stem, lidar, self.job):
            seed = told.seeds[0]
            lidar = lidar.with_settings(**told.settings).with_bank_seed(seed)
            return self._look(lidar, banks, [replace(self.job, bank_seed=seed)])
        bank = LookaheadBank.load(file)
        banks.use(file.stem)
        order.tell(bank=banks.recall(file.stem, self.job.reward))
        return [bank]

    def _look(self, lidar: LiDAR, banks: Banks, jobs: Sequence[Job]) -> list[LookaheadBank]:
        """Find or draw the bank of each order; ``jobs`` say how."""
        shown: list[tuple[list[str], Tensor]] = []

        def show(glimpse: Glimpse) -> None:
            shown.append((glimpse.prompts, glimpse.images))
            self.show(glimpse)

        texts = [order.job.text(0) for order in self.orders]
        found = lidar.with_live_preview(show).look(texts, seed=self.job.seeds[0])
        for order, bank, job in zip(self.orders, found, jobs, strict=True):
            order.tell(bank=banks.keep(lidar, bank, members_of(shown, bank.prompt), job))
        return found

    def _put(self, lidar: LiDAR, found: list[LookaheadBank] | None) -> None:
        """Draw all orders in one batch, as :func:`lidar_sampling.runs.run` does, and keep each in its own folder.

        These folders are never resumed, so they need not record which weights drew them; that would read every weight
        for each order. The same holds for finding the banks a second time.
        """
        texts, lines = [order.job.text(0) for order in self.orders], [order.job.line(0) for order in self.orders]
        lidar.check_prompts(lines)
        lidar = lidar.with_prompts(texts).with_only(self.job.only)
        drawn = draw_judged(self.job, lidar, lines, found)
        for order, line, (result, vanilla) in zip(self.orders, lines, drawn, strict=True):
            manifest = {**order.job.to_json(), "settings": asdict(lidar.settings)}
            folder = Folder(order.out, manifest, resume=None, overwrite=False, count=1)
            folder.put(0, self.job.methods[-1], result, vanilla, line, order.job)
            task_of(order.job, order.out).collect()
            order.tell(scores=_guiding_scores(lidar, result))


def _guiding_scores(lidar: LiDAR, result: Result) -> list[float]:
    """Return the guiding reward of each sample of one prompt; none for a mixture that nothing standardises.

    A mixture without a calibration is standardised over the bank that guided the samples, as it was for its members.
    """
    reward = lidar.reward
    if not isinstance(reward, Mixture):
        return result.rewards[name_of(reward)][0].tolist()
    if (calibration := reward.calibration) is None:
        if not result.banks:
            return []
        members = {name: result.banks[0].reward(name).float() for name in reward.weights}
        calibration = {name: (r.mean().item(), r.std(correction=0).item() or 1.0) for name, r in members.items()}
    scores = {name: result.rewards[name][0] for name in reward.weights}
    samples = LookaheadBank(result.latents[0], scores, result.prompts[0])
    return samples.combine(reward.weights, calibration=calibration).reward().tolist()


FAILS_ALONE = (RewardError, DivergedError)
"""Errors of one order, which the others in its group need not have."""


@contextmanager
def tell_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Pass on the library's warnings in this thread."""
    logger, me = logging.getLogger("lidar_sampling"), threading.get_ident()

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == me:
                tell(record.getMessage())

    handler = Notes(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def fault_of(error: BaseException) -> Fault:
    """Return the cause of a failure: the request, the time limit or the server."""
    if isinstance(error, OverdueError):
        return "time"
    cause: BaseException | None = error
    while isinstance(cause, RewardError):  # a reward's error has its cause in the chain
        cause = cause.__cause__
    return "request" if isinstance(cause, _OF_REQUEST) else "server"
