"""The statistics of a comparison: means, paired differences and win rates with 95 % bootstrap intervals over prompts.

Samples of a prompt share a bank, and seeds of a prompt share the prompt, so the prompt is the unit to resample. Tags
have equal weight. Rewards are given twice, as the mean over the images returned and for the image that the guiding
reward likes best, since these are two different promises. A mixture that guided is a judge of its own
(:mod:`.guide`). A judge may have no value for some prompts. Then only those count for which all methods have one, so
that methods compare. Rows hold numbers; :mod:`.parts` turns them into text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..runs._lines import COSTS, Line
from ..runs._lines import PEAK as PEAK
from .guide import place, with_guide
from .statistics import Interval, bootstrap, interval, wins


@dataclass(frozen=True)
class Row:
    """One method. Judges are keys, the guiding reward first; if it is a mixture, its parts come next.

    Attributes:
        method: name of the method.
        mean: judge -> mean over the images returned.
        best: judge -> mean over the best images by the guiding reward.
        gain: judge -> paired difference of the means to the baseline.
        best_gain: judge -> paired difference of ``best`` to the baseline's mean, so that 0 means the same as for
            ``gain``.
        best_lead: judge -> paired difference of ``best`` to the baseline's.
        effect: judge -> ``gain`` in deviations of the baseline over prompts (Glass's delta).
        win: judge -> share of prompts whose mean is larger than the baseline's, ties half.
        hacking: judge that did not guide -> effect on the guiding reward minus effect on this judge, paired. The
            guide and its parts are not keys.
        tags: judge -> tag -> mean over the images returned for the prompts of the tag.
        diversity: diversity of the images of a prompt.
        cost: cost per prompt, by the names of :class:`lidar_sampling.Cost`; ``peak_memory`` is the largest of any
            prompt in bytes, NaN if no line has it.
        prompts: number of prompts that all methods have.
        counted: judge -> number of the prompts with a mean by every method that has any, which alone count for
            ``mean``, ``gain``, ``effect``, ``win``, ``hacking`` and ``tags``; None if no method has any.
        counted_best: judge -> the same for ``best``, ``best_gain`` and ``best_lead``.
        counted_diversity: the same for ``diversity``.
    """

    method: str
    mean: dict[str, Interval]
    best: dict[str, Interval]
    gain: dict[str, Interval]
    best_gain: dict[str, Interval]
    best_lead: dict[str, Interval]
    effect: dict[str, Interval]
    win: dict[str, Interval]
    hacking: dict[str, Interval]
    tags: dict[str, dict[str, Interval]]
    diversity: Interval
    cost: dict[str, float]
    prompts: int
    counted: dict[str, int | None]
    counted_best: dict[str, int | None]
    counted_diversity: int | None

    @property
    def guide(self) -> str:
        """The judge that guided."""
        return next(iter(self.mean))

    @property
    def unguided(self) -> list[str]:
        """The judges that did not guide, neither alone nor as part of a mixture."""
        return list(self.hacking)


def table(lines: Sequence[Line], *, baseline: str | None = None) -> list[Row]:
    """Return one row per method, the baseline first, over the prompts and seeds that all methods have.

    Args:
        lines: lines of :func:`lidar_sampling.evaluation.compare`.
        baseline: the method that others are compared to; by default the first.

    Raises:
        ValueError: there are no lines, no prompt has all methods, lines have different guides, a line lacks a judge
            that others have, or a tag is not text.
    """
    if not lines:
        raise ValueError("there are no results to tabulate")
    for line in lines:
        if not isinstance(tag := line.get("tag"), str):
            raise ValueError(f'{place(line)} has the tag {tag!r}, which is not text: give it a tag, or "" for none')
    methods = list(dict.fromkeys(line["method"] for line in lines))
    lines, (guide, parts) = with_guide(lines)
    by_method = {m: {(x["prompt"], x["seed"]): x for x in lines if x["method"] == m} for m in methods}
    baseline = baseline or methods[0]
    if baseline not in methods:
        raise ValueError(f"no results of the baseline {baseline!r}; there are {', '.join(methods)}")
    methods.sort(key=lambda m: m != baseline)
    common = find_shared(lines)
    if not common:
        raise ValueError("no prompt has results of all methods yet")
    seeds: dict[str, list[tuple[str, int]]] = {}
    for key in common:
        seeds.setdefault(key[0], []).append(key)
    tags = [by_method[baseline][keys[0]]["tag"] for keys in seeds.values()]
    judges = list(by_method[baseline][common[0]]["rewards"])
    _check_judges([by_method[m][key] for m in methods for key in common], judges)

    def column(method: str, value: Callable[[Line], float]) -> np.ndarray:
        """Return one number per prompt: the mean over its seeds of ``value(line)``."""
        rows = [[value(by_method[method][key]) for key in keys] for keys in seeds.values()]
        return np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in rows])

    by_tag = partial(estimate, tags=tags)
    means = {m: {j: column(m, partial(mean_reward, j)) for j in judges} for m in methods}
    best = {m: {j: column(m, partial(best_reward, guide, j)) for j in judges} for m in methods}
    apart = {m: column(m, lambda x: np.nan if x["diversity"] is None else x["diversity"]) for m in methods}
    counted = {j: _keep_shared([means[m][j] for m in methods]) for j in judges}
    counted_best = {j: _keep_shared([best[m][j] for m in methods]) for j in judges}
    counted_diversity = _keep_shared(list(apart.values()))
    base = means[baseline]
    spread = {j: _deviation(base[j]) for j in judges}
    rows = []
    for m in methods:
        gains = {j: means[m][j] - base[j] for j in judges}
        effects = {j: gains[j] / spread[j] for j in judges}
        rows.append(
            Row(
                method=m,
                mean={j: by_tag(means[m][j]) for j in judges},
                best={j: by_tag(best[m][j]) for j in judges},
                gain={j: by_tag(gains[j]) for j in judges},
                best_gain={j: by_tag(best[m][j] - base[j]) for j in judges},
                best_lead={j: by_tag(best[m][j] - best[baseline][j]) for j in judges},
                effect={j: by_tag(effects[j]) for j in judges},
                win={j: by_tag(wins(means[m][j], base[j])) for j in judges},
                hacking={j: by_tag(effects[guide] - effects[j]) for j in judges if j not in (guide, *parts)},
                tags={j: {tag: _of_tag(means[m][j], tags, tag) for tag in dict.fromkeys(tags)} for j in judges},
                diversity=by_tag(apart[m]),
                cost=_cost([by_method[m][key] for key in common]),
                prompts=len(seeds),
                counted=counted,
                counted_best=counted_best,
                counted_diversity=counted_diversity,
            )
        )
    return rows


def find_shared(lines: Sequence[Line]) -> list[tuple[str, int]]:
    """Return the (prompt, seed) pairs that all methods have; only these count.

    >>> lines = [{"method": m, "prompt": p, "seed": 0} for m, p in (("a", "x"), ("a", "y"), ("b", "y"))]
    >>> find_shared(lines)
    [('y', 0)]
    """
    have: dict[tuple[str, int], set[str]] = {}
    for line in lines:
        have.setdefault((line["prompt"], line["seed"]), set()).add(line["method"])
    everyone = {line["method"] for line in lines}
    return [key for key, methods in have.items() if methods == everyone]


def _keep_shared(columns: Sequence[np.ndarray]) -> int | None:
    """Set to NaN, in place, the prompts for which a method has no value; return how many are left.

    A method without any value cannot be compared, so it takes no prompts from the others.

    Args:
        columns: (P,) of each method.

    Returns:
        The number of prompts; None if no method has any value.

    >>> columns = [np.array([1.0, np.nan, 3.0]), np.array([4.0, 5.0, np.nan]), np.full(3, np.nan)]
    >>> _keep_shared(columns), columns[:2]
    (1, [array([ 1., nan, nan]), array([ 4., nan, nan])])
    """
    known = [column for column in columns if np.isfinite(column).any()]
    if not known:
        return None
    shared = np.isfinite(known).all(0)
    for column in known:
        column[~shared] = np.nan
    return int(shared.sum())


def _check_judges(lines: Sequence[Line], judges: Sequence[str]) -> None:
    """Refuse lines with other judges than the first line."""
    for line in lines:
        if set(line["rewards"]) != set(judges):
            raise ValueError(
                f"the line of {line['method']}, {line['prompt']!r}, seed {line['seed']}, was judged by "
                f"{', '.join(line['rewards'])}, others by {', '.join(judges)}: make a table only of lines that were "
                f"judged alike"
            )


def estimate(values: np.ndarray, tags: list[str]) -> Interval:
    """Return the mean over the prompts that have a value, with its interval.

    Args:
        values: (P,), one per prompt; NaN where a prompt has no value.
        tags: P labels, which have equal weight in the mean.
    """
    here = np.isfinite(values)
    if not here.any():
        return Interval()
    kept = [tag for tag, ok in zip(tags, here, strict=True) if ok]
    return interval(bootstrap(values[here][:, None], kept)[:, 0])


def _deviation(values: np.ndarray) -> float:
    """Return the deviation over prompts, or 1 if it is 0. Equal values count as 0, though rounding gives 1e-17."""
    known = values[np.isfinite(values)]
    return float(known.std()) if len(known) and known.max() > known.min() else 1.0


def _of_tag(values: np.ndarray, tags: list[str], tag: str) -> Interval:
    here = np.array([other == tag for other in tags])
    return estimate(values[here], [tag] * int(here.sum()))


def _cost(lines: list[Line]) -> dict[str, float]:
    # Lines of older versions have no peak, which is not a peak of 0.
    peaks = [line["cost"].get(PEAK, line.get(PEAK)) for line in lines]
    known = [float(peak) for peak in peaks if peak is not None]
    means = {key: float(np.mean([line["cost"][key] for line in lines])) for key in COSTS}
    return {**means, PEAK: max(known, default=float("nan"))}


def mean_reward(judge: str, line: Line) -> float:
    """Return the mean over the images returned; NaN if none has a value."""
    known = [value for value in line["rewards"][judge] if value is not None]
    return float(np.mean(known)) if known else float("nan")


def best_reward(guide: str, judge: str, line: Line) -> float:
    """Return the reward of the image that the guiding reward likes best; NaN if the guide has no value."""
    liked = line["rewards"][guide]
    if all(value is None for value in liked):
        return float("nan")
    chosen = int(np.argmax([-np.inf if value is None else value for value in liked]))
    value = line["rewards"][judge][chosen]
    return float("nan") if value is None else value
