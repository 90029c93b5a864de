"""Work in batches that shrink when memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def run_batches(items: Sequence[_Item], size: int, run: Callable[[Sequence[_Item]], _Result]) -> Iterator[_Result]:
    """Yield ``run(batch)`` over consecutive batches of at most ``size`` items, as even as they can be.

    When a batch runs out of memory, what follows goes on in batches of half its size; results of earlier batches
    stand. An item that does not fit alone raises.

    Example:
        >>> list(run_batches(range(5), 2, list))
        [[0, 1], [2, 3], [4]]
    """
    if size < 1:
        raise ValueError(f"batch size must be at least 1, got {size}")
    done = 0
    while done < len(items):
        left = len(items) - done
        count = -(-left // -(-left // size))
        try:
            result = run(items[done : done + count])
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if count == 1 or not is_out_of_memory(error):
                raise
            size = count // 2
            _log.warning("out of memory with a batch of %d, going on with %d", count, size)
        else:
            done += count
            yield result
            continue
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that memory ran out, on an accelerator or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
