r"""The mathematics: lookahead sample reward guidance as a shift of the clean prediction.

Notation, fixed here for the whole library. The forward kernel is ``p(x_t | x_0) = N(alpha x_0, sigma^2 I)``. A
bank holds samples ``x^1 .. x^n`` of one prompt and their rewards ``r_i``; ``lambda`` is ``reward_scale``. With

    w   = softmax_i(              -|x_t - alpha x^i|^2 / (2 sigma^2) )     the bank's posterior over its members
    w^r = softmax_i( lambda r_i   -|x_t - alpha x^i|^2 / (2 sigma^2) )     the same, tilted by the reward

the closed form of Theorem 3.3 (Kim et al., ICML 2026, https://arxiv.org/abs/2602.03211, equations 16-18),
``grad r_t(x_t) = (alpha / sigma^2) sum_i (w^r_i - w_i) x^i``, moves the clean prediction by exactly

    x0_hat  <-  x0_hat + scale * Delta,      Delta = sum_i (w^r_i - w_i) x^i

whatever the schedule: alpha and sigma cancel (Tweedie). Delta is finite at alpha = 0, where the score is not.

How it is computed. ``Delta`` does not change when the same vector is taken from every sample, nor when the same
number is taken from every reward; so both are centred, and with ``y_i = x^i - mean`` and ``x_c = x_t - alpha mean``
the logits are ``(alpha x_c . y_i - alpha^2 |y_i|^2 / 2) / sigma^2`` up to a constant: two matrix products, without
most of the cancellation of the expanded square. Banks are read in blocks with an online softmax, so that memory
beyond the bank itself does not grow with n.

In many dimensions both weightings soon rest on one member each, and Delta is the difference of two members. With
``grid = g`` they rest on a coarse look at x_t instead: ``A x_t``, where A averages g x g cells of each channel and
keeps white noise white. Since ``A x_t ~ N(alpha A x_0, sigma^2 I)``, the same closed form holds with the distances
``|A x_t - alpha A x^i|^2``, and ``Delta = E_{q^r}[x_0 | A x_t] - E_q[x_0 | A x_t]`` is exact given that look.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 22  # elements of a block of the bank, or of its logits: 16 MiB in float32

_ONE_MEMBER = 1.05  # an effective sample size below which weights rest on one member alone


class ShiftInfo(NamedTuple):
    """What happened inside :func:`mean_shift`, one number per row of ``x_t``; every field is a tensor (B,).

    Attributes:
        ess: effective sample size ``1 / sum w_i^2`` of the bank's posterior, in [1, n].
        ess_tilted: the same of the tilted posterior ``w^r``.
        shift_norm: Euclidean norm of Delta.
        log_efr: the expected future reward ``r_t(x_t)``, in units of ``reward_scale * reward`` (Theorem 3.1).
    """

    ess: Tensor
    ess_tilted: Tensor
    shift_norm: Tensor
    log_efr: Tensor


@torch.no_grad()
def mean_shift(
    x_t: Tensor,
    samples: Tensor,
    rewards: Tensor,
    *,
    alpha: float | Tensor,
    sigma: float | Tensor,
    reward_scale: float,
    grid: int | None = None,
    block_size: int | None = None,
) -> tuple[Tensor, ShiftInfo]:
    """Return the shift of the posterior mean by a bank and its rewards: ``E_{q^r}[x_0|x_t] - E_q[x_0|x_t]``.

    Args:
        x_t: noisy samples (B, *), any floating dtype and device.
        samples: the bank (n, *), clean samples in the space of ``x_t``.
        rewards: rewards of the bank (n,), finite.
        alpha: signal level of ``x_t``, at least 0; a float or (B,).
        sigma: noise level of ``x_t``, at least 0, infinity allowed; a float or (B,).
        reward_scale: lambda, at least 0.
        grid: cells per side that samples (*, height, width) are averaged over before they are compared; None compares
            every number.
        block_size: bank members read at a time; by default so many that no temporary exceeds 16 MiB in float32.

    Returns:
        ``(Delta, info)``: Delta (B, *) in float64 if any input tensor is float64, else in float32.

    Raises:
        TypeError: an argument that is not a tensor.
        ValueError: shapes that do not fit, a negative level or scale, a non-finite reward.

    Example:
        >>> import torch
        >>> bank = torch.tensor([[-1.0], [1.0]])
        >>> rewards = torch.tensor([0.0, 1.0])
        >>> shift, info = mean_shift(torch.zeros(1, 1), bank, rewards, alpha=0.5, sigma=1.0, reward_scale=100.0)
        >>> shift.item(), info.ess.item()
        (1.0, 2.0)
    """
    if not isinstance(x_t, Tensor):
        raise TypeError(f"x_t must be a tensor, got {type(x_t).__name__}")
    members = Members(samples, rewards, reward_scale=reward_scale, grid=grid, dtype=x_t.dtype, block_size=block_size)
    return members.shift(x_t, alpha=alpha, sigma=sigma)


def expected_future_reward(
    x_t: Tensor,
    samples: Tensor,
    rewards: Tensor,
    *,
    alpha: float | Tensor,
    sigma: float | Tensor,
    reward_scale: float,
) -> Tensor:
    """Return the expected future reward ``log E[exp(reward_scale r(x_0)) | x_t]`` by a bank (Theorem 3.1).

    Arguments and errors are those of :func:`mean_shift`.

    Returns:
        (B,), in units of ``reward_scale * reward``; between the bank's lowest and highest scaled reward.

    Example:
        >>> import torch
        >>> bank, rewards = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, 1.0])
        >>> expected_future_reward(torch.ones(1, 1), bank, rewards, alpha=1.0, sigma=0.0, reward_scale=2.0)
        tensor([2.])
    """
    _, info = mean_shift(x_t, samples, rewards, alpha=alpha, sigma=sigma, reward_scale=reward_scale)
    return info.log_efr


def tempering(rewards: Tensor, ess: float) -> Tensor:
    """Return the lambda at which the weights ``softmax(lambda r)`` have an effective sample size of ``ess * n``.

    Tempering to an effective sample size (Del Moral et al. 2012, https://doi.org/10.1007/s11222-011-9271-y) gives a
    strength without a unit: rewards that are shifted or stretched are weighed as before. At pure noise these are the
    weights of a bank, since nothing is known of x_0 yet.

    Args:
        rewards: (*, n), finite.
        ess: the share of n, in (0, 1]. Where so many rewards share the top that no lambda brings it so low, the top
            alone is left.

    Returns:
        (*) float64, in 1 / reward; 0 where all rewards are equal.

    Example:
        >>> import torch
        >>> r = torch.tensor([0.0, 1.0, 2.0, 30.0])
        >>> weights = (tempering(r, 0.5) * r).softmax(0)
        >>> round(float(1 / weights.square().sum()), 6)
        2.0
    """
    r = rewards.double()
    fall = r - r.amax(-1, keepdim=True)
    spread = fall.abs().amax(-1, keepdim=True)
    fall = fall / spread.clamp_min(torch.finfo(r.dtype).tiny)
    low, high = torch.zeros_like(spread), torch.full_like(spread, 1e6)
    for _ in range(100):  # bisection: the effective sample size falls as lambda grows
        middle = (low + high) / 2
        large = (middle * fall).softmax(-1).square().sum(-1, keepdim=True).reciprocal() > ess * r.shape[-1]
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    return torch.where(spread > 0, high / spread, 0.0).squeeze(-1)


def auto_strength(rewards: Tensor, ess: float) -> float:
    """Return the lambda of a bank of rewards (n,) whose weights are worth ``ess * n`` members at pure noise.

    Those are at least two, and of two members one and a half: with fewer every sample would go to one and the same.

    >>> rewards = torch.tensor([0.0, 1.0, 2.0, 3.0])
    >>> round(auto_strength(rewards, 0.01), 3) == round(auto_strength(rewards, 0.5), 3)
    True
    """
    n = len(rewards)
    return float(tempering(rewards, max(ess, min(2, (n + 1) / 2) / n)))


def mean_sizes(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the effective sample size of the tilted weights at each guided step, a mean over the samples.

    Args:
        rows: the guided steps, as ``Trace.rows()`` and ``result.json`` have them.

    >>> mean_sizes([{"ess_tilted": [3.0, 2.0]}, {"ess_tilted": [1.0, 1.0]}])
    [2.5, 1.0]
    """
    return [sum(row["ess_tilted"]) / len(row["ess_tilted"]) for row in rows]


def reading(sizes: Sequence[float], n: int) -> str:
    """Return one sentence on what guidance did.

    Args:
        sizes: as :func:`mean_sizes` has them.
        n: members of the bank.

    >>> reading([2.5, 1.0], 8)
    'Guidance followed 2.5 of 8 members at its first step, and one alone from step 2 on.'
    """
    if not sizes:
        return "No step was guided."
    alone = next((k for k in range(len(sizes)) if max(sizes[k:]) < _ONE_MEMBER), None)
    if alone == 0:
        return f"Guidance rests on one of {n} members from its first step: a smaller strength spreads it over more."
    first = f"Guidance followed {sizes[0]:.1f} of {n} members at its first step"
    if alone is None:
        return f"{first}, and {sizes[-1]:.1f} at its last."
    return f"{first}, and one alone from step {alone + 1} on."


class Members:
    """A bank prepared for many steps: what does not depend on x_t is computed once.

    Args:
        samples: (n, *), clean samples.
        rewards: (n,), finite.
        reward_scale: lambda, at least 0.
        grid: as in :func:`mean_shift`.
        dtype: of the samples that will be asked about; only float64 matters.
        block_size: members read at a time.
        resident: keep a centred copy in place of the bank, which is faster to read: whole, if it is in full
            precision. Without it nothing beside the bank is larger than a block.
        storage: precision of that copy; by default that of the computation. What is rounded is what tells members
            apart, so bfloat16 moves the shift by less than a hundredth, whatever the noise, in half the memory.

    Raises:
        TypeError, ValueError: as :func:`mean_shift`.

    Gradients are not meant to flow: callers switch them off.

    Example:
        >>> members = Members(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, 1.0]), reward_scale=100.0)
        >>> members.shift(torch.zeros(1, 1), alpha=0.5, sigma=1.0)[0].item()
        1.0
    """

    def __init__(
        self,
        samples: Tensor,
        rewards: Tensor,
        *,
        reward_scale: float,
        grid: int | None = None,
        dtype: torch.dtype = torch.float32,
        block_size: int | None = None,
        resident: bool = False,
        storage: torch.dtype | None = None,
    ) -> None:
        _check(samples, rewards, reward_scale)
        wide = torch.float64 in (dtype, samples.dtype, rewards.dtype)
        self.dtype, self.shape = torch.float64 if wide else torch.float32, samples.shape[1:]
        self._bank = samples.flatten(1)  # (n, D)
        n, dim = self._bank.shape
        self._block_size = block_size or max(1, _BLOCK_ELEMENTS // dim)
        self._mean = self._bank.mean(0, dtype=self.dtype)  # (D,)
        self._offset: Tensor | None = self._mean  # of the rows that are stored; None once they are centred
        r = rewards.to(samples.device, self.dtype)
        best = r.max()
        self._tilt, self._top = reward_scale * (r - best), reward_scale * best  # (n,), at most 0; ()
        if resident:
            self._bank = torch.cat([y.to(storage or self.dtype) for _, y in self._blocks()])
            self._offset = None
            if self._bank.dtype == self.dtype:
                self._block_size = n
        self._grid = grid
        if grid is not None:
            check_grid(grid, self.shape)
        self._looks = None if grid is None else torch.cat([self._look(y) for _, y in self._blocks()])  # (n, K)
        compared = (y for _, y in self._blocks()) if self._looks is None else (self._looks,)
        self._half_norms = torch.cat([y.square().sum(1) / 2 for y in compared])  # (n,)

    def shift(self, x_t: Tensor, *, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, ShiftInfo]:
        """Return for x_t (B, *) what :func:`mean_shift` returns."""
        if x_t.shape[1:] != self.shape:
            raise ValueError(
                f"x_t {tuple(x_t.shape)} and samples {(len(self._bank), *self.shape)} must agree in all but the "
                f"first dimension"
            )
        x = x_t.flatten(1).to(self.dtype)  # (B, D)
        alpha, inverse_variance = _levels(alpha, sigma, x)
        x_centred = self._look(x - alpha * self._mean)
        streamed = len(self._bank) > self._block_size
        so_far: _Softmax | None = None
        nearest: Tensor | None = None
        for part, y in self._blocks():
            look = y if self._looks is None else self._looks[part]
            closeness = alpha * (x_centred @ look.T) - alpha**2 * self._half_norms[part]  # (B, m): sigma^2 logits
            near = closeness.amax(1, keepdim=True)
            if nearest is not None:
                near = torch.maximum(nearest, near)
            # Logits relative to the nearest member so far: 0 for it, at most 0 for all others, even as sigma -> 0.
            fall = 0.0 if nearest is None else (nearest - near) * inverse_variance
            nearest = near
            logits = (closeness - nearest) * inverse_variance
            both = torch.stack([logits, logits + self._tilt[part]])  # (2, B, m): plain and tilted
            so_far = _accumulate(so_far, both, y if streamed else None, fall)

        assert so_far is not None
        if streamed:
            plain, tilted = so_far.weighted / so_far.total
            delta = tilted - plain
        else:  # one product of the difference: cheaper, and exactly 0 where both weightings agree
            plain, tilted = so_far.weights / so_far.total
            delta = (tilted - plain) @ y
        ess, ess_tilted = (so_far.total.square() / so_far.squares).squeeze(2)
        evidence, evidence_tilted = (so_far.top + so_far.total.log()).squeeze(2)
        info = ShiftInfo(ess, ess_tilted, delta.norm(dim=1), evidence_tilted - evidence + self._top)
        return delta.reshape(x_t.shape), info

    def _look(self, rows: Tensor) -> Tensor:
        """Return what of rows (m, D) is compared: (m, D), or (m, K) of a grid."""
        return rows if self._grid is None else coarse(rows.view(len(rows), *self.shape), self._grid)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Members centred on their mean, (m, D), so many at a time; which ones they are."""
        for start in range(0, len(self._bank), self._block_size):
            part = slice(start, start + self._block_size)
            y = self._bank[part].to(self.dtype)
            yield part, y if self._offset is None else y - self._offset


def coarse(x: Tensor, grid: int) -> Tensor:
    """Return the sums over the cells of a grid, divided by the root of their size, so that white noise stays white.

    Args:
        x: (m, *, height, width).
        grid: cells per side, which divides both.

    Returns:
        (m, K) with K = grid^2 times the other dimensions.

    >>> coarse(torch.ones(1, 3, 4, 4), 2)
    tensor([[2., 2., 2., 2., 2., 2., 2., 2., 2., 2., 2., 2.]])
    """
    height, width = x.shape[-2] // grid, x.shape[-1] // grid
    cells = x.reshape(len(x), -1, grid, height, grid, width)
    return (cells.sum((3, 5)) / math.sqrt(height * width)).flatten(1)


def check_cells(grid: int | None) -> None:
    """Refuse a grid of no cells."""
    if grid is not None and not grid >= 1:
        raise ValueError(f"grid must be at least 1 cell per side, or None, got {grid}")


def check_grid(grid: int, shape: Sequence[int]) -> None:
    """Refuse a grid that cannot be laid over samples of a shape (*, height, width).

    Raises:
        ValueError: they have no height and width, or the grid does not divide them.
    """
    check_cells(grid)
    if len(shape) < 3:
        raise ValueError(
            f"grid={grid} wants latents with channels, height and width, got {tuple(shape)}: leave it out"
        )
    if shape[-2] % grid or shape[-1] % grid:
        raise ValueError(f"grid must divide the height and width of the latents, {tuple(shape[-2:])}, got {grid}")


class _Softmax(NamedTuple):
    """Softmax-weighted means under way, plain and tilted; ``weighted`` is 0 where the sum is not wanted."""

    top: Tensor  # (2, B, 1) largest logit so far
    total: Tensor  # (2, B, 1) sum of exp(logit - top)
    squares: Tensor  # (2, B, 1) sum of their squares
    weights: Tensor  # (2, B, m) exp(logit - top) of the last block
    weighted: Tensor | float  # (2, B, D) sum of exp(logit - top) y


def _accumulate(so_far: _Softmax | None, logits: Tensor, y: Tensor | None, fall: float | Tensor) -> _Softmax:
    """One block of the online softmax (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867).

    ``fall`` (at most 0) is by how much earlier logits dropped when the reference they are measured from rose.
    """
    top = logits.amax(2, keepdim=True)
    if so_far is not None:
        top = torch.maximum(so_far.top + fall, top)
    weights = (logits - top).exp()
    total, squares = weights.sum(2, keepdim=True), weights.square().sum(2, keepdim=True)
    weighted = 0.0 if y is None else weights @ y
    if so_far is not None:
        fade = (so_far.top + fall - top).exp()
        total = total + fade * so_far.total
        squares = squares + fade.square() * so_far.squares
        weighted = weighted + fade * so_far.weighted
    return _Softmax(top, total, squares, weights, weighted)


def _levels(alpha: float | Tensor, sigma: float | Tensor, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Give alpha and 1 / sigma^2, finite at sigma = 0: numbers as numbers, tensors as (B, 1) beside ``x``."""
    tiny = torch.finfo(x.dtype).tiny
    for name, level in (("alpha", alpha), ("sigma", sigma)):
        if isinstance(level, Tensor):
            if level.dim() and level.shape != x.shape[:1]:
                raise ValueError(f"{name} must be a number or ({len(x)},), got {tuple(level.shape)}")
        elif not level >= 0:
            raise ValueError(f"{name} must be at least 0, got {level}")
    if isinstance(alpha, Tensor):
        alpha = alpha.to(x).reshape(-1, 1)
    if isinstance(sigma, Tensor):
        return alpha, 1 / sigma.to(x).reshape(-1, 1).square().clamp_min(tiny)
    return alpha, 1 / max(sigma**2, tiny)


def _check(samples: Tensor, rewards: Tensor, reward_scale: float) -> None:
    for name, tensor in (("samples", samples), ("rewards", rewards)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if len(samples) == 0 or rewards.shape != samples.shape[:1]:
        raise ValueError(
            f"rewards must be one number per sample, ({len(samples)},) with at least one, got {tuple(rewards.shape)}"
        )
    if not 0 <= reward_scale < math.inf:
        raise ValueError(f"reward_scale must be finite and at least 0, got {reward_scale}")
    # Reading values waits for the device, and cannot be traced: banks are checked once, when they are made.
    if rewards.device.type == "cpu" and not torch.compiler.is_compiling() and not rewards.isfinite().all():
        raise ValueError(f"rewards must be finite, got {rewards.tolist()}")
