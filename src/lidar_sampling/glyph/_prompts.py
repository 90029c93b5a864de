"""The prompt sets of glyph: GenEval's templates, filled by our own seeded generators.

``geneval`` has 553 prompts with GenEval's six tags, as many of each as GenEval has. ``hard`` has three other tags:
colours and a position together, two classes with counts, three objects. The classes of a two-class prompt were never
seen together in training (``heldout_pairs.json``), so both sets ask for composition, not recall.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from .._geneval import CLASSES, COLORS, NUMBERS, RELATIONS, TAGS, caption
from .._prompts import read_lines

_DATA = Path(__file__).parent / "data"
_FILES = {"geneval": "prompts.jsonl", "hard": "hard_prompts.jsonl"}
_SIZES = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}


def held_out_pairs() -> list[list[str]]:
    """Return the pairs of classes that glyph never saw together in training.

    >>> len(held_out_pairs()), held_out_pairs()[0]
    (286, ['airplane', 'cow'])
    """
    return json.loads((_DATA / "heldout_pairs.json").read_text(encoding="utf-8"))


def generate_prompts(seed: int = 0) -> list[dict[str, Any]]:
    """Return metadata of 553 different prompts, in GenEval's format and order of tags.

    ``prompts()`` reads the file that this function wrote with ``seed=0``.
    """
    rng = random.Random(seed)
    pairs = held_out_pairs()
    everything: dict[str, list[list[dict[str, Any]]]] = {
        "single_object": [[_object(name)] for name in CLASSES],
        "counting": [[_object(name, count)] for name in CLASSES for count in NUMBERS.values()],
        "colors": [[_object(name, color=color)] for name in CLASSES for color in COLORS],
        "two_object": [[_object(a), _object(b)] for a, b in map(_shuffle(rng), pairs)],
        "position": [
            [_object(a), {**_object(b), "position": [rng.choice(RELATIONS), 0]}] for a, b in map(_shuffle(rng), pairs)
        ],
        "color_attr": [
            [_object(name, color=color) for name, color in zip(pair, rng.sample(COLORS, 2), strict=True)]
            for pair in map(_shuffle(rng), pairs)
        ],
    }
    lines = []
    for tag in TAGS:
        for include in rng.sample(everything[tag], _SIZES[tag]):
            line: dict[str, Any] = {"tag": tag, "include": include}
            if tag == "counting":
                line["exclude"] = [_object(include[0]["class"], include[0]["count"] + 1)]
            lines.append({**line, "prompt": caption(line)})
    return lines


def generate_hard_prompts(seed: int = 0) -> list[dict[str, Any]]:
    """Return metadata of 200 different prompts that glyph mostly draws wrong, in GenEval's format.

    ``prompts("hard")`` reads the file that this function wrote with ``seed=0``. Vanilla glyph gets about two in five
    of ``color_position`` right, and its rewards understand these prompts. The other two tags ask for scenes that
    neither the model nor its rewards were trained on (docs/glyph.md).
    """
    rng = random.Random(seed)
    pairs = held_out_pairs()
    lines = []
    for a, b in map(_shuffle(rng), rng.sample(pairs, 100)):
        c, d = rng.sample(COLORS, 2)
        include = [_object(b, color=d), {**_object(a, color=c), "position": [rng.choice(RELATIONS), 0]}]
        lines.append({"tag": "color_position", "include": include})
    for pair in map(_shuffle(rng), rng.sample(pairs, 50)):
        counts = rng.choice([(1, 2), (1, 3), (2, 1), (2, 2), (3, 1)])  # at most four objects, as glyph draws
        include = [_object(name, count) for name, count in zip(pair, counts, strict=True)]
        more = [_object(name, count + 1) for name, count in zip(pair, counts, strict=True)]
        lines.append({"tag": "two_counts", "include": include, "exclude": more})
    for pair in map(_shuffle(rng), rng.sample(pairs, 50)):
        third = rng.choice([name for name in CLASSES if name not in pair])
        lines.append({"tag": "three_objects", "include": [_object(name) for name in (*pair, third)]})
    return [{**line, "prompt": caption(line)} for line in lines]


def prompts(split: str = "geneval") -> list[dict[str, Any]]:
    """Return a shipped prompt set, ``geneval`` or ``hard``, as metadata dictionaries in GenEval's format.

    >>> len(prompts()), prompts()[0]["tag"]
    (553, 'single_object')
    >>> prompts("hard")[0]["tag"]
    'color_position'
    """
    if split not in _FILES:
        raise ValueError(f"split must be one of {', '.join(_FILES)}, got {split!r}")
    return read_metadata(_DATA / _FILES[split])


def spread(metadata: list[dict[str, Any]], per_tag: int) -> list[dict[str, Any]]:
    """Return ``per_tag`` prompts of each tag, evenly spaced; all of a tag that has fewer.

    >>> [line["tag"] for line in spread(prompts(), 1)]
    ['single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr']
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in metadata:
        groups.setdefault(line["tag"], []).append(line)
    chosen = []
    for group in groups.values():
        count = min(per_tag, len(group))
        chosen += [group[k * (len(group) - 1) // max(1, count - 1)] for k in range(count)]
    return chosen


def read_metadata(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of GenEval metadata with one JSON object per line, such as ``evaluation_metadata.jsonl``.

    Raises:
        ValueError: a line is not a JSON object with a ``prompt``; the message names the file and the line.
    """
    return read_lines(path)


def _object(name: str, count: int = 1, color: str | None = None) -> dict[str, Any]:
    return {"class": name, "count": count, **({"color": color} if color else {})}


def _shuffle(rng: random.Random) -> Any:
    return lambda pair: rng.sample(pair, 2)
