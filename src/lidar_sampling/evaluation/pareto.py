"""The Pareto front of quality and cost: the methods that no other beats on both."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the (cost, quality) points that no other dominates, by rising cost.

    A point dominates another if it costs no more, is no worse, and is better in one of the two. Copies of a point do
    not dominate each other. A NaN is never on the front.

    >>> front([(1, 1.0), (2, 3.0), (3, 2.0), (2, 2.5), (4, 4.0)])
    [0, 1, 4]
    """
    known = [k for k, (cost, quality) in enumerate(points) if cost == cost and quality == quality]
    found: list[int] = []
    for k in sorted(known, key=lambda k: (points[k][0], -points[k][1])):
        if not found or points[k][1] > points[found[-1]][1] or points[k] == points[found[-1]]:
            found.append(k)
    return found
