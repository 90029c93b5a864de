"""Scenes: what a picture shows and where, laid out on 128 x 128 pixels so that its caption is true.

One or two objects are anywhere without overlap; three or four are in a quadrant each; and a *position* pair is apart
along the axis of its relation, with a sideways shift of at most 0.3 of the distance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lidar_sampling._geneval import CLASSES, COLORS, NUMBERS, RELATIONS

from .captions import TAGS, UNCAPTIONED, Attributes
from .draws import Draws

CANVAS = 128.0
SLOTS = 4
# More scenes of what is hard to learn: colours, counts, positions.
_TAG_WEIGHTS = {
    "single_object": 0.08,
    "colors": 0.17,
    "counting": 0.18,
    "two_object": 0.15,
    "position": 0.21,
    "color_attr": 0.21,
}
_CANDIDATES = 24
_MOST_TILT = math.radians(10)


class Scenes(NamedTuple):
    """B pictures of up to four objects; the rows of absent objects are filled but mean nothing."""

    attributes: Attributes
    classes: Tensor
    """(B, 4) int64, index into CLASSES."""
    colors: Tensor
    """(B, 4) int64: 0 natural, else 1 + index into COLORS."""
    present: Tensor
    """(B, 4) bool."""
    centers: Tensor
    """(B, 4, 2) x and y in pixels."""
    sizes: Tensor
    """(B, 4) longest side in pixels."""
    angles: Tensor
    """(B, 4) tilt in radians."""
    background: Tensor
    """(B, 3) RGB in [0, 1]."""
    gradient: Tensor
    """(B, 2) change of the background from the centre to the right and to the lower edge."""


class World:
    """A source of scenes.

    Args:
        pairs: (P, 2) the ordered class pairs that scenes of two objects may show.
        draws: source of randomness.
    """

    def __init__(self, pairs: Tensor, draws: Draws) -> None:
        self.draws = draws
        self.pairs = pairs.to(draws.device)

    def scenes(self, n: int, *, uncaptioned: float = 0.0) -> Scenes:
        """Return ``n`` scenes, a share of them with random objects that no template describes."""
        return self.lay_out(self._attributes(n, uncaptioned))

    def lay_out(self, attributes: Attributes) -> Scenes:
        """Return scenes that show what ``attributes`` say."""
        draws, tag = self.draws, attributes.tag
        n = len(tag)
        classes, colors, count = self._objects(attributes)
        sizes = 40 + 16 * (share := draws.uniform(n, SLOTS))
        for number, least, span in ((1, 60, 30), (3, 36, 12), (4, 36, 9)):
            sizes = torch.where((count == number)[:, None], least + span * share, sizes)
        centers = self._scatter(sizes, count, loosely=tag == UNCAPTIONED)
        centers = torch.where((count >= 3)[:, None, None], self._in_quadrants(sizes), centers)
        related = self._relate(sizes, attributes.relation)
        positioned = _is(tag, "position")[:, None, None]
        centers[:, :2] = torch.where(positioned, related, centers[:, :2])
        angles = draws.uniform(n, SLOTS, low=-1, high=1) * _MOST_TILT
        background = draws.uniform(n, 1, low=0.5, high=0.74) + draws.uniform(n, 3, low=-0.09, high=0.09)
        direction = draws.uniform(n) * 2 * math.pi
        strength = draws.uniform(n, high=0.09) * (draws.uniform(n) < 0.5)
        return Scenes(
            attributes,
            classes,
            colors,
            torch.arange(SLOTS, device=draws.device) < count[:, None],
            centers,
            sizes,
            angles,
            background,
            strength[:, None] * torch.stack([direction.cos(), direction.sin()], 1),
        )

    def _attributes(self, n: int, uncaptioned: float) -> Attributes:
        draws = self.draws
        weights = torch.tensor([*_TAG_WEIGHTS.values(), uncaptioned], device=draws.device)
        weights[:-1] *= (1 - uncaptioned) / weights[:-1].sum()
        tag = draws.choice(weights, n)
        first, second = self.pairs[draws.integers(len(self.pairs), n)].unbind(1)
        bounds = (len(COLORS), len(COLORS), len(RELATIONS), len(NUMBERS))
        return Attributes(tag, first, second, *(draws.integers(bound, n) for bound in bounds))

    def _objects(self, attributes: Attributes) -> tuple[Tensor, Tensor, Tensor]:
        """Return classes (B, 4), colours (B, 4) and their number (B,)."""
        draws, n = self.draws, len(attributes.tag)
        tag, a, b, c, d, _, number = (part[:, None] for part in attributes)
        second = torch.arange(SLOTS, device=draws.device) == 1
        two = _is(tag, "two_object") | _is(tag, "position") | _is(tag, "color_attr")
        count = torch.where(_is(tag, "counting"), number + 2, torch.where(two, 2, 1))[:, 0]
        classes = torch.where(two & second, b, a.expand(n, SLOTS))
        colors = torch.where(_is(tag, "colors"), c + 1, torch.zeros_like(classes))
        colors = torch.where(_is(tag, "color_attr"), torch.where(second, d, c) + 1, colors)

        free = tag == UNCAPTIONED
        count = torch.where(free[:, 0], 1 + draws.integers(SLOTS, n), count)
        if free.any():
            mixed = draws.integers(len(CLASSES), n, SLOTS)
            mixed = torch.where(draws.uniform(n, SLOTS) < 0.25, mixed[:, :1], mixed)
            natural = draws.uniform(n, SLOTS) < 0.4
            tinted = 1 + draws.integers(len(COLORS), n, SLOTS)
            classes = torch.where(free, mixed, classes)
            colors = torch.where(free, torch.where(natural, 0, tinted), colors)
        return classes, colors, count

    def _scatter(self, sizes: Tensor, count: Tensor, loosely: Tensor) -> Tensor:
        """Return centres (B, 4, 2) anywhere: the first of 24 candidates in which objects 0 and 1 do not overlap.

        ``loosely`` (B,) lets them overlap a little. If every candidate fails, two objects go to the edges.
        """
        n = len(sizes)
        reach = sizes / 2 + 1  # half the object, and a pixel of margin
        room = (CANVAS - 2 * reach)[:, None, :, None]
        candidates = reach[:, None, :, None] + self.draws.uniform(n, _CANDIDATES, SLOTS, 2) * room
        gap = (candidates[:, :, 0] - candidates[:, :, 1]).abs().amax(-1)
        need = (reach[:, 0] + reach[:, 1])[:, None] - 1
        fits = gap >= torch.where(loosely[:, None], need * 0.85, need)
        centers = candidates[torch.arange(n, device=sizes.device), fits.float().argmax(1)]
        middle = torch.full_like(reach[:, 0], CANVAS / 2)
        left = torch.stack([reach[:, 0], middle], 1)
        right = torch.stack([CANVAS - 1 - reach[:, 1], middle], 1)
        stuck = ((count == 2) & ~fits.any(1))[:, None, None]
        centers[:, :2] = torch.where(stuck, torch.stack([left, right], 1), centers[:, :2])
        return centers

    def _in_quadrants(self, sizes: Tensor) -> Tensor:
        """Return centres (B, 4, 2), one per quadrant in random order, jittered within it."""
        n = len(sizes)
        order = self.draws.uniform(n, SLOTS).argsort(1)
        corners = torch.stack([32 + 64.0 * (order % 2), 32 + 64.0 * (order // 2)], -1)
        slack = ((64 - sizes) / 2 * 0.95).clamp_min(0)[..., None]
        return corners + self.draws.uniform(n, SLOTS, 2, low=-1, high=1) * slack

    def _relate(self, sizes: Tensor, relation: Tensor) -> Tensor:
        """Return centres (B, 2, 2) of two objects, the first ``relation`` (B,) the second."""
        n, draws = len(sizes), self.draws
        first, second = sizes[:, 0], sizes[:, 1]
        least, most = (first + second) / 2 + 1, CANVAS - 2 - (first + second) / 2
        distance = least + draws.uniform(n) * (most - least).clamp_min(0)
        start = draws.uniform(n) * (most - distance).clamp_min(0)
        first_comes_first = (relation == RELATIONS.index("left of")) | (relation == RELATIONS.index("above"))
        low = 1 + torch.where(first_comes_first, first, second) / 2 + start
        high = low + distance
        along = torch.stack([low, high], 1)
        along = torch.where(first_comes_first[:, None], along, along.flip(1))

        reach = sizes[:, :2] / 2 + 1
        across = reach[:, 0] + draws.uniform(n) * (CANVAS - 2 * reach[:, 0])
        aside = across + draws.uniform(n, low=-1, high=1) * 0.3 * distance
        aside = torch.maximum(torch.minimum(aside, CANVAS - reach[:, 1]), reach[:, 1])
        sideways = torch.stack([across, aside], 1)
        horizontal = (relation < RELATIONS.index("above"))[:, None]
        x, y = torch.where(horizontal, along, sideways), torch.where(horizontal, sideways, along)
        return torch.stack([x, y], -1)


def _is(tag: Tensor, name: str) -> Tensor:
    return tag == TAGS.index(name)
