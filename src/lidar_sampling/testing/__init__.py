"""Doubles for tests: tiny pipelines of the real diffusers classes with random weights, a bank and a reward.

Everything is built from configurations in memory, seeded, and needs no download; the pictures are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import torch
from PIL import Image

from .._bank import LookaheadBank
from ..rewards.brightness import brightness as brightness
from ._audio import tiny_ace_step as tiny_ace_step
from ._audio import tiny_audio_ldm_2 as tiny_audio_ldm_2
from ._audio import tiny_stable_audio as tiny_stable_audio
from ._audio import tiny_stable_audio_3 as tiny_stable_audio_3
from ._films import tiny_cosmos_25 as tiny_cosmos_25
from ._films import tiny_hunyuan_video_15 as tiny_hunyuan_video_15
from ._films import tiny_kandinsky_5 as tiny_kandinsky_5
from ._films import tiny_ltx_2 as tiny_ltx_2
from ._films import tiny_mochi as tiny_mochi
from ._flux import tiny_chroma as tiny_chroma
from ._flux import tiny_flux_2 as tiny_flux_2
from ._language import tiny_llada_2 as tiny_llada_2
from ._pictures import tiny_cogview_4 as tiny_cogview_4
from ._pictures import tiny_hidream as tiny_hidream
from ._pictures import tiny_lumina_2 as tiny_lumina_2
from ._qwen import tiny_qwen_image as tiny_qwen_image
from ._qwen import tiny_qwen_image_edit as tiny_qwen_image_edit
from ._qwen import tiny_z_image as tiny_z_image
from ._sana import tiny_sana as tiny_sana
from ._sana import tiny_sana_sprint as tiny_sana_sprint
from ._sequences import Sequences as Sequences
from ._stable_diffusion import tiny_kolors as tiny_kolors
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
    """A tiny pipeline, and the arguments to draw with it.

    Attributes:
        make: function that builds it.
        call: arguments that keep its samples small.
        per_prompt: its argument for the number of samples per prompt, if any.
        kept: whether saving to a folder keeps all of it; False if a part is a stand-in.
    """

    make: Callable[[], Any]
    call: Mapping[str, Any] = MappingProxyType({})
    per_prompt: str | None = "num_images_per_prompt"
    kept: bool = True


_SMALL = {"height": 16, "width": 16}
_UNBINNED = {**_SMALL, "use_resolution_binning": False, "clean_caption": False}
_SHORT = {**_SMALL, "max_sequence_length": 64}
_PICTURE = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
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
    "qwen-image": Tiny(tiny_qwen_image, _SMALL),
    "qwen-image-edit": Tiny(
        tiny_qwen_image_edit, {"height": 64, "width": 64, "image": Image.new("RGB", (16, 16), "red")}, kept=False
    ),
    "z-image": Tiny(tiny_z_image, _SHORT),
    "flux-2": Tiny(tiny_flux_2, {**_SHORT, "text_encoder_out_layers": (1, 2)}),
    "flux-kontext": Tiny(
        lambda: tiny_flux(diffusers.FluxKontextPipeline),
        {**_SMALL, "image": _PICTURE, "max_area": 256, "_auto_resize": False},
    ),
    "wan-2.2": Tiny(partial(tiny_wan, two=True), {**_SMALL, "num_frames": 5}, "num_videos_per_prompt"),
    "wan-i2v": Tiny(
        lambda: tiny_wan(diffusers.WanImageToVideoPipeline, two=True),
        {**_SMALL, "num_frames": 5, "image": _PICTURE},
        "num_videos_per_prompt",
    ),
    "chroma": Tiny(tiny_chroma, _SMALL),
    "hidream": Tiny(tiny_hidream, _SHORT),
    "lumina-2": Tiny(tiny_lumina_2, {"height": 64, "width": 64}),
    "cogview-4": Tiny(tiny_cogview_4, _SMALL),
    "ltx-2": Tiny(
        tiny_ltx_2,
        {
            "height": 32,
            "width": 32,
            "num_frames": 9,
            "max_sequence_length": 64,
            "stg_scale": 0.0,
            "modality_scale": 1.0,
        }
        | {"audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "spatio_temporal_guidance_blocks": None},
        "num_videos_per_prompt",
    ),
    "kolors": Tiny(tiny_kolors, {**_SMALL, "max_sequence_length": 64}),
    "cosmos-2.5": Tiny(tiny_cosmos_25, {**_SHORT, "num_frames": 5}, None, kept=False),
    "kandinsky-5": Tiny(tiny_kandinsky_5, {**_SHORT, "num_frames": 5}, None),
    "mochi": Tiny(tiny_mochi, {**_SHORT, "num_frames": 7}, "num_videos_per_prompt"),
    "audioldm-2": Tiny(tiny_audio_ldm_2, {"audio_length_in_s": 2.0}, None),
    "ace-step": Tiny(tiny_ace_step, {"audio_duration": 0.4, "lyrics": "la la"}, None),
    "stable-audio-3": Tiny(tiny_stable_audio_3, {"duration": 1.0}, "num_waveforms_per_prompt"),
}
"""Every tested pipeline, by a short name."""


def tiny_bank(n: int = 5, *, prompt: str = "a cat", shape: tuple[int, ...] = (4, 8, 8)) -> LookaheadBank:
    """Return a bank of ``n`` standard normal samples in the shape of the tiny pipelines, with rewards 0 .. 1."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(n, *shape, generator=generator)
    return LookaheadBank(samples, {"ramp": torch.linspace(0, 1, n)}, prompt)
