"""SANA and SANA-Sprint on random weights: a deep-compression autoencoder and a language model for prompts."""

from __future__ import annotations

from typing import Any

from ._build import with_seed
from ._stable_diffusion import LATENT
from ._text import WIDTH, gemma, gemma_tokenizer


@with_seed
def tiny_sana() -> Any:
    """Return a ``SanaPipeline`` that draws 32 x 32 pixels from latents (4, 16, 16)."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
        vae=_deep_compression(),
        transformer=_sana_transformer(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


@with_seed
def tiny_sana_sprint() -> Any:
    """Return a ``SanaSprintPipeline`` in the latent space of :func:`tiny_sana`."""
    from diffusers import SanaSprintPipeline, SCMScheduler

    return SanaSprintPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma(),
        vae=_deep_compression(),
        transformer=_sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
        scheduler=SCMScheduler(),
    )


def _deep_compression() -> Any:
    from diffusers import AutoencoderDC

    vae: Any = AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    return vae.eval()


def _sana_transformer(**changes: Any) -> Any:
    from diffusers import SanaTransformer2DModel

    transformer: Any = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=LATENT,
        **changes,
    )
    return transformer.eval()
