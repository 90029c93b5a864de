"""Calls of rewards: with checked pictures, copies that they may modify, and prompts that they can read.

Use :func:`score` to score pictures, or :func:`ask` if gradients must flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from numbers import Number
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .._batches import run_batches
from .._media import check_pictures
from .._profile import time_part

Prompt = str | Mapping[str, Any]


class Reward(Protocol):
    """A reward: a callable with these two keyword arguments, so that any such function is one.

    It may also have attributes such as ``name``, ``reads_prompt`` and ``differentiable``;
    :mod:`lidar_sampling.rewards` lists them.
    """

    def __call__(self, *, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Return (B,) numbers, higher for an image (3, H, W) in [0, 1] that is better for its prompt."""


FRAMES = 8  # frames per video that an image reward gets


class RewardError(ValueError):
    """A reward raised an error, or did not return one finite number per image; the message says which."""


class _UnreadableError(ValueError):
    """The error of :func:`check_prompts`, by which a reward made of rewards knows that its part is already named."""


def name_of(reward: Callable[..., Any]) -> str:
    """Return the name of ``reward`` in results and banks: its ``name``, or that of the function."""
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    return str(name)


def ask(reward: Reward, *, images: Tensor, prompts: Sequence[Prompt]) -> Any:
    """Return the scores of ``reward`` for copies of the images, and for the prompts in the form that it reads.

    Because of the copies, a reward that works in place changes neither the caller's pictures nor the input of the
    next reward. Gradients flow through them.

    Raises:
        ValueError: a prompt is neither a text nor metadata with one.

    Example:
        >>> def in_place(*, images, prompts):
        ...     return images.sub_(1).mean((1, 2, 3))
        >>> pictures = torch.ones(1, 3, 2, 2)
        >>> ask(in_place, images=pictures, prompts=["a cat"]), pictures.min()
        (tensor([0.]), tensor(1.))
    """
    return reward(images=images.clone(), prompts=prompts_for(reward, prompts))


def ask_part(part: Reward, *, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Return the scores (B,) float32 of a reward that is a part of another, as :func:`ask` does.

    A reward of images sees a video by its frames.

    Raises:
        RewardError: it did not return one number per image, or a number is infinite; the message names it.

    Example:
        >>> def of_the_batch(*, images, prompts):
        ...     return images.mean()
        >>> ask_part(of_the_batch, images=torch.ones(2, 3, 2, 2), prompts=["a cat", "a dog"])
        Traceback (most recent call last):
        lidar_sampling.rewards._score.RewardError: reward 'of_the_batch' must return one number per image, (2,), got
        ()
    """
    see = _asker_of(part) if images.dim() == 5 else partial(ask, part)
    scores = _one_each(see(images=images, prompts=prompts), len(images), name_of(part))
    _check_finite(scores, name_of(part), allow_nan=True)  # a minimum over several would hide infinity
    return scores


def prompts_for(reward: Reward, prompts: Sequence[Prompt]) -> list[Any]:
    """Return the prompts in the form that ``reward`` reads: copies of metadata if it ``reads_metadata``, else texts.

    Raises:
        ValueError: a prompt is neither a text nor metadata with one.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of prompts, one per image, got the text {prompts!r}")
    return [_prompt_for(prompt, bool(getattr(reward, "reads_metadata", False))) for prompt in prompts]


def _prompt_for(prompt: Any, metadata: bool) -> Any:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        if metadata:
            return deepcopy(dict(prompt))
        if isinstance(prompt.get("prompt"), str):
            return prompt["prompt"]
    raise ValueError(f'a prompt must be a text, or metadata with a "prompt", got {prompt!r}')


def check_prompts(reward: Reward, prompts: Sequence[Prompt]) -> None:
    """Let ``reward`` refuse prompts that it cannot read, before anything is drawn for them.

    It does so in its method ``check(prompts)``; a reward without this method reads every prompt.

    Raises:
        ValueError: it refuses a prompt, or its check fails; the message names the reward and the prompt.

    Example:
        >>> from lidar_sampling.rewards.ocr import OCR
        >>> check_prompts(OCR(reader=lambda image: []), ['a sign that says "OPEN"'])
    """
    check = getattr(reward, "check", None)
    if not callable(check):
        return
    for prompt in prompts_for(reward, prompts):
        try:
            check([prompt])
        except (_UnreadableError, torch.OutOfMemoryError, MemoryError):  # the error already names a part
            raise
        except Exception as error:
            shown = prompt if isinstance(prompt, str) else prompt.get("prompt", prompt)
            if isinstance(error, ValueError):
                problem = f"cannot read the prompt {shown!r}: {error}"
            else:
                problem = f"failed to check the prompt {shown!r}: {type(error).__name__}: {error}"
            raise _UnreadableError(f"reward {name_of(reward)!r} {problem}") from error


def score(
    reward: Reward,
    *,
    images: Tensor,
    prompts: Sequence[Prompt],
    batch_size: int = 64,
    allow_nan: bool = False,
) -> Tensor:
    """Score images in batches and check the scores.

    Args:
        reward: the reward; it gets copies, which it may modify.
        images: (B, 3, H, W) in [0, 1], or videos or audio.
        prompts: B prompts, one per image: texts, or metadata with a ``"prompt"``, of which a reward that does not
            read metadata gets the text.
        batch_size: images per call; halved when memory runs out.
        allow_nan: let NaN pass, for a metric that does not apply to every prompt.

    Returns:
        (B,) float32 on the CPU.

    Raises:
        RewardError: images have another type, shape or range, or the reward raised an error or did not return one
            finite number per image.
        ValueError: images and prompts differ in length, or a prompt is neither a text nor metadata.

    Example:
        >>> def brightness(*, images, prompts):
        ...     return images.mean((1, 2, 3))
        >>> score(brightness, images=torch.zeros(2, 3, 2, 2), prompts=["a cat"] * 2)
        tensor([0., 0.])
    """
    texts = prompts_for(reward, prompts)
    if len(images) != len(texts):
        raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(texts)}")
    _check(images)
    name = name_of(reward)
    see = _asker_of(reward) if images.dim() == 5 else partial(ask, reward)

    def call(indices: Sequence[int]) -> Tensor:
        chosen = slice(indices[0], indices[-1] + 1)
        some, asked = images[chosen], texts[chosen]

        def again(size: int) -> Callable[[], Any]:
            rows = [k % len(asked) for k in range(size)]
            return partial(see, images=some[rows], prompts=[asked[k] for k in rows])

        try:
            with torch.no_grad(), time_part("reward", len(asked), again):
                result = see(images=some, prompts=asked)
        except (torch.OutOfMemoryError, MemoryError, RewardError):  # the error of a part already names it
            raise
        except Exception as error:
            raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
        return _check_scores(result, len(indices), name, allow_nan)

    parts = run_batches(range(len(images)), batch_size, call)
    return torch.cat(list(parts)) if len(images) else torch.zeros(0)


