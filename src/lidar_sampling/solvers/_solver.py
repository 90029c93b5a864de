"""The description of a few-step solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._call import TARGET_ONLY
from .._hub import Published
from .._values import check_settings

_KINDS = ("lora", "denoiser", "pipeline")


@dataclass(frozen=True)
class Solver:
    """A few-step solver: how the lookahead samples of phase 1 are drawn.

    At most one of ``lora``, ``denoiser`` and ``pipeline`` is given; none keeps the target's own weights.

    Attributes:
        name: what provenance calls it.
        steps: ``num_inference_steps``.
        scheduler: class name in diffusers, made from the pipeline's scheduler config, or a function from the
            pipeline's scheduler to a new one; None keeps the pipeline's own class.
        settings: what changes in that config.
        timesteps: the timesteps, where the scheduler's own spacing is not the one that was distilled.
        guidance_scale: classifier-free guidance of phase 1; None keeps the sampler's.
        call: further arguments of the pipeline's call.
        lora: adapter that turns the target's denoiser into the few-step model.
        lora_scale: its strength.
        denoiser: weights of a few-step model with the target's architecture.
        pipeline: a few-step model of its own: a pipeline, or where one is published.
        bases: families it fits (:func:`base_of`); empty for every one.
        note: anything else that a user should know.

    Example:
        >>> Solver("mine:4", steps=4, scheduler="LCMScheduler", guidance_scale=1.0).steps
        4
    """

    name: str
    steps: int
    scheduler: str | Callable[[Any], Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    timesteps: tuple[int, ...] | None = None
    guidance_scale: float | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    lora: Published | str | Path | None = None
    lora_scale: float = 1.0
    denoiser: Published | str | Path | None = None
    pipeline: Published | str | Path | Any = None
    bases: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        known = {"name": str, "steps": int, "guidance_scale": float | None, "lora_scale": float}
        check_settings("Solver", {name: getattr(self, name) for name in known}, known)
        if not all(math.isfinite(number) for number in (self.guidance_scale or 0.0, self.lora_scale)):
            raise ValueError(f"{self.name}: guidance_scale and lora_scale must be finite")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.timesteps is not None and len(self.timesteps) != self.steps:
            raise ValueError(f"{self.name}: {self.steps} steps need as many timesteps, got {self.timesteps}")
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if callable(self.scheduler) and self.settings:
            raise ValueError(f"{self.name}: settings change a scheduler that is named, and this one is a function")
        if self.lora is None and self.lora_scale != 1:
            raise ValueError(f"{self.name}: lora_scale={self.lora_scale} has no effect without a lora")
        if len(given) > 1:
            raise ValueError(f"{self.name}: give one of lora, denoiser and pipeline, got {' and '.join(given)}")

    @property
    def kind(self) -> str | None:
        """``lora``, ``denoiser`` or ``pipeline``; None for the target's own weights."""
        return next((kind for kind in _KINDS if getattr(self, kind) is not None), None)

    @property
    def weights(self) -> Any:
        """Where its weights come from: what was given as :attr:`kind`."""
        return getattr(self, self.kind) if self.kind else None

    def provenance(self) -> dict[str, Any]:
        """Return what decides the samples, as JSON values."""
        scheduler, weights = self.scheduler, self.weights
        if callable(scheduler):
            scheduler = getattr(scheduler, "__qualname__", None) or repr(scheduler)
        if isinstance(weights, Published):
            weights = [weights.repo, weights.file, weights.revision]
        elif weights is not None and not isinstance(weights, str):
            weights = str(weights) if isinstance(weights, Path) else type(weights).__name__
        settings = {key: repr(value) for key, value in sorted(self.settings.items())}
        return {
            "name": self.name,
            "scheduler": [scheduler, settings, list(self.timesteps or ())],
            "weights": weights,
            "lora_scale": self.lora_scale,
        }

    def arguments(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of phase 1's pipeline call, from those of phase 2.

        Those that say how the target goes through its steps, such as ``timesteps``, stay with the target.
        """
        own = {"guidance_scale": self.guidance_scale, "timesteps": self.timesteps and list(self.timesteps)}
        changes = {name: value for name, value in own.items() if value is not None}
        shared = {name: value for name, value in call.items() if name not in TARGET_ONLY}
        return {**shared, **changes, **self.call, "num_inference_steps": self.steps}
