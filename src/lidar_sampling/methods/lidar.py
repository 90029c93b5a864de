"""LiDAR itself (Kim et al. 2026, https://arxiv.org/abs/2602.03211): a bank of each prompt, then guided samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .._cost import Cost
from .._levels import check
from .._result import Result
from .._sampler import LiDAR
from .._settings import Strength
from .._values import check_fields
from ..solvers import load
from ._face import bank_cost, sampling_cost


@dataclass(frozen=True)
class Guided:
    """Lookahead sample reward guidance; what is None is as the sampler's settings have it.

    Attributes:
        n: lookahead samples per prompt.
        scale: s, the strength of the shift.
        reward_scale: lambda, in 1 / reward; or ``auto``.
        ess: of ``auto``, the effective sample size of a bank at pure noise, as a share of ``n``.
        steps: denoising steps of the guided samples.
        lookahead: the few-step solver of the bank.
        grid: cells per side that latents are averaged over before they are compared with the bank's.
    """

    n: int | None = None
    scale: float | None = None
    reward_scale: Strength | None = None
    steps: int | None = None
    lookahead: str | None = None
    ess: float | None = None
    grid: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            n="[1, inf)",
            scale="[0, inf)",
            reward_scale="[0, inf)",
            steps="[1, inf)",
            ess="(0, 1]",
            grid="[1, inf)",
        )
        if self.lookahead is not None:
            load(self.lookahead)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` guided samples per prompt, for a bank of ``n`` few-step samples per prompt, once."""
        return self.sampler(lidar).draw_guided(prompts, images, seed, None)

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for one prompt: its bank, and the steps of ``images`` samples.

        A bank that a store already holds costs nothing: the store is not asked.
        """
        twin = self.sampler(lidar)
        check(twin.pipe.scheduler)
        return bank_cost(twin) + sampling_cost(twin, images)

    def sampler(self, lidar: LiDAR) -> LiDAR:
        """Return the sampler with the settings that this method changes."""
        return lidar.with_settings(**{name: value for name, value in asdict(self).items() if value is not None})
