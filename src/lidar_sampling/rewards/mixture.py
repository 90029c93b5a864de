"""Combinations of rewards: a weighted sum of standardised rewards, and ensembles against reward hacking.

    mixture(x) = sum_i w_i (r_i(x) - mean_i) / std_i

The spreads of rewards differ by orders of magnitude, so each is standardised first: by a fixed calibration, or over
the bank of each prompt, since guidance compares its members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .._media import check_batch
from . import Reward, check_prompts, load, name_of
from ._score import Prompt, ask_part

if TYPE_CHECKING:
    from .._bank import LookaheadBank


class Mixture:
    """A weighted sum of standardised rewards.

    Args:
        weights: reward name -> weight.
        rewards: your own rewards, by their names in ``weights``; the other names are loaded from the registry.
        calibration: reward name -> (mean, standard deviation). Without it each reward is standardised over the bank
            of a prompt, and the mixture can guide but not score single images.
        name: name of the sum in banks.
        device: where loaded rewards run.
        dtype: their precision.

    Attributes:
        parts: the rewards, in the order of ``weights``.
        weights, calibration: by the parts' own names, as in banks.

    Raises:
        ValueError: there are no weights, a weight is not finite, two parts have one name, a part has the name of the
            mixture, a calibration lacks a reward or has a deviation that is not positive, or a part is a mixture
            without a calibration.

    Example:
        >>> half = Mixture({"brightness": 0.5}, calibration={"brightness": (0.5, 0.1)})
        >>> half(images=torch.full((1, 3, 2, 2), 0.7), prompts=["a cat"])
        tensor([1.0000])
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        rewards: Sequence[Reward] = (),
        calibration: Mapping[str, tuple[float, float]] | None = None,
        name: str = "mixture",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not weights:
            raise ValueError("weights must name at least one reward")
        weights = {key: _number(weight, f"the weight of {key!r}") for key, weight in weights.items()}
        if calibration is not None:
            calibration = {key: _calibration_of(key, calibration) for key in weights}
        own = {name_of(reward): reward for reward in rewards}
        if len(own) < len(rewards) or not set(own) <= set(weights):
            raise ValueError(f"rewards must be named apart and have weights: got {[name_of(r) for r in rewards]}")
        self.parts = [own[key] if key in own else load(key, device=device, dtype=dtype) for key in weights]
        self.networks = [network for part in self.parts for network in getattr(part, "networks", ())]
        names = [name_of(part) for part in self.parts]  # banks know "clip:PATH" as "clip"
        if len(set(names)) < len(names):
            raise ValueError(f"parts must be named apart, got {names}: load one, set its name, pass it in rewards")
        if name in names:
            raise ValueError(f"a mixture must not be named as its part {name!r}: give it another name")
        _check_parts(self.parts)
        self.name = name
        self.weights = dict(zip(names, weights.values(), strict=True))
        self.calibration = calibration and {n: calibration[key] for n, key in zip(names, weights, strict=True)}

    @property
    def differentiable(self) -> bool:
        """Whether every part is differentiable."""
        return all(getattr(part, "differentiable", False) for part in self.parts)

    @property
    def reads_prompt(self) -> bool:
        """Whether any part reads the prompt."""
        return any(getattr(part, "reads_prompt", True) for part in self.parts)

    @property
    def reads_metadata(self) -> bool:
        """Whether any part reads metadata; the others get the texts."""
        return any(getattr(part, "reads_metadata", False) for part in self.parts)

    @property
    def modality(self) -> str:
        """``"video"`` if any part takes whole videos; the others get frames."""
        return _modality(self.parts)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that a part cannot read.

        Raises:
            ValueError: a part cannot read a prompt; the message names both.
        """
        for part in self.parts:
            check_prompts(part, prompts)

    def __call__(self, *, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return sums (B,) for images (B, 3, H, W) in [0, 1] and B prompts.

        Raises:
            ValueError: there is no fixed calibration, or images or prompts have another form.
            RewardError: a part did not return one number per image; the message names it.
        """
        check_batch(images, prompts)
        if self.calibration is None:
            raise ValueError(
                f"{self.name!r} is standardised over a bank: guide with it, or give calibration={{name: (mean, std)}}"
            )
        total: Any = 0.0
        for (key, weight), part in zip(self.weights.items(), self.parts, strict=True):
            mean, std = self.calibration[key]
            total = total + weight * (ask_part(part, images=images, prompts=prompts) - mean) / std
        return total

    def on(self, bank: LookaheadBank) -> LookaheadBank:
        """Return ``bank`` with the mixture as one more reward; it must hold the scores of every part."""
        return bank.with_rewards(bank.combine(self.weights, calibration=self.calibration, name=self.name).rewards)


