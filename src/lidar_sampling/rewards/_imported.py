"""Import of the user's own function, ``package.module:function``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ._score import RewardError


def function_at(place: str) -> Callable[..., Any] | None:
    """Return the function at ``MODULE:FUNCTION``; None for a text of another form, or an unknown module.

    Raises:
        ValueError: the module has no such function.
        RewardError: the module cannot be imported.

    Example:
        >>> function_at("operator:neg")(1), function_at("clip:some/model")
        (-1, None)
    """
    module, _, function = place.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)) or not _exists(module):
        return None
    try:
        imported = import_module(module)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(f"importing the reward {place} raised {type(error).__name__}: {error}") from error
    found = getattr(imported, function, None)
    if not callable(found):
        raise ValueError(f"{module} has no function {function!r}")
    return found


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing, too
        return False
    except (Exception, SystemExit) as error:
        raise RewardError(f"importing the package of {module} raised {type(error).__name__}: {error}") from error
