"""Rewards: plain callables ``reward(*, images, prompts) -> Tensor (B,)``, and a registry of known ones by name.

Images are float (B, 3, H, W) in [0, 1], prompts B strings; higher is better. A function is a reward; an object may
add ``name`` and ``differentiable``. Nothing is imported or loaded before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._batches import shrinking

Reward = Callable[..., Tensor]


class _Entry(NamedTuple):
    factory: str  # "module:function", called with device=
    description: str
    takes_model: bool = False  # whether "name:MODEL" hands MODEL to the factory


_REGISTRY = {
    "glyph": _Entry("clip:glyph_reward", "CLIP trained with the embedded model; guides it by default"),
    "glyph-heldout": _Entry("clip:glyph_heldout", "another CLIP of the embedded model, to judge and never to guide"),
    "clip": _Entry(
        "clip:CLIPReward", "image-text logit of a CLIP model; clip:PATH or clip:HUB_ID picks another", True
    ),
    "brightness": _Entry("brightness:load_brightness", "mean pixel; needs no weights, for tests"),
}


class RewardError(ValueError):
    """A reward raised or returned what is not one finite number an image; the message says which."""


def names() -> dict[str, str]:
    """Names that :func:`load` knows, with a line on each."""
    return {name: entry.description for name, entry in _REGISTRY.items()}


def load(name: str, *, device: torch.device | str = "cpu") -> Reward:
    """The reward called ``name``, its model on ``device``.

    Args:
        name: one of :func:`names`, or ``clip:`` and a path or hub id of a CLIP model.
        device: where its model runs.

    Raises:
        ValueError: no such reward; the message names the nearest.

    Example:
        >>> load("brightness")(images=torch.ones(1, 3, 2, 2), prompts=["a cat"])
        tensor([1.])
    """
    base, _, model = name.partition(":")
    entry = _REGISTRY.get(base)
    if entry is None or (model and not entry.takes_model):
        near = get_close_matches(name, _REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown reward {name!r}; {hint}known are {', '.join(_REGISTRY)}")
    module, function = entry.factory.split(":")
    factory = getattr(import_module(f".{module}", __name__), function)
    return factory(model, device=device) if model else factory(device=device)


def name_of(reward: Reward) -> str:
    """What results and banks call ``reward``: its ``name``, or a function's own."""
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    return str(name)


def score(
    reward: Reward,
    *,
    images: Tensor,
    prompts: Sequence[str],
    batch_size: int = 64,
    allow_nan: bool = False,
) -> Tensor:
    """Score images in batches and check what comes back.

    Args:
        reward: the reward.
        images: (B, 3, H, W) in [0, 1].
        prompts: B prompts, one an image.
        batch_size: images a call; halved when memory runs out.
        allow_nan: let NaN pass, for a metric that does not apply to every prompt.

    Returns:
        (B,) float32 on the CPU.

    Raises:
        RewardError: the reward raised, or did not return one finite number an image.

    Example:
        >>> score(load("brightness"), images=torch.zeros(3, 3, 2, 2), prompts=["a cat"] * 3)
        tensor([0., 0., 0.])
    """
    if len(images) != len(prompts):
        raise ValueError(f"images and prompts must be as many, got {len(images)} and {len(prompts)}")
    name = name_of(reward)

    def call(indices: Sequence[int]) -> Tensor:
        chosen = slice(indices[0], indices[-1] + 1)
        try:
            with torch.no_grad():
                result = reward(images=images[chosen], prompts=list(prompts[chosen]))
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
        return _checked(result, len(indices), name, allow_nan)

    parts = shrinking(range(len(images)), batch_size, call)
    return torch.cat(list(parts)) if len(images) else torch.zeros(0)


def _checked(result: Any, count: int, name: str, allow_nan: bool) -> Tensor:
    try:
        scores = torch.as_tensor(result).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(f"reward {name!r} must return a tensor, got {type(result).__name__}") from None
    if scores.shape != (count,):
        raise RewardError(f"reward {name!r} must return one number an image, ({count},), got {tuple(scores.shape)}")
    bad = scores.isinf() if allow_nan else ~scores.isfinite()
    if bad.any():
        raise RewardError(
            f"reward {name!r} returned {scores[bad][0].item()} for image {int(bad.nonzero()[0])} of {count}"
        )
    return scores
