"""Samplers that stay loaded, with the speed of each."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .._bank import BankStore
from .._call import check_call
from .._forecast import Rates
from .._sampler import LiDAR
from ..runs import Job, load_sampler

_OF_PIPELINE = ("model", "variant", "preset", "call", "scheduler", "dtype", "fast", "device", "batch_size")
_OF_SAMPLER = (*_OF_PIPELINE, "reward", "metrics")
_SIZE = ("height", "width")  # fields that orders may change without loading anything


class Samplers:
    """The most recently used samplers, each with its model and rewards.

    Args:
        store: store of their banks.
        most: most samplers that stay loaded; samplers with the same pipeline share it.

    Attributes:
        check: called with a Job and its loaded sampler; it refuses the Job by what it raises.
    """

    def __init__(self, store: BankStore, most: int) -> None:
        self.store, self.most = store, most
        self._loaded: OrderedDict[str, LiDAR] = OrderedDict()
        self._rates: dict[str, Rates] = {}
        self.check: Callable[[Job, LiDAR], object] = lambda job, lidar: None

    def get(self, job: Job) -> LiDAR | None:
        """Return the sampler of a Job with its settings, if it is loaded."""
        lidar = self._loaded.get(_key(job, _OF_SAMPLER))
        return None if lidar is None else _with_settings(lidar, job)

    def load(self, job: Job) -> LiDAR:
        """Return the sampler of a Job with its settings; load what is missing, and free the least recently used."""
        key = _key(job, _OF_SAMPLER)
        if key not in self._loaded:
            same = [lidar for other, lidar in self._loaded.items() if _alike(other, key)]
            whole = replace(
                job, task="generate", settings={}, call=_call(job), store=None, banks=(), methods=("lidar",), only=()
            )
            lidar = load_sampler(whole, pipe=same[0].pipe if same else None)
            lidar.store = self.store
            while len(self._loaded) >= self.most:
                self._loaded.popitem(last=False)
            self._loaded[key] = lidar
        self._loaded.move_to_end(key)
        found = _with_settings(self._loaded[key], job)
        self.check(job, found)
        return found

    def rates(self, job: Job) -> Rates | None:
        """Return the measured speed of a Job's sampler; None before it is measured."""
        return self._rates.get(_key(job, _OF_SAMPLER))

    def measure(self, job: Job) -> LiDAR:
        """Load the sampler of a Job, and measure its speed."""
        key, lidar = _key(job, _OF_SAMPLER), self.load(job)
        if key not in self._rates:
            self._rates[key] = Rates.measure(lidar, job.text(0), images=job.images)
        return lidar


def _with_settings(lidar: LiDAR, job: Job) -> LiDAR:
    """Return a loaded sampler with the settings and the size of a Job."""
    twin = lidar.with_settings(**job.settings).with_bank_seed(job.bank_seed)
    size = {name: value for name, value in job.call.items() if name in _SIZE}
    check_call(twin.pipe, size)
    twin.pipe_kwargs = {**lidar.pipe_kwargs, **size}
    return twin


def _call(job: Job) -> dict[str, Any]:
    return {name: value for name, value in job.call.items() if name not in _SIZE}


def _key(job: Job, names: tuple[str, ...]) -> str:
    found = {**job.to_json(), "call": _call(job)}
    return json.dumps({name: found[name] for name in names}, sort_keys=True)


def _alike(one: str, other: str) -> bool:
    """Return whether samplers with these keys share a pipeline."""
    a, b = json.loads(one), json.loads(other)
    return all(a[name] == b[name] for name in _OF_PIPELINE)
