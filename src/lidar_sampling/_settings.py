"""Defaults that come with the model: one table, a row per family, each with its source."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_type_hints

from ._guidance import check_cells
from ._kernel import read_noise
from ._values import check_known, check_settings

_log = logging.getLogger(__name__)

Strength = float | Literal["auto"]

OF_BANKS = ("n", "scale", "reward_scale", "lookahead", "window", "ess", "grid")
"""Settings that concern banks and guidance by them; what draws without a bank reads none of them."""

_PAPER = "Kim et al. 2026 (arXiv 2602.03211), appendix B.1"


@dataclass(frozen=True)
class Settings:
    """How a model is sampled and guided.

    Attributes:
        steps: denoising steps of phase 2.
        guidance_scale: classifier-free guidance of both phases; None leaves the pipeline's default.
        eta: noise of a DDIM scheduler, 0 to 1; None leaves the pipeline's default.
        lookahead: the few-step solver of phase 1 (:mod:`lidar_sampling.solvers`).
        n: lookahead samples per prompt.
        scale: s, the strength of the shift.
        reward_scale: lambda, in units of one over the reward; ``"auto"`` gives each bank its own, by the effective
            sample size that its weights should have at pure noise.
        window: (start, end) of guidance in diffusion time, 1 at pure noise.
        source: where the numbers come from.
        scheduler: the class of diffusers that the target samples with; None keeps the pipeline's own.
        noise: ``ddpm`` or ``cps`` with its eta, such as ``ddpm:0.5``, or ``glass:5``: the target's steps are replaced
            by stochastic ones (:func:`lidar_sampling.stochastic`); None keeps the scheduler's own.
        ess: that effective sample size, as a share of n.
        grid: cells per side that latents are averaged over before they are compared with the bank's; None compares
            every number.
        tuned_for: the reward that ``reward_scale`` was chosen with; None says nothing of it.
    """

    steps: int
    guidance_scale: float | None
    eta: float | None
    lookahead: str
    n: int
    scale: float
    reward_scale: Strength
    window: tuple[float, float]
    source: str
    scheduler: str | None = None
    noise: str | None = None
    ess: float = 0.25
    tuned_for: str | None = None
    grid: int | None = None

    def __post_init__(self) -> None:
        check_settings("Settings", vars(self), get_type_hints(Settings))
        for name in ("steps", "n"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_strength("scale", self.scale)
        check_reward_scale(self.reward_scale, self.ess)
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be 0 to 1, got {self.eta}")
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale must be finite, got {self.guidance_scale}")
        check_window(self.window)
        check_cells(self.grid)
        if self.noise is not None:
            read_noise(self.noise)

    def with_changes(self, **changes: Any) -> Settings:
        """Return the settings with ``changes``; a strength among them was tuned for no reward that is known.

        Raises:
            TypeError: a name that is no setting.
        """
        check_known(Settings, changes)
        if "reward_scale" in changes:
            changes = {"tuned_for": None, **changes}
        changed = replace(self, **changes)
        if "ess" in changes and changed.reward_scale != "auto":
            _log.warning(
                "ess=%g does nothing: it is the target of reward_scale='auto', and reward_scale is %s",
                changed.ess,
                changed.reward_scale,
            )
        return changed


def check_strength(name: str, value: float) -> None:
    """Refuse a scale that is negative, infinite or NaN."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def check_reward_scale(reward_scale: Strength, ess: float) -> None:
    """Refuse a reward_scale that is neither a strength nor ``"auto"``, and an ``ess`` outside (0, 1]."""
    if reward_scale != "auto":
        if isinstance(reward_scale, str):
            raise ValueError(f"reward_scale must be a number or 'auto', got {reward_scale!r}")
        check_strength("reward_scale", reward_scale)
    if not 0 < ess <= 1:
        raise ValueError(f"ess must be in (0, 1], got {ess}")


def check_window(window: tuple[float, float]) -> None:
    """Refuse a window of guidance that is not (start, end) with 1 >= start > end >= 0."""
    start, end = window
    if not 1 >= start > end >= 0:
        raise ValueError(f"window must be (start, end) with 1 >= start > end >= 0, got {window}")


GLYPH = Settings(50, 3.0, 1.0, "dpm:5", 50, 6.0, 20.0, (1.0, 0.2), "sweep on glyph, docs/glyph.md", tuned_for="glyph")

_UNTUNED = "steps and guidance_scale are the pipeline's defaults in diffusers 0.42; no guidance settings published"

_published = partial(Settings, tuned_for="image-reward")

PRESETS = {
    "paper-sd15": _published(
        100, 7.5, 1.0, "dpm:5", 50, 12.5, 5000.0, (1.0, 0.2), f"{_PAPER}, SD 1.5, ImageReward", "DDIMScheduler"
    ),
    "paper-sdxl": _published(
        100, 7.5, 1.0, "dpm:8-karras", 50, 8.0, 5000.0, (1.0, 0.2), f"{_PAPER}, SDXL, ImageReward", "DDIMScheduler"
    ),
}
"""Settings by name, whole with their scheduler: those of the paper."""

_STRENGTHS = "steps and guidance_scale are the pipeline's defaults in diffusers 0.42; the rest is that of the preset"


def _gentle(steps: int, guidance_scale: float | None, lookahead: str, n: int, source: str = _UNTUNED) -> Settings:
    """Return the settings of a model of which nobody has published how it is guided: a gentle strength that fits."""
    return Settings(steps, guidance_scale, None, lookahead, n, 1.0, "auto", (1.0, 0.2), source)


