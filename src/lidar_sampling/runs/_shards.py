"""Which of several processes draws which prompts, as torchrun's RANK and WORLD_SIZE say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from .._values import accepts

_T = TypeVar("_T")


def from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return (rank, number of processes) of RANK and WORLD_SIZE; (0, 1) where neither is set.

    Raises:
        ValueError: one without the other, no whole numbers, or a rank outside 0 to WORLD_SIZE - 1.

    >>> from_environment({"RANK": "2", "WORLD_SIZE": "4"})
    (2, 4)
    """
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if name in environment}
    if not found:
        return 0, 1
    shown = ", ".join(f"{name}={value!r}" for name, value in found.items())
    if len(found) < 2:
        raise ValueError(f"RANK and WORLD_SIZE go together, got {shown} alone: set both or neither")
    try:
        rank, number = (int(value) for value in found.values())
    except ValueError:
        raise ValueError(f"RANK and WORLD_SIZE must be whole numbers, got {shown}") from None
    check_shard(rank, number)
    return rank, number


def check_shard(rank: int, number: int) -> None:
    """Refuse a rank outside 0 to ``number`` - 1.

    Raises:
        ValueError: it is outside.
    """
    if not (accepts(int, rank) and accepts(int, number)) or number < 1 or not 0 <= rank < number:
        raise ValueError(
            f"RANK must be 0 to WORLD_SIZE - 1, got RANK {rank} of WORLD_SIZE {number}: "
            f"a job array that counts from 1 needs RANK one less"
        )


def order(items: Sequence[_T], rank: int, number: int) -> list[_T]:
    """Return all items in the order in which process ``rank`` of ``number`` looks at them.

    Its own share comes first: items ``rank``, ``rank + number``, ... Then come those of the others, from their ends,
    so that what a process leaves undone is done by whoever is free, and two processes rarely meet.

    >>> order("abcdef", 1, 3)
    ['b', 'e', 'f', 'd', 'c', 'a']
    """
    own = list(items[rank::number])
    rest = [item for k, item in enumerate(items) if k % number != rank]
    return [*own, *reversed(rest)]
