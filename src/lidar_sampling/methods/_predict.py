"""Clean predictions of other samples than those of a step, made in the middle of a call.

A twin of the pipeline takes the one step of its schedule at which the samples stand, from them as ``latents``. So the
network is shown what it would be shown in the call itself, and is counted by the same instrument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor

from .._draw import Item, draw
from .._hooks import DivergedError, Segment, Step
from .._levels import start_scale
from .._sampler import LiDAR
from ._face import hook_batches


class Predictor:
    """Asks for clean predictions; each costs the network evaluations of one step.

    Args:
        lidar: whose pipeline and batch size to use, with its arguments of each prompt.
        items: the batch of the call.
        call: its arguments.
    """

    def __init__(self, lidar: LiDAR, items: Sequence[Item], call: Mapping[str, Any]) -> None:
        self._lidar, self._items, self._call = lidar, items, call
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
        around, segments = hook_batches(
            self._lidar,
            lambda batch: Segment(cuts, min(step.index, 1), self._pipe.scheduler),
            pipe=self._pipe,
            whole=True,
        )
        drawn = draw(
            self._pipe,
            [self._items[row] for row in rows.tolist()],
            call=self._call,
            batch_size=self._lidar.batch_size,
            around=around,
            rows={"latents": x_t / start_scale(step.scheduler)},
            decoded=False,
        )
        try:
            deque(drawn, maxlen=0)
        except DivergedError as error:  # which speaks of the twin's only step
            told = str(error).replace("step 1 of 1", f"step {step.index + 1} of {step.total}")
            raise DivergedError(told) from error
        return torch.cat([segment.x0 for segment in segments if segment.x0 is not None]).to(x_t)
