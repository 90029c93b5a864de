"""Equal compute: a method's number, found so that a prompt costs what the budget allows.

A name may hold a capital N where a number would stand: ``best-of-N@10``, ``halving-N``, ``vanilla@N``. What a prompt
costs is affine in it, so two small runs tell the line, and the largest N within the budget is on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._cost import Cost
from .._files import write_atomically
from .._sampler import LiDAR
from ..methods import load
from ..runs import read_json

_N = r"\bN\b"  # where a number stands in a name


def settled(file: Path, budget: str, names: Sequence[str], find: Callable[[str], str]) -> list[str]:
    """``names`` with their numbers: those that ``file`` remembers of this budget, and what ``find`` gives for others.

    A run that goes on, or whose table is made again, so draws what it drew before, even if seconds are what counts.

    Raises:
        ValueError: ``file`` is of another budget, or damaged.
    """
    known: dict[str, Any] = _known(file) if file.exists() else {"budget": budget, "names": {}}
    if known["budget"] != budget:
        raise ValueError(f"{file.parent} has the budget {known['budget']}, not {budget}: choose another --out")
    found = {name: known["names"].get(name) or find(name) for name in names}
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = {"budget": budget, "names": {**known["names"], **found}}
    write_atomically(file, (json.dumps(everything, indent=1) + "\n").encode())
    return list(found.values())


def _known(file: Path) -> dict[str, Any]:
    """Return what ``file`` remembers, if each name in it is one with a number for its N."""
    mend = "remove it, and the numbers are found again"
    known = read_json(file, {"budget": str, "names": dict}, mend=mend)
    for name, found in known["names"].items():
        numbered = "[0-9]+".join(map(re.escape, re.split(_N, name)))
        if not isinstance(found, str) or not (found == name or re.fullmatch(numbered, found)):
            raise ValueError(f"{file} is damaged ({name!r} is not {found!r}): {mend}")
    return known


def within(lidar: LiDAR, name: str, budget: float, *, prompt: str, images: int, unit: str) -> str:
    """``name`` with the largest number for its N that a prompt may cost; the name itself if it has none.

    Args:
        lidar: what the method is to draw with.
        name: of a method, as :func:`lidar_sampling.methods.load` knows it.
        budget: what ``images`` samples of a prompt may cost.
        prompt: drawn twice to find out.
        images: samples a prompt.
        unit: the field of :class:`lidar_sampling.Cost` that counts, such as ``network_evaluations`` or ``seconds``.

    Raises:
        ValueError: not even the smallest number is within the budget.

    Example:
        >>> from lidar_sampling import testing
        >>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=4)
        >>> within(lidar, "best-of-N@3", 60, prompt="a cat", images=1, unit="network_evaluations")
        'best-of-7@3'
    """
    if with_number(name, 1) == name:
        return name

    def cost(n: int) -> float:
        result = load(with_number(name, n)).draw(lidar, [prompt], images=images, seed=0)
        return float(getattr(sum(result.cost.values(), Cost()), unit))

    # Halving returns a quarter of what it starts with, so this many are enough for any method.
    least, more = 4 * images, 8 * images
    if unit == "seconds":
        cost(least)  # the first run warms up
    low, high = cost(least), cost(more)
    each = (high - low) / (more - least)
    if not each > 0:
        raise ValueError(f"{name} does not cost more {unit} with a larger N ({low:g} and {high:g})")
    n = least + int((budget - low) // each)
    if n < 1:
        raise ValueError(f"a budget of {budget:g} {unit} a prompt is too small for {name}: {low:g} for N = {least}")
    return with_number(name, n)


def with_number(name: str, n: int) -> str:
    """``name`` with ``n`` for its N.

    >>> with_number("best-of-N@10", 7)
    'best-of-7@10'
    """
    return re.sub(_N, str(n), name)
