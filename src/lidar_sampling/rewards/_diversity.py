"""Diversity of a set of samples, and selection of a set that is both good and diverse.

The distance of two samples is ``d_ij = 1 - cos(f_i, f_j)`` for their features f, such as those of a CLIP. The
diversity of a set is the mean of ``d_ij`` over its pairs. :func:`select_diverse` chooses the set S of k candidates
that maximises

    mean_{i in S} z_i  +  diverse * mean_{i < j in S} d_ij / mean_{i < j} d_ij,

where the quality z is the reward standardised over all candidates. The units of reward and distance therefore do not
matter. Group inference (Parmar et al. 2025, https://arxiv.org/abs/2508.15773) maximises

    sum_{i in S} r_i  +  weight * sum_{i < j in S} d_ij

in the units of both, where diversity counts more in larger sets; ``weight`` selects this objective. Its pruning
during sampling is :class:`lidar_sampling.methods.Group`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._settings import check_strength
from .._values import accepts
from ._score import FRAMES, RewardError, name_of

EXHAUSTIVE = 200_000  # most sets to enumerate; with more, exchanges from a greedy start


def with_features(judges: Iterable[Any]) -> Any:
    """Return the first reward or metric with features; None if none has them."""
    return next((judge for judge in judges if hasattr(judge, "features")), None)


def features_of(judges: Sequence[Any], samples: Tensor) -> Tensor | None:
    """Return unit features (m, d) of samples by the first judge with features; None if none has them.

    Args:
        judges: rewards and metrics; one with a method ``features(images)`` has features.
        samples: pictures (m, 3, H, W) or videos (m, F, 3, H, W) in [0, 1], or audio (m, channels, S). The features of
            a video are the mean over its frames.

    Raises:
        RewardError: the features are not finite, or not one row for each picture.

    Example:
        >>> from lidar_sampling import rewards
        >>> features_of([rewards.load("brightness"), rewards.load("glyph")], torch.rand(2, 3, 128, 128)).shape
        torch.Size([2, 192])
    """
    judge = with_features(judges)
    if judge is None:
        return None
    if samples.dim() != 5:
        return _features(judge, samples.clone())
    shown = samples[:, torch.linspace(0, samples.shape[1] - 1, min(FRAMES, samples.shape[1])).round().long()]
    each = _features(judge, shown.flatten(0, 1)).view(len(samples), shown.shape[1], -1)
    return F.normalize(each.mean(1), dim=1)


def _features(judge: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = judge.features(images).float().cpu()
    if found.dim() != 2 or len(found) != len(images) or not found.isfinite().all():
        what = tuple(found.shape) if found.dim() != 2 or len(found) != len(images) else "NaN or infinity"
        raise RewardError(f"features of {name_of(judge)} must be finite, ({len(images)}, d), got {what}")
    return F.normalize(found, dim=1)


def distances(features: Tensor) -> Tensor:
    """Return ``1 - cos`` of all pairs (m, m) of unit features (m, d); 0 on the diagonal.

    >>> distances(torch.eye(2))
    tensor([[0., 1.],
            [1., 0.]])
    """
    apart = 1 - features @ features.T
    return apart.fill_diagonal_(0.0)


def diversity(features: Tensor) -> float:
    """Return the mean distance over the pairs of unit features (m, d); 0 for one sample or for copies.

    >>> diversity(torch.eye(3)), diversity(torch.ones(1, 1))
    (1.0, 0.0)
    """
    m = len(features)
    return float(distances(features).sum()) / (m * (m - 1)) if m > 1 else 0.0


def select_diverse(
    rewards: Tensor, features: Tensor, count: int, diverse: float, *, weight: float | None = None
) -> list[int]:
    """Return the best set of ``count`` candidates, by falling reward.

    The optimum is exact if there are at most :data:`EXHAUSTIVE` sets of that size. Otherwise candidates are added one
    by one, each time the most helpful one, and then exchanged as long as an exchange helps.

    Args:
        rewards: (m,) rewards of the candidates.
        features: (m, d) features of unit length.
        count: size of the set, 1 to m.
        diverse: worth of an average distance, in standard deviations of the reward; 0 keeps the best.
        weight: worth of a pair's distance, in the unit of the reward; replaces ``diverse``.

    Raises:
        ValueError: ``count`` is not 1 to m, a reward is not finite, or a worth is negative or infinite.

    Example:
        >>> values, features = torch.tensor([2.0, 1.9, 1.0]), torch.eye(2)[[0, 0, 1]]  # the two best are copies
        >>> select_diverse(values, features, 2, 0.0), select_diverse(values, features, 2, 2.0)
        ([0, 1], [0, 2])
    """
    m = len(rewards)
    if not accepts(int, count) or not 1 <= count <= m:
        raise ValueError(f"count must be 1 to {m}, the number of candidates, got {count}")
    if len(features) != m:
        raise ValueError(f"{m} candidates need as many features, got {len(features)}")
    if not rewards.isfinite().all():
        raise ValueError(f"rewards must be finite, got {rewards.tolist()}")
    check_strength("diverse", diverse)
    check_strength("weight", weight or 0.0)
    values, apart = rewards.double().cpu(), distances(features.double().cpu())
    if weight is None:
        spread, usual = values.std(correction=0), apart.sum() / max(1, m * (m - 1))
        z = (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)
        pairs = diverse * apart / usual if usual > 0 else torch.zeros_like(apart)
    else:
        z, pairs = values, weight * (count - 1) / 2 * apart  # the published sums, divided by count
    search = _every if math.comb(m, count) <= EXHAUSTIVE else _exchange
    return sorted(search(z, pairs, count), key=lambda i: (-float(values[i]), i))


def _worth(z: Tensor, pairs: Tensor, sets: Tensor) -> Tensor:
    """Return the objective (s,) of sets (s, k) of candidates."""
    k = sets.shape[1]
    inside = pairs[sets[:, :, None], sets[:, None, :]].sum((1, 2)) / (k * (k - 1)) if k > 1 else 0.0
    return z[sets].mean(1) + inside


def _every(z: Tensor, pairs: Tensor, count: int) -> list[int]:
    sets = torch.tensor(list(combinations(range(len(z)), count)))
    worth = torch.cat([_worth(z, pairs, some) for some in sets.split(10_000)])
    return list(map(int, sets[worth.argmax()].tolist()))


def _exchange(z: Tensor, pairs: Tensor, count: int) -> list[int]:
    chosen: list[int] = []
    to_chosen = torch.zeros_like(z)  # each candidate's sum of distances to those chosen
    for size in range(1, count + 1):
        gain = z / size + (2 * to_chosen / (size * (size - 1)) if size > 1 else 0.0)
        gain[chosen] = -math.inf
        chosen.append(int(gain.argmax()))
        to_chosen += pairs[chosen[-1]]
    while count < len(z):
        others = [i for i in range(len(z)) if i not in chosen]
        gain = (z[others] - z[chosen][:, None]) / count
        if count > 1:
            more = to_chosen[others] - to_chosen[chosen][:, None] - pairs[chosen][:, others]
            gain = gain + 2 * more / (count * (count - 1))
        if gain.max() <= 1e-12:
            break
        k, i = divmod(int(gain.argmax()), len(others))
        to_chosen += pairs[others[i]] - pairs[chosen[k]]
        chosen[k] = others[i]
    return chosen
