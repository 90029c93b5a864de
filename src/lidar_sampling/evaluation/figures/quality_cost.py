"""Quality against cost: one panel per judge, with the Pareto front of the means."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..pareto import front
from ..parts import plain
from ..rows import Row
from ._labels import Label, height, label, margin
from ._style import GREY, INK, PAPER, judges_to_draw, looks, panels, point, title_of

_STEP = 0.035  # distance between methods of equal cost, as a share of the axis


def draw(rows: Sequence[Row]) -> Figure | None:
    """Draw the figure; return None if no method has both a positive cost and a gain."""
    base, look = plain(rows[0].method), looks([row.method for row in rows])
    rows = [row for row in rows if 0 < row.cost["network_evaluations"] < math.inf]
    judges = judges_to_draw(list(rows[0].gain), [row.gain for row in rows]) if rows else []
    if not judges:
        return None
    costs = [row.cost["network_evaluations"] for row in rows]
    low, high = _limits(costs)
    places = _beside(costs, low, high)
    names = [row.method for row in rows]
    figure, axes = panels([title_of(j, rows) for j in judges], height=height(names), margin=margin(names), top=0.3)
    for ax, judge in zip(axes, judges, strict=True):
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        ax.axhline(0, color=GREY, linewidth=0.8)
        for row, x in zip(rows, places, strict=True):
            point(ax, x * (high / low) ** (0.4 * _STEP), row.best_gain[judge], look[row.method], hollow=True)
            point(ax, x, row.gain[judge], look[row.method])
        gains = [row.gain[judge].estimate for row in rows]
        best = front(list(zip(costs, gains, strict=True)))
        xs, ys = [places[k] for k in best], [gains[k] for k in best]
        ax.step([*xs, high], [*ys, *ys[-1:]], where="post", color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.set_ylim(ax.get_ylim())
        label(ax, [Label(r.method, x, y, look[r.method]) for r, x, y in zip(rows, places, gains, strict=True)])
        ax.set_ylabel(f"gain over {base}" if len(base) < 16 else "gain")
    _ticks(axes[-1])
    axes[-1].set_xlabel("network evaluations per prompt")
    _legend(figure)
    return figure


def _limits(costs: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the axis: at least a factor of 4 apart, so that a tick of 1, 2 or 5 lies between."""
    low, high = min(costs), max(costs)
    room = max((high / low) ** 0.12, math.sqrt(4 * low / high), 1.2)
    return low / room, high * room


def _beside(costs: Sequence[float], low: float, high: float) -> list[float]:
    """Return where to draw ``costs``: values so close that markers would overlap go side by side."""
    groups: list[list[int]] = []
    for k in sorted(range(len(costs)), key=lambda k: costs[k]):
        if groups and math.log(costs[k] / costs[groups[-1][0]]) < _STEP * math.log(high / low):
            groups[-1].append(k)
        else:
            groups.append([k])
    found = list(costs)
    for group in groups:
        for rank, k in enumerate(group):
            found[k] *= (high / low) ** (_STEP * (rank - (len(group) - 1) / 2))
    return found


def _ticks(ax: Axes) -> None:
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=INK, marker="o", linestyle="none", label="mean of returned"),
        Line2D([], [], color=INK, marker="o", markerfacecolor=PAPER, linestyle="none", label="best of them"),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="front"),
    ]
    figure.legend(handles=handles, loc="upper left", ncols=3, handletextpad=0.3, columnspacing=1.2)
