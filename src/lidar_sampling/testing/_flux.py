"""FLUX.2, FLUX Kontext and Chroma on random weights."""

from __future__ import annotations

from typing import Any

from ._build import with_seed
from ._language import mistral_3, qwen_tokenizer
from ._stable_diffusion import autoencoder
from ._text import WIDTH, t5_encoder, t5_tokenizer


@with_seed
def tiny_flux_2() -> Any:
    """Return a ``Flux2Pipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), which it packs to (16, 16)."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2Pipeline,
        Flux2Transformer2DModel,
    )

    transformer: Any = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    vae: Any = AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=mistral_3(),
        tokenizer=qwen_tokenizer(),  # the processor of Mistral 3 needs torchvision; for texts it is a tokenizer
        transformer=transformer.eval(),
    )


@with_seed
def tiny_chroma() -> Any:
    """Return a ``ChromaPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), which it packs to (16, 16)."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    transformer: Any = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True),
        vae=autoencoder(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=transformer.eval(),
    )
