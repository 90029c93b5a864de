"""GenEval's captions and rules (Ghosh et al., NeurIPS 2023, https://arxiv.org/abs/2310.11513).

Pure Python: a caption of one of GenEval's six templates, or of three harder ones of our own, becomes its metadata,
and detections become a verdict. The rules are those of ``evaluate()`` and ``relative_position()`` in https://github.com/djghosh13/geneval
(MIT), restated; the caller brings the detector.

Metadata is GenEval's own: ``{"tag", "prompt", "include": [{"class", "count", "color"?, "position"?}],
"exclude"?}``, where ``position`` is ``[relation, index of the object in include it is relative to]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any, NamedTuple

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
HARD_TAGS = ("color_position", "two_counts", "three_objects")  # our own tags, not GenEval's
COUNTING_TAGS = ("counting", "two_counts")  # where only sure detections count
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {"two": 2, "three": 3, "four": 4}
CLASSES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard,
    cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
    hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)


class Detection(NamedTuple):
    """One detected object: class name, score in [0, 1], box (x1, y1, x2, y2), colour name or None."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    color: str | None = None


def plural(name: str) -> str:
    """Return GenEval's plural of a class name.

    >>> plural("bus"), plural("skis"), plural("bench")
    ('buses', 'skis', 'benchs')
    """
    if name in ("skis", "scissors"):
        return name
    return name + ("es" if name.endswith("s") else "s")


def with_article(noun: str) -> str:
    """Return ``noun`` with *a* or *an* by its first letter, as GenEval writes it.

    >>> with_article("orange cup")
    'an orange cup'
    """
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def caption(metadata: dict[str, Any]) -> str:
    """Return the prompt that the template writes for ``metadata``.

    >>> caption({"tag": "counting", "include": [{"class": "clock", "count": 2}]})
    'a photo of two clocks'
    """
    objects = metadata["include"]
    phrases = [_phrase(o) for o in objects]
    if "position" in objects[-1]:
        return f"a photo of {phrases[1]} {objects[1]['position'][0]} {phrases[0]}"
    return "a photo of " + " and ".join(phrases)


def _phrase(wanted: dict[str, Any]) -> str:
    name, count = wanted["class"], wanted["count"]
    if count > 1:
        return f"{next(word for word, number in NUMBERS.items() if number == count)} {plural(name)}"
    return with_article(" ".join(filter(None, (wanted.get("color"), name))))


_NOUN = "|".join(sorted(CLASSES, key=len, reverse=True))
_PLURALS = {plural(name): name for name in CLASSES}
_PHRASE = re.compile(rf"an? (?:({'|'.join(COLORS)}) )?({_NOUN})|({'|'.join(NUMBERS)}) ({'|'.join(_PLURALS)})")
_JOINED = re.compile(rf" (and|{'|'.join(RELATIONS)}) ")


def parse(prompt: str) -> dict[str, Any] | None:
    """Return the metadata of a prompt in one of the templates, or None for any other prompt.

    >>> parse("a photo of a dog right of a teddy bear")["include"][1]["position"]
    ['right of', 0]
    >>> parse("an oil painting") is None
    True
    """
    start, *rest = _JOINED.split(prompt.removeprefix("a photo of ")) if prompt.startswith("a photo of ") else [""]
    joints, phrases = rest[::2], [start, *rest[1::2]]
    matches = [_PHRASE.fullmatch(phrase) for phrase in phrases]
    objects = [_object(m[2], m[1]) if m[2] else _object(_PLURALS[m[4]], None, NUMBERS[m[3]]) for m in matches if m]
    counted, colored = any(o["count"] > 1 for o in objects), any("color" in o for o in objects)
    if len(objects) < len(phrases) or (counted and colored):
        return None
    match joints:
        case []:
            tag = "counting" if counted else "colors" if colored else "single_object"
        case ["and"]:
            tag = "two_counts" if counted else "color_attr" if colored else "two_object"
        case ["and", "and"] if not counted and not colored:
            tag = "three_objects"
        case [relation] if not counted:
            tag = "color_position" if colored else "position"
            objects = [objects[1], {**objects[0], "position": [relation, 0]}]
        case _:
            return None
    found = {"tag": tag, "include": objects, "prompt": prompt}
    if counted:
        found["exclude"] = [_object(o["class"], None, o["count"] + 1) for o in objects]
    return found


