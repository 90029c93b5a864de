"""The files of a comparison: one JSON object per line, appended whole and read with every field checked.

A killed run may leave the beginning of a line. Such a beginning is skipped and its unit is drawn again. Any other
line that is not a result is refused by file and number, since a table must not silently miss results.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from .._files import name_path

Line = dict[str, Any]

COSTS = ("network_evaluations", "backward_passes", "decodes", "reward_calls", "seconds")
PEAK = "peak_memory"

# What may follow the last whole token of JSON that was cut off: half a number or half a word.
_HALF = re.compile(r"\.|\.?[eE][+-]?|-|-?I(n(f(i(n(i(t)?)?)?)?)?)?|t(ru?)?|f(a(ls?)?)?|n(ul?)?|N(a)?")
_HALF_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{0,3}$")


def read(*paths: Path) -> list[Line]:
    """Return the lines of result files; for each prompt, seed and method only the first.

    A line that a killed run cut off is left out, to be drawn again.

    Raises:
        ValueError: another line is damaged; the message names the file, the line and what is wrong.
    """
    return once(read_objects(*paths, check=_check))


def read_objects(*paths: Path, check: Callable[[Line], None] = lambda line: None) -> list[Line]:
    """Return the JSON objects of files with one per line, without those that a killed run cut off.

    Args:
        paths: the files; a missing one has no lines.
        check: raises :class:`ValueError` for an object that lacks something.

    Raises:
        ValueError: another line is damaged; the message names the file, the line and what is wrong.
    """
    lines = []
    for path in paths:
        texts = path.read_bytes().split(b"\n") if path.exists() else []
        for number, text in enumerate(texts, 1):
            if not text.strip():
                continue
            try:
                line = _parse(text)
                if line is not None:
                    check(line)
                    lines.append(line)
            except ValueError as error:
                mend = "remove it, and it is drawn again"
                raise ValueError(f"{path}, line {number} is damaged: {mend}; {error}") from None
    return lines


def fill(path: Path, units: Iterable[Mapping[str, Any]], draw: Callable[[Mapping[str, Any]], Line]) -> Iterator[Line]:
    """Yield the line of each unit: the one in ``path``, or else a new one by ``draw``, which is appended.

    Args:
        path: the file; it may be missing.
        units: fields that identify a line, such as ``{"prompt": "a cat", "seed": 0}``.
        draw: returns the other fields of a unit's line.

    Raises:
        ValueError: the file is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "results.jsonl"
        >>> list(fill(path, [{"n": 1}], lambda unit: {"square": 1}))
        [{'n': 1, 'square': 1}]
        >>> list(fill(path, [{"n": 1}, {"n": 2}], lambda unit: {"square": unit["n"] ** 2}))
        [{'n': 1, 'square': 1}, {'n': 2, 'square': 4}]
    """
    known = read_objects(path)
    for unit in units:
        line = next((line for line in known if unit.items() <= line.items()), None)
        if line is None:
            line = {**unit, **draw(unit)}
            append(path, line)
        yield line


def once(lines: Iterable[Line]) -> list[Line]:
    """Return the first line of each prompt, seed and method.

    >>> once([{"prompt": "a", "seed": 0, "method": "m", "k": k} for k in range(2)])
    [{'prompt': 'a', 'seed': 0, 'method': 'm', 'k': 0}]
    """
    found: dict[tuple[str, int, str], Line] = {}
    for line in lines:
        found.setdefault(key(line), line)
    return list(found.values())


def key(line: Line) -> tuple[str, int, str]:
    """Return the fields that identify a line within a comparison."""
    return line["prompt"], line["seed"], line["method"]


def plain_guide(guide: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line's ``guide`` in JSON values: numbers as floats, pairs as lists.

    >>> plain_guide({"name": "both", "weights": {"clip": 1}, "calibration": {"clip": (0, 2)}})
    {'name': 'both', 'weights': {'clip': 1.0}, 'calibration': {'clip': [0.0, 2.0]}}
    """
    weights, calibration = guide.get("weights"), guide.get("calibration")
    plain: dict[str, Any] = dict(guide)
    if weights is not None:
        plain["weights"] = {part: float(weight) for part, weight in weights.items()}
    if calibration is not None:
        plain["calibration"] = {part: [float(value) for value in scale] for part, scale in calibration.items()}
    return plain


