"""Sequences short enough to enumerate: the ground truth of discrete guidance."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from ..discrete import Kernel, Schedule, TokenMembers, log_linear
from ..discrete._sampler import tilt

Factors = Callable[[Tensor, float], Tensor]


class Sequences:
    """All sequences of ``length`` tokens out of ``letters``, with random probabilities and rewards.

    Args:
        letters: clean tokens 0 .. letters - 1; the kernel may add a mask.
        length: L.
        kernel: the forward process.
        seed: seed of probabilities and rewards.
        schedule: schedule of the noise.

    Attributes:
        states: (S, L) every sequence that the kernel knows, masks included.
        population: (N, L) the clean sequences.
        probabilities: (N,) their probabilities.
        rewards: (N,) their rewards, which are not sums over tokens.
    """

    def __init__(
        self, letters: int, length: int, kernel: Kernel, *, seed: int = 0, schedule: Schedule = log_linear
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kernel, self.schedule = kernel, schedule
        self.states = torch.tensor(list(product(range(kernel.vocab_size), repeat=length)))
        self.population = self.states[(self.states < letters).all(1)]
        n = len(self.population)
        self.probabilities = (1.5 * torch.randn(n, generator=generator, dtype=torch.float64)).softmax(0)
        self.rewards = torch.randn(n, generator=generator, dtype=torch.float64)

    def tilt(self, reward_scale: float) -> Tensor:
        """Return the distribution (N,) that guidance aims at."""
        return tilt(self.probabilities, reward_scale * self.rewards)

    def members(self, reward_scale: float) -> TokenMembers:
        """Return the whole population as a bank."""
        return TokenMembers(
            self.population, self.rewards, self.kernel, reward_scale=reward_scale, weights=self.probabilities
        )

    def likelihood(self, t: float) -> Tensor:
        """Return ``q(x_t | x0)`` (S, N)."""
        a, b = self.kernel.parts(self.schedule(t))
        same = self.states[:, None] == self.population
        return (a[self.states][:, None] * same + b[self.states][:, None]).prod(-1)

    def network(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return logits (B, L, V) of a perfect denoiser: each clean token, given all noisy tokens but its own."""
        logits = []
        for row, level in zip(x, sigma.tolist(), strict=True):
            a, b = self.kernel.parts(float(torch.tensor(-level, dtype=torch.float64).exp()))
            q = a[row] * (row == self.population) + b[row]  # (N, L)
            others = self.probabilities[:, None] * q.prod(-1, keepdim=True) / q
            one_hot = torch.nn.functional.one_hot(self.population, self.kernel.vocab_size).double()
            logits.append(torch.einsum("nl,nlv->lv", others / others.sum(0), one_hot).log())
        return torch.stack(logits)

    def table(self, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the network as a lookup table: its logits for every state at every time of ``steps``."""
        base = self.kernel.vocab_size ** torch.arange(self.states.shape[1] - 1, -1, -1)
        known = {}
        for step in range(steps):
            sigma = torch.tensor(self.schedule(1 - step / steps)).log().neg()
            known[round(float(sigma), 4)] = self.network(self.states, sigma.expand(len(self.states)))
        return lambda x, sigma: known[round(float(sigma[0]), 4)][(x * base).sum(1)]

    def reverse(self, t: float, s: float, weights: Tensor) -> Tensor:
        """Return the exact ``p(x_s | x_t)`` (S of x_t, S of x_s) if clean sequences have ``weights`` (N,)."""
        joint = torch.zeros(len(self.states), len(self.states), dtype=torch.float64)
        alpha_s, alpha_t = self.schedule(s), self.schedule(t)
        q_t = self.likelihood(t) * weights
        for i, x0 in enumerate(self.population):
            clean = torch.nn.functional.one_hot(x0, self.kernel.vocab_size).double().expand(len(self.states), -1, -1)
            step = self.kernel.posterior(clean, self.states, alpha_s=alpha_s, alpha_t=alpha_t)
            joint += q_t[:, i, None] * self.products(step)
        return joint / joint.sum(1, keepdim=True)

    def guided_law(self, factors: Factors, steps: int) -> Tensor:
        """Return the distribution (N,) of factorised sampling in ``steps``, tilted by ``factors``.

        ``factors`` maps states and alpha to (B, L, V). Nothing is drawn: the distribution is
        computed from step to step.
        """
        _, b = self.kernel.parts(0.0)
        law = b[self.states].prod(1)  # the prior
        law = law / law.sum()
        for step in range(steps):
            alpha_t, alpha_s = (self.schedule(1 - i / steps) for i in (step, step + 1))
            sigma = -torch.full((len(self.states),), alpha_t, dtype=torch.float64).log()
            clean = self.network(self.states, sigma).softmax(-1)
            p = self.kernel.posterior(clean, self.states, alpha_s=alpha_s, alpha_t=alpha_t)
            law = law @ self.products(tilt(p, factors(self.states, alpha_s)))
        return law[(self.states[:, None] == self.population).all(-1).double().argmax(0)]

    def products(self, p: Tensor) -> Tensor:
        """Return distributions of whole sequences (B, S) from those of tokens (B, L, V)."""
        length = self.states.shape[1]
        return torch.stack([p[:, l, self.states[:, l]] for l in range(length)]).prod(0)  # noqa: E741