def with_requirements(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a prompt's line with its requirements: its own, or else those that the templates read in its text.

    >>> with_requirements({"prompt": "a photo of a dog", "id": 3})["include"]
    [{'class': 'dog', 'count': 1}]
    """
    return dict(line) if {"include", "exclude"} & set(line) else {**(read_requirements(line["prompt"]) or {}), **line}


def read_requirements(prompt: str | dict[str, Any]) -> dict[str, Any] | None:
    """Return what a prompt asks for: the objects of its metadata, or what :func:`parse` reads in a text.

    Metadata that neither includes nor excludes anything asks for what its own prompt does.

    Raises:
        ValueError: metadata that no picture can be judged by: it has no tag, names a class, a colour, a relation or a
            setting that GenEval does not know, a count that is not a positive integer, or a position relative to
            anything but an object before it; or it contradicts itself, so that no picture can be right.

    >>> read_requirements({"tag": "mine", "include": [{"class": "dgo", "count": 1}]})
    Traceback (most recent call last):
    ValueError: unknown class 'dgo' in GenEval metadata; did you mean 'dog'?
    """
    if isinstance(prompt, str):
        return _judgeable(prompt)
    if not isinstance(prompt, Mapping):
        raise ValueError(f"expected a prompt or GenEval metadata, got {prompt!r}")
    lists = [key for key in ("include", "exclude") if key in prompt]
    if "tag" not in prompt and (lists or "prompt" not in prompt):
        raise ValueError(f"GenEval metadata must have a tag, got {prompt}")
    if not isinstance(prompt.get("tag", ""), str):
        raise ValueError(f"the tag of GenEval metadata must be a string, got {prompt['tag']!r}")
    for key in lists:
        if not isinstance(prompt[key], list):
            raise ValueError(f"{key} of GenEval metadata must be a list of objects, got {prompt[key]!r}")
        for place, item in enumerate(prompt[key]):
            _check_object(item, key, place)
    if any(prompt[key] for key in lists):
        if why := _contradiction(prompt):
            raise ValueError(f"no picture can be right by this GenEval metadata: {why}")
        return dict(prompt)
    text = prompt.get("prompt", "")
    if not isinstance(text, str):
        raise ValueError(f"the prompt of GenEval metadata must be a string, got {text!r}")
    return _judgeable(text)


def _judgeable(text: str) -> dict[str, Any] | None:
    """Return what :func:`parse` reads; None if it wants one class in two ways, such as a red and a blue dog."""
    found = parse(text)
    return None if found and _contradiction(found) else found


_KEYS = {"include": ("class", "count", "color", "position"), "exclude": ("class", "count")}


def _check_object(item: Any, key: str, place: int) -> None:
    """Refuse object ``place`` of the list ``key`` if the rules of :func:`verdict` cannot be applied to it."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{key} of GenEval metadata must hold objects with a class and a count, got {item!r}")
    for name in item:
        if name not in _KEYS[key]:
            raise ValueError(f"unknown {name!r} in {key} of GenEval metadata{_hint(name, _KEYS[key])}")
    for name in ("class", "count"):
        if name not in item:
            raise ValueError(f"an object in {key} of GenEval metadata must have a {name}, got {dict(item)}")
    for name, known in (("class", CLASSES), ("color", COLORS)):
        if name in item and item[name] not in known:
            raise ValueError(f"unknown {name} {item[name]!r} in GenEval metadata{_hint(item[name], known)}")
    if not _is_integer(item["count"]) or item["count"] < 1:
        raise ValueError(
            f"the count of {item['class']!r} in GenEval metadata must be a positive integer, got {item['count']!r}"
        )
    if "position" not in item:
        return
    position = item["position"]
    if not isinstance(position, list | tuple) or len(position) != 2:
        raise ValueError(
            "a position in GenEval metadata must be [relation, index of an earlier object of include], "
            f"got {position!r}"
        )
    relation, index = position
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r} in GenEval metadata; known are {', '.join(RELATIONS)}")
    if not _is_integer(index) or not 0 <= index < place:
        earlier = f"0 to {place - 1}" if place > 1 else "0" if place else "none, for the object is the first"
        raise ValueError(
            f"the position of {item['class']!r} in GenEval metadata must name an earlier object of include by its "
            f"index ({earlier}), got {index!r}"
        )


