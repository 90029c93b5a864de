"""Options of a Job given as text: the levers of docs/performance.md, and another scheduler."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .._values import annotations_of, check_settings, read_named

_LEVERS: dict[str, tuple[str, dict[str, Any]]] = {  # what takes the levers -> the levers
    "channels-last": ("pipe", {"channels_last": True}),
    "compile": ("pipe", {"compile": "whole"}),
    "compile-blocks": ("pipe", {"compile": "blocks"}),
    "compile-reward": ("reward", {"compile": "whole"}),
    "cuda-graphs": ("pipe", {"cuda_graphs": True}),
    "encode-once": ("pipe", {"encode_once": True}),
    "overlap": ("sampler", {"overlap": True}),
}


def read_levers(text: str | None) -> dict[str, dict[str, Any]]:
    """Return levers by what takes them: :func:`accelerate` for pipe and for reward, and :class:`LiDAR`.

    Raises:
        ValueError: a lever is unknown.

    >>> read_levers("channels-last,preview,rescore=8")
    {'pipe': {'channels_last': True}, 'reward': {}, 'sampler': {'preview': 'tiny', 'rescore': 8}}
    """
    levers: dict[str, dict[str, Any]] = {"pipe": {}, "reward": {}, "sampler": {}}
    options = levers["sampler"]
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        if part in _LEVERS:
            target, arguments = _LEVERS[part]
            levers[target] |= arguments
        elif part == "half-reward":
            import torch

            options["reward_dtype"] = torch.bfloat16
        elif name == "preview":
            options["preview"] = value or "tiny"
        elif name == "rescore" and value.isascii() and value.isdecimal():
            options["rescore"] = int(value)
        else:
            known = ", ".join([*_LEVERS, "half-reward", "preview", "rescore=K"])
            raise ValueError(f"--fast knows {known}; got {part!r}")
    return levers


def read_scheduler(text: str | None) -> Callable[[Any], Any] | None:
    """Return a function from the pipeline's scheduler to the one that the text names; None without a text.

    Raises:
        ValueError: there is no such scheduler, or it does not have a setting.
    """
    if text is None:
        return None
    import diffusers

    name, _, settings = text.partition(":")
    cls: Any = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin) and hasattr(cls, "from_config")):
        raise ValueError(f"--scheduler names no scheduler of diffusers: {name!r}")
    changes = read_named(filter(None, re.split(r",(?=\w+=)", settings)), "--scheduler")
    check_settings(name, changes, annotations_of(cls.__init__))

    def make(own: Any) -> Any:
        try:
            return cls.from_config(own.config, **changes)
        except Exception as error:  # the message of diffusers does not name the option
            raise ValueError(f"--scheduler {text} cannot be made: {error}") from None

    return make
