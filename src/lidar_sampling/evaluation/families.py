"""Methods that differ in one number: series over that number, to draw as curves.

Families are found by name: ``best-of-4@10`` and ``best-of-8@10`` form ``best-of-*@10``, and ``lidar:n=9,scale=3`` and
``lidar:scale=3,n=27`` form ``lidar:n=*,scale=3``. Settings that a name leaves to the model are not known here, so
``lidar`` itself is on no curve.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"(?:(?<==)-)?(?:\d+(?:\.\d*)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+)?")


class Series(NamedTuple):
    """A family of methods.

    Attributes:
        name: the name of the methods, with ``*`` for the number that varies.
        key: what varies: the name of a setting, or the words before the number.
        points: (number, method), by rising number.
    """

    name: str
    key: str
    points: list[tuple[float, str]]


def families(methods: Sequence[str]) -> list[Series]:
    """Return the series with at least two methods; a method may be in several.

    >>> for series in families(["lidar", "lidar:n=3", "lidar:n=9", "best-of-4@10", "best-of-12@10"]):
    ...     print(series)
    Series(name='lidar:n=*', key='n', points=[(3.0, 'lidar:n=3'), (9.0, 'lidar:n=9')])
    Series(name='best-of-*@10', key='best-of', points=[(4.0, 'best-of-4@10'), (12.0, 'best-of-12@10')])
    """
    found: dict[tuple[str, str], dict[float, str]] = {}
    for method in methods:
        name = _sort_settings(method)
        for match in _NUMBER.finditer(name):
            around = name[: match.start()], name[match.end() :]
            found.setdefault(around, {}).setdefault(float(match[0]), method)
    return [
        Series(f"{before}*{after}", _key(before), sorted(points.items()))
        for (before, after), points in found.items()
        if len(points) > 1
    ]


def _sort_settings(method: str) -> str:
    """Return the name with its settings in sorted order."""
    match = re.fullmatch(r"(.*?:)(\w+=.*)", method)
    return match[1] + ",".join(sorted(re.split(r",(?=\w+=)", match[2]))) if match else method


def _key(before: str) -> str:
    """Return the name of the number that follows ``before``.

    >>> [_key(before) for before in ("lidar:n=", "lidar:n=3,scale=", "best-of-", "best-of-12@", "vanilla@dpm:")]
    ['n', 'scale', 'best-of', 'steps', 'steps']
    """
    if before.endswith("="):
        return re.split(r"[:,]", before)[-1][:-1]
    # After @ comes a number of steps, or a solver and its number of steps.
    return "steps" if "@" in before else before.rstrip("-")
