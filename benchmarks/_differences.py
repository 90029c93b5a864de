"""The figure of the benchmarks of many pictures: selection less LiDAR, as more pictures are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Point = tuple[int, float, float, float]
"""Pictures kept, the difference, and the two ends of its interval."""


def draw_differences(lines: Mapping[str, Sequence[Point]], path: Path, *, title: str, unit: str) -> None:
    """Draw one line per way of selecting, against the pictures that are kept; below 0 LiDAR leads.

    Args:
        lines: the points of each way.
        path: of the figure, an SVG.
        title: of the figure.
        unit: what is compared, for the label of the axis.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "differences"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.6, 3.4), layout="constrained")
    for label, points in lines.items():
        kept, middle, low, high = zip(*points, strict=True)
        (line,) = axes.plot(kept, middle, marker="o", ms=4, label=label)
        axes.fill_between(kept, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(0, color="0.4", linewidth=0.8)
    every = sorted({point[0] for points in lines.values() for point in points})
    axes.set(xscale="log", xlabel="pictures kept per prompt", ylabel=f"{unit}, less LiDAR's", title=title)
    axes.set_xticks(every, [str(kept) for kept in every])
    axes.minorticks_off()
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
