"""Bootstrap over prompts: samples of one prompt share a bank, so the prompt is the unit to resample."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with its 95 % interval; NaN where the data do not determine the interval or the estimate.

    >>> print(Interval(0.5, 0.25, 0.75), Interval(0.5), Interval())
    0.500 [0.250, 0.750] 0.500 -
    """

    estimate: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")

    def __str__(self) -> str:
        if self.estimate != self.estimate:
            return "-"
        bounds = f" [{self.low:.3f}, {self.high:.3f}]" if self.low == self.low else ""
        return f"{self.estimate:.3f}{bounds}"


def bootstrap(values: np.ndarray, strata: list[str], *, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """Return means over prompts, and over draws of resampled prompts, stratified by label.

    A label with one prompt cannot be resampled within itself, and leaving it fixed would hide its spread. Such labels
    are resampled together, which errs on the wide side (collapsed strata: Wolter 2007, section 2.5). If there is only
    one such label, the draws are NaN.

    Args:
        values: (P, k), k numbers per prompt.
        strata: P labels; prompts are resampled within their label, and labels have equal weight in the mean.
        draws: number of bootstrap draws.
        seed: seed of the resampling.

    Returns:
        (1 + draws, k): first the estimate itself, then the draws.

    Example:
        >>> bootstrap(np.array([[1.0], [3.0], [8.0], [8.0]]), ["a", "a", "b", "b"], draws=100)[0]
        array([5.])
    """
    rng = np.random.default_rng(seed)
    labels = np.array(strata)
    sizes = {label: strata.count(label) for label in dict.fromkeys(strata)}
    alone = [label for label, size in sizes.items() if size == 1]
    groups = [(labels == label, 1) for label in sizes if label not in alone]
    if alone:
        groups.append((np.isin(labels, alone), len(alone)))
    total = np.zeros((1 + draws, values.shape[1]))
    for members, weight in groups:
        group = values[members]
        if len(group) == 1:
            means = np.full((draws, values.shape[1]), np.nan)
        else:
            means = group[rng.integers(0, len(group), (draws, len(group)))].mean(1)
        total += weight * np.concatenate([group.mean(0)[None], means])
    return total / len(sizes)


def interval(draws: np.ndarray) -> Interval:
    """Return the estimate and 95 % interval of one column of :func:`bootstrap`.

    >>> interval(np.array([5.0, 4.0, 6.0])).estimate
    5.0
    """
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high))


def wins(values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Return 1 for a prompt won, a half for a tie, 0 for one lost, and NaN where either is NaN; shapes (P,).

    >>> wins(np.array([2.0, 1.0, 0.0, np.nan]), np.ones(4))
    array([1. , 0.5, 0. , nan])
    """
    return (np.sign(values - baseline) + 1) / 2
