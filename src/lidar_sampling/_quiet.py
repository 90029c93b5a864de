"""Keep what diffusers and transformers say while they load away from the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def quieten() -> None:
    """Silence their loading bars and advice, and the hub's, for the rest of this process."""
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # it counts its attempts to reach the hub
    for logging in _loggings():
        _silence(logging)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence their loading bars and advice in the block, or in the function that this decorates.

    For weights that lie in the package, which take a moment and leave the user nothing to do.
    """
    before = [(logging, logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in _loggings()]
    try:
        for logging, *_ in before:
            _silence(logging)
        yield
    finally:
        for logging, verbosity, bars in before:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def _loggings() -> tuple[Any, Any]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    return diffusers_logging, transformers_logging


def _silence(logging: Any) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
