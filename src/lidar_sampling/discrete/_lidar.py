"""Both phases of LiDAR over a denoiser of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .._bank import BankError, LookaheadBank, warn_of_another, warn_of_equal
from .._cost import Cost
from .._settings import check_strength
from .._space import Space, magnitudes
from .._values import check_fields, check_known
from ._guidance import TokenMembers
from ._kernels import SCHEDULES, Kernel, kernel_of
from ._reward import Reward, score
from ._sampler import Joint, Network, SingleSite, Stepper, TokenIndependent, sample
from .model import Denoiser

Progress = Callable[[str, int, int], None]
"""Called with (phase, sequences' steps done, in all)."""
Form = Literal["token-independent", "single-site", "joint"]


@dataclass(frozen=True)
class TokenSettings:
    """How tokens are drawn and guided.

    Attributes:
        n: lookahead samples.
        lookahead_steps: steps of each.
        steps: of the guided samples.
        reward_scale: lambda, in 1 / reward, at least 0.
        scale: s, of the estimate, at least 0; 1 is the tilted law.
        form: of guidance.
        candidates: M of the joint form.
        floor: the least share of noise that a bank is asked about, in [0, 1).
        schedule: of the noise.
        batch_size: sequences at a time.
    """

    n: int = 1024
    lookahead_steps: int = 8
    steps: int = 32
    reward_scale: float = 1.5
    scale: float = 1.0
    form: Form = "single-site"
    candidates: int = 8
    floor: float = 0.02
    schedule: str = "log-linear"
    batch_size: int = 256

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("n", "lookahead_steps", "steps", "candidates", "batch_size"), "[1, inf)")
        check_fields(self, **whole, floor="[0, 1)")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        for name in ("reward_scale", "scale"):
            check_strength(name, getattr(self, name))


_FORMS: dict[str, type[TokenIndependent]] = {
    "token-independent": TokenIndependent,
    "single-site": SingleSite,
    "joint": Joint,
}


@dataclass
class TokenResult:
    """Sequences with their rewards, costs and settings.

    Attributes:
        tokens: (B, L).
        rewards: (B,) of what guided.
        cost: of each phase: ``lookahead``, ``sampling``, ``scoring``.
        settings: how they were drawn.
        seed: the seed.
        bank: what guided; None for plain samples.
    """

    tokens: Tensor
    rewards: Tensor
    cost: dict[str, Cost]
    settings: TokenSettings
    seed: int
    bank: LookaheadBank | None = None


