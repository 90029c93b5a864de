"""Scaling: gain along the one number in which methods of a family differ, as in Figure 3 of arXiv 2602.03211."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..families import Series, families
from ..parts import plain
from ..rows import Row
from ._labels import Label, height, label, margin
from ._style import GREY, Look, judges_to_draw, looks, panels, point, title_of

_LOG = 4.0  # numbers that span this factor or more get a logarithmic axis


def draw(rows: Sequence[Row]) -> Figure | None:
    """Draw one panel per varying number and judge with gains; return None if there are no such panels."""
    found = families([row.method for row in rows])
    if not found:
        return None
    by_method, base = {row.method: row for row in rows}, plain(rows[0].method)
    names = [series.name for series in found]
    look = looks(["", *names])
    grid = []
    for key in dict.fromkeys(series.key for series in found):
        methods = [method for series in found if series.key == key for _, method in series.points]
        judges = judges_to_draw(list(rows[0].gain), [by_method[method].gain for method in methods])
        grid += [(key, judge) for judge in judges]
    if not grid:
        return None
    titles = [f"{title_of(judge, rows)} along {key}" for key, judge in grid]
    figure, axes = panels(titles, height=height(names), margin=margin(names), share=False)
    for ax, (key, judge) in zip(axes, grid, strict=True):
        mine = [series for series in found if series.key == key]
        ax.axhline(0, color=GREY, linewidth=0.8)
        for series in mine:
            _curve(ax, series, judge, by_method, look[series.name])
        _ticks(ax, sorted({x for series in mine for x, _ in series.points}))
        ax.set_ylim(ax.get_ylim())
        ends = [(series, *series.points[-1]) for series in mine]
        label(
            ax,
            [
                Label(series.name, x, by_method[method].gain[judge].estimate, look[series.name])
                for series, x, method in ends
            ],
        )
        ax.set_ylabel(f"gain over {base}" if len(base) < 16 else "gain")
    axes[-1].set_xlabel("the number at *")
    return figure


def _curve(ax: Axes, series: Series, judge: str, by_method: dict[str, Row], look: Look) -> None:
    gains = [by_method[method].gain[judge] for _, method in series.points]
    ax.plot([x for x, _ in series.points], [gain.estimate for gain in gains], color=look.color, linewidth=1.2)
    for (x, _), gain in zip(series.points, gains, strict=True):
        point(ax, x, gain, look)


def _ticks(ax: Axes, numbers: Sequence[float]) -> None:
    """Put ticks at the numbers that were tried, where they do not crowd."""
    if numbers[0] > 0 and numbers[-1] / numbers[0] >= _LOG:
        ax.set_xscale("log")
    ax.set_xlim(ax.get_xlim())
    place = ax.transData.transform([(x, 0.0) for x in numbers])[:, 0]
    kept: list[int] = []
    for k, pixel in enumerate(place):
        if not kept or pixel - place[kept[-1]] > 0.3 * ax.figure.get_dpi():
            kept.append(k)
    ax.set_xticks([numbers[k] for k in kept])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
