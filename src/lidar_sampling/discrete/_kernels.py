"""Forward processes on tokens: how noise replaces them, and what a step back does.

Notation: a clean token x0, a noisy one x_t, V tokens, and the share alpha_t of clean tokens that a schedule leaves at
time t in [0, 1], from 1 at t = 0 to about 0 at t = 1. Tokens are noised independently, and every kernel here is

    q(x_t = v | x0) = a_v 1[v = x0] + b_v,

so a, b (V,) are all that guidance needs to know of it. What networks predict is each clean token given all noisy ones
*but its own*: that is what the formulas below are linear in, and what UDLM's objective fits. What its own noisy token
adds is the kernel's to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Schedule = Callable[[float], float]
"""From time t in [0, 1] to alpha_t."""

_TINY = 1e-30  # the probability of an impossible token: logarithms stay finite, and the nearest member wins


def log_linear(t: float) -> float:
    """Return ``alpha = 1 - (1 - 1e-3) t``, of MDLM and UDLM (https://arxiv.org/abs/2412.10193)."""
    return 1 - (1 - 1e-3) * t


def cosine(t: float) -> float:
    """Return ``alpha = (1 - 1e-3) cos(pi t / 2) + 1e-3``: less noise early (https://arxiv.org/abs/2406.07524)."""
    return (1 - 1e-3) * math.cos(math.pi * t / 2) + 1e-3


SCHEDULES: dict[str, Schedule] = {"log-linear": log_linear, "cosine": cosine}


class Kernel(Protocol):
    """A forward process on V tokens."""

    @property
    def vocab_size(self) -> int:
        """V."""

    def parts(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Return a, b (V,) float64 of ``q(x_t = v | x0) = a_v 1[v = x0] + b_v``."""

    def add_noise(self, x0: Tensor, alpha: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
        """Draw noisy tokens of clean ones (B, L); alpha is a number or (B,), the generator on their device."""

    def prior(self, uniforms: Tensor) -> Tensor:
        """Return tokens (*) of pure noise, from uniform numbers (*) in [0, 1)."""

    def posterior(self, probabilities: Tensor, x_t: Tensor, *, alpha_s: float, alpha_t: float) -> Tensor:
        """Return ``p(x_s | x_t)`` (B, L, V) of an earlier time, from predicted probabilities (B, L, V).

        With ``alpha_s = 1`` it is that of the clean tokens.
        """


@dataclass(frozen=True)
class Uniform:
    """A token that is not left alone becomes any token, itself included (UDLM, https://arxiv.org/abs/2412.10193).

    Example:
        >>> a, b = Uniform(4).parts(alpha=0.6)
        >>> float(a[0] + b[0]), float(b[0])  # stays, becomes a certain other
        (0.7, 0.1)
    """

    vocab_size: int

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {self.vocab_size}")

    def parts(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Return a, b (V,) float64."""
        full = torch.ones(self.vocab_size, dtype=torch.float64)
        return alpha * full, max((1 - alpha) / self.vocab_size, _TINY) * full

    def add_noise(self, x0: Tensor, alpha: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
        """Draw noisy tokens of clean ones (B, L)."""
        return torch.where(_draw_untouched(x0, alpha, generator), x0, self.prior(_rand(x0, generator)))

    def prior(self, uniforms: Tensor) -> Tensor:
        """Draw each token with the same probability."""
        return (uniforms * self.vocab_size).long()

    def posterior(self, probabilities: Tensor, x_t: Tensor, *, alpha_s: float, alpha_t: float) -> Tensor:
        """Return ``q(x_t | x_s) q(x_s | prediction) / q(x_t | prediction)``, of https://arxiv.org/abs/2412.10193."""
        vocab, alpha_ts = self.vocab_size, alpha_t / alpha_s
        here = x_t[..., None]
        of_here = probabilities.gather(-1, here)
        p = (alpha_s - alpha_t) * probabilities + (1 - alpha_ts) * (1 - alpha_s) / vocab
        p.scatter_add_(-1, here, alpha_t * vocab * of_here + (alpha_ts - alpha_t))
        return p / (alpha_t * vocab * of_here + 1 - alpha_t)


@dataclass(frozen=True)
class Absorbing:
    """A token that is not left alone becomes the mask, and stays it (MDLM, https://arxiv.org/abs/2406.07524).

    Attributes:
        vocab_size: V, the mask included.
        mask_id: the mask.
        softness: how much of the likelihood of a clean token is spread over all tokens when banks are weighed. With 0
            a member of a bank counts only while all tokens that are unmasked agree with it, and where none is left,
            those count that disagree least; above 0 each disagreement costs a finite factor.

    Example:
        >>> a, b = Absorbing(3, mask_id=2).parts(alpha=0.6)
        >>> a.tolist(), float(b[2])
        ([0.6, 0.6, 0.0], 0.4)
    """

    vocab_size: int
    mask_id: int
    softness: float = 0.0

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or not 0 <= self.mask_id < self.vocab_size or not 0 <= self.softness < 1:
            raise ValueError(
                f"mask_id must be a token of {self.vocab_size} and softness in [0, 1), got {self.mask_id} and "
                f"{self.softness}"
            )

    def parts(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Return a, b (V,) float64, softened."""
        a = torch.full((self.vocab_size,), alpha * (1 - self.softness), dtype=torch.float64)
        b = torch.full_like(a, max(alpha * self.softness / (self.vocab_size - 1), _TINY))
        a[self.mask_id], b[self.mask_id] = 0.0, max(1 - alpha, _TINY)
        return a, b

    def add_noise(self, x0: Tensor, alpha: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
        """Draw noisy tokens of clean ones (B, L)."""
        return torch.where(_draw_untouched(x0, alpha, generator), x0, self.mask_id)

    def prior(self, uniforms: Tensor) -> Tensor:
        """Return masks alone."""
        return torch.full_like(uniforms, self.mask_id, dtype=torch.long)

    def posterior(self, probabilities: Tensor, x_t: Tensor, *, alpha_s: float, alpha_t: float) -> Tensor:
        """Return the posterior of https://arxiv.org/abs/2406.07524, without the network's chance of a mask."""
        clean = probabilities.clone()
        clean[..., self.mask_id] = 0
        clean = clean / clean.sum(-1, keepdim=True).clamp_min(_TINY)
        p = clean * ((alpha_s - alpha_t) / (1 - alpha_t))
        p[..., self.mask_id] = (1 - alpha_s) / (1 - alpha_t)
        unmasked = x_t != self.mask_id
        stay = torch.nn.functional.one_hot(x_t, self.vocab_size).to(p)
        return torch.where(unmasked[..., None], stay, p)


def kernel_of(noise: str, vocab_size: int, mask_id: int | None, *, softness: float = 0.0) -> Kernel:
    """Return the forward process that a model's configuration names, ``uniform`` or ``absorbing``."""
    if noise == "uniform":
        return Uniform(vocab_size)
    if noise == "absorbing" and mask_id is not None:
        return Absorbing(vocab_size, mask_id, softness)
    raise ValueError(f"noise must be 'uniform', or 'absorbing' with a mask_id, got {noise!r} with {mask_id}")


def _draw_untouched(x0: Tensor, alpha: Tensor | float, generator: torch.Generator | None) -> Tensor:
    """Draw which tokens (B, L) noise leaves alone."""
    share = torch.as_tensor(alpha, device=x0.device)
    return _rand(x0, generator) < (share[:, None] if share.dim() else share)


def _rand(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)