DEFAULTS = {
    "StableDiffusionPipeline": _published(
        50, 7.5, None, "dpm:5", 50, 12.5, 5000.0, (1.0, 0.2), f"{_STRENGTHS} paper-sd15, tuned with another scheduler"
    ),
    "StableDiffusionXLPipeline": _published(
        50,
        5.0,
        None,
        "dpm:8-karras",
        50,
        8.0,
        5000.0,
        (1.0, 0.2),
        f"{_STRENGTHS} paper-sdxl, tuned with another scheduler",
    ),
    "StableDiffusion3Pipeline": _gentle(28, 7.0, "own:8", 50),
    "FluxPipeline": _published(
        50, 3.5, None, "own:8", 50, 40.0, 5000.0, (1.0, 0.95), f"{_PAPER}, FLUX; its lookahead was hyper-flux:8"
    ),
    "FluxPipeline, schnell": _gentle(
        4, 0.0, "own:1", 50, "model card of FLUX.1 [schnell]; no guidance settings published"
    ),
    "PixArtSigmaPipeline": _gentle(20, 4.5, "dpm:8", 50),
    "SanaPipeline": _gentle(20, 4.5, "dpm:8", 50),
    "WanPipeline": _gentle(50, 5.0, "own:8", 16),
    "LTXPipeline": _gentle(50, 3.0, "own:8", 16),
    "CogVideoXPipeline": _gentle(50, 6.0, "own:8", 16),
    "StableAudioPipeline": _gentle(100, 7.0, "own:10", 16),
    # Qwen-Image guides by true_cfg_scale, 4 by default, once there is a negative prompt.
    "QwenImagePipeline": _gentle(50, None, "own:8", 50),
    "QwenImageEditPipeline": _gentle(50, None, "own:8", 50),
    "QwenImageEditPlusPipeline": _gentle(50, None, "own:8", 50),
    "ZImagePipeline": _gentle(50, 5.0, "own:8", 50),
    "Flux2Pipeline": _gentle(50, 4.0, "own:8", 50),
    "Flux2KleinPipeline": _gentle(50, 4.0, "own:8", 50),
    "FluxKontextPipeline": _gentle(28, 3.5, "own:8", 50),
    "ChromaPipeline": _gentle(35, 5.0, "own:8", 50),
    "HiDreamImagePipeline": _gentle(50, 5.0, "own:8", 50),
    "Lumina2Pipeline": _gentle(30, 4.0, "own:8", 50),
    "KolorsPipeline": _gentle(50, 5.0, "dpm:8-karras", 50),
    "CogView4Pipeline": _gentle(50, 5.0, "own:8", 50),
    "WanImageToVideoPipeline": _gentle(50, 5.0, "own:8", 16),
    "HunyuanVideo15Pipeline": _gentle(50, None, "own:8", 16),
    "LTX2Pipeline": _gentle(30, 3.0, "own:8", 16),
    "Kandinsky5T2VPipeline": _gentle(50, 5.0, "own:8", 16),
    "Cosmos2_5_PredictBasePipeline": _gentle(36, 7.0, "own:8", 16),
    "MochiPipeline": _gentle(64, 4.5, "own:8", 16),
    "AudioLDM2Pipeline": _gentle(200, 3.5, "dpm:10", 16),
    "AceStepPipeline": _gentle(8, 7.0, "own:4", 16),
    "StableAudio3Pipeline": _gentle(8, 1.0, "own:4", 16, f"{_UNTUNED}; steps are those of the distilled model"),
}

_OTHER = _gentle(50, None, "own:8", 50, "none published; scale 1 is exact for a bank of the sampler's own")


def preset(name: str) -> Settings:
    """Return the settings called ``name``.

    Raises:
        ValueError: there are none; the message names those that there are.

    >>> preset("paper-sd15").scheduler
    'DDIMScheduler'
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def for_reward(settings: Settings, reward: str, changes: Collection[str] = (), *, asked: bool = False) -> Settings:
    """Return the settings, with an automatic strength where theirs was chosen with another reward than ``reward``.

    They stay what they are where ``reward_scale`` is among the ``changes`` that are to come. Settings that the user
    ``asked`` for keep their strength, with a warning.

    >>> for_reward(GLYPH, "glyph").reward_scale, for_reward(GLYPH, "brightness").reward_scale
    (20.0, 'auto')
    """
    if settings.tuned_for in (None, reward) or "reward_scale" in changes:
        return settings
    mend = "set reward_scale, to 'auto' if you know no better" if asked else "each bank gets its own, as 'auto' says"
    _log.warning(
        "reward_scale %g was chosen with %s: with %s %s", settings.reward_scale, settings.tuned_for, reward, mend
    )
    return replace(settings, reward_scale=settings.reward_scale if asked else "auto", tuned_for=None)


def takes_eta(scheduler: Any) -> bool:
    """Return whether a step of ``scheduler`` takes eta; others leave it out without a word."""
    return "eta" in inspect.signature(type(scheduler).step).parameters


def settings_for(pipe: Any) -> Settings:
    """Return the row of ``pipe``'s class, whatever its task, or a cautious row if the class has no own.

    >>> settings_for(object()).scale
    1.0
    """
    for cls in type(pipe).__mro__:
        name = re.sub("ControlNet|Img2Img|Inpaint", "", cls.__name__)
        if name in DEFAULTS:
            # The two FLUX.1 share a class; only [dev] was distilled with its guidance as an input.
            schnell = name == "FluxPipeline" and not pipe.transformer.config.guidance_embeds
            return DEFAULTS[f"{name}, schnell" if schnell else name]
    return _OTHER
