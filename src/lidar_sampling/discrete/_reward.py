"""Rewards of tokens, and the check that they pass wherever they guide or are reported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..rewards import RewardError, name_of

Reward = Callable[[Tensor], Tensor]
"""From clean tokens (B, L) to rewards (B,); higher is better."""


def score(reward: Reward, tokens: Tensor) -> Tensor:
    """Rewards (B,) float32 of tokens (B, L), on the CPU.

    Raises:
        RewardError: the reward raised.
        ValueError: it gave something else than a finite number per sequence.
    """
    try:
        with torch.no_grad():
            rewards = torch.as_tensor(reward(tokens)).float().cpu()
    except RewardError:  # it names itself
        raise
    except Exception as error:
        raise RewardError(f"reward {name_of(reward)!r} raised {type(error).__name__}: {error}") from error
    finite = bool(rewards.isfinite().all())
    if rewards.shape != tokens.shape[:1] or not finite:
        raise ValueError(
            f"the reward must give {len(tokens)} finite numbers, got {tuple(rewards.shape)}"
            + ("" if finite else " with NaN or infinity")
        )
    return rewards
