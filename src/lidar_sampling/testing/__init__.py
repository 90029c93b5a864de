"""Doubles for tests: tiny pipelines of the true diffusers classes with random weights, a bank and a reward.

Everything is built from configurations in memory, seeded, and needs no download; the pictures are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from .._bank import LookaheadBank
from ..rewards.brightness import brightness as brightness
from ._audio import tiny_stable_audio as tiny_stable_audio
from ._sana import tiny_sana as tiny_sana
from ._sana import tiny_sana_sprint as tiny_sana_sprint
from ._sequences import Sequences as Sequences
from ._stable_diffusion import tiny_modular_stable_diffusion_xl as tiny_modular_stable_diffusion_xl
from ._stable_diffusion import tiny_stable_diffusion as tiny_stable_diffusion
from ._stable_diffusion import tiny_stable_diffusion_xl as tiny_stable_diffusion_xl
from ._transformers import tiny_flux as tiny_flux
from ._transformers import tiny_pixart_sigma as tiny_pixart_sigma
from ._transformers import tiny_stable_diffusion_3 as tiny_stable_diffusion_3
from ._video import tiny_cogvideox as tiny_cogvideox
from ._video import tiny_ltx as tiny_ltx
from ._video import tiny_wan as tiny_wan


class Tiny(NamedTuple):
    """A tiny pipeline, what to call it with to stay small, and its argument for several samples a prompt, if any."""

    make: Callable[[], Any]
    call: Mapping[str, Any] = MappingProxyType({})
    per_prompt: str | None = "num_images_per_prompt"


_SMALL = {"height": 16, "width": 16}
_UNBINNED = {**_SMALL, "use_resolution_binning": False, "clean_caption": False}
_SANA = {"height": 32, "width": 32, "use_resolution_binning": False}

PIPELINES = {
    "sd": Tiny(tiny_stable_diffusion),
    "sdxl": Tiny(tiny_stable_diffusion_xl),
    "sd3": Tiny(tiny_stable_diffusion_3),
    "flux": Tiny(tiny_flux, _SMALL),
    "flux-schnell": Tiny(partial(tiny_flux, schnell=True), _SMALL),
    "pixart-sigma": Tiny(tiny_pixart_sigma, _UNBINNED),
    "sana": Tiny(tiny_sana, _SANA),
    "sana-sprint": Tiny(tiny_sana_sprint, {**_SANA, "intermediate_timesteps": None}),
    "wan": Tiny(tiny_wan, {**_SMALL, "num_frames": 5}, "num_videos_per_prompt"),
    "ltx": Tiny(tiny_ltx, {"height": 32, "width": 32, "num_frames": 9}, "num_videos_per_prompt"),
    "cogvideox": Tiny(tiny_cogvideox, {}, None),
    "cogvideox-ddim": Tiny(partial(tiny_cogvideox, ddim=True), {}, None),
    "stable-audio": Tiny(tiny_stable_audio, {}, "num_waveforms_per_prompt"),
}
"""Every text-to-image, text-to-video and text-to-audio pipeline that is tested, by a short name."""


def tiny_bank(n: int = 5, *, prompt: str = "a cat", shape: tuple[int, ...] = (4, 8, 8)) -> LookaheadBank:
    """A bank of ``n`` standard normal samples in the shape of the tiny pipelines, with rewards 0 .. 1."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(n, *shape, generator=generator)
    return LookaheadBank(samples, {"ramp": torch.linspace(0, 1, n)}, prompt)
