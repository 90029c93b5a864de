"""Doubles for tests: tiny pipelines of the true diffusers classes with random weights, a bank and a reward.

Everything is built from configurations in memory, seeded, and needs no download; the pictures are noise.
"""

from __future__ import annotations

from typing import Any

import torch

from ._bank import LookaheadBank
from .rewards.brightness import brightness as brightness

_LATENT = 8
_TEXT = 16


def tiny_bank(n: int = 5, *, prompt: str = "a cat", shape: tuple[int, ...] = (4, 8, 8)) -> LookaheadBank:
    """A bank of ``n`` standard normal samples in the shape of the tiny pipelines, with rewards 0 .. 1."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(n, *shape, generator=generator)
    return LookaheadBank(samples, {"ramp": torch.linspace(0, 1, n)}, prompt)


def tiny_stable_diffusion() -> Any:
    """A ``StableDiffusionPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), in milliseconds."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _quiet(
            StableDiffusionPipeline(
                vae=_vae(),
                text_encoder=_text_encoder(),
                tokenizer=_tokenizer(),
                unet=_unet(),
                scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        )


def tiny_stable_diffusion_xl() -> Any:
    """A ``StableDiffusionXLPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), in milliseconds."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _quiet(
            StableDiffusionXLPipeline(
                vae=_vae(),
                text_encoder=_text_encoder(),
                text_encoder_2=_text_encoder(projection=True),
                tokenizer=_tokenizer(),
                tokenizer_2=_tokenizer(),
                unet=_unet(
                    cross_attention_dim=2 * _TEXT,
                    addition_embed_type="text_time",
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=6 * 8 + _TEXT,
                ),
                scheduler=EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
            )
        )


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": _LATENT,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": _TEXT,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    unet: Any = UNet2DConditionModel(**{**settings, **changes})
    return unet.eval()


def _vae() -> Any:
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=2 * _LATENT,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return vae.eval()


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    from .glyph import DATA

    return CLIPTokenizer.from_pretrained(DATA / "sd-glyph" / "tokenizer")


def _text_encoder(*, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT,
        intermediate_size=2 * _TEXT,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=_TEXT,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()
