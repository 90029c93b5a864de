"""The caption space: every caption of GenEval's six templates has an index, so that captions are tensors.

Each template is a block of indices, row-major over its parts: a, b classes; c, d colours; n number; r
relation.

    single_object   (a)             a photo of a dog
    colors          (a, c)          a photo of a red dog
    counting        (a, n)          a photo of three dogs
    two_object      (a, b)          a photo of a dog and a cat
    position        (a, b, r)       a photo of a dog left of a cat
    color_attr      (a, b, c, d)    a photo of a red dog and a blue cat

The last index is the empty caption: dropped captions, and scenes that no template describes.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from lidar_sampling import glyph
from lidar_sampling._geneval import CLASSES, COLORS, NUMBERS, RELATIONS, caption, with_article

LENGTH = 24  # tokens per caption, padded
_N, _C = len(CLASSES), len(COLORS)
_COUNTS = tuple(NUMBERS.values())
_SHAPES = {
    "single_object": (_N,),
    "colors": (_N, _C),
    "counting": (_N, len(_COUNTS)),
    "two_object": (_N, _N),
    "position": (_N, _N, len(RELATIONS)),
    "color_attr": (_N, _N, _C, _C),
}
TAGS = tuple(_SHAPES)
UNCAPTIONED = len(TAGS)  # the tag of scenes that no template describes
_ENDS = tuple(accumulate(map(math.prod, _SHAPES.values())))
_STARTS = dict(zip(TAGS, (0, *_ENDS), strict=False))
EMPTY = _ENDS[-1]
SIZE = EMPTY + 1


class Attributes(NamedTuple):
    """The contents of captions, one row per scene: (B,) int64 each; a template reads only the parts it names."""

    tag: Tensor
    """Index into TAGS, or UNCAPTIONED."""
    first: Tensor
    second: Tensor
    first_color: Tensor
    second_color: Tensor
    relation: Tensor
    """Index into RELATIONS: where the first object is relative to the second."""
    number: Tensor
    """Number of the first object: index into 2, 3, 4."""

    def captions(self) -> Tensor:
        """Return caption indices (B,)."""
        _, a, b, c, d, r, n = self
        by_tag = [
            index("single_object", a),
            index("colors", a, c),
            index("counting", a, n),
            index("two_object", a, b),
            index("position", a, b, r),
            index("color_attr", a, b, c, d),
            torch.full_like(a, EMPTY),
        ]
        return torch.stack(by_tag, 1).gather(1, self.tag[:, None])[:, 0]


def index(tag: str, *parts: Any) -> Any:
    """Return the caption index of a template's parts, given as integers or int64 tensors.

    >>> index("colors", 16, 0), text(240)
    (240, 'a photo of a red dog')
    """
    flat = 0
    for part, size in zip(parts, _SHAPES[tag], strict=True):
        flat = flat * size + part
    return _STARTS[tag] + flat


def metadata(index: int) -> dict[str, Any] | None:
    """Return GenEval's metadata of a caption, as ``_geneval.parse`` does; None for the empty caption."""
    if index == EMPTY:
        return None
    tag = next(t for t, end in zip(TAGS, _ENDS, strict=True) if index < end)
    parts = tuple(map(int, np.unravel_index(index - _STARTS[tag], _SHAPES[tag])))
    exclude = None
    match tag, parts:
        case "single_object", (a,):
            include = [_object(a)]
        case "colors", (a, c):
            include = [_object(a, color=c)]
        case "counting", (a, n):
            include, exclude = [_object(a, _COUNTS[n])], [_object(a, _COUNTS[n] + 1)]
        case "position", (a, b, r):
            include = [_object(b), {**_object(a), "position": [RELATIONS[r], 0]}]
        case _, (a, b, *colors):
            include = [_object(k, color=c) for k, c in zip((a, b), colors or (None, None), strict=True)]
    found: dict[str, Any] = {"tag": tag, "include": include, **({"exclude": exclude} if exclude else {})}
    return {**found, "prompt": caption(found)}


def text(index: int) -> str:
    """Return the caption.

    >>> text(EMPTY - 1), text(EMPTY)
    ('a photo of a white toothbrush and a white toothbrush', '')
    """
    found = metadata(index)
    return found["prompt"] if found else ""


def token_table(tokenizer: CLIPTokenizer) -> Tensor:
    """Return token ids (SIZE, LENGTH) int16 of every caption, as the tokenizer gives them with padding.

    The 670,000 captions of two objects are joined from their halves, which takes a fraction of a second.
    """
    plain = [with_article(name) for name in CLASSES]
    tinted = [with_article(f"{color} {name}") for name in CLASSES for color in COLORS]
    related = [f"{relation} {noun}" for noun in plain for relation in RELATIONS]
    blocks = [
        _pad(tokenizer, [text(i) for i in range(_STARTS["two_object"])]),
        _join(tokenizer, plain, [f"and {noun}" for noun in plain]),
        _join(tokenizer, plain, related),
        # Heads vary with (a, c) and tails with (b, d), while captions are ordered by (a, b, c, d).
        _join(tokenizer, tinted, [f"and {noun}" for noun in tinted])
        .reshape(_N, _C, _N, _C, LENGTH)
        .transpose(0, 2, 1, 3, 4),
        _pad(tokenizer, [""]),
    ]
    return torch.from_numpy(np.concatenate([block.reshape(-1, LENGTH) for block in blocks]))


def held_out() -> Tensor:
    """Return (80, 80) bool, symmetric: class pairs that no training caption names together."""
    together = torch.zeros(_N, _N, dtype=torch.bool)
    for pair in glyph.held_out_pairs():
        a, b = map(CLASSES.index, pair)
        together[a, b] = together[b, a] = True
    return together


def all_pairs() -> Tensor:
    """Return the ordered pairs (P, 2) of two different classes."""
    return (~torch.eye(_N, dtype=torch.bool)).nonzero()


def training_pairs() -> Tensor:
    """Return :func:`all_pairs` without the held-out pairs."""
    return (~torch.eye(_N, dtype=torch.bool) & ~held_out()).nonzero()


def held_out_pairs() -> Tensor:
    """Return the held-out ordered pairs (P, 2)."""
    return held_out().nonzero()


def _object(name: int, count: int = 1, color: int | None = None) -> dict[str, Any]:
    return {"class": CLASSES[name], "count": count, **({} if color is None else {"color": COLORS[color]})}


def _pad(tokenizer: CLIPTokenizer, texts: list[str]) -> np.ndarray:
    return np.array(tokenizer(texts, padding="max_length", max_length=LENGTH)["input_ids"], np.int16)


def _join(tokenizer: CLIPTokenizer, nouns: list[str], tails: list[str]) -> np.ndarray:
    """Return tokens (H, T, LENGTH) of "a photo of" each noun, followed by each tail."""
    ends = _pad(tokenizer, tails)[:, 1:]
    joined = np.empty((len(nouns), len(tails), LENGTH), np.int16)
    for row, noun in zip(joined, nouns, strict=True):
        start = tokenizer(f"a photo of {noun}")["input_ids"][:-1]
        row[:, : len(start)] = start
        row[:, len(start) :] = ends[:, : LENGTH - len(start)]
    return joined
