"""The table of a comparison: means and paired differences with 95 % bootstrap intervals over prompts.

Samples of a prompt share a bank, and seeds of a prompt share the prompt, so the prompt is what is resampled; tags
weigh alike. Rewards are the mean over the images returned, and the reward of the image that the guiding reward likes
best, which are two different promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .comparison import Line
from .statistics import bootstrap, interval

COSTS = ("network_evaluations", "backward_passes", "decodes", "reward_calls", "seconds")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: its name.
        mean: judge -> "estimate [low, high]" over the images returned.
        best: judge -> the same of the best image by the guiding reward.
        gain: judge -> paired difference of the means to the baseline.
        hacking: gain on the guiding reward minus gain on each other one, in deviations of the baseline over prompts.
        diversity: of the images of a prompt.
        cost: a prompt.
    """

    method: str
    mean: dict[str, str]
    best: dict[str, str]
    gain: dict[str, str]
    hacking: dict[str, str]
    diversity: str
    cost: dict[str, float]


def table(lines: Sequence[Line], *, baseline: str | None = None) -> list[Row]:
    """A row for each method, on the prompts and seeds that all of them have.

    Args:
        lines: of :func:`lidar_sampling.evaluation.compare`.
        baseline: what differences are taken to; by default the first method.

    Raises:
        ValueError: no lines, or no prompt that all methods have.
    """
    methods = list(dict.fromkeys(line["method"] for line in lines))
    by_method = {m: {(x["prompt"], x["seed"]): x for x in lines if x["method"] == m} for m in methods}
    if not methods:
        raise ValueError("there are no results to tabulate")
    baseline = baseline or methods[0]
    if baseline not in methods:
        raise ValueError(f"no results of the baseline {baseline!r}; there are {', '.join(methods)}")
    common = [key for key in by_method[methods[0]] if all(key in by_method[m] for m in methods)]
    if not common:
        raise ValueError("no prompt has results of all methods yet")
    prompts = list(dict.fromkeys(prompt for prompt, _ in common))
    tags = [by_method[methods[0]][next(key for key in common if key[0] == p)]["tag"] for p in prompts]
    judges = list(by_method[methods[0]][common[0]]["rewards"])

    def column(method: str, value: Callable[[Line], float]) -> np.ndarray:
        """One number a prompt: the mean over its seeds of ``value(line)``."""
        rows = [[value(by_method[method][key]) for key in common if key[0] == p] for p in prompts]
        return np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in rows])

    def estimate(values: np.ndarray) -> str:
        here = np.isfinite(values)
        if not here.any():
            return "-"
        kept = [tag for tag, ok in zip(tags, here, strict=True) if ok]
        return interval(bootstrap(values[here][:, None], kept)[:, 0])

    guide = judges[0]
    means = {m: {j: column(m, partial(_mean, j)) for j in judges} for m in methods}
    tops = {m: {j: column(m, partial(_best, guide, j)) for j in judges} for m in methods}
    spread = {j: np.nanstd(means[baseline][j]) or 1.0 for j in judges}
    rows = []
    for m in methods:
        gains = {j: means[m][j] - means[baseline][j] for j in judges}
        rows.append(
            Row(
                method=m,
                mean={j: estimate(means[m][j]) for j in judges},
                best={j: estimate(tops[m][j]) for j in judges},
                gain={j: estimate(gains[j]) for j in judges},
                hacking={j: estimate(gains[guide] / spread[guide] - gains[j] / spread[j]) for j in judges[1:]},
                diversity=estimate(column(m, lambda x: np.nan if x["diversity"] is None else x["diversity"])),
                cost={key: float(np.mean([by_method[m][k]["cost"][key] for k in common])) for key in COSTS},
            )
        )
    return rows


def markdown(rows: Sequence[Row], *, prompts: int, images: int) -> str:
    """The rows as Markdown."""
    judges = list(rows[0].mean)
    head = ["method", *(f"{j}, mean" for j in judges), *(f"{j}, best" for j in judges), "diversity"]
    head += ["network evaluations", "backward passes", "reward calls", "s"]
    gains = ["method", *(f"{j} minus {rows[0].method}" for j in judges), *(f"hacking, {j}" for j in judges[1:])]
    lines = [
        f"{prompts} prompts, {images} images each; 95 % bootstrap intervals over prompts.\n",
        _row(head),
        _rule(head),
    ]
    for r in rows:
        costs = (r.cost["network_evaluations"], r.cost["backward_passes"], r.cost["reward_calls"])
        cells = [
            *r.mean.values(),
            *r.best.values(),
            r.diversity,
            *(f"{c:.0f}" for c in costs),
            f"{r.cost['seconds']:.1f}",
        ]
        lines.append(_row([r.method, *cells]))
    lines += ["", _row(gains), _rule(gains)]
    lines += [_row([r.method, *r.gain.values(), *r.hacking.values()]) for r in rows[1:]]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(cells: Sequence[str]) -> str:
    return "|" + "---|" * len(cells)


def _mean(judge: str, line: Line) -> float:
    """The mean over the images returned."""
    known = [value for value in line["rewards"][judge] if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _best(guide: str, judge: str, line: Line) -> float:
    """That of the image which the guiding reward likes best."""
    chosen = int(np.argmax([-np.inf if value is None else value for value in line["rewards"][guide]]))
    value = line["rewards"][judge][chosen]
    return float("nan") if value is None else value