def _contradiction(metadata: Mapping[str, Any]) -> str | None:
    """Return why no picture can be right by metadata whose objects are checked, or None.

    Of a class the rules of :func:`verdict` look at the surest objects, so two objects of one class are the same ones.
    """
    include, exclude = (metadata.get(key, []) for key in ("include", "exclude"))
    for item in include:
        for other in exclude:
            if item["class"] == other["class"] and item["count"] >= other["count"]:
                return (
                    f"it includes {item['count']} of {item['class']!r} and excludes {other['count']} or more: "
                    "exclude a larger count"
                )
    colors: dict[str, str] = {}
    for item in include:
        if "color" in item and colors.setdefault(item["class"], item["color"]) != item["color"]:
            return (
                f"it includes {item['class']!r} in {colors[item['class']]} and in {item['color']}, which to the "
                "rules are the same objects: give them one colour"
            )
    for after, before in (("right of", "left of"), ("below", "above")):
        follows: dict[str, set[str]] = {}
        for item in include:
            if "position" in item:
                relation, index = item["position"]
                pair = item["class"], include[index]["class"]
                if pair[0] == pair[1]:
                    return f"it places {pair[0]!r} relative to {pair[0]!r}, which to the rules are the same objects"
                if relation in (after, before):
                    late, early = pair if relation == after else pair[::-1]
                    follows.setdefault(late, set()).add(early)
        try:
            TopologicalSorter(follows).prepare()
        except CycleError as error:
            round_ = " and ".join(f"{a!r} {before} {b!r}" for a, b in pairwise(error.args[1]))
            return f"it places {round_}"
    return None


def _hint(given: Any, known: Sequence[str]) -> str:
    near = [name for name in known if name.endswith(f" {given}")]  # as COCO calls it
    near += get_close_matches(str(given), known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}" if len(known) <= len(COLORS) else ""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(name: str, color: str | None, count: int = 1) -> dict[str, Any]:
    return {"class": name, "count": count, **({"color": color} if color else {})}


def relative_position(a: Sequence[float], b: Sequence[float], *, margin: float = 0.1) -> set[str]:
    """Return where box ``a`` lies relative to box ``b``: a set of relations, empty when they are too close to say.

    Boxes are (x1, y1, x2, y2), y downwards. The offset of the centres counts only beyond ``margin`` times the
    sum of both extents, and a direction holds when its share of the whole offset exceeds one half.

    >>> relative_position((0, 0, 10, 10), (30, 0, 40, 10))
    {'left of'}
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    extent = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    beyond = [max(abs(o) - margin * e, 0.0) * (1 if o > 0 else -1) for o, e in zip(offset, extent, strict=True)]
    if all(abs(x) < 1e-3 for x in beyond):
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    dx, dy = (x / length for x in beyond)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, held in holds.items() if held}


def verdict(
    detections: Iterable[Detection],
    metadata: dict[str, Any],
    *,
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
) -> bool:
    """Return whether an image shows what ``metadata`` asks for, by GenEval's rules.

    Every object of ``include`` must be found at least ``count`` times, with its colour and with its position
    relative to every found object of the group it names; no class of ``exclude`` may be found ``count`` times.
    Only detections scoring above ``threshold`` count (``counting_threshold`` where the tag is one that counts).

    >>> one = [Detection("dog", 0.9, (0, 0, 10, 10))]
    >>> verdict(one, {"tag": "single_object", "include": [{"class": "dog", "count": 1}]})
    True
    """
    least = counting_threshold if metadata["tag"] in COUNTING_TAGS else threshold
    by_label: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > least:
            by_label.setdefault(detection.label, []).append(detection)

    correct = True
    groups: list[list[Detection] | None] = []
    for wanted in metadata.get("include", []):
        found = by_label.get(wanted["class"], [])[: wanted["count"]]
        matches = _matches(found, wanted, groups)
        groups.append(found if matches else None)
        correct = correct and matches
    for unwanted in metadata.get("exclude", []):
        if len(by_label.get(unwanted["class"], [])) >= unwanted["count"]:
            correct = False
    return correct


def _matches(found: list[Detection], wanted: dict[str, Any], groups: list[list[Detection] | None]) -> bool:
    if len(found) < wanted["count"]:
        return False
    if "color" in wanted and sum(d.color == wanted["color"] for d in found) < wanted["count"]:
        return False
    if "position" in wanted:
        relation, index = wanted["position"]
        target = groups[index]
        if target is None:
            return False
        return all(relation in relative_position(d.box, other.box) for d in found for other in target)
    return True
