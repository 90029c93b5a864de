"""The trace as an SVG: effective sample size and size of the shift over the guided steps.

It uses the colours of the page, by ``currentColor`` and two custom properties, so that it suits light and dark
themes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 130, 64, 20


def trace_svg(trace: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG of two panels: for each guided step the mean over samples, with their range as a band.

    Args:
        trace: the guided steps, rows of ``Trace.rows()``.
    """
    if not trace:
        return ""
    panels = [
        _panel("members in effect", [row["ess_tilted"] for row in trace], 0),
        _panel("size of the shift", [row["shift_norm"] for row in trace], 1),
    ]
    height = 2 * (_HEIGHT + 2 * _TOP) + 16
    return (
        f'<svg class="trace" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Members in effect and size of the shift over {len(trace)} guided steps">'
        f"{''.join(panels)}"
        f'<text x="{_WIDTH - 4}" y="{height - 4}" text-anchor="end">guided step, 1 to {len(trace)}</text></svg>'
    )


def _panel(title: str, rows: Sequence[Sequence[float]], number: int) -> str:
    top = number * (_HEIGHT + 2 * _TOP) + _TOP
    highest = max(max(row) for row in rows)
    scale = _nice(highest)

    def at(step: int, value: float) -> str:
        across = (_WIDTH - _LEFT - 12) / max(1, len(rows) - 1)
        return f"{_LEFT + step * across:.1f},{top + _HEIGHT * (1 - value / scale):.1f}"

    mean = " ".join(at(k, sum(row) / len(row)) for k, row in enumerate(rows))
    upper = [at(k, max(row)) for k, row in enumerate(rows)]
    lower = [at(k, min(row)) for k, row in enumerate(rows)]
    ticks = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{top + _HEIGHT * (1 - part):.1f}" '
        f'y2="{top + _HEIGHT * (1 - part):.1f}" class="tick"/>'
        f'<text x="{_LEFT - 8}" y="{top + _HEIGHT * (1 - part) + 5:.1f}" text-anchor="end">{scale * part:g}</text>'
        for part in (0, 0.5, 1)
    )
    return (
        f'<g class="panel-{number}"><text x="{_LEFT}" y="{top - 6}">{title}</text>{ticks}'
        f'<polygon points="{" ".join([*upper, *reversed(lower)])}" class="band"/>'
        f'<polyline points="{mean}" class="mean"/></g>'
    )


def _nice(value: float) -> float:
    """Return the next of 1, 2, 5, 10, ... at or above a value.

    >>> _nice(3.2), _nice(0.04), _nice(0)
    (5.0, 0.05, 1.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9)):.6g}")
