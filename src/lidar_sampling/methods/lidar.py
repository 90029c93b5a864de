"""LiDAR itself (Kim et al. 2026, https://arxiv.org/abs/2602.03211): a bank of each prompt, then guided samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .._result import Result
from .._sampler import LiDAR
from ..solvers import load
from ._checks import check_fields


@dataclass(frozen=True)
class Guided:
    """Lookahead sample reward guidance; what is None is as the sampler's settings have it.

    Attributes:
        n: lookahead samples a prompt.
        scale: s, the strength of the shift.
        reward_scale: lambda, in 1 / reward.
        steps: denoising steps of the guided samples.
        lookahead: the few-step solver of the bank.
    """

    n: int | None = None
    scale: float | None = None
    reward_scale: float | None = None
    steps: int | None = None
    lookahead: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, n="[1, inf)", scale="[0, inf)", reward_scale="[0, inf)", steps="[1, inf)")
        if self.lookahead is not None:
            load(self.lookahead)

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` guided samples a prompt; it costs a bank of ``n`` few-step samples a prompt, once."""
        changes = {name: value for name, value in asdict(self).items() if value is not None}
        return lidar.with_settings(**changes).guided(list(prompts), images, seed, None)
