"""Printing for all commands: text as it is, and a finished run stays finished if printing fails.

Prompts, paths and names come from the user, so nothing in them is read as markup. A run is saved before anything is
printed. After that, a letter that the screen cannot show, a closed pipe or a picture that cannot be drawn costs one
line on stderr and nothing else.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

# Control characters of ASCII and Latin 1, and those that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LEAST_WIDTH, _UNKNOWN_WIDTH = 40, 80


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: brackets, colons and numbers have no special meaning.

    Control characters are shown as escapes. A width too small for a table, such as COLUMNS=0, counts as unknown.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process, with status 1
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        def render_str(self, text: str, **options: Any) -> Text:  # before it is measured
            return super().render_str(visible(text), **options)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):  # not a string, such as the bar's description
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    plain = Plain(stderr=stderr, markup=False, emoji=False, highlight=False)
    if plain.width < _LEAST_WIDTH:
        plain.width = _UNKNOWN_WIDTH
    return plain


def visible(text: str) -> str:
    r"""Return ``text`` with its control characters as escapes, so that a terminal only shows it.

    Line ends and tabs stay.

    >>> print(visible("a \x1b[2J cat"))
    a \x1b[2J cat
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def echo(text: str) -> None:
    """Print a line of plain text on stdout; a prompt or a name may be part of it."""
    typer.echo(visible(text))


def print_json(value: Any) -> None:
    """Print ``value`` as JSON in ASCII, which every encoding can write; numbers that are not finite become null."""
    typer.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def guard_printing(*, saved: bool = True) -> Iterator[None]:
    """Turn errors of printing within this block into a line on stderr; the exit status stays the same.

    Args:
        saved: whether files hold what is printed. If not, only a closed pipe (``| head``) is forgiven; a full disk or
            a missing stdout is an error.

    Raises:
        OSError: nothing is saved, and stdout is full or closed.
    """
    try:
        if sys.stdout is None and not saved:  # stdout was closed before Python started
            raise OSError(errno.EBADF, "stdout is closed, so nothing can be printed: open it, or use > FILE")
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except Exception as error:
        if isinstance(error, OSError):
            _silence(sys.stdout)  # else Python fails again when it flushes at the end
        if _reader_is_gone(error):
            return
        if not saved:
            raise
        warn(f"the run is finished and saved, but not all of it could be shown: {one_line(error)}")


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """Go on without ``what``, such as ``grid.png``, if this block fails to make it; say so on stderr."""
    try:
        yield
    except Exception as error:
        warn(f"{what} was left out: {one_line(error)}")


@contextmanager
def after_drawing(out: Path) -> Iterator[None]:
    """Report an error within this block as a failure, not as wrong use, since the drawing is already done.

    Raises:
        RuntimeError: in place of an error that :func:`lidar_sampling.cli.main` would take for the user's.
    """
    try:
        yield
    except (ValueError, TypeError, FileExistsError, FileNotFoundError) as error:
        raise RuntimeError(
            f"what was drawn is in {out}, but the run could not be finished: {one_line(error)}"
        ) from error


def warn(text: str) -> None:
    """Print a line on stderr, if that is possible."""
    with suppress(OSError, ValueError):  # it is full, gone or closed
        typer.echo(visible(f"lidar: {text}"), err=True)


def one_line(error: Exception) -> str:
    """Return the message of ``error`` in one line; for an error of a file, its name comes first."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def show_usage(error: Any) -> None:
    """Print typer's message on how a command is used and what was wrong, if stderr can be written."""
    text = io.StringIO()
    error.show(file=text)
    with suppress(OSError, ValueError):
        typer.echo(visible(text.getvalue()), err=True, nl=False)


def escape_unknown_letters() -> None:
    """Let stdout and stderr print letters that their encoding lacks as backslash escapes instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def close_quietly() -> None:
    """Flush stdout and stderr; drop what can no longer be written, so that Python does not fail at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as under pythonw
                stream.flush()
        except (OSError, ValueError):
            _silence(stream)


def _reader_is_gone(error: Exception) -> bool:
    """Return whether ``error`` means a closed pipe, which Windows calls an invalid argument."""
    return isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.EINVAL)


def _silence(stream: TextIO) -> None:
    """Discard what ``stream`` still holds, and all that follows."""
    with suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor has no pipe to break
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
