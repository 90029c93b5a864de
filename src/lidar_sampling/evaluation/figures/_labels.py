"""Names in the margin, at the height of their points if there is room, each joined to its point by a thin line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from ..parts import plain
from ._style import Look, shorten

LINE = 0.155  # inches per line of a label
_LETTER = 0.072  # inches per letter
_MOST = 16  # most letters per line
_LINES = 6  # most lines per label


class Label(NamedTuple):
    """A name and its point, in the coordinates of the axes."""

    text: str
    x: float
    y: float
    look: Look


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Return centres near ``wanted`` for stretches that do not overlap, in the same order, within [low, high].

    Raises:
        ValueError: the stretches together are longer than [low, high].

    Example:
        >>> spread([0.5, 0.5, 0.9], [0.25, 0.25, 0.25], 0.0, 1.0)
        [0.375, 0.625, 0.875]
    """
    if sum(sizes) > (high - low) * (1 + 1e-9):
        raise ValueError(f"labels of {sum(sizes):g} in all do not fit in {high - low:g}")
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    blocks: list[tuple[float, list[int]]] = []  # (bottom, members), merged as long as they overlap
    for k in order:
        members = [k]
        bottom = _bottom(members, wanted, sizes, low, high)
        while blocks and blocks[-1][0] + sum(sizes[i] for i in blocks[-1][1]) > bottom:
            members = blocks.pop()[1] + members
            bottom = _bottom(members, wanted, sizes, low, high)
        blocks.append((bottom, members))
    found = [0.0] * len(wanted)
    for bottom, members in blocks:
        for k in members:
            found[k] = bottom + sizes[k] / 2
            bottom += sizes[k]
    return found


def _bottom(members: list[int], wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> float:
    """Return the start of a block of adjacent stretches that puts them nearest to their wanted centres."""
    offsets, total = [], 0.0
    for k in members:
        offsets.append(wanted[k] - total - sizes[k] / 2)
        total += sizes[k]
    return min(max(sum(offsets) / len(offsets), low), high - total)


def break_lines(name: str) -> str:
    r"""Return the name in lines short enough for the margin, broken between or, if need be, within its parts.

    The middle of a name that takes more than a few lines is left out.

    >>> break_lines("lidar+best-of-8:n=27,scale=3")
    'lidar+best-of-8:\nn=27,scale=3'
    """
    lines = [""]
    for part in re.findall(r".+?[:,+@]|.+", shorten(plain(name), _MOST * _LINES)):
        for piece in (part[k : k + _MOST] for k in range(0, len(part), _MOST)):
            if lines[-1] and len(lines[-1]) + len(piece) > _MOST:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


def margin(names: Sequence[str]) -> float:
    """Return the inches that the names need to the right of the axes."""
    return 0.28 + _LETTER * max(len(line) for name in names for line in break_lines(name).split("\n"))


def height(names: Sequence[str], least: float = 1.9) -> float:
    """Return the height in inches of axes with room for all names."""
    return max(least, LINE * sum(1 + break_lines(name).count("\n") for name in names))


def label(ax: Axes, labels: Sequence[Label]) -> None:
    """Write the labels of points that are known. Set the limits of the axes first."""
    labels = [each for each in labels if math.isfinite(each.x) and math.isfinite(each.y)]
    inches = ax.bbox.height / ax.figure.get_dpi()
    level = ax.transAxes.inverted()
    wanted = [float(level.transform(ax.transData.transform((x, y)))[1]) for _, x, y, _ in labels]
    texts = [break_lines(name) for name, *_ in labels]
    sizes = [LINE * (1 + text.count("\n")) / inches for text in texts]
    for (_, x, y, look), text, place in zip(labels, texts, spread(wanted, sizes, 0.0, 1.0), strict=True):
        ax.annotate(
            text,
            (x, y),
            (1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            linespacing=1.0,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": look.color,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 3,
            },
            annotation_clip=False,
        )
        dot: dict[str, Any] = {"marker": look.marker, "markersize": 3.5, "color": look.color}
        ax.plot([1.03], [place], transform=ax.transAxes, clip_on=False, **dot)
