"""Qwen-Image and Z-Image on random weights: language models read the prompts."""

from __future__ import annotations

from typing import Any

import torch

from ._build import with_seed
from ._language import qwen_2_5_vl, qwen_3, qwen_processor, qwen_tokenizer
from ._stable_diffusion import autoencoder
from ._text import WIDTH


@with_seed
def tiny_qwen_image(cls: type | None = None) -> Any:
    """Return a ``QwenImagePipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), which it packs to (16, 16).

    Args:
        cls: another pipeline class of its components: image-to-image or inpainting.
    """
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    transformer: Any = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 2, 2),
    )
    vae: Any = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[8.0, 6.0, 10.0, 4.0],
    )
    return (cls or QwenImagePipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=vae.eval(),
        text_encoder=qwen_2_5_vl(),
        tokenizer=qwen_tokenizer(),
        transformer=transformer.eval(),
    )


@with_seed
def tiny_qwen_image_edit(cls: type | None = None) -> Any:
    """Return a ``QwenImageEditPipeline`` that draws 64 x 64 pixels from latents (4, 2, 2), packed to (1, 16).

    It reads every picture at a million pixels, so its autoencoder first takes patches of 16 x 16.

    Args:
        cls: another pipeline class of its components, such as ``QwenImageEditPlusPipeline``.
    """
    from diffusers import AutoencoderKLWan, QwenImageEditPipeline

    patch = 16
    vae: Any = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False] * 5,  # its length sets 32 pixels per latent
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        patch_size=patch,
        scale_factor_spatial=2 * patch,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[8.0, 6.0, 10.0, 4.0],
    )
    parts = {**tiny_qwen_image().components, "vae": vae.eval()}
    # Large enough for one letter to count beside a picture of 256 tokens.
    parts["transformer"].transformer_blocks[0].attn.add_v_proj.weight.data.mul_(30)
    return (cls or QwenImageEditPipeline)(**parts, processor=qwen_processor())


@with_seed
def tiny_z_image(cls: type | None = None) -> Any:
    """Return a ``ZImagePipeline`` that draws 16 x 16 pixels from latents (4, 8, 8).

    Args:
        cls: another pipeline class of its components: image-to-image or inpainting.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    transformer: Any = ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # otherwise uninitialised memory
        torch.nn.init.normal_(token)
    return (cls or ZImagePipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen_3(),
        tokenizer=qwen_tokenizer(),
        transformer=transformer.eval(),
    )