class Ensemble:
    """A combination of rewards on one scale, which is harder to hack than each.

    The combination is ``mean``; ``min``, the worst case; or ``uncertainty``, the mean minus ``coefficient`` times the
    variance (Coste et al. 2023, https://arxiv.org/abs/2310.02743, section 3).

    Args:
        members: at least two rewards.
        how: how to combine them.
        coefficient: at least 0, for ``uncertainty``.
        name: its name in banks and results.

    Example:
        >>> from lidar_sampling.testing import brightness
        >>> def darkness(*, images, prompts):
        ...     return 1 - brightness(images=images, prompts=prompts)
        >>> Ensemble([brightness, darkness], "min")(images=torch.full((1, 3, 2, 2), 0.75), prompts=["a cat"])
        tensor([0.2500])
    """

    def __init__(
        self,
        members: Sequence[Reward],
        how: Literal["mean", "min", "uncertainty"] = "mean",
        *,
        coefficient: float = 1.0,
        name: str = "ensemble",
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble needs at least two members, got {len(members)}")
        if how not in ("mean", "min", "uncertainty"):
            raise ValueError(f"how must be 'mean', 'min' or 'uncertainty', got {how!r}")
        if not 0 <= coefficient < math.inf:
            raise ValueError(f"coefficient must be finite and at least 0, got {coefficient}")
        _check_parts(members)
        rates = sorted({member.sampling_rate for member in members if hasattr(member, "sampling_rate")})
        if len(rates) > 1:
            raise ValueError(f"the members of an ensemble must hear at one rate, got {rates[0]} and {rates[1]} Hz")
        self.members, self.how, self.coefficient, self.name = list(members), how, coefficient, name
        self.networks = [network for member in members for network in getattr(member, "networks", ())]

    @property
    def differentiable(self) -> bool:
        """Whether every member is differentiable."""
        return all(getattr(member, "differentiable", False) for member in self.members)

    @property
    def reads_prompt(self) -> bool:
        """Whether any member reads the prompt."""
        return any(getattr(member, "reads_prompt", True) for member in self.members)

    @property
    def reads_metadata(self) -> bool:
        """Whether any member reads metadata; the others get the texts."""
        return any(getattr(member, "reads_metadata", False) for member in self.members)

    @property
    def modality(self) -> str:
        """``"video"`` if any member takes whole videos; the others get frames."""
        return _modality(self.members)

    @property
    def sampling_rate(self) -> int:
        """The rate in Hz at which its members hear; those of pictures have none."""
        return _first_of(self.members, "sampling_rate")

    @property
    def features(self) -> Any:
        """The features of the first member that has any, by which samples are told apart."""
        return _first_of(self.members, "features")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that a member cannot read.

        Raises:
            ValueError: a member cannot read a prompt; the message names both.
        """
        for member in self.members:
            check_prompts(member, prompts)

    def __call__(self, *, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return scores (B,) for images (B, 3, H, W) in [0, 1] and B prompts.

        Raises:
            ValueError: images or prompts have another form.
            RewardError: a member did not return one number per image; the message names it.
        """
        check_batch(images, prompts)
        scores = torch.stack([ask_part(member, images=images, prompts=prompts) for member in self.members])
        if self.how == "min":
            return scores.amin(0)
        penalty = self.coefficient * scores.var(0, correction=0) if self.how == "uncertainty" else 0.0
        return scores.mean(0) - penalty


def _number(value: Any, what: str) -> float:
    """Return a finite number as a plain float, which results and keys can hold."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number, got {value!r}")
    return number


def _calibration_of(key: str, calibration: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    if key not in calibration:
        raise ValueError(f"calibration lacks {key!r}; it has {', '.join(map(repr, calibration)) or 'none'}")
    wanted = f"the calibration of {key!r} must be (mean, std) with std above 0, got {calibration[key]!r}"
    try:
        mean, std = (_number(value, "it") for value in calibration[key])
    except (TypeError, ValueError):
        raise ValueError(wanted) from None
    if std <= 0:
        raise ValueError(wanted)
    return mean, std


def _check_parts(parts: Sequence[Reward]) -> None:
    """Refuse a part that cannot score single images."""
    for part in parts:
        if isinstance(part, Mixture) and part.calibration is None:
            raise ValueError(
                f"{part.name!r} is standardised over a bank, so it cannot be a part: "
                "give it calibration={name: (mean, std)}"
            )


def _first_of(parts: Sequence[Reward], name: str) -> Any:
    """Return the attribute of the first part that has it.

    Raises:
        AttributeError: none has it.
    """
    for part in parts:
        if hasattr(part, name):
            return getattr(part, name)
    raise AttributeError(name)


def _modality(parts: Sequence[Reward]) -> str:
    return "video" if any(getattr(part, "modality", "image") == "video" for part in parts) else "image"
