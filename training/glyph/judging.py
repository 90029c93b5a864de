"""Measures of how well a detector judges pictures with known captions."""

from __future__ import annotations

import copy
from typing import Any

from lidar_sampling._geneval import CLASSES, COLORS, RELATIONS, Detection, verdict

from .captions import TAGS

_THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)


def best_threshold(found: list[list[Detection]], wanted: list[dict[str, Any]]) -> float:
    """Return the threshold at which most pictures are judged right, exact counts included."""

    def right(threshold: float) -> int:
        return sum(exact(f, w, threshold) for f, w in zip(found, wanted, strict=True))

    return max(_THRESHOLDS, key=right)


def judge(found: list[list[Detection]], wanted: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Return accuracy by tag, the same with exact counts, and the share of wrong captions that are accepted."""
    pairs = list(zip(found, wanted, strict=True))
    wrong = [_judge(f, _spoilt(w), threshold) for f, w in pairs]
    return {
        "": by_tag([_judge(f, w, threshold) for f, w in pairs], wanted),
        "_strict": by_tag([exact(f, w, threshold) for f, w in pairs], wanted),
        "_false_accept": sum(wrong) / len(wrong),
    }


def by_tag(right: list[bool], wanted: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each tag, ``overall`` as the mean of these, and ``mean_image`` over all pictures."""
    marks = {tag: [r for r, w in zip(right, wanted, strict=True) if w["tag"] == tag] for tag in TAGS}
    means = {tag: sum(mark) / len(mark) for tag, mark in marks.items() if mark}
    return {**means, "overall": sum(means.values()) / len(means), "mean_image": sum(right) / len(right)}


def exact(found: list[Detection], wanted: dict[str, Any], threshold: float) -> bool:
    """Return GenEval's verdict, with no more of a named class than asked for."""
    names = [d.label for d in found if d.score > threshold]
    counted = all(names.count(w["class"]) == w["count"] for w in wanted["include"])
    return counted and _judge(found, wanted, threshold)


def _judge(found: list[Detection], wanted: dict[str, Any], threshold: float) -> bool:
    return verdict(found, wanted, threshold=threshold, counting_threshold=threshold)


def _spoilt(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return metadata that is wrong about the last object: its number, relation, colour or class."""
    wanted = copy.deepcopy(wanted)
    last = wanted["include"][-1]
    if wanted["tag"] == "counting":
        last["count"] = last["count"] % 3 + 2
        wanted["exclude"][0]["count"] = last["count"] + 1
    elif "position" in last:
        last["position"][0] = RELATIONS[RELATIONS.index(last["position"][0]) ^ 1]
    elif "color" in last:
        last["color"] = COLORS[(COLORS.index(last["color"]) + 3) % len(COLORS)]
    else:
        last["class"] = CLASSES[(CLASSES.index(last["class"]) + 7) % len(CLASSES)]
    return wanted
