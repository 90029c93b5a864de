"""What the commands print: text as it stands, and no failure to print that undoes a finished run.

Prompts, paths and names come from the user, so nothing in them is markup. A run is saved before anything is printed;
from there on a screen that cannot show a letter, a reader that went away or a picture that cannot be drawn costs a
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

# Of ASCII and of Latin 1, and those that turn the direction of what follows.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LEAST_WIDTH, _UNKNOWN_WIDTH = 40, 80


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it stands: brackets, colons and numbers mean nothing to it.

    Control characters are shown as escapes. A width that holds no table, such as COLUMNS=0 says, counts as unknown.
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
            for segment in super().render(renderable, options):  # what is no string, such as the bar's description
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    plain = Plain(stderr=stderr, markup=False, emoji=False, highlight=False)
    if plain.width < _LEAST_WIDTH:
        plain.width = _UNKNOWN_WIDTH
    return plain


def visible(text: str) -> str:
    r"""Return ``text`` with its control characters as escapes, so that a terminal does nothing but show it.

    Line ends and tabs stay.

    >>> print(visible("a \x1b[2J cat"))
    a \x1b[2J cat
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def echo(text: str) -> None:
    """Print a line of plain text, which a prompt or a name may be part of, on stdout."""
    typer.echo(visible(text))


def print_json(value: Any) -> None:
    """Print ``value`` as JSON in ASCII, which every encoding holds; a number that is not finite is null."""
    typer.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def guard_printing(*, saved: bool = True) -> Iterator[None]:
    """Print within this block: what goes wrong there is a line on stderr and does not change the exit status.

    Args:
        saved: whether files hold what is printed. Where they do not, only a reader that went away (``| head``) is
            forgiven: a list that a full disk cut off is not done, nor one for which there is no stdout.

    Raises:
        OSError: nothing is saved, and stdout is full or closed.
    """
    try:
        if sys.stdout is None and not saved:  # closed before Python started, which then prints nothing
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
    """Make ``what`` within this block, such as ``grid.png``; if that fails, say so on stderr and go on without it."""
    try:
        yield
    except Exception as error:
        warn(f"{what} was left out: {one_line(error)}")


@contextmanager
def after_drawing(out: Path) -> Iterator[None]:
    """Report what fails within this block as a failure, not as wrong use: what the user asked for has been drawn.

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
    """Return what ``error`` says, in one line; of a file that could not be read or written, its name first."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def show_usage(error: Any) -> None:
    """Print, in typer's own words, how a command is used and what was wrong, if stderr can be written."""
    text = io.StringIO()
    error.show(file=text)
    with suppress(OSError, ValueError):
        typer.echo(visible(text.getvalue()), err=True, nl=False)


def escape_unknown_letters() -> None:
    """Let stdout and stderr print letters that their encoding lacks as backslash escapes, and not raise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def close_quietly() -> None:
    """Flush stdout and stderr; what can no longer be written is dropped, so that Python does not fail over it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as under pythonw
                stream.flush()
        except (OSError, ValueError):
            _silence(stream)


def _reader_is_gone(error: Exception) -> bool:
    """Whether ``error`` is that of a closed pipe, which Windows calls an invalid argument."""
    return isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.EINVAL)


def _silence(stream: TextIO) -> None:
    """Send what ``stream`` still holds, and all that follows, nowhere."""
    with suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor has no pipe to break
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
