"""The look of all figures: colours, panels as wide as a phone, and identical files for identical rows."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..parts import plain
from ..rows import Row
from ..statistics import Interval

INK, PAPER, GREY = "#1b1c1d", "#fefefe", "#85888c"
# Okabe and Ito (2008), safe for the colour-blind; without black and yellow, invisible on dark and on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = "osD^vPX"  # their number shares no divisor with that of the colours: 42 looks before one repeats
_WIDTH, _LEFT, _TOP, _BOTTOM = 4.2, 0.74, 0.32, 0.5  # inches: at 390 pixels, type of 9 points is 11.6 pixels high
_TITLE = 48  # letters that fit above a panel
_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 6,
    "svg.hashsalt": "lidar",
    "text.parse_math": False,  # names and tags are plain text: a dollar sign does not start a formula
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
}


class Look(NamedTuple):
    """The look of one method in all figures; methods never differ by colour alone."""

    color: str
    marker: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return the looks of methods by name; the first, the baseline, is grey."""
    found = {names[0]: Look(GREY, "o")}
    for k, name in enumerate(names[1:]):
        found[name] = Look(_COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)])
    return found


@contextmanager
def use_style() -> Iterator[None]:
    """Draw and save in this style, whatever style the user has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def panels(
    titles: Sequence[str], *, height: float, margin: float, top: float = 0.0, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels below one another.

    Args:
        titles: one per panel.
        height: height of a panel, in inches.
        margin: inches kept free to the right of the panels for labels.
        top: inches kept free above the panels for a legend.
        share: whether all panels share one horizontal axis, written below the last.
    """
    gap = _TOP if share else _TOP + 0.2
    total = top + len(titles) * (height + gap) + _BOTTOM
    figure = Figure(figsize=(_WIDTH, total))
    axes: list[Axes] = []
    for k, title in enumerate(titles):
        bottom = total - top - (k + 1) * (height + gap) + gap - _TOP
        ax = figure.add_axes(
            (_LEFT / _WIDTH, bottom / total, (_WIDTH - _LEFT - margin) / _WIDTH, height / total),
            sharex=axes[0] if axes and share else None,
        )
        ax.set_title(shorten(plain(title), _TITLE))
        ax.tick_params(labelbottom=not share or k == len(titles) - 1)
        ax.grid(color=GREY, alpha=0.25, linewidth=0.5)
        ax.set_axisbelow(True)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.append(ax)
    return figure, axes


def point(ax: Axes, x: float | Interval, y: Interval, look: Look, *, hollow: bool = False) -> None:
    """Draw a marker with its intervals; an unknown interval is not drawn."""
    width = 0.8 if hollow else 1.4
    across = x if isinstance(x, Interval) else Interval(x)
    if y.low == y.low:
        ax.plot([across.estimate] * 2, [y.low, y.high], color=look.color, linewidth=width, zorder=2)
    if across.low == across.low:
        ax.plot([across.low, across.high], [y.estimate] * 2, color=look.color, linewidth=width, zorder=2)
    face = PAPER if hollow else look.color
    style: dict[str, Any] = {"color": look.color, "markerfacecolor": face, "linestyle": "none", "zorder": 3}
    ax.plot([across.estimate], [y.estimate], marker=look.marker, markersize=5 if hollow else 6, **style)


def title_of(judge: str, rows: Sequence[Row]) -> str:
    """Return the name of a judge, and whether it guided."""
    name, guide = (shorten(plain(each), _TITLE // 3) for each in (judge, rows[0].guide))
    if judge in rows[0].unguided:
        return judge
    return f"{name} (guides)" if judge == rows[0].guide else f"{name} (part of {guide})"


def shorten(text: str, most: int) -> str:
    """Return ``text`` in at most ``most`` letters: a longer text loses its middle to an ellipsis.

    >>> shorten("abcdefghij", 7)
    'abcd…ij'
    """
    if len(text) <= most:
        return text
    end = (most - 1) // 3
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def judges_to_draw(judges: Sequence[str], intervals: Sequence[Mapping[str, Interval]]) -> list[str]:
    """Return the judges with a known value in any of the ``intervals``; panels of the others would be empty."""
    return [judge for judge in judges if any(is_known(each[judge]) for each in intervals)]


def is_known(interval: Interval) -> bool:
    """Return whether there is an estimate to draw."""
    return math.isfinite(interval.estimate)


def files(figure: Figure) -> dict[str, bytes]:
    """Return the figure as SVG and PNG."""
    found = {}
    for kind, metadata in (("svg", {"Date": None}), ("png", None)):
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn in its place
            figure.savefig(file, format=kind, dpi=200, metadata=metadata)
        found[kind] = file.getvalue()
    return found
