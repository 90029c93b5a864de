"""Random numbers from one generator on one device, so that a stage is a function of its seed."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """A seeded stream of tensors on ``device``."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return float32 of ``shape``, uniform in [low, high)."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Return float32 of ``shape``, standard normal."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, bound: int, *shape: int) -> Tensor:
        """Return int64 of ``shape``, uniform in [0, bound)."""
        return torch.randint(0, bound, shape, generator=self.generator, device=self.device)

    def choice(self, weights: Tensor, n: int) -> Tensor:
        """Return (n,) int64 indices into ``weights`` (K,), drawn with replacement in proportion to them."""
        return torch.multinomial(weights, n, replacement=True, generator=self.generator)
