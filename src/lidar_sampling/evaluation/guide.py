"""The guide of a comparison: one judge, or a mixture of judges, which becomes a judge of its own.

A line names its guide as ``{"name": "glyph"}``, or for a mixture as ``{"name": "mixture", "weights": {part: weight},
"calibration": {part: [mean, std]} or null}``. Its parts are judges of the line. The methods maximised

    mixture(x) = sum_i w_i (r_i(x) - mean_i) / std_i

rather than its first part or any other part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..runs._lines import Line, once, plain_guide


class Guide(NamedTuple):
    """The guide of a comparison.

    Attributes:
        name: the judge that guided, or the mixture.
        parts: the judges that a mixture sums; empty for a single judge.
    """

    name: str
    parts: tuple[str, ...] = ()


def with_guide(lines: Sequence[Line]) -> tuple[list[Line], Guide]:
    """Return the lines, with the guide as their first judge, and the guide.

    Lines of older versions name no guide; theirs is their first judge. A mixture without a calibration is
    standardised by the mean and deviation of each part over the images of all methods at one prompt and seed, so that
    methods are measured on one scale. A deviation of 0 counts as 1. If two lines have the same prompt, seed and
    method, the first counts.

    Args:
        lines: lines of :func:`lidar_sampling.evaluation.compare`; at least one.

    Raises:
        ValueError: two lines have different guides, a line lacks rewards, or a judge has the name of the mixture.

    Example:
        >>> line = {"prompt": "a cat", "seed": 0, "method": "lidar"}
        >>> line["rewards"] = {"clip": [1.0, 5.0], "hps": [7.0, 3.0]}
        >>> line["guide"] = {"name": "both", "weights": {"clip": 1.0, "hps": 10.0}, "calibration": None}
        >>> (found,), guide = with_guide([line])
        >>> found["rewards"]["both"], guide
        ([9.0, -9.0], Guide(name='both', parts=('clip', 'hps')))
    """
    lines = once(lines)
    entry = _one_entry(lines)
    guide = Guide(entry["name"], tuple(entry.get("weights") or ()))
    for line in lines:
        if len({len(values) for values in line["rewards"].values()}) != 1:
            raise ValueError(
                f"{place(line)} has different numbers of rewards by its judges: remove it, and draw it again"
            )
        for judge in guide.parts or (guide.name,):
            if judge not in line["rewards"]:
                raise ValueError(f"{place(line)} was guided by {judge!r} but has no rewards of it: draw it again")
        if guide.parts and guide.name in line["rewards"]:
            raise ValueError(f"{guide.name!r} is both the mixture that guided and a judge: give one another name")
    scales = None if entry.get("calibration") else _scales(lines, guide.parts)
    found = []
    for line in lines:
        values = line["rewards"].get(guide.name)
        if values is None:
            scale = entry["calibration"] if scales is None else scales[line["prompt"], line["seed"]]
            values = _mix(line["rewards"], entry["weights"], scale)
        others = {judge: rewards for judge, rewards in line["rewards"].items() if judge != guide.name}
        found.append({**line, "rewards": {guide.name: values, **others}})
    return found, guide


def _one_entry(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the guide that all lines name."""
    first = _entry(lines[0])
    for line in lines:
        if (other := _entry(line)) != first:
            raise ValueError(
                f"{place(lines[0])} was guided by {_spelt(first)}, {place(line)} by {_spelt(other)}: make a table "
                f"only of lines with one guide"
            )
    return first


def _entry(line: Line) -> dict[str, Any]:
    named = line.get("guide") or {"name": next(iter(line["rewards"]))}
    return {key: value for key, value in plain_guide(named).items() if value is not None}


def _spelt(entry: Mapping[str, Any]) -> str:
    """Return a guide in words, for a message.

    >>> _spelt({"name": "both", "weights": {"clip": 1.0, "hps": 2.0}, "calibration": {"clip": [0, 1], "hps": [3, 1]}})
    'both (1 clip at 0 +- 1, 2 hps at 3 +- 1)'
    """
    scale = entry.get("calibration") or {}
    parts = [
        f"{weight:g} {part}" + (" at {:g} +- {:g}".format(*scale[part]) if part in scale else "")
        for part, weight in entry.get("weights", {}).items()
    ]
    return f"{entry['name']} ({', '.join(parts)})" if parts else entry["name"]


def place(line: Line) -> str:
    """Return words that identify a line, for a message."""
    return f"the line of {line['method']}, {line['prompt']!r}, seed {line['seed']},"


def _scales(lines: Sequence[Line], parts: Sequence[str]) -> dict[tuple[str, int], dict[str, tuple[float, float]]]:
    """Return (prompt, seed) -> part -> mean and deviation over the images of all methods."""
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for line in lines:
        here = values.setdefault((line["prompt"], line["seed"]), {part: [] for part in parts})
        for part in parts:
            here[part] += [value for value in line["rewards"][part] if value is not None]
    return {key: {part: _scale(known) for part, known in here.items()} for key, here in values.items()}


def _scale(known: Sequence[float]) -> tuple[float, float]:
    """Return mean and deviation; equal values have deviation 1, though rounding may compute another."""
    if not known:
        return 0.0, 1.0
    return float(np.mean(known)), float(np.std(known)) if max(known) > min(known) else 1.0


def _mix(
    rewards: Mapping[str, Sequence[float | None]],
    weights: Mapping[str, float],
    scale: Mapping[str, Sequence[float]],
) -> list[float | None]:
    """Return the weighted sum per image, or None where a part is unknown."""
    found: list[float | None] = []
    for values in zip(*(rewards[part] for part in weights), strict=True):
        total: float | None = 0.0
        for (part, weight), value in zip(weights.items(), values, strict=True):
            mean, std = scale[part]
            total = None if total is None or value is None else total + weight * (value - mean) / std
        found.append(total)
    return found
