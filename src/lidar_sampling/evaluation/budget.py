"""Equal compute: find the number in a method's name with which a prompt costs what the budget allows.

A name may hold a capital N in place of a number: ``best-of-N@10``, ``halving-N``, ``vanilla@N``. Each method states
its cost per prompt, which rises with N, so the largest N within the budget is found without drawing.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from .._files import natural_order, write_once
from .._forecast import Rates
from .._sampler import LiDAR
from ..methods import least_number, with_number
from ..methods import load as load_method
from ..runs import Job, read_json
from ..runs.job import read_budget

_N = r"\bN\b"  # a number in a name


def settle(job: Job, out: Path | None, lidar: LiDAR | None) -> Job:
    """Return the Job with the numbers that its budget allows, or the same Job if it has no budget.

    The numbers are kept in ``out``, so that every process of a run, and a resumed run, draws the same methods.

    Args:
        job: a comparison.
        out: its folder; None does not keep the numbers.
        lidar: the sampler of the methods, used to find numbers that ``out`` does not hold yet; None if it holds all.

    Raises:
        ValueError: ``out`` has another budget or is damaged, or the budget is too small for a method.
    """
    if job.budget is None:
        return job
    limit, unit = read_budget(job.budget)

    @functools.cache
    def rates(lidar: LiDAR) -> Rates:
        return Rates.measure(lidar, job.text(0), images=job.images)

    def find(name: str) -> str:
        if with_number(name, 1) == name:
            return name
        if lidar is None:
            raise ValueError(f"nothing was drawn of {name} with this budget: draw it first, without --table")
        here = rates(lidar) if unit == "seconds" else None
        return within(lidar, name, limit, prompt=job.text(0), images=job.images, unit=unit, rates=here)

    if out is None:
        return replace(job, methods=[find(name) for name in job.methods], budget=None)
    return replace(job, methods=with_numbers(out / "budget.json", job.budget, job.methods, find), budget=None)


def with_numbers(file: Path, budget: str, names: Sequence[str], find: Callable[[str], str]) -> list[str]:
    """Return ``names`` with their numbers: those that ``file`` holds, and what ``find`` returns for the others.

    The first process to find a number writes it, and all others use it. This matters for budgets in seconds, where
    each process would find another number. Numbers found later go to files beside ``file``: ``budget-1.json``, ...

    Raises:
        ValueError: ``file`` has another budget, or is damaged.
    """
    while True:
        known: dict[str, str] = {}
        seen = [file, *sorted(file.parent.glob(f"{file.stem}-*{file.suffix}"), key=natural_order)]
        seen = [there for there in seen if there.exists()]
        for there in seen:
            known = {**_read_numbers(there, budget), **known}  # the number found first is used
        missing = [name for name in names if name not in known]
        if not missing:
            return [known[name] for name in names]
        found = {name: find(name) for name in missing}
        file.parent.mkdir(parents=True, exist_ok=True)
        # If another process has written a file meanwhile, read that one first.
        places = (file, *(file.with_name(f"{file.stem}-{k}{file.suffix}") for k in range(1, len(seen) + 1)))
        place = next(place for place in places if place not in seen)
        write_once(place, (json.dumps({"budget": budget, "names": found}, indent=1) + "\n").encode())


def _read_numbers(file: Path, budget: str) -> dict[str, str]:
    """Return the numbers in ``file``; refuse a file of another budget, or with a name whose N has no number."""
    mend = "remove it, and the numbers are found again"
    known = read_json(file, {"budget": str, "names": dict}, mend=mend)
    for name, found in known["names"].items():
        numbered = "[0-9]+".join(map(re.escape, re.split(_N, name)))
        if not isinstance(found, str) or not (found == name or re.fullmatch(numbered, found)):
            raise ValueError(f"{file} is damaged ({name!r} is not {found!r}): {mend}")
    if known["budget"] != budget:
        raise ValueError(f"{file.parent} has the budget {known['budget']}, not {budget}: choose another --out")
    return known["names"]


def within(
    lidar: LiDAR, name: str, budget: float, *, prompt: str, images: int, unit: str, rates: Rates | None = None
) -> str:
    """Return ``name`` with the largest number for its N that the budget allows; a name without N as it is.

    Counts come from the cost that the method states, so nothing is drawn. For seconds, one small batch is measured.

    Args:
        lidar: the sampler that the method draws with.
        name: a method's name, as for :func:`lidar_sampling.methods.load`.
        budget: the most that ``images`` samples of a prompt may cost.
        prompt: prompt of the batch that is measured.
        images: samples per prompt.
        unit: the field of :class:`lidar_sampling.Cost` that counts, such as ``network_evaluations`` or ``seconds``.
        rates: rates of this machine, if they are measured already.

    Raises:
        ValueError: not even the smallest number is within the budget, or the budget is not finite.

    Example:
        >>> from lidar_sampling import testing
        >>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=4)
        >>> within(lidar, "best-of-N@3", 60, prompt="a cat", images=1, unit="network_evaluations")
        'best-of-7@3'
    """
    if with_number(name, 1) == name:
        return name
    if not math.isfinite(budget):
        raise ValueError(f"a budget must be finite, got {budget:g}")
    if unit == "seconds" and rates is None:
        rates = Rates.measure(lidar, prompt, images=images)

    def cost(n: int) -> float:
        told = load_method(with_number(name, n)).cost(lidar, images=images)
        return float(getattr(told, unit)) if rates is None else rates.seconds(told)

    def fits(n: int) -> bool:
        try:
            return cost(n) <= budget
        except ValueError:  # too large for the method, such as more steps than the scheduler has
            return False

    least = least_number(cost, max(8 * images, 64))
    step = least_number(lambda k: cost(least + k), 64)  # some methods take only multiples
    more = least + step * math.ceil(max(8 * images - least, least) / step)
    low, high = cost(least), cost(more)
    if not high > low:
        raise ValueError(f"{name} does not cost more {unit} with a larger N ({low:g} and {high:g})")
    if low > budget:
        raise ValueError(
            f"a budget of {budget:g} {unit} per prompt is too small for {name}: {low:g} for N = {least}, the "
            f"smallest "
            f"that gives images={images}"
        )
    return with_number(name, least + step * (_largest(lambda k: fits(least + step * (k - 1)), 1) - 1))


def _largest(fits: Callable[[int], bool], low: int) -> int:
    """Return the largest number that fits, by doubling and bisection.

    ``low`` must fit, and so must every number below the largest.

    >>> _largest(lambda n: 3 * n <= 100, 1)
    33
    """
    high = 2 * low
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
