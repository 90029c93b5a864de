"""The files of a comparison: one JSON object per line, appended whole and read with every field checked.

A killed run may leave the beginning of a line. Such a beginning is skipped and its unit is drawn again. Any other
line that is not a result is refused by file and number, since a table must not silently miss results.

Lines that are published are packed: ``results-0.jsonl.gz`` has the first lines of ``results-0.jsonl``. Readers name
the plain file and get both. So a run goes on from packed lines, and writes what it adds to a plain file beside them.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from .._files import name_path, natural_order, write_atomically

Line = dict[str, Any]

PACKED = ".gz"

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
        paths: the files, by their plain names; one that is missing, plain and packed, has no lines.
        check: raises :class:`ValueError` for an object that lacks something.

    Raises:
        ValueError: another line is damaged; the message names the file, the line and what is wrong.
    """
    lines = []
    for file in (part for path in paths for part in (packed_path(path), path)):
        for number, text in enumerate(_content(file).split(b"\n"), 1):
            if not text.strip():
                continue
            try:
                line = _parse(text)
                if line is not None:
                    check(line)
                    lines.append(line)
            except ValueError as error:
                mend = "remove it, and it is drawn again"
                raise ValueError(f"{file}, line {number} is damaged: {mend}; {error}") from None
    return lines


def files_of(folder: Path, pattern: str = "results-*.jsonl") -> list[Path]:
    """Return the plain names of a folder's files of lines, whether they are plain or packed, in natural order."""
    packed = (path.with_name(path.name.removesuffix(PACKED)) for path in folder.glob(pattern + PACKED))
    return sorted({*folder.glob(pattern), *packed}, key=natural_order)


def pack(folder: Path, pattern: str = "results*.jsonl") -> Path:
    """Put all lines of a folder into one packed file, named after the first of its files, and remove the others.

    Run it when nothing writes to the folder. If it is stopped, lines may be there twice: run it again.

    Raises:
        ValueError: the folder has no such file, or a line is damaged.
    """
    files = files_of(folder, pattern)
    if not files:
        raise ValueError(f"{folder} has no {pattern}: name a folder that holds one")
    lines = dict.fromkeys(json.dumps(line) for line in read_objects(*files))
    first = packed_path(files[0])
    # No time and no name in the header: the same lines give the same file.
    write_atomically(first, gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    for path in files:
        path.unlink(missing_ok=True)
        if packed_path(path) != first:
            packed_path(path).unlink(missing_ok=True)
    return first


def packed_path(path: Path) -> Path:
    """Return where the packed lines of a plain file are."""
    return path.with_name(path.name + PACKED)


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


def _content(path: Path) -> bytes:
    """Return the lines of a plain or a packed file; nothing if it is missing.

    Raises:
        ValueError: the packed file is damaged.
    """
    if not path.exists():
        return b""
    if path.suffix != PACKED:
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        mend = "fetch it again, or remove it and draw its lines again"
        raise ValueError(f"{path} is damaged: {mend}; {error}") from None


def _parse(text: bytes) -> Line | None:
    """Return a line; None for the beginning of one that was cut off.

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
