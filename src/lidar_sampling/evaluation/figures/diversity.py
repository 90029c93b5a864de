"""Quality against diversity: how much variety a method gave up for its reward."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..rows import Row
from ._labels import Label, height, label, margin
from ._style import is_known, judges_to_draw, looks, panels, point, title_of


def draw(rows: Sequence[Row]) -> Figure | None:
    """Draw the figure; return None if no method has both a diversity and a judge's mean."""
    look = looks([row.method for row in rows])
    rows = [row for row in rows if is_known(row.diversity)]
    if not rows:
        return None
    judges = judges_to_draw(rows[0].unguided or [rows[0].guide], [row.mean for row in rows])
    if not judges:
        return None
    names = [row.method for row in rows]
    figure, axes = panels([title_of(j, rows) for j in judges], height=height(names), margin=margin(names))
    for ax, judge in zip(axes, judges, strict=True):
        for row in rows:
            point(ax, row.diversity, row.mean[judge], look[row.method])
    for ax, judge in zip(axes, judges, strict=True):  # now the shared axis has its limits
        ax.set_xlim(ax.get_xlim())
        ax.set_ylim(ax.get_ylim())
        label(ax, [Label(r.method, r.diversity.estimate, r.mean[judge].estimate, look[r.method]) for r in rows])
        ax.set_ylabel("mean")
    axes[-1].set_xlabel("diversity of the images of a prompt")
    return figure
