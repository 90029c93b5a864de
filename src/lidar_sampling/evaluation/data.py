"""The rows of a comparison as numbers to compute with: CSV and JSON.

The CSV is tidy, one number per line (method, statistic, judge, tag, estimate, low, high). Every statistic has an
interval and most have a judge; side by side these would be a hundred columns, which no plotting library wants.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from .rows import Row
from .statistics import Interval

_BY_JUDGE = ("mean", "best", "gain", "best_gain", "best_lead", "effect", "win", "hacking")


def tidy(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, one number per line at full precision; an unknown number is empty."""
    lines: list[str] = []
    # csv quotes only characters of the line's end. A name may hold a carriage return, so it must be among them.
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerow(["method", "statistic", "judge", "tag", *Interval._fields])
    for r in rows:
        for statistic in _BY_JUDGE:
            for judge, value in getattr(r, statistic).items():
                writer.writerow([r.method, statistic, judge, "", *map(_none_for_nan, value)])
        for judge, by_tag in r.tags.items():
            for tag, value in by_tag.items():
                writer.writerow([r.method, "mean", judge, tag, *map(_none_for_nan, value)])
        writer.writerow([r.method, "diversity", "", "", *map(_none_for_nan, r.diversity)])
        for key, number in r.cost.items():
            writer.writerow([r.method, key, "", "", _none_for_nan(number), None, None])
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON values: intervals as objects, null for unknown numbers."""
    return [{key: _json(value) for key, value in vars(row).items()} for row in rows]


def _json(value: Any) -> Any:
    if isinstance(value, Interval):
        return {key: _none_for_nan(number) for key, number in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _json(inner) for key, inner in value.items()}
    return _none_for_nan(value)


def _none_for_nan(value: Any) -> Any:
    """Return the value, or None for NaN."""
    return None if value != value else value
