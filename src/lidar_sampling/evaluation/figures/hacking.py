"""Reward hacking: gain on the guiding reward against gain on the others, in deviations, with the diagonal."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..parts import plain
from ..rows import Row
from ._labels import Label, height, label, margin
from ._style import GREY, INK, is_known, judges_to_draw, looks, panels, point, shorten


def draw(rows: Sequence[Row]) -> Figure | None:
    """Draw the figure; return None without a judge that did not guide, or with no method but the baseline."""
    guide, judges = rows[0].guide, rows[0].unguided
    look = looks([row.method for row in rows])
    rows = [row for row in rows[1:] if is_known(row.effect[guide])]
    judges = judges_to_draw(judges, [row.effect for row in rows])
    if not judges:
        return None
    names = [row.method for row in rows]
    figure, axes = panels(judges, height=height(names, least=2.2), margin=margin(names))
    for ax, judge in zip(axes, judges, strict=True):
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.axvline(0, color=GREY, linewidth=0.8)
        for row in rows:
            point(ax, row.effect[guide], row.effect[judge], look[row.method])
    for ax, judge in zip(axes, judges, strict=True):  # now the shared axis has its limits
        limits = ax.get_xlim(), ax.get_ylim()
        ax.axline((0, 0), slope=1, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.set_xlim(limits[0])
        ax.set_ylim(limits[1])
        points = [(r.method, r.effect[guide].estimate, r.effect[judge].estimate) for r in rows]
        label(ax, [Label(method, x, y, look[method]) for method, x, y in points])
        ax.set_ylabel("gain / deviation")
    axes[-1].set_xlabel(f"gain on {shorten(plain(guide), 24)} (guides) / deviation")
    return figure
