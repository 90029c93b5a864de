"""Ancestral sampling of tokens, plain or steered.

Time runs from 1 to 0 in equal steps. At each the network predicts the clean tokens, the kernel says what that makes
of the next, less noisy ones, and a :class:`Stepper` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .._draw import seed_of
from .._settings import check_strength
from .._values import check_integer
from ._guidance import TokenMembers
from ._kernels import Kernel, Schedule, log_linear
from ._reward import Reward, score

Network = Callable[[Tensor, Tensor], Tensor]
"""From noisy tokens (B, L) and total noise ``-log alpha`` (B,) to logits (B, L, V) of the clean ones."""


@dataclass(frozen=True)
class State:
    """The state of a batch when its next tokens are drawn.

    Attributes:
        x_t: tokens (B, L) now.
        prediction: the network's probabilities (B, L, V) of the clean tokens.
        posterior: of the next tokens (B, L, V), as the kernel has it.
        step: of how many steps this is, from 0.
        steps: how many there are.
        alpha_t: the share of clean tokens now.
        alpha_s: the share of clean tokens then.
        uniforms: (B, M, L) numbers in [0, 1), M the stepper's ``candidates``.
        lots: (B,) more of them, one per sequence, for what is drawn of whole sequences.
    """

    x_t: Tensor
    prediction: Tensor
    posterior: Tensor
    step: int
    steps: int
    alpha_t: float
    alpha_s: float
    uniforms: Tensor
    lots: Tensor


class Stepper(Protocol):
    """Draws the next tokens."""

    candidates: int
    """M, the numbers per token that it uses."""
    together: int
    """Sequences that must not be parted into two batches."""

    def __call__(self, state: State) -> Tensor:
        """Return tokens (B, L)."""


class Ancestral:
    """Each token from the posterior, independently."""

    candidates = together = 1

    def __call__(self, state: State) -> Tensor:
        """Return tokens (B, L)."""
        return categorical(state.posterior, state.uniforms[:, 0])


class TokenIndependent:
    """Guidance by each token alone (https://arxiv.org/abs/2602.03211, equation 54), which leaves a bias.

    Args:
        members: the bank.
        scale: s, of the estimate; 1 is the tilted law.
        floor: the least share of noise, ``1 - alpha``, that the bank is asked about. Its kernel becomes a point at
            t = 0, of which a finite bank knows nothing unless it has the sequence itself.
    """

    candidates = together = 1

    def __init__(self, members: TokenMembers, *, scale: float = 1.0, floor: float = 0.02) -> None:
        if not 0 <= floor < 1 or not math.isfinite(scale):
            raise ValueError(f"floor must be in [0, 1) and scale finite, got {floor} and {scale}")
        self.members, self.scale, self.floor = members, scale, floor

    def __call__(self, state: State) -> Tensor:
        """Return tokens (B, L)."""
        return categorical(tilt(state.posterior, self.scale * self.factors(state)), state.uniforms[:, 0])

    def factors(self, state: State) -> Tensor:
        """Return factors g (L, V) or (B, L, V): how much more a token is worth."""
        return self.members.token_independent(self.alpha(state))

    def alpha(self, state: State) -> float:
        """Return the share of clean tokens at which the bank is asked."""
        return min(state.alpha_s, 1 - self.floor)


class SingleSite(TokenIndependent):
    """Guidance by each token given all others; exact as steps shrink. Arguments are those of TokenIndependent."""

    def factors(self, state: State) -> Tensor:
        """Return factors g (B, L, V)."""
        return self.members.single_site(state.x_t, self.alpha(state))


class Joint(SingleSite):
    """Guidance by candidates of the single-site form, one of which is drawn by the joint estimate.

    With many candidates only the error of the network is left, which predicts tokens one by one.

    Args:
        members: the bank.
        scale: s, of the estimate.
        floor: the least share of noise that the bank is asked about.
        candidates: M, per sequence and step.
    """

    def __init__(
        self, members: TokenMembers, *, scale: float = 1.0, floor: float = 0.02, candidates: int = 8
    ) -> None:
        super().__init__(members, scale=scale, floor=floor)
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        self.candidates = candidates

    def __call__(self, state: State) -> Tensor:
        """Return tokens (B, L)."""
        g = self.scale * self.factors(state)
        proposal = tilt(state.posterior, g)
        drawn = torch.stack([categorical(proposal, u) for u in state.uniforms.unbind(1)], 1)  # (B, M, L)
        joint = self.members.expected_future_reward(drawn.flatten(0, 1), self.alpha(state)).view(drawn.shape[:2])
        spent = g[:, None].expand(-1, self.candidates, -1, -1).gather(-1, drawn[..., None])[..., 0].sum(-1)
        chosen = categorical((self.scale * joint - spent).softmax(-1), state.lots)
        return drawn[torch.arange(len(drawn), device=drawn.device), chosen]


class TokenFKSteering:
    """Populations, resampled by rewards of predicted clean sequences (https://arxiv.org/abs/2501.06848).

    Weights are those of the ``difference`` potential, so that large populations follow the tilted law.

    Args:
        reward: guides; what it gives is checked as :meth:`TokenLiDAR.score` does.
        kernel: the forward process.
        reward_scale: lambda, in 1 / reward.
        particles: k, sequences of a population.
        every: steps between two resamplings; the last step always resamples.

    Raises:
        ValueError: a number is out of its range.
    """

    candidates = 2  # numbers: for the predicted clean tokens, and for the next

    def __init__(
        self,
        reward: Reward,
        kernel: Kernel,
        *,
        reward_scale: float,
        particles: int = 4,
        every: int = 4,
    ) -> None:
        check_integer("particles", particles, least=1)
        check_integer("every", every, least=1)
        check_strength("reward_scale", reward_scale)
        self.reward, self.kernel, self.reward_scale = reward, kernel, reward_scale
        self.together, self.every = particles, every
        self.evaluations = 0
        self._before = torch.zeros(())

    def __call__(self, state: State) -> Tensor:
        """Return tokens (B, L).

        Raises:
            ValueError: the reward gave something else than a finite number per sequence.
        """
        if state.step == 0:
            self._before = torch.zeros(len(state.x_t), device=state.x_t.device)
        posterior = state.posterior
        last = state.step == state.steps - 1
        if state.step and state.step % self.every == 0 and not last:
            clean = self.kernel.posterior(state.prediction, state.x_t, alpha_s=1.0, alpha_t=state.alpha_t)
            posterior = posterior[self._survivors(categorical(clean, state.uniforms[:, 1]), state)]
        x_s = categorical(posterior, state.uniforms[:, 0])
        return x_s[self._survivors(x_s, state)] if last else x_s

    def _survivors(self, x0: Tensor, state: State) -> Tensor:
        """Return the rows (B,) that go on, by systematic resampling of each population."""
        r = score(self.reward, x0).to(self._before)
        self.evaluations += len(x0)
        weights = (self.reward_scale * (r - self._before)).view(-1, self.together).softmax(1)
        at = (torch.arange(self.together, device=r.device) + state.lots[:: self.together, None]) / self.together
        chosen = torch.searchsorted(weights.cumsum(1), at).clamp_max(self.together - 1)
        rows = (chosen + self.together * torch.arange(len(chosen), device=r.device)[:, None]).flatten()
        self._before = r[rows]
        return rows


def sample(
    network: Network,
    kernel: Kernel,
    count: int,
    length: int,
    *,
    steps: int,
    stepper: Stepper | None = None,
    schedule: Schedule = log_linear,
    seed: int = 0,
    stream: str = "target",
    batch_size: int = 256,
    timeless: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, int]:
    """Draw sequences, the same for the same seed whatever the batch size.

    Args:
        network: predicts the clean tokens.
        kernel: the forward process.
        count: how many sequences.
        length: L, of each.
        steps: from noise to data.
        stepper: draws the next tokens; None draws them from the posterior.
        schedule: of the noise.
        seed: of all noise.
        stream: keeps draws apart that share a seed.
        batch_size: sequences at a time.
        timeless: the network does not look at the time, so a sequence that a step left as it was is not asked about
            again.
        device: where tokens live.
        progress: called with (network evaluations done or spared, in all).

    Returns:
        Tokens (count, length), and how many sequences the network saw.

    Raises:
        ValueError: a number is not positive, or ``count`` is no multiple of what the stepper keeps together.

    Example:
        >>> from lidar_sampling.discrete import Uniform
        >>> def network(x, sigma):
        ...     return torch.zeros(*x.shape, 3) + torch.tensor([0.0, 9.0, 0.0])
        >>> tokens, evaluations = sample(network, Uniform(3), 2, 4, steps=5)
        >>> tokens.shape, evaluations
        (torch.Size([2, 4]), 10)
    """
    stepper = Ancestral() if stepper is None else stepper
    if min(count, length, steps, batch_size) < 1:
        raise ValueError(
            f"count, length, steps and batch_size must be at least 1, got {(count, length, steps, batch_size)}"
        )
    if count % stepper.together:
        raise ValueError(f"count must be a multiple of {stepper.together}, got {count}")
    size = max(1, batch_size // stepper.together) * stepper.together
    found, evaluations = [], 0
    for start in range(0, count, size):
        seeds = [seed_of(seed, stream, "", i) for i in range(start, min(start + size, count))]
        noise = (draws.to(device) for draws in _noise(seeds, steps, stepper.candidates, length))
        asked = _Asked(network, kernel, timeless)
        x = kernel.prior(next(noise)[:, :length])
        for step, draws in enumerate(noise):
            alpha_t, alpha_s = (schedule(1 - i / steps) for i in (step, step + 1))
            prediction = asked(x, alpha_t).double().softmax(-1)
            posterior = kernel.posterior(prediction, x, alpha_s=alpha_s, alpha_t=alpha_t)
            uniforms, lots = draws[:, :-1].unflatten(1, (stepper.candidates, length)), draws[:, -1]
            x = stepper(State(x, prediction, posterior, step, steps, alpha_t, alpha_s, uniforms, lots))
            if progress is not None:
                progress(start * steps + (step + 1) * len(x), count * steps)
        found.append(x)
        evaluations += asked.evaluations
    return torch.cat(found), evaluations


class _Asked:
    """A network that counts what it saw; one that ignores time is asked again only about sequences that changed."""

    def __init__(self, network: Network, kernel: Kernel, timeless: bool) -> None:
        self.evaluations, self._network, self._kernel, self._timeless = 0, network, kernel, timeless
        self._last: tuple[Tensor, Tensor] | None = None  # tokens and logits

    def __call__(self, x: Tensor, alpha: float) -> Tensor:
        """Return logits (B, L, V) of tokens (B, L)."""
        if self._last is None or not self._timeless:
            changed = torch.ones(len(x), dtype=torch.bool, device=x.device)
        else:
            changed = (x != self._last[0]).any(1)
        logits = None if self._last is None else self._last[1]
        if logits is None or changed.any():
            sigma = torch.full((int(changed.sum()),), alpha, device=x.device).log().neg()
            fresh = self._network(x[changed], sigma)
            wanted = (len(sigma), x.shape[1], self._kernel.vocab_size)
            # A token may be impossible, with -inf, but not all of them, and none may be certain beyond measure.
            if fresh.shape != wanted or not fresh.amax(-1).isfinite().all():
                what = tuple(fresh.shape) if fresh.shape != wanted else "NaN, inf, or -inf for every token"
                raise ValueError(f"the network must give logits {wanted} for a kernel of that vocabulary, got {what}")
            logits = fresh if len(fresh) == len(x) or logits is None else logits.index_put((changed,), fresh)
            self.evaluations += len(fresh)
        self._last = x, logits
        return logits


def tilt(p: Tensor, g: Tensor) -> Tensor:
    """Return ``p e^g``, normalised over the last dimension."""
    return (p.log() + g).softmax(-1)


def categorical(p: Tensor, uniforms: Tensor) -> Tensor:
    """Draw (*) from probabilities (*, V) by inversion: the same draw for the same number, in any batch."""
    ladder = p.cumsum(-1)
    return torch.searchsorted(ladder, uniforms[..., None].to(p) * ladder[..., -1:], right=True)[..., 0].clamp_max(
        p.shape[-1] - 1
    )


def _noise(seeds: Sequence[int], steps: int, candidates: int, length: int) -> Iterator[Tensor]:
    """Draw uniform numbers (B, M L + 1) for the prior and then each step, from a generator per sequence."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(steps + 1):
        yield torch.stack([torch.rand(candidates * length + 1, generator=g) for g in generators])
