"""Samples while they are drawn: clean predictions every few steps, for people to see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._decode import Decoder
from ._draw import Item
from ._hooks import Hook, Step

_log = logging.getLogger(__name__)


class Glimpse(NamedTuple):
    """Samples under way.

    Attributes:
        phase: ``lookahead``, whose samples are done when they are shown, or ``sampling``.
        prompts: of the samples.
        images: as a reward sees them, on the CPU: clean predictions, decoded.
        step: steps that were taken so far; of the lookahead, samples that were drawn.
        total: steps, or samples, in all.
    """

    phase: str
    prompts: list[str]
    images: Tensor
    step: int
    total: int


Show = Callable[[Glimpse], None]


class Live(Hook):
    """The hook that decodes the clean predictions of every so many steps, guidance included, and shows them.

    Attach it after what guides. A pipeline whose predictions cannot be decoded apart from its own call is
    drawn without being shown; a line of the log says why.

    Args:
        show: called with each :class:`Glimpse`.
        every: steps between two.
        pipe: that draws.
        call: its arguments.
        batch: what it draws.
    """

    def __init__(self, show: Show, every: int, pipe: Any, call: Mapping[str, Any], batch: Sequence[Item]) -> None:
        self.show, self.every, self.batch = show, every, batch
        self.decoder: Decoder | None = None
        try:
            self.decoder = Decoder(pipe, call, batch)
        except TypeError as error:
            _log.info("nothing is shown on the way: %s", error)

    def before(self, step: Step) -> Step:
        """Show the clean predictions if it is time."""
        taken = step.index + 1
        if self.decoder is not None and taken % self.every == 0 and taken < step.total:
            with torch.no_grad():
                images = self.decoder(step.x0).cpu()
            self.show(Glimpse("sampling", [item.prompt for item in self.batch], images, taken, step.total))
        return step
