"""Stable Diffusion and SDXL on random weights, and the pipelines that share their components."""

from __future__ import annotations

from typing import Any

from ._build import stir, with_seed
from ._language import chat_glm, chat_glm_tokenizer
from ._text import WIDTH, clip_text_encoder, clip_tokenizer

LATENT = 8
_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@with_seed
def tiny_stable_diffusion(cls: type | None = None, **unet: Any) -> Any:
    """Return a ``StableDiffusionPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), in milliseconds.

    Args:
        cls: another pipeline class of its components: image-to-image, inpainting or ControlNet.
        **unet: changes to the UNet's configuration, such as ``in_channels=9`` of an inpainting model.
    """
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    cls = cls or StableDiffusionPipeline
    return cls(
        vae=autoencoder(),
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        unet=_unet(**unet),
        scheduler=PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_controlnet(cls),
    )


@with_seed
def tiny_stable_diffusion_xl(cls: type | None = None, **unet: Any) -> Any:
    """Return a ``StableDiffusionXLPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), in milliseconds.

    Args:
        cls: another pipeline class of its components: image-to-image, inpainting or ControlNet.
        **unet: changes to the UNet's configuration.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    cls = cls or StableDiffusionXLPipeline
    return cls(
        vae=autoencoder(),
        text_encoder=clip_text_encoder(),
        text_encoder_2=clip_text_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=_unet(**_XL, **unet),
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
        **_controlnet(cls, **_XL),
    )


@with_seed
def tiny_kolors() -> Any:
    """Return a ``KolorsPipeline`` that draws 16 x 16 pixels from latents (4, 8, 8); a ChatGLM reads prompts."""
    from diffusers import EulerDiscreteScheduler, KolorsPipeline

    return KolorsPipeline(
        vae=autoencoder(),
        text_encoder=chat_glm(),
        tokenizer=chat_glm_tokenizer(),
        unet=_unet(**{**_XL, "cross_attention_dim": WIDTH}),
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
    )


_XL = {
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
}


def _unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings = {
        "sample_size": LATENT,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    unet: Any = UNet2DConditionModel(**{**settings, **changes})
    return unet.eval()


def _controlnet(cls: type, **changes: Any) -> dict[str, Any]:
    from diffusers import ControlNetModel

    if "ControlNet" not in cls.__name__:
        return {}
    settings = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "conditioning_embedding_out_channels": (4, 8),
    }
    controlnet: Any = ControlNetModel(**{**settings, **changes})
    return {"controlnet": stir(controlnet)}  # its last layers start at 0, with which its picture would change nothing


def autoencoder(channels: int = 4, **changes: Any) -> Any:
    """Return an ``AutoencoderKL`` with a factor of two between pixels and latents.

    Args:
        channels: channels of the latents.
        **changes: changes to its configuration; every level of ``block_out_channels`` after the first doubles the
            factor.
    """
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "latent_channels": channels,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 2 * LATENT,
        **changes,
    }
    blocks = len(settings["block_out_channels"])
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, **settings
    )
    return vae.eval()


@with_seed
def tiny_modular_stable_diffusion_xl(guider: Any = None) -> Any:
    """Return a modular SDXL pipeline of diffusers with the components of :func:`tiny_stable_diffusion_xl`.

    Args:
        guider: one of diffusers' guiders; its own classifier-free guidance if None.
    """
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    whole = tiny_stable_diffusion_xl()
    blocks: Any = StableDiffusionXLAutoBlocks()
    pipe = blocks.init_pipeline()
    guider = guider or ClassifierFreeGuidance(guidance_scale=5.0)
    pipe.update_components(**{name: getattr(whole, name) for name in names}, guider=guider)
    return pipe
