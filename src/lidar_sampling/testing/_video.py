"""Video on random weights: Wan, LTX-Video and CogVideoX."""

from __future__ import annotations

from typing import Any

from ._build import with_seed
from ._text import WIDTH, t5_encoder, t5_tokenizer


@with_seed
def tiny_wan(cls: type | None = None, *, two: bool = False, first_frame: bool = False) -> Any:
    """Return a ``WanPipeline``; at 16 x 16 pixels and 5 frames its latents are (4, 2, 2, 2).

    Args:
        cls: another pipeline class of its components, such as ``WanImageToVideoPipeline`` as of Wan 2.2, whose
            transformers see the picture's latents and a mask beside the noisy latents.
        two: one transformer for the noisier steps and one for the others, as in Wan 2.2 A14B.
        first_frame: the picture takes the place of the first frame, as in Wan 2.2 5B.
    """
    from diffusers import UniPCMultistepScheduler, WanPipeline

    cls = cls or WanPipeline
    channels = 12 if "ImageToVideo" in cls.__name__ and not first_frame else 4
    vae = wan_autoencoder()
    return cls(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(multilingual=True),
        vae=vae,
        transformer=_wan_transformer(channels),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        **({"transformer_2": _wan_transformer(channels), "boundary_ratio": 0.875} if two else {}),
        **({"expand_timesteps": True} if first_frame else {}),
    )


def wan_autoencoder() -> Any:
    """Return the autoencoder of Wan and Cosmos 2.5: a latent of 4 per 8 pixels and (after the first) 4 frames."""
    from diffusers import AutoencoderKLWan

    vae: Any = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[2.0, 1.5, 2.5, 1.0],
    )
    return vae.eval()


def _wan_transformer(channels: int) -> Any:
    from diffusers import WanTransformer3DModel

    transformer: Any = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    return transformer.eval()


@with_seed
def tiny_ltx(cls: type | None = None) -> Any:
    """Return an ``LTXPipeline``; at 32 x 32 pixels and 9 frames its latents are packed to (192, 8).

    Args:
        cls: another pipeline class of its components, such as ``LTXConditionPipeline``.
    """
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    vae: Any = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    transformer: Any = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    components = {
        "scheduler": scheduler,
        "vae": vae.eval(),
        "text_encoder": t5_encoder(),
        "tokenizer": t5_tokenizer(),
        "transformer": transformer.eval(),
    }
    return (cls or LTXPipeline)(**components)


@with_seed
def tiny_cogvideox(*, ddim: bool = False) -> Any:
    """Return a ``CogVideoXPipeline`` with the scheduler of the 5B model, or of the 2B one with ``ddim``.

    It draws 9 frames of 16 x 16 pixels from latents (3, 4, 2, 2), frames before channels. The true decoder makes
    4 n - 3 frames of an odd number n of latent frames, but 4 n of an even one: ask for 1, 9, 17, 25, ...
    """
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXDPMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    vae: Any = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    transformer: Any = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=226,
        use_rotary_positional_embeddings=not ddim,
    )
    scheduler = (CogVideoXDDIMScheduler if ddim else CogVideoXDPMScheduler)(
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0 if ddim else 1.0,
        set_alpha_to_one=True,
    )
    return CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=scheduler,
    )
