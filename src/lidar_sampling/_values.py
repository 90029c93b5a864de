"""Settings written as text: ``NAME=VALUE``, read once for every option, and checked against what they set.

A value may be spelt as in JSON or as in Python (``false`` or ``False``, ``null`` or ``None``, ``.7``, ``[1, 2]``,
``'text'``); what is neither is text.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin


def read_value(text: str) -> Any:
    """Return what ``text`` spells in JSON or in Python, or else the text itself.

    >>> [read_value(text) for text in ("False", "false", "None", ".7", "[1, 2]", "oil painting")]
    [False, False, None, 0.7, [1, 2], 'oil painting']
    """
    for reader in (json.loads, ast.literal_eval):
        try:
            value = reader(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if _is_json(value) else text  # Python's sets, bytes and ellipses mean nothing here
    return text


def _is_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(inner) for name, inner in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def read_named(texts: Iterable[str], option: str) -> dict[str, Any]:
    """Return the names and values of texts ``NAME=VALUE``.

    Raises:
        ValueError: a text has another form, or a name comes twice.

    >>> read_named(["height=512", "clean_caption=False"], "--call")
    {'height': 512, 'clean_caption': False}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{option} must be NAME=VALUE, got {text!r}")
        if name in found:
            raise ValueError(f"{option} gives {name} twice: leave one out")
        found[name] = read_value(value)
    return found


def check_settings(what: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse names that ``what`` does not know, and values of another type than it takes.

    Args:
        what: whose settings they are, for the message.
        values: name -> value.
        known: name -> annotation, a type or ``Any``.

    Raises:
        ValueError: the message names the setting, the value, and what is known or expected.

    >>> check_settings("DDIMScheduler", {"clip_sampel": False}, {"clip_sample": bool})
    Traceback (most recent call last):
    ValueError: DDIMScheduler has no 'clip_sampel'; did you mean 'clip_sample'?
    """
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"{what} has no {name!r}; {hint}")
        if not accepts(known[name], value):
            raise ValueError(f"{what}: {name} must be {spelt(known[name])}, got {value!r}")


def check_fields(settings: Any, **ranges: str) -> None:
    """Refuse a dataclass whose fields have values of another type than their annotations, or out of their range.

    Args:
        settings: the dataclass.
        **ranges: field -> interval, as mathematics writes it; None and words pass where the annotation allows them.

    Raises:
        ValueError: the message names the field, the value and what is expected.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Threshold:
        ...     share: float = 0.5
        >>> check_fields(Threshold(2.0), share="[0, 1]")
        Traceback (most recent call last):
        ValueError: share must be in [0, 1], got 2.0
    """
    what, values = type(settings).__name__, {field.name: getattr(settings, field.name) for field in fields(settings)}
    check_settings(what, values, typing.get_type_hints(type(settings)))
    for name, interval in ranges.items():
        if not isinstance(values[name], str | None) and not _inside(values[name], interval):
            raise ValueError(f"{name} must be {_in_words(interval, values[name])}, got {values[name]}")


def _inside(value: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def _in_words(interval: str, value: float) -> str:
    low, high = interval[1:-1].split(", ")
    if low == "-inf":
        return "finite"
    if high != "inf":
        return f"in {interval}"
    words = f"{'at least' if interval[0] == '[' else 'above'} {low}"
    return words if math.isfinite(value) else f"finite and {words}"


def check_known(settings: type, changes: Iterable[str]) -> None:
    """Refuse a change of what is no field of a dataclass of settings.

    Raises:
        TypeError: the message names the change, and the fields.
    """
    known = [each.name for each in fields(settings)]
    for name in changes:
        if name not in known:
            raise TypeError(f"unknown setting {name!r}; known are {', '.join(known)}")


def check_integer(name: str, value: Any, least: int | None = None) -> None:
    """Refuse what is not a whole number of at least ``least``.

    Raises:
        ValueError: the message begins with ``name``.
    """
    if not accepts(int, value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of ``function`` and their annotations; one that cannot be resolved is ``Any``."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a name that is imported for type checkers alone
        hints = {}
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {p.name: hints.get(p.name, Any) for p in parameters if p.kind in kinds and p.name != "self"}
    optional = {p.name for p in parameters if p.default is None}  # many annotate ``height: int = None``
    return {name: hint | None if name in optional and hint is not Any else hint for name, hint in found.items()}


def accepts(annotation: Any, value: Any) -> bool:
    """Return whether ``value`` fits ``annotation``; one that we cannot read accepts everything.

    A bool is not a number, and an int is a float.

    >>> accepts(int | None, 3), accepts(int, True), accepts(float, 3), accepts(bool, "False")
    (True, False, True, False)
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return value is None
    if origin in (Union, types.UnionType):
        return any(accepts(one, value) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and isinstance(value, list | tuple):
        items = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        return not inner or (len(items) == len(value) and all(map(accepts, items, value)))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        given = isinstance(value, list | tuple)
        return given and (not inner or all(accepts(inner[0], item) for item in value))
    if origin is dict:
        names, values = inner or (Any, Any)
        return isinstance(value, dict) and all(accepts(names, k) and accepts(values, v) for k, v in value.items())
    if annotation in (int, float):
        kind = numbers.Integral if annotation is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if annotation in (bool, str, dict, list, tuple):
        return isinstance(value, annotation)
    return True


def spelt(annotation: Any) -> str:
    """Return ``annotation`` as a person would write it.

    >>> spelt(int | None), spelt(Literal["max", "sum"])
    ('int or None', "'max' or 'sum'")
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is types.NoneType:
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(map(spelt, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    return annotation.__name__ if isinstance(annotation, type) and not inner else str(annotation)


def spell_seconds(seconds: float) -> str:
    """Return seconds as a person says them.

    >>> [spell_seconds(seconds) for seconds in (4.4, 75, 7300, 200_000)]
    ['4 s', '1 min 15 s', '2 h 1 min', '2 d 7 h']
    """
    whole = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next((k for k, (_, size) in enumerate(units) if whole >= size), len(units) - 1)
    said: list[str] = []
    for name, size in units[first : first + 2]:
        count, whole = divmod(whole, size)
        if count or not said:
            said.append(f"{count} {name}")
    return " ".join(said)


def read_seconds(text: str) -> float:
    """Return the seconds that a person says: a number and its unit, s, min, h or d, and perhaps more of them.

    Raises:
        ValueError: the text is not of this form, or its time is 0.

    >>> read_seconds("2h"), read_seconds("1h 30min"), read_seconds("90s")
    (7200.0, 5400.0, 90.0)
    """
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"(\d+(?:\.\d+)?) *(min|[shd]) *", text)
    whole = re.fullmatch(r"(?:\d+(?:\.\d+)? *(?:min|[shd]) *)+", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if whole is None or not seconds > 0:
        raise ValueError(f"a time must be a number with its unit, as 30s, 90min, 2h or 1d, got {text!r}")
    return seconds


def cut(text: str, most: int = 80) -> str:
    """Return a text shortened for a message: what a user gives may have megabytes.

    >>> cut("a" * 100)[-5:], len(cut("a" * 100))
    ('aa...', 80)
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."
