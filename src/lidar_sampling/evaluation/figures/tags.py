"""Tag by tag: bars for a judge that is a share, points for others, whose bars would have no zero to start from."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..parts import judge_of_tags, plain
from ..rows import Row
from ..statistics import Interval
from ._labels import LINE, break_lines
from ._style import GREY, is_known, looks, point, shorten

_WIDTH, _ROW, _GAP = 4.2, LINE * 1.15, 0.4


def draw(rows: Sequence[Row]) -> Figure | None:
    """Draw the figure, two tags beside each other; return None without two tags, or without a known value."""
    judge, look = judge_of_tags(rows), looks([row.method for row in rows])
    tags = list(rows[0].tags[judge])
    if len(tags) < 2 or not any(is_known(row.tags[judge][tag]) for row in rows for tag in tags):
        return None
    names = [break_lines(row.method) for row in rows]
    lines = sum(1 + name.count("\n") for name in names)
    left = 0.25 + 0.068 * max(len(line) for name in names for line in name.split("\n"))
    height, down = lines * _ROW, (len(tags) + 1) // 2
    total = down * (height + _GAP) + 0.45
    width = (_WIDTH - left - 0.3) / 2
    figure = Figure(figsize=(_WIDTH, total))
    values = [row.tags[judge][tag].estimate for row in rows for tag in tags]
    share = all(not value < 0 and not value > 1 for value in values)
    first = None
    for k, tag in enumerate(tags):
        across, row_of = k % 2, k // 2
        bottom = total - (row_of + 1) * (height + _GAP)
        box = ((left + across * (width + 0.2)) / _WIDTH, bottom / total, width / _WIDTH, height / total)
        ax = figure.add_axes(box, sharex=first)
        first = first or ax
        ax.set_title(shorten(plain(tag), 20))
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), names if across == 0 else [""] * len(rows), fontsize=8.5, linespacing=0.9)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(labelbottom=k >= len(tags) - 2)
        ax.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.5)
        for y, row in enumerate(rows):
            value, colour = row.tags[judge][tag], look[row.method].color
            if share:
                ax.barh(y, value.estimate, height=0.72, color=colour, alpha=0.55)
                ax.plot([value.low, value.high], [y, y], color=colour, linewidth=1.6)
                ax.plot([value.estimate], [y], marker="|", color=colour, markersize=8)
            else:
                point(ax, value, Interval(float(y)), look[row.method])
        if share:
            ax.set_xlim(0, 1.02)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    figure.text(left / _WIDTH, 0.08 / total, f"{shorten(plain(judge), 24)}, mean of the images returned", fontsize=9)
    return figure
