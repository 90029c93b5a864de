"""LiDAR itself (Kim et al. 2026, https://arxiv.org/abs/2602.03211): a bank of each prompt, then guided samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._sampler import LiDAR, Result


@dataclass(frozen=True)
class Guided:
    """Lookahead sample reward guidance with the settings of the sampler."""

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` guided samples a prompt; it costs a bank of ``n`` few-step samples a prompt, once."""
        return lidar.guided(list(prompts), images, seed, None)
