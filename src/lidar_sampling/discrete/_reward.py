"""Rewards of tokens, and the check of their values wherever they guide or are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..rewards import RewardError, name_of

Reward = Callable[[Tensor], Tensor]
"""From clean tokens (B, L) to rewards (B,); higher is better."""

TextReward = Callable[[str], float]
"""From a text to its reward; higher is better."""


def score(reward: Callable[..., Any], samples: Tensor | Sequence[str]) -> Tensor:
    """Return the rewards (B,) float32, on the CPU, of tokens (B, L), or of texts, which are asked about one by one.

    Raises:
        RewardError: the reward raised.
        ValueError: it gave something else than a finite number per sequence.
    """
    try:
        with torch.no_grad():
            given = reward(samples) if isinstance(samples, Tensor) else [float(reward(text)) for text in samples]
            rewards = torch.as_tensor(given).float().cpu()
    except RewardError:  # it names itself
        raise
    except Exception as error:
        raise RewardError(f"reward {name_of(reward)!r} raised {type(error).__name__}: {error}") from error
    finite = bool(rewards.isfinite().all())
    if rewards.shape != (len(samples),) or not finite:
        raise ValueError(
            f"the reward must give {len(samples)} finite numbers, got {tuple(rewards.shape)}"
            + ("" if finite else " with NaN or infinity")
        )
    return rewards
