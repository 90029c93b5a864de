"""From clean latents to pictures, for methods that look at a prediction before sampling has ended."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
