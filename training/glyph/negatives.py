"""Hard negatives: captions that are wrong about a picture in one attribute, or in what they leave out.

They teach the CLIPs what random captions cannot: which object has which colour, and which is on the left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidar_sampling._geneval import CLASSES, COLORS, NUMBERS, RELATIONS

from .captions import EMPTY, Attributes, index
from .draws import Draws


def hard_negatives(attributes: Attributes, draws: Draws, k: int) -> Tensor:
    """Return ``k`` wrong captions (B, k) per scene, as indices; the empty caption for a scene without caption."""
    return torch.stack([_one(attributes, draws) for _ in range(k)], 1)


def _one(attributes: Attributes, draws: Draws) -> Tensor:
    tag, a, b, c, d, r, n = attributes
    rows = len(tag)
    other_a = _another_class(a, b, draws)
    other_b = _another_class(b, a, draws)
    other_c, other_d = (_another(color, len(COLORS), draws) for color in (c, d))
    other_n = _another(n, len(NUMBERS), draws)
    other_r = _another(r, len(RELATIONS), draws)
    opposite = r ^ 1  # in RELATIONS each is next to its opposite
    u = draws.uniform(rows)

    def attr(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return index("color_attr", a, b, c, d)

    swap = torch.where(c != d, 0.3, 0.0)
    by_tag = [
        _choose(
            u,
            (0.3, other_a),
            (0.55, index("counting", a, n)),
            (0.8, index("two_object", a, other_b)),
            (1, index("colors", a, c)),
        ),
        _choose(
            u,
            (0.6, index("colors", a, other_c)),
            (0.85, index("colors", other_a, c)),
            (0.93, attr(a, b, c, d)),
            (1, a),
        ),
        _choose(u, (0.6, index("counting", a, other_n)), (0.8, index("counting", other_a, n)), (1, a)),
        _choose(
            u,
            (0.35, index("two_object", other_a, b)),
            (0.7, index("two_object", a, other_b)),
            (0.8, a),
            (0.9, b),
            (1, index("counting", a, n)),
        ),
        _choose(
            u,
            (0.35, index("position", a, b, opposite)),
            (0.55, index("position", a, b, other_r)),
            (0.75, index("position", other_a, b, r)),
            (0.95, index("position", a, other_b, r)),
            (1, a),
        ),
        _choose(
            u,
            (swap, attr(a, b, d, c)),
            (0.5, attr(a, b, other_c, d)),
            (0.7, attr(a, b, c, other_d)),
            (0.82, attr(other_a, b, c, d)),
            (0.94, attr(a, other_b, c, d)),
            (1, index("colors", a, c)),
        ),
        torch.full_like(a, EMPTY),
    ]
    return torch.stack(by_tag, 1).gather(1, tag[:, None])[:, 0]


def _choose(u: Tensor, *choices: tuple[float | Tensor, Tensor]) -> Tensor:
    """Return the value of the first (bound, value) pair whose bound is above ``u`` (B,), else of the last."""
    chosen = choices[-1][1]
    for bound, value in reversed(choices[:-1]):
        chosen = torch.where(u < bound, value, chosen)
    return chosen


def _another(value: Tensor, bound: int, draws: Draws) -> Tensor:
    """Return an integer in [0, bound) that is not ``value``."""
    return (value + 1 + draws.integers(bound - 1, len(value))) % bound


def _another_class(mine: Tensor, partner: Tensor, draws: Draws) -> Tensor:
    """Return a class that is neither of the two in the picture."""
    other = _another(mine, len(CLASSES), draws)
    other = torch.where(other == partner, (partner + 1) % len(CLASSES), other)
    return torch.where(other == mine, (mine + 1) % len(CLASSES), other)
