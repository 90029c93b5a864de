"""From clean latents to pictures, for methods that look at a prediction before sampling has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def pictures(pipe: Any, latents: Tensor, batch_size: int) -> Tensor:
    """As :func:`decode`, of any number of latents on any device, so many at a time; without gradients."""
    return torch.cat([decode(pipe, part.to(pipe.device)) for part in latents.split(batch_size)])


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] of clean latents (B, C, h, w), as the pipeline itself would decode them.

    Gradients flow where the latents have them.

    Raises:
        TypeError: the pipeline packs its latents, or draws no pictures.
    """
    check_plain(pipe, latents.dim())
    vae = pipe.vae
    unscaled = latents / (vae.config.get("scaling_factor") or 1.0) + (vae.config.get("shift_factor") or 0.0)
    decoded = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded, output_type="pt").float()


def check_plain(pipe: Any, dim: int = 4) -> None:
    """Refuse a pipeline whose latents cannot be decoded as they are.

    Raises:
        TypeError: it packs its latents, or draws no pictures.
    """
    packs = hasattr(pipe, "_unpack_latents")
    if getattr(pipe, "vae", None) is None or not hasattr(pipe, "image_processor") or packs or dim != 4:
        raise TypeError(
            f"{type(pipe).__name__} has no plain latents (B, C, h, w) of pictures, which must be decoded here"
        )


def check_preview(preview: Any, pipe: Any) -> None:
    """Refuse, as a decoder of the bank, what has not the face of an autoencoder, or another latent space.

    Raises:
        TypeError: it cannot decode, or the pipeline has no decoder that it could stand in for.
        ValueError: its latents have another number of channels than the pipeline's.
    """
    if not callable(getattr(preview, "decode", None)) or not hasattr(preview, "config"):
        raise TypeError(f"preview must be an autoencoder of diffusers, such as AutoencoderTiny, got {preview!r}")
    if getattr(pipe, "vae", None) is None:
        raise TypeError(f"{type(pipe).__name__} has no vae that a preview could stand in for")
    theirs, own = preview.config.get("latent_channels"), pipe.vae.config.get("latent_channels")
    if None not in (theirs, own) and theirs != own:
        raise ValueError(f"preview decodes latents of {theirs} channels, and {type(pipe).__name__} has {own}")


@contextmanager
def decoding_with(pipe: Any, preview: Any) -> Iterator[None]:
    """Let ``pipe`` decode with ``preview``, if there is one, inside the block."""
    own = getattr(pipe, "vae", None)
    if preview is None:
        yield
        return
    pipe.vae = preview
    try:
        yield
    finally:
        pipe.vae = own
