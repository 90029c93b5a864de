"""The networks of a diffusers pipeline, by what they do."""

from __future__ import annotations

from typing import Any

from torch import nn


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Return the denoising networks of a diffusers pipeline by their names in it; Wan 2.2 has two."""
    modules = {name: getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Module)}


def text_encoders(pipe: Any) -> list[nn.Module]:
    """Return the text encoders of a diffusers pipeline."""
    found = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    return [module for module in found if isinstance(module, nn.Module)]


def decoders(pipe: Any) -> list[nn.Module]:
    """Return the decoder of a diffusers pipeline's autoencoder, if it has one."""
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    return [decoder] if isinstance(decoder, nn.Module) else []


def sampling_rate_of(pipe: Any) -> int | None:
    """Return the rate of the audio that a pipeline draws, in Hz; None where it does not say one.

    It stands with the autoencoder (Stable Audio), with the vocoder (AudioLDM 2), or with the pipeline (ACE-Step).
    """
    vae, vocoder = getattr(pipe, "vae", None), getattr(pipe, "vocoder", None)
    places = [getattr(vae, "config", None), vae, getattr(vocoder, "config", None), pipe]
    names = ("sampling_rate", "output_sampling_rate", "sample_rate")
    rates = (getattr(place, name, None) for place in places for name in names)
    return next((rate for rate in rates if isinstance(rate, int) and not isinstance(rate, bool)), None)
