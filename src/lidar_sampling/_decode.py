"""From clean latents to pictures, for methods that look at a prediction before sampling has ended."""

from __future__ import annotations

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
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(pipe, "image_processor") or latents.dim() != 4:
        raise TypeError(
            f"{type(pipe).__name__} has no plain latents (B, C, h, w) of pictures, which this method must decode "
            f"before sampling has ended"
        )
    unscaled = latents / (vae.config.get("scaling_factor") or 1.0) + (vae.config.get("shift_factor") or 0.0)
    decoded = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded, output_type="pt").float()