def score_pictures(reward: Reward, *, pictures: Sequence[Tensor], prompts: Sequence[Prompt]) -> list[float]:
    """Score pictures (3, H, W) of any sizes, those of equal size together; otherwise as :func:`score`.

    Example:
        >>> white, black = torch.ones(3, 2, 2), torch.zeros(3, 4, 2)
        >>> brightness = lambda *, images, prompts: images.mean((1, 2, 3))
        >>> score_pictures(brightness, pictures=[white, black], prompts=["a", "b"])
        [1.0, 0.0]
    """
    prompts = prompts_for(reward, prompts)
    if len(pictures) != len(prompts):
        raise ValueError(f"pictures and prompts must have the same length, got {len(pictures)} and {len(prompts)}")
    for picture in pictures:
        _check(picture[None])
    values = [0.0] * len(pictures)
    for shape in dict.fromkeys(picture.shape for picture in pictures):
        chosen = [i for i, picture in enumerate(pictures) if picture.shape == shape]
        images = torch.stack([pictures[i] for i in chosen])
        scores = score(reward, images=images, prompts=[prompts[i] for i in chosen])
        for i, value in zip(chosen, scores.tolist(), strict=True):
            values[i] = value
    return values


def _asker_of(reward: Reward) -> Callable[..., Any]:
    """Return how to call ``reward`` on videos: whole, or by their frames."""
    return partial(ask if getattr(reward, "modality", "image") == "video" else _frame_mean, reward)


def _frame_mean(reward: Reward, *, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Return the mean of an image reward over evenly spaced frames of each video (B, F, 3, H, W)."""
    count = min(FRAMES, images.shape[1])
    frames = images[:, torch.linspace(0, images.shape[1] - 1, count).round().long()]
    repeated = [prompt for prompt in prompts for _ in range(count)]
    result = ask(reward, images=frames.flatten(0, 1), prompts=repeated)
    return _one_each(result, len(repeated), name_of(reward)).view(-1, count).mean(1)


def _check(images: Tensor) -> None:
    try:
        check_pictures(images)
    except ValueError as error:
        raise RewardError(str(error)) from None


def _check_scores(result: Any, count: int, name: str, allow_nan: bool) -> Tensor:
    scores = _one_each(result, count, name).detach().cpu()
    _check_finite(scores, name, allow_nan)
    return scores


def _one_each(result: Any, count: int, name: str) -> Tensor:
    """Return the result of reward ``name`` as ``count`` numbers in float32; gradients are kept."""
    try:
        scores = torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        scores = _from_array(result, name)
    if scores.is_complex():
        raise RewardError(
            f"reward {name!r} must return real numbers, got {scores.dtype}: return their .abs() or .real"
        )
    if scores.shape != (count,):
        raise RewardError(f"reward {name!r} must return one number per image, ({count},), got {tuple(scores.shape)}")
    return scores.float()


def _from_array(result: Any, name: str) -> Tensor:
    """Return a tensor of what torch rejects: negative strides, another byte order, or Python's numbers."""
    try:
        found = np.asarray(result)
        if found.dtype.kind not in "biuf" and not all(isinstance(value, Number) for value in found.flat):
            raise TypeError
        return torch.from_numpy(found.astype(np.float32))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RewardError(f"reward {name!r} must return a tensor, got {type(result).__name__}") from None


def _check_finite(scores: Tensor, name: str, allow_nan: bool) -> None:
    bad = scores.isinf() if allow_nan else ~scores.isfinite()
    if bad.any():
        raise RewardError(
            f"reward {name!r} returned {scores[bad][0].item()} for image {int(bad.nonzero()[0])} of {len(scores)}"
        )
