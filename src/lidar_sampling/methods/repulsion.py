"""Repulsion from a bank's worst members: negative guidance alone (table 7 of https://arxiv.org/abs/2602.03211).

Samples keep away from the K members x^i of a bank with the lowest rewards: at every step the clean prediction x0
moves by s times (equations 55 and 57 there)

    Safe-Denoiser   beta (x0 - sum_i w_i x^i),      w = softmax_i(-|x_t - alpha x^i|^2 / (2 sigma^2))
    SPELL           sum_i max(0, radius / |x0 - x^i| - 1) (x0 - x^i)

after Kim et al. 2025 (https://arxiv.org/abs/2502.08011) and Kirchhof et al. 2025 (https://arxiv.org/abs/2410.06025).
SPELL moves x0 out of the balls around the members, with s = 1 just to the rim of a lone one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._bank import warn_of_equal
from .._cost import Cost
from .._hooks import Hook, Step
from .._levels import NoiseLevel, check
from .._result import Result
from .._sampler import LiDAR
from .._values import check_fields
from ..rewards import name_of
from ._checks import check_images
from ._face import bank_cost, hook_batches, sampling_cost

Shift = Callable[[Tensor, Tensor, Tensor, NoiseLevel], Tensor]
"""From x_t (*), its clean prediction (*), members (K, *) and the noise level to a shift (*) of the prediction."""


class Repelling(ABC):
    """The part that such methods share: a bank, its worst members, and sampling away from them."""

    worst: int

    @abstractmethod
    def shift(self, x_t: Tensor, x0: Tensor, members: Tensor, level: NoiseLevel) -> Tensor:
        """Return what to add to the clean prediction (*) of x_t (*), of members (K, *)."""

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt; each prompt costs a bank of ``n`` few-step samples, once.

        Raises:
            ValueError: a bank that is smaller than ``worst``, or a scheduler that cuts the shift away.
        """
        self._check(lidar)
        check_images(images)
        if self.worst == lidar.settings.n:
            lidar.warn_once(f"worst={self.worst} is the whole bank: samples keep away from its best members, too")
        banks, cost = lidar.draw_banks(prompts, seed, None)
        members = {}
        for bank in banks:
            guide = lidar.with_guide(bank)
            warn_of_equal(guide, name_of(lidar.reward), name_of(lidar.reward))
            rewards = guide.reward(name_of(lidar.reward))
            members[bank.prompt] = bank.samples[rewards.argsort(stable=True)[: self.worst]]

        around, _ = hook_batches(lidar, lambda batch: Repulsion([members[item.prompt] for item in batch], self.shift))
        result = lidar.sample(prompts, images, seed, around=around)
        return replace(result, banks=banks, cost={"lookahead": cost, **result.cost})

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: its bank, and the steps of ``images`` samples.

        A bank that a store already holds costs nothing: the store is not asked.
        """
        self._check(lidar)
        return bank_cost(lidar) + sampling_cost(lidar, images)

    def _check(self, lidar: LiDAR) -> None:
        check(lidar.pipe.scheduler)
        if self.worst > lidar.settings.n:
            raise ValueError(f"worst must be at most n = {lidar.settings.n}, the size of the bank, got {self.worst}")


@dataclass(frozen=True)
class SafeDenoiser(Repelling):
    """Repulsion from the posterior mean over the worst members, with the best settings of the LiDAR paper.

    Attributes:
        scale: s.
        worst: K, at most the size of the bank.
        beta: strength, the same at all noise levels.
    """

    scale: float = 1.0
    worst: int = 15
    beta: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self, scale="[0, inf)", worst="[1, inf)", beta="(0, inf)")

    def shift(self, x_t: Tensor, x0: Tensor, members: Tensor, level: NoiseLevel) -> Tensor:
        """Return what to add to the clean prediction (*), of members (K, *).

        >>> import torch
        >>> level, members = NoiseLevel(1.0, 1.0, -1.0, 1.0, 0.5), torch.tensor([[-1.0], [1.0]])
        >>> SafeDenoiser(beta=0.5).shift(torch.zeros(1), torch.tensor([3.0]), members, level)
        tensor([1.5000])
        """
        distance = (x_t - level.alpha * members).flatten(1).square().sum(1)
        weights = (-distance / (2 * level.sigma**2)).softmax(0)
        return self.scale * self.beta * (x0 - torch.tensordot(weights, members, 1))


@dataclass(frozen=True)
class Spell(Repelling):
    """Sparse repellency from the worst members, with the best settings of the LiDAR paper.

    Attributes:
        scale: s.
        worst: K, at most the size of the bank.
        radius: of the balls, in units of latents; 100 was chosen for those of SD 1.5.
    """

    scale: float = 1.0
    worst: int = 40
    radius: float = 100.0

    def __post_init__(self) -> None:
        check_fields(self, scale="[0, inf)", worst="[1, inf)", radius="(0, inf)")

    def shift(self, x_t: Tensor, x0: Tensor, members: Tensor, level: NoiseLevel) -> Tensor:
        """Return what to add to the clean prediction (*), of members (K, *); 0 outside of all balls.

        >>> import torch
        >>> level, members = NoiseLevel(1.0, 1.0, -1.0, 1.0, 0.5), torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> Spell(radius=2.0).shift(torch.zeros(2), torch.tensor([0.0, 0.5]), members, level)
        tensor([0.0000, 1.5000])
        """
        away = x0 - members
        distance = away.flatten(1).norm(dim=1).clamp_min(1e-12)
        return self.scale * torch.tensordot((self.radius / distance - 1).relu(), away, 1)


class Repulsion(Hook):
    """The hook that moves each clean prediction away from members of its own.

    Args:
        members: (K, *) for each of the batch.
        shift: by how much.
    """

    def __init__(self, members: Sequence[Tensor], shift: Shift) -> None:
        self.members, self.shift = members, shift

    def before(self, step: Step) -> Step:
        """Shift the clean prediction."""
        level = step.level
        if level.sigma == 0 or level.slope == 0:  # nothing is noisy, or nothing is known
            return step
        rows = zip(step.x_t.float(), step.x0.float(), self.members, strict=True)
        return step.with_shift(torch.stack([self.shift(x_t, x0, worst.to(x0), level) for x_t, x0, worst in rows]))
