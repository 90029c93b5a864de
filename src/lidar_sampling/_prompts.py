r"""Files of prompts, as editors and shells write them.

``.txt``     one prompt per line
``.jsonl``   one JSON object per line, such as GenEval's metadata
``.json``    an array of objects or of texts

Each prompt becomes a dictionary with ``"prompt"`` and whatever else its object says. A file is UTF-8, with a byte
order mark or without, or UTF-16 or UTF-32 with one. Lines end at ``\n``, ``\r\n`` or ``\r`` alone: the other
characters that Python calls line ends may stand in a prompt.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ._values import cut

_NO_LIMIT = 100_000  # tokenizers without a limit state a huge one

_MARKS = (  # UTF-32 comes first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Return the prompts of a file, and what it says of each.

    Args:
        path: a file; its ending, in any case, tells which kind it is, and any other ending is that of text, but for
            those of tables, which are refused.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, holds no prompt, or one that is not a text; the message names the file and line.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        raise ValueError(
            f"{path} is a table: write one prompt per line as .txt, or one JSON object per line as .jsonl"
        )
    reader = {".jsonl": _from_lines, ".json": _from_array}.get(kind, _from_text)
    found = list(reader(path, read_text(path)))
    if not found:
        raise ValueError(f"{path} is empty: give it at least one prompt")
    return found


def tokens_cut_off(pipe: Any, prompts: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the prompts of which no text encoder of a pipeline reads the end.

    Each comes with its number of tokens, by the tokenizer that takes most, and with what that one takes, marks of
    beginning and end included. A limit that a call sets, such as ``max_sequence_length``, is not known here.

    >>> from lidar_sampling import testing
    >>> list(tokens_cut_off(testing.tiny_stable_diffusion(), ["a cat", "cat " * 90]).values())
    [(92, 24)]
    """
    parts = getattr(pipe, "components", {})
    readers = [part for name, part in parts.items() if name.startswith("tokenizer")]
    by_limit = {getattr(reader, "model_max_length", 0): reader for reader in readers}
    if not (limit := max(by_limit, default=0)) or limit > _NO_LIMIT:
        return {}
    long = [prompt for prompt in prompts if len(prompt) + 2 > limit]  # a token has a character or more
    counts = {prompt: len(by_limit[limit](prompt, verbose=False).input_ids) for prompt in long}
    return {prompt: (count, limit) for prompt, count in counts.items() if count > limit}


def check_prompt(prompt: Any) -> None:
    r"""Refuse what cannot be drawn as a prompt.

    Raises:
        ValueError: it is not a text, shows nothing, or holds a NUL or half a character.

    >>> check_prompt("a cat")
    >>> check_prompt("\u200b")
    Traceback (most recent call last):
    ValueError: a prompt must be a text that is not empty, got "\u200b"
    """
    if why := _why_no_prompt(prompt):
        raise ValueError(f"a prompt {why}")


def check_texts(prompts: Sequence[str]) -> list[str]:
    """Return prompts as a list, if they can be drawn.

    Raises:
        TypeError: one text in place of a list, whose letters would be drawn; or what is not a text.
        ValueError: the list is empty, or as in :func:`check_prompt`.

    >>> check_texts("cat")
    Traceback (most recent call last):
    TypeError: prompts must be a list of texts, got 'cat': give ['cat']
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of texts, got {cut(prompts)!r}: give [{cut(prompts)!r}]")
    texts = list(prompts)
    if not texts:
        raise ValueError("prompts must hold at least one prompt")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a string, got {type(text).__name__}")
        if not text.strip():
            raise ValueError("a prompt must not be empty")
        check_prompt(text)
    return texts


LONGEST = 20_000
"""Characters of a prompt; encoders cut off what is far shorter."""

_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # fillers of Hangul and the empty cell of Braille, which are letters


def _why_no_prompt(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        if len(prompt) > LONGEST:
            return f"has {len(prompt)} characters, and text encoders read some hundred: give at most {LONGEST}"
        if "\0" in prompt or any("\ud800" <= character <= "\udfff" for character in prompt):
            return f"holds a NUL or half a character, got {_spell(prompt)}: leave it out"
        if any(c not in _BLANK and unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in prompt):
            return None
    return f"must be a text that is not empty, got {_spell(prompt)}"


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file that has one per line, whatever its ending; an empty file has none.

    Raises:
        OSError: the file cannot be read.
        ValueError: as :func:`read_prompts`.
    """
    path = Path(path)
    return list(_from_lines(path, read_text(path)))