def append(path: Path, line: Line) -> range:
    """Append a line, on a new line even after one that a killed run cut off; return its range of bytes in the file.

    Several processes may append to one file: each line is a single write at the end, under a lock that covers reading
    the end and writing.
    """
    content = json.dumps(line).encode() + b"\n"
    with name_path(path), path.open("ab+", buffering=0) as file, _alone(file):
        begin = file.seek(0, os.SEEK_END)
        if begin > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                content = b"\n" + content
        written = file.write(content)
        if written < len(content):  # the disk may be full: writing the rest raises the error
            file.write(content[written:])
        return range(begin, begin + len(content))


@contextmanager
def _alone(file: FileIO) -> Iterator[None]:
    """Lock this file against other writers, if the system can; a killed process frees the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
    yield  # closing the file frees the lock


def _parse(text: bytes) -> Line | None:
    """Return a line, or None for the beginning of one that was cut off.

    Raises:
        ValueError: the text is neither; the message says what is wrong.
    """
    try:
        letters = text.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    try:
        line = json.loads(letters)
    except json.JSONDecodeError as error:
        if _is_cut_off(letters, error):
            return None
        raise ValueError(f"it is not JSON ({error.msg} at letter {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or deeply nested brackets
        raise ValueError(f"it is not JSON ({str(error).split(';')[0]})") from None  # the rest is advice on Python
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    return line


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    """Return whether ``text`` is the beginning of a JSON object, with no other fault than its early end."""
    another = '{"prompt"' in text[1:]  # a whole line follows the beginning, and would be lost with it
    if not text.startswith("{") or another or error.msg.startswith("Extra data"):
        return False
    if error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\u"):
        return _HALF_ESCAPE.search(text) is not None
    rest = text[error.pos :].strip()
    return not rest or _HALF.fullmatch(rest) is not None


def _check(line: Line) -> None:
    """Refuse a value that is not a line of results.

    Raises:
        ValueError: a field is wrong; the message names it, and what it should be.
    """
    for field, (is_right, wanted) in _FIELDS.items():
        if field not in line and field not in _OPTIONAL:
            raise ValueError(f"it has no {field!r}")
        if field in line and not is_right(line[field]):
            raise ValueError(f"its {field!r} must be {wanted}")
    for judge, values in line["rewards"].items():
        if len(values) != line["images"]:
            raise ValueError(f"it has {line['images']} images but {len(values)} rewards of {judge!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_images(value: Any) -> bool:
    return _is_count(value) and value >= 1


def _is_rewards(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(values, list) for values in value.values())
        and all(each is None or _is_number(each) for values in value.values() for each in values)
    )


def _is_diversity(value: Any) -> bool:
    return value is None or value != value or _is_number(value)


def _is_cost(value: Any) -> bool:
    return isinstance(value, dict) and set(COSTS) <= set(value) and all(map(_is_number, value.values()))


def _is_guide(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    weights, calibration = value.get("weights"), value.get("calibration")
    if weights is None:
        return calibration is None
    if not isinstance(weights, dict) or not all(map(_is_number, weights.values())):
        return False
    return calibration is None or (
        isinstance(calibration, dict)
        and set(calibration) >= set(weights)
        and all(
            isinstance(scale, list) and len(scale) == 2 and all(map(_is_number, scale)) and scale[1] > 0
            for scale in calibration.values()
        )
    )


def _is_asks(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": (_is_text, "text"),
    "tag": (_is_text, "text"),
    "seed": (_is_count, "a whole number"),
    "method": (_is_text, "text"),
    "images": (_is_images, "a whole number of at least 1"),
    "rewards": (_is_rewards, "lists of numbers or null, by judge"),
    "diversity": (_is_diversity, "a number or null"),
    "cost": (_is_cost, f"numbers, by {', '.join(COSTS)}"),
    "guide": (_is_guide, "a name, and of a mixture weights and calibration or null"),
    "asks": (_is_asks, "an object"),
    "drawn_by": (_is_text_or_null, "text or null"),
    "pictures": (_is_text, "text"),
}
_OPTIONAL = (
    "guide",
    "asks",
    "drawn_by",
    "pictures",
)  # absent in older or some other lines
