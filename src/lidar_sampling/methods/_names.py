"""Methods by name, for the command line and for results."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any

from ..solvers import load as load_solver
from ._face import Method
from .best_of import BestOf
from .fk_steering import FKSteering
from .halving import Halving
from .lidar import Guided
from .refine import Refine
from .svdd import SVDD
from .universal_guidance import UniversalGuidance
from .vanilla import Vanilla

NAMES = {
    "vanilla": "the pipeline alone; vanilla@25 in 25 steps, vanilla@dpm:5 by a few-step solver",
    "lidar": "LiDAR with the settings of the model",
    "best-of-N": "the best of N vanilla samples; best-of-12@10 in 10 steps, best-of-50@dpm:5 of the bank",
    "lidar+best-of-N": "the best of N guided samples",
    "refine": "the best of 20 few-step samples, noised half way and denoised in 10 steps; refine-50 of 50",
    "halving-N": "N seeds, halved at a quarter and at half of the steps; halving-16@10 in 10 steps",
    "fk": "FK steering, as many particles as images; fk+best-of-N keeps the best of N particles",
    "svdd": "soft value-based decoding with 20 proposals a step; svdd-4 with 4",
    "ug": "universal guidance with lambda 15; ug-3 with 3",
}
"""The names that :func:`load` knows, with a line on each."""


def load(name: str) -> Method:
    """The method called ``name``, with the fields that are set behind a colon.

    Raises:
        ValueError: no such method or no such field; the message names the nearest.

    Example:
        >>> load("best-of-12@10")
        BestOf(method=Vanilla(steps=10, solver=None), n=12)
        >>> load("fk:reward_scale=2,adaptive=True").adaptive
        True
        >>> load("lidar+best-of-8:scale=3.0").method.scale
        3.0
    """
    base, *settings = re.split(r"[:,](?=\w+=)", name)
    method = _named(base)
    changes = dict(setting.split("=", 1) for setting in settings)
    try:
        return _changed(method, {field: _value(text) for field, text in changes.items()}) if changes else method
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def split(names: str) -> list[str]:
    """The names in a comma-separated list, whose settings have commas too.

    >>> split("vanilla,lidar:n=9,scale=3,fk")
    ['vanilla', 'lidar:n=9,scale=3', 'fk']
    """
    return re.split(r",(?!\w+=)", names)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _changed(method: Any, changes: dict[str, Any]) -> Any:
    """``method`` with other fields, its own or those of the method inside it."""
    own = {field.name for field in fields(method)} - {"method"}
    mine = {name: value for name, value in changes.items() if name in own}
    rest = {name: value for name, value in changes.items() if name not in own}
    if rest and not is_dataclass(getattr(method, "method", None)):
        raise ValueError(f"{type(method).__name__} has no {next(iter(rest))!r}; it has {', '.join(sorted(own))}")
    for field in fields(method):
        value, takes_text = mine.get(field.name), "str" in str(field.type) or "Literal" in str(field.type)
        if isinstance(value, str) and not takes_text:
            raise ValueError(f"{field.name} must be {field.type}, got {value!r}")
    return replace(method, **mine, **({"method": _changed(method.method, rest)} if rest else {}))


def _named(name: str) -> Method:
    if match := re.fullmatch(r"(?:(lidar|fk)\+)?best-of-([1-9]\d*)(?:@(.+))?", name):
        inner, n, how = match.groups()
        if inner is None:
            return BestOf(_vanilla(how), int(n))
        if how is None:
            return BestOf(Guided() if inner == "lidar" else FKSteering(), int(n))
    if match := re.fullmatch(r"vanilla(?:@(.+))?", name):
        return _vanilla(match[1])
    if match := re.fullmatch(r"refine(?:-([1-9]\d*))?", name):
        return Refine(n=int(match[1])) if match[1] else Refine()
    if match := re.fullmatch(r"halving-([1-9]\d*)(?:@([1-9]\d*))?", name):
        return Halving(n=int(match[1]), steps=int(match[2]) if match[2] else None)
    if match := re.fullmatch(r"svdd(?:-([1-9]\d*))?", name):
        return SVDD(m=int(match[1])) if match[1] else SVDD()
    if match := re.fullmatch(r"ug(?:-(\d+(?:\.\d+)?))?", name):
        return UniversalGuidance(float(match[1])) if match[1] else UniversalGuidance()
    if name in ("lidar", "fk"):
        return Guided() if name == "lidar" else FKSteering()
    near = get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown method {name!r}; {hint}known are {', '.join(NAMES)}")


def _vanilla(how: str | None) -> Vanilla:
    """Plain sampling in ``how`` steps, or by the solver of that name."""
    if how is None or how.isdecimal():
        return Vanilla(steps=int(how) if how else None)
    return Vanilla(solver=load_solver(how))
