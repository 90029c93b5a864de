"""The summary of a finished run for ``result.json``."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from .._cost import Cost

_PACKAGES = ("lidar-sampling", "torch", "diffusers", "transformers")
_COSTS = ("network_evaluations", "reward_calls", "seconds")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that influence the samples."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


class Means:
    """Means of one method over prompts, added one by one: each reward over all images, costs per prompt.

    Example:
        >>> means = Means()
        >>> cost = {"sampling": {"network_evaluations": 8, "reward_calls": 0, "seconds": 1.0}}
        >>> for value in (0.25, 0.75, None):
        ...     means.add({"rewards": {"r": [value]}, "cost": cost})
        >>> means.row()
        {'r': 0.5, 'network_evaluations': 8.0, 'reward_calls': 0.0, 'seconds': 1.0}
    """

    def __init__(self) -> None:
        self.count = 0
        self._rewards: dict[str, tuple[float, int]] = {}
        self._costs = dict.fromkeys(_COSTS, 0.0)

    def add(self, part: Mapping[str, Any]) -> None:
        """Add the numbers of the method from one prompt's entry."""
        self.count += 1
        for name, values in part["rewards"].items():
            total, known = self._rewards.get(name, (0.0, 0))
            found = [value for value in values if value is not None]
            self._rewards[name] = total + sum(found), known + len(found)
        for name in _COSTS:
            self._costs[name] += sum(phase[name] for phase in part["cost"].values())

    def row(self) -> dict[str, float | None]:
        """Return reward or cost -> mean; None if no image has a value."""
        rewards = {name: total / known if known else None for name, (total, known) in self._rewards.items()}
        return {**rewards, **{name: total / self.count for name, total in self._costs.items()}}


def summary(parts: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the means of one method over prompts."""
    means = Means()
    for part in parts:
        means.add(part)
    return means.row()


def cost_of(phases: Mapping[str, Mapping[str, Any]]) -> Cost:
    """Return the sum of the costs of all phases in an entry."""
    known = Cost.__dataclass_fields__
    return sum((Cost(**{k: v for k, v in phase.items() if k in known}) for phase in phases.values()), Cost())
