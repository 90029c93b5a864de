"""LiDAR on tokens: the reward that a noisy sequence leads to, estimated from a bank of scored sequences.

Notation, beside that of ``_kernels``: members x^i of a bank with rewards r_i, q_s the kernel at the time s that a
step leads to, lambda the reward scale. The bank's estimate of the expected future reward is

    r_hat_s(x) = log sum_i q_s(x | x^i) e^(lambda r_i) - log sum_i q_s(x | x^i)

with ``q_s(x | x^i) = prod_l q_s(x_l | x^i_l)``, and ``p(x_s | x_t) e^(r_hat_s(x_s))``, normalised, is the tilted
reverse process: exactly, if the bank is the whole population (a Doob transform; r_hat is a martingale along the
reverse process). Denoisers predict tokens one by one, so guidance is a factor per token, in three forms, which are
all bounded by the extreme rewards:

- token-independent (https://arxiv.org/abs/2602.03211, equation 54): each token as if it were alone;
- single-site: ``g_l(v) = r_hat_s(x_t with token l replaced by v)``, exact as steps shrink, for then one token
  changes;
- joint: candidates by the single-site form, one of which is taken by what the joint estimate says of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ._kernels import Kernel

_ELEMENTS = 1 << 22  # of a temporary; 32 MiB


class TokenMembers:
    """Sequences and rewards, prepared to be weighed.

    Args:
        samples: (n, L) clean tokens, integers.
        rewards: (n,), finite.
        kernel: the forward process.
        reward_scale: lambda, in 1 / reward.
        weights: (n,) of the members, positive; None weighs them alike.

    Raises:
        ValueError: shapes that do not fit, tokens that the kernel does not have, or rewards that are not finite.

    Example:
        >>> from lidar_sampling.discrete import Uniform
        >>> samples, rewards = torch.tensor([[0, 1], [2, 1]]), torch.tensor([0.0, 1.0])
        >>> bank = TokenMembers(samples, rewards, Uniform(3), reward_scale=1.0)
        >>> bank.expected_future_reward(torch.tensor([[2, 1]]), alpha=0.9).exp() > 2
        tensor([True])
    """

    def __init__(
        self, samples: Tensor, rewards: Tensor, kernel: Kernel, *, reward_scale: float, weights: Tensor | None = None
    ) -> None:
        if not isinstance(samples, Tensor) or samples.dim() != 2 or not len(samples) or samples.is_floating_point():
            got = f"{samples.dtype} {tuple(samples.shape)}" if isinstance(samples, Tensor) else repr(samples)
            raise ValueError(f"samples must be integers (n, L), a tensor, got {got}")
        if rewards.shape != samples.shape[:1] or not rewards.isfinite().all():
            raise ValueError(f"rewards must be ({len(samples)},) and finite, got {tuple(rewards.shape)}")
        if not math.isfinite(reward_scale):
            raise ValueError(f"reward_scale must be finite, got {reward_scale}")
        if weights is not None and (weights.shape != rewards.shape or not (weights > 0).all()):
            raise ValueError(f"weights must be ({len(samples)},) and positive")
        if int(samples.min()) < 0 or int(samples.max()) >= kernel.vocab_size:
            raise ValueError(f"samples hold tokens outside of 0 .. {kernel.vocab_size - 1}")
        self.samples, self.kernel = samples.long(), kernel
        self._tilt = (reward_scale * rewards.double())[:, None]
        self._log_weights = torch.zeros_like(self._tilt) if weights is None else weights.to(self._tilt).log()[:, None]
        self._one_hot, self._transposed = _one_hot(self.samples, kernel.vocab_size)

    def token_independent(self, alpha: float) -> Tensor:
        """Return factors g (L, V) float64 at the time with clean share ``alpha``: equation 54 of the paper."""
        a, b = self._parts(alpha)
        return self._difference(self._log_weights, lambda counts: a * counts + b)[0]

    def single_site(self, x: Tensor, alpha: float) -> Tensor:
        """Return factors g (B, L, V) float64: the estimate with token l of x (B, L) replaced by v.

        It costs O(n L + L V) per sequence.

        The evidence of all tokens but l is that of all, less what token l adds to those members that agree with it,
        so histograms of the members' tokens, weighed by their evidence, are all it takes.
        """
        a, b = self._parts(alpha)
        found = []
        for rows in self._chunks(x):
            without = torch.ones(*rows.shape, self.kernel.vocab_size, dtype=torch.float64, device=x.device)
            without.scatter_(-1, rows[..., None], (b / (a + b))[rows][..., None])

            def likelihood(counts: Tensor, without: Tensor = without) -> Tensor:
                counts = counts * without
                return a * counts + b * counts.sum(-1, keepdim=True)

            found.append(self._difference(self._evidence(rows, a, b), likelihood))
        return torch.cat(found)

    def expected_future_reward(self, x: Tensor, alpha: float) -> Tensor:
        """Return the estimate r_hat (B,) float64 for x (B, L)."""
        evidence = (self._evidence(rows, *self._parts(alpha)) for rows in self._chunks(x))
        return torch.cat([(e + self._tilt).logsumexp(0) - e.logsumexp(0) for e in evidence])

    def _difference(self, evidence: Tensor, likelihood: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the log of the tilted sum less that of the plain one, by evidence (n, B).

        ``likelihood`` is what weights (B, L, V) of the members' tokens say of each.
        """
        parts = []
        for logits in (evidence + self._tilt, evidence):
            counts = (self._transposed @ logits.softmax(0)).t().unflatten(1, (-1, self.kernel.vocab_size))
            parts.append(likelihood(counts).log() + logits.logsumexp(0)[:, None, None])
        return parts[0] - parts[1]

    def _evidence(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the weighed evidence log q_s(x | x^i) (n, B), but for what all members share."""
        gain = ((a + b).log() - b.log())[x]  # of a member that agrees, per token
        columns = x + self.kernel.vocab_size * torch.arange(x.shape[1], device=x.device)
        gains = torch.zeros(self._one_hot.shape[1], len(x), dtype=torch.float64, device=x.device)
        return self._log_weights + self._one_hot @ gains.scatter_(0, columns.t(), gain.t())

    def _parts(self, alpha: float) -> tuple[Tensor, Tensor]:
        a, b = self.kernel.parts(alpha)
        return a.to(self.samples.device), b.to(self.samples.device)

    def _chunks(self, x: Tensor) -> Iterator[Tensor]:
        """Yield rows of x, as many at a time as their temporaries allow."""
        if x.dim() != 2 or x.shape[1] != self.samples.shape[1]:
            raise ValueError(f"x must be (B, {self.samples.shape[1]}) as the bank's, got {tuple(x.shape)}")
        return iter(x.split(max(1, _ELEMENTS // max(self._one_hot.shape))))


def _one_hot(samples: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return samples (n, L) as a sparse matrix (n, L V) float64, one at l V + x_l for each l, and its transpose."""
    n, length = samples.shape
    columns = (samples + vocab_size * torch.arange(length, device=samples.device)).flatten()
    starts = torch.arange(0, n * length + 1, length, device=samples.device)
    ones = torch.ones(n * length, dtype=torch.float64, device=samples.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(starts, columns, ones, (n, length * vocab_size), check_invariants=False)
        return matrix, matrix.t().to_sparse_csr()
