"""Files that are whole or absent, and the order of names that hold numbers."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write ``content`` to a file beside ``path`` and rename it, so that no reader ever sees half of it."""
    with open_whole(path) as file:
        file.write(content)
    return Path(path)


@contextmanager
def open_whole(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``path`` when the block ends; if the block fails, ``path`` stays as it was."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # name the file that was meant, not the one beside it
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON to ``path``, whole or not at all."""
    return write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def write_once(path: str | Path, content: bytes) -> bool:
    """Write ``content`` to ``path``, whole, unless the file exists: of several processes one succeeds.

    Returns:
        Whether this call wrote it.
    """
    path = Path(path)
    if path.exists():
        return False
    part = write_atomically(path.with_name(f".{path.name}.{secrets.token_hex(4)}.once"), content)
    try:
        os.link(part, path)  # unlike a rename, it never takes the place of a file
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, or full
        return _write_new(path, content)
    finally:
        part.unlink(missing_ok=True)
    return True


def _write_new(path: Path, content: bytes) -> bool:
    """Write a file that must be new; leave nothing of it if that fails. Readers may see half of it."""
    try:
        file = open(path, "xb")  # noqa: SIM115
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def check_writable(path: str | Path, option: str = "--out") -> None:
    """Refuse a folder that cannot be written, or made, before anything is drawn for it. It is not made.

    Args:
        path: the folder.
        option: where another can be chosen, for the message.

    Raises:
        ValueError: the message names the folder and what is wrong.
    """
    there = Path(path)
    while not there.exists() and not there.is_symlink() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{path} cannot be written ({there}: Not a directory): choose another {option}")
    try:
        probe = there / f".{secrets.token_hex(8)}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): choose another {option}") from None


def natural_order(path: str | Path) -> tuple[str | int, ...]:
    """Return a key that sorts paths by the numbers in their names: ``2.png`` comes before ``10.png``.

    Two paths with equal keys, such as ``1.png`` and ``01.png``, have no order.

    >>> sorted(["10.png", "9.png", "a.png"], key=natural_order)
    ['9.png', '10.png', 'a.png']
    """
    # Text and numbers alternate, so a number is only ever compared with a number.
    return tuple(int(part) if k % 2 else part for k, part in enumerate(re.split(r"([0-9]+)", str(path))))


@contextmanager
def name_path(path: str | Path) -> Iterator[None]:
    """Add ``path`` to errors of writing within this block: that of a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