def read_text(path: str | Path) -> str:
    """Return the text of a file in the encoding that its byte order mark names, or UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: its encoding is another.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        where = f"byte {error.start} is {content[error.start]:#04x}"
        raise ValueError(f"{path} is not {name}, {where}: save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path} holds NUL characters, as UTF-16 without a byte order mark does: save it as UTF-8")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that hold something, and their numbers from 1."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        line = line.lstrip("\ufeff")  # files that were joined have their marks within
        if line.strip():
            yield number, line


def _from_text(path: Path, text: str) -> Iterator[dict[str, Any]]:
    if _is_json(text):
        raise ValueError(f"{path} is JSON, and would be drawn as text: call it .json")
    for number, line in _lines(text):
        if line.lstrip().startswith("{") and _is_object(line):
            raise ValueError(f"{path}, line {number} is a JSON object, and would be drawn as text: call it .jsonl")
        if _is_nearly_json(line):
            raise ValueError(
                f"{path}, line {number} looks like JSON or Python, and would be drawn as text: write one prompt a "
                f"line, or JSON in a .json or .jsonl file; got {cut(line.strip())}"
            )
        yield _check_item({"prompt": line.strip()}, f"{path}, line {number}")


def _from_lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in _lines(text):
        where = f"{path}, line {number}"
        yield _check_item(_parse(line, where, 'a JSON object with a "prompt"'), where)


def _from_array(path: Path, text: str) -> Iterator[dict[str, Any]]:
    if not text.strip():
        return
    expected = "a JSON array of objects or of texts (one object per line is .jsonl)"
    items = _parse(text, str(path), expected)
    if not isinstance(items, list):
        raise ValueError(f"{path}: expected {expected}, got {_spell(items)}")
    for number, item in enumerate(items, 1):
        yield _check_item({"prompt": item} if isinstance(item, str) else item, f"{path}, item {number}")


def _parse(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected {expected}, got {cut(text.strip())} ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{json.dumps(key)} comes twice in an object: leave one out")
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON: write null, or leave it out")


def _check_item(item: Any, where: str) -> dict[str, Any]:
    """Return ``item``, or refuse it if it is not an object whose prompt can be drawn."""
    if not isinstance(item, dict) or "prompt" not in item:
        raise ValueError(f'{where}: expected a JSON object with a "prompt", got {_spell(item)}')
    prompt = item["prompt"]
    if why := _why_no_prompt(prompt):
        raise ValueError(f'{where}: "prompt" {why}')
    return item


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_json(text: str) -> bool:
    """Return whether a text is one object over several lines, or an array of what prompts are written as."""
    try:
        found = json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return False
    lines = isinstance(found, dict) and len(text.strip().splitlines()) > 1
    return lines or (isinstance(found, list) and any(isinstance(item, str | dict | list) for item in found))


_NEARLY = re.compile(r"""\s*([\[{]\s*$|\[?\s*\{\s*("[^"]*"|'[^']*')\s*:)""")


def _is_nearly_json(line: str) -> bool:
    """Return whether a line begins or continues damaged JSON, or Python's; a bracket alone may begin a prompt."""
    if _NEARLY.match(line):
        return True
    if not line.lstrip().startswith("["):
        return False
    try:
        found = ast.literal_eval(line.strip().rstrip(","))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return isinstance(found, list) and any(isinstance(item, str | dict | list) for item in found)


def _spell(value: Any) -> str:
    """Return ``value`` as JSON, for a message."""
    return cut(json.dumps(value, default=repr))
