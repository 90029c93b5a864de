"""Diffusion transformers for images on random weights: SD3, FLUX and PixArt-Sigma."""

from __future__ import annotations

from typing import Any

from ._build import with_seed
from ._stable_diffusion import LATENT, autoencoder
from ._text import WIDTH, clip_text_encoder, clip_tokenizer, t5_encoder, t5_tokenizer


@with_seed
def tiny_stable_diffusion_3() -> Any:
    """Return a ``StableDiffusion3Pipeline`` that draws 16 x 16 pixels from latents (4, 8, 8)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer: Any = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=2 * LATENT,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(width=2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


@with_seed
def tiny_flux(cls: type | None = None, *, schnell: bool = False) -> Any:
    """Return a ``FluxPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), which it packs to (16, 16).

    Args:
        cls: another pipeline class of its components: Kontext, image-to-image or inpainting.
        schnell: the model that was distilled without its guidance as an input.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer: Any = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=not schnell,
    )
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=1.0)
        if schnell
        else FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    )
    return (cls or FluxPipeline)(
        scheduler=scheduler,
        vae=autoencoder(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer.eval(),
    )


@with_seed
def tiny_pixart_sigma() -> Any:
    """Return a ``PixArtSigmaPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), with a learned variance."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer: Any = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=LATENT,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=autoencoder(scaling_factor=0.13025),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(),
    )
