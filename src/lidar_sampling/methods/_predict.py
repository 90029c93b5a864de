"""What the model makes of other samples than those of a step, asked in the middle of a call.

A twin of the pipeline takes the one step of its schedule at which the samples stand, from them as ``latents``. So the
network is shown what it would be shown in the call itself, and is counted by the same instrument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor

from .._draw import Item, draw
from .._hooks import DivergedError, Segment, Step, attached
from .._levels import start_scale
from .._sampler import LiDAR
from ._checks import check_level_by_step, check_start


class Predictor:
    """Asks for clean predictions; each costs the network evaluations of one step.

    Args:
        lidar: whose pipeline and batch size to use, with its arguments of each prompt.
        items: the batch of the call.
        call: its arguments.
    """

    def __init__(self, lidar: LiDAR, items: Sequence[Item], call: Mapping[str, Any]) -> None:
        self._items, self._call, self._batch_size = items, call, lidar.batch_size
        self._pipe = copy(lidar.pipe)
        self._pipe.scheduler = deepcopy(lidar.pipe.scheduler)  # a copy is plain, and no hook of the call sees it

    @torch.no_grad()
    def __call__(self, step: Step, x_t: Tensor, rows: Tensor) -> Tensor:
        """Return the clean predictions (k, *) of samples at the level of a step.

        Args:
            step: of the call.
            x_t: the samples (k, *).
            rows: (k,) which of the batch they belong to.

        Raises:
            DivergedError: a prediction is not finite.
        """
        cuts = [at / step.total for at in (step.index, step.index + 1) if 0 < at < step.total]
        seen: list[Tensor] = []

        @contextmanager
        def watched(batch: Sequence[Item]) -> Iterator[None]:
            segment = Segment(cuts, min(step.index, 1), self._pipe.scheduler)
            with attached(self._pipe, segment):
                yield
            assert segment.x0 is not None  # where a batch was too large, only its parts come here
            seen.append(segment.x0)

        drawn = draw(
            self._pipe,
            [self._items[row] for row in rows.tolist()],
            call=self._call,
            batch_size=self._batch_size,
            around=watched,
            rows={"latents": x_t / start_scale(step.scheduler)},
            decoded=False,
        )
        try:
            deque(drawn, maxlen=0)
        except DivergedError as error:  # which speaks of the twin's only step
            told = str(error).replace("step 1 of 1", f"step {step.index + 1} of {step.total}")
            raise DivergedError(told) from error
        return torch.cat(seen).to(x_t)


def check_predictor(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, a pipeline that cannot be asked for the prediction of a given sample.

    Raises:
        TypeError: it takes no latents to start from, or takes noise levels by the number of the step.
    """
    check_start(lidar, who)
    check_level_by_step(lidar.pipe, who, cache=False)
