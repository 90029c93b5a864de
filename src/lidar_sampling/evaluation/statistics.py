"""Bootstrap over prompts: samples of one prompt share a bank, so the prompt is the unit that is resampled."""

from __future__ import annotations

import numpy as np


def bootstrap(values: np.ndarray, strata: list[str], *, draws: int = 4000, seed: int = 0) -> np.ndarray:
    """Means over prompts of resampled prompts, stratified.

    Args:
        values: (P, k), k numbers a prompt.
        strata: P labels; prompts are resampled within their label, and labels weigh alike in the mean.
        draws: bootstrap draws.
        seed: of the resampling.

    Returns:
        (1 + draws, k): first the estimate itself, then the draws.
    """
    rng = np.random.default_rng(seed)
    labels = np.array(strata)
    parts = []
    for label in dict.fromkeys(strata):
        group = values[labels == label]
        index = rng.integers(0, len(group), (draws, len(group)))
        parts.append(np.concatenate([group.mean(0)[None], group[index].mean(1)]))
    return np.mean(parts, axis=0)


def interval(draws: np.ndarray) -> str:
    """``estimate [low, high]`` of one column of :func:`bootstrap`, 95 %."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return f"{draws[0]:.3f} [{low:.3f}, {high:.3f}]"
