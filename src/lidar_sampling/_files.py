"""Files that are whole or absent, and the order of names that hold numbers."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` by way of a file beside it, so that no reader ever sees half of it."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # name the file that was meant, not the one beside it
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def natural_order(path: str | Path) -> tuple[str | int, ...]:
    """Return a key that sorts paths by the numbers in their names: ``2.png`` comes before ``10.png``.

    Two paths with equal keys, such as ``1.png`` and ``01.png``, have no order.

    >>> sorted(["10.png", "9.png", "a.png"], key=natural_order)
    ['9.png', '10.png', 'a.png']
    """
    # Text and numbers alternate, so a number is only ever compared with a number.
    return tuple(int(part) if k % 2 else part for k, part in enumerate(re.split(r"([0-9]+)", str(path))))


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an error of writing within this block name ``path``: that of a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