class TokenLiDAR:
    """Lookahead sample reward guidance of a denoiser of tokens, by any function of the tokens.

    Args:
        network: a :class:`~lidar_sampling.discrete.model.Denoiser`, or a function from noisy tokens (B, L) and total
            noise (B,) to logits (B, L, V), which wants ``kernel`` and ``length``.
        kernel: the forward process; by default what the denoiser was trained on.
        reward: guides.
        length: L; by default the denoiser's.
        device: where tokens live; by default the denoiser's, or the CPU.
        about: what the banks are called, in place of a prompt.
        **settings: fields of :class:`TokenSettings`.

    Raises:
        TypeError, ValueError: an argument that is not known or out of range.

    Example:
        >>> from lidar_sampling.discrete import TokenLiDAR
        >>> from lidar_sampling.discrete.model import Denoiser, DenoiserConfig
        >>> model = Denoiser(DenoiserConfig(vocab_size=5, length=6, hidden_size=16, layers=1, heads=2)).eval()
        >>> lidar = TokenLiDAR(model, reward=lambda x: (x == 3).sum(1), n=256, steps=16, reward_scale=2.0)
        >>> plain, guided = lidar.vanilla(32), lidar(32)
        >>> float(guided.rewards.mean()) > float(plain.rewards.mean()) + 1
        True
    """

    def __init__(
        self,
        network: Denoiser | Network,
        *,
        reward: Reward,
        kernel: Kernel | None = None,
        length: int | None = None,
        device: torch.device | str | None = None,
        about: str = "tokens",
        **settings: Any,
    ) -> None:
        check_known(TokenSettings, settings)
        if not callable(reward):
            raise TypeError(f"reward must be a function of tokens, got {reward!r}")
        self.settings, self.reward, self.about = TokenSettings(**settings), reward, about
        self.device, self._timeless = torch.device(device or "cpu"), False
        self._weights: tuple[float, ...] = ()
        if isinstance(network, Denoiser):
            if network.training:
                raise ValueError("the denoiser is in training mode, with dropout: call its eval() first")
            config = network.config
            kernel = kernel or kernel_of(config.noise, config.vocab_size, config.mask_id)
            length = length or config.length
            if kernel.vocab_size != config.vocab_size:
                raise ValueError(
                    f"the kernel has {kernel.vocab_size} tokens, the denoiser {config.vocab_size}: leave kernel out"
                )
            self.device, self._timeless = torch.device(device or network.device), not config.time_conditioning
            self._weights = magnitudes(network.parameters())
            self.network: Network = lambda x, sigma: network(x, sigma).logits
        else:
            self.network = network
        if kernel is None or length is None:
            raise TypeError("network is a function, so it needs kernel and length: give both")
        self.kernel, self.length = kernel, length
        self.space = Space(f"{kernel.vocab_size} tokens", (length,))

    def with_settings(self, **changes: Any) -> TokenLiDAR:
        """Return the same sampler with other :class:`TokenSettings`."""
        check_known(TokenSettings, changes)
        twin = copy(self)
        twin.settings = replace(self.settings, **changes)
        return twin

    def look(self, *, seed: int = 0, progress: Progress | None = None) -> LookaheadBank:
        """Draw a bank of ``n`` samples in ``lookahead_steps``, scored once: phase 1."""
        return self._draw_bank(seed, progress)[0]

    def __call__(
        self, count: int, *, seed: int = 0, bank: LookaheadBank | None = None, progress: Progress | None = None
    ) -> TokenResult:
        """Draw ``count`` guided sequences; they cost the bank, unless it is given, and what plain ones cost.

        Raises:
            TypeError: ``bank`` is not a bank.
            ValueError: a bank of other sequences, or without exactly one reward.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        cost = {}
        if bank is None:
            bank, cost["lookahead"] = self._draw_bank(seed, progress)
        how, members = self.settings, self.members(bank)
        warn_of_another(bank, self._reward_name())
        warn_of_equal(bank, self._reward_name())
        more = {"candidates": how.candidates} if how.form == "joint" else {}
        stepper = _FORMS[how.form](members, scale=how.scale, floor=how.floor, **more)
        result = self.sample(count, seed=seed, stepper=stepper, progress=progress)
        return replace(result, bank=bank, cost={**cost, **result.cost})

    def members(self, bank: LookaheadBank) -> TokenMembers:
        """Prepare the bank to guide; :class:`SingleSite` and its like take the result.

        Raises:
            TypeError: ``bank`` is not a bank.
            ValueError: a bank of other sequences, or without exactly one reward.
        """
        if not isinstance(bank, LookaheadBank):
            raise TypeError(f"bank must be a LookaheadBank, got {bank!r}: LookaheadBank.load reads files")
        space = bank.space or Space(self.space.pipeline, tuple(bank.samples.shape[1:]))
        if why := space.difference(self.space):
            raise BankError(f"the bank is of other sequences: {why}")
        samples, rewards = bank.samples.to(self.device), bank.reward().to(self.device)
        return TokenMembers(samples, rewards, self.kernel, reward_scale=self.settings.reward_scale)

    def vanilla(self, count: int, *, seed: int = 0, progress: Progress | None = None) -> TokenResult:
        """Draw ``count`` sequences without guidance; of the noise of the guided, unless those have candidates."""
        return self.sample(count, seed=seed, progress=progress)

    def sample(
        self, count: int, *, seed: int = 0, stepper: Stepper | None = None, progress: Progress | None = None
    ) -> TokenResult:
        """Draw ``count`` sequences by ``stepper``, and reward them; its looks on the way count as sampling."""
        looked = getattr(stepper, "evaluations", 0)
        tokens, sampling = self._draw(count, self.settings.steps, seed, "target", stepper, progress)
        sampling = sampling + Cost(reward_calls=getattr(stepper, "evaluations", 0) - looked)
        start = time.perf_counter()
        rewards = self.score(tokens)
        scoring = Cost(reward_calls=count, seconds=time.perf_counter() - start)
        return TokenResult(tokens, rewards, {"sampling": sampling, "scoring": scoring}, self.settings, seed)

    def score(self, tokens: Tensor) -> Tensor:
        """Return rewards (B,) float32 of tokens (B, L), on the CPU.

        Raises:
            ValueError: the reward gave something else than a finite number per sequence.
        """
        return score(self.reward, tokens)

    def _reward_name(self) -> str:
        return str(getattr(self.reward, "name", None) or getattr(self.reward, "__name__", "reward"))

    def _draw_bank(self, seed: int, progress: Progress | None) -> tuple[LookaheadBank, Cost]:
        how = self.settings
        tokens, cost = self._draw(how.n, how.lookahead_steps, seed, "bank", None, progress)
        start = time.perf_counter()
        rewards = self.score(tokens)
        cost = cost + Cost(reward_calls=how.n, seconds=time.perf_counter() - start)
        provenance = {
            "steps": how.lookahead_steps,
            "schedule": how.schedule,
            "seed": seed,
            "n": how.n,
            "kernel": repr(self.kernel),
            "network": list(self._weights),
        }
        return LookaheadBank(tokens.cpu(), {self._reward_name(): rewards}, self.about, self.space, provenance), cost

    def _draw(
        self, count: int, steps: int, seed: int, stream: str, stepper: Stepper | None, progress: Progress | None
    ) -> tuple[Tensor, Cost]:
        start = time.perf_counter()
        with torch.no_grad():
            tokens, evaluations = sample(
                self.network,
                self.kernel,
                count,
                self.length,
                steps=steps,
                stepper=stepper,
                schedule=SCHEDULES[self.settings.schedule],
                seed=seed,
                stream=stream,
                batch_size=self.settings.batch_size,
                timeless=self._timeless,
                device=self.device,
                progress=None if progress is None else partial(progress, stream),
            )
        return tokens, Cost(network_evaluations=evaluations, seconds=time.perf_counter() - start)
