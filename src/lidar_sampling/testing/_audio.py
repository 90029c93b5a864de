"""Audio on random weights: Stable Audio, AudioLDM 2, Stable Audio 3 and ACE-Step."""

from __future__ import annotations

from typing import Any

from ._build import stir, with_seed
from ._language import qwen_3, qwen_tokenizer, roberta_tokenizer, t5_gemma
from ._stable_diffusion import autoencoder
from ._text import WIDTH, t5_encoder, t5_tokenizer


@with_seed
def tiny_stable_audio() -> Any:
    """Return a ``StableAudioPipeline`` that makes stereo waveforms from latents (4, 16)."""
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    transformer: Any = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    vae: Any = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=16,
    )
    projection: Any = StableAudioProjectionModel(
        text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=32
    )
    return StableAudioPipeline(
        vae=vae.eval(),
        text_encoder=t5_encoder(),
        projection_model=projection.eval(),
        tokenizer=t5_tokenizer(),
        transformer=transformer.eval(),
        scheduler=CosineDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, sigma_data=1.0, prediction_type="v_prediction"
        ),
    )


@with_seed
def tiny_stable_audio_3() -> Any:
    """Return a ``StableAudio3Pipeline`` that makes stereo waveforms of a second at 16 Hz from latents (4, 8)."""
    from diffusers import AutoencoderSAME, FlowMatchEulerDiscreteScheduler, StableAudio3DiTModel, StableAudio3Pipeline
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder

    transformer: Any = StableAudio3DiTModel(
        io_channels=8,
        patch_size=1,
        embed_dim=WIDTH,
        depth=1,
        num_heads=2,
        cond_token_dim=WIDTH,
        global_cond_dim=WIDTH,
        local_add_cond_dim=9,
        timestep_features_dim=16,
        ff_mult=2,
        num_memory_tokens=2,
    )
    vae: Any = AutoencoderSAME(
        audio_channels=2,
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    )
    embedder: Any = StableAudio3DurationEmbedder(output_dim=WIDTH, fourier_dim=16)
    return StableAudio3Pipeline(
        vae=stir(vae, 0.3),
        text_encoder=t5_gemma(),
        tokenizer=qwen_tokenizer(),
        duration_embedder=embedder.eval(),
        transformer=stir(transformer, 0.3),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=True),
    )


@with_seed
def tiny_ace_step() -> Any:
    """Return an ``AceStepPipeline`` that makes short stereo waveforms of prompts and lyrics."""
    from diffusers import (
        AceStepPipeline,
        AceStepTransformer1DModel,
        AutoencoderOobleck,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_theta": 10000.0,
        "sliding_window": 16,
    }
    transformer: Any = AceStepTransformer1DModel(
        num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, patch_size=2, **sizes
    )
    encoder: Any = AceStepConditionEncoder(
        text_hidden_dim=WIDTH,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **sizes,
    )
    vae: Any = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=50,
    )
    return AceStepPipeline(
        vae=vae.eval(),
        text_encoder=qwen_3(),
        tokenizer=qwen_tokenizer(),
        transformer=transformer.eval(),
        condition_encoder=encoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


@with_seed
def tiny_audio_ldm_2() -> Any:
    """Return an ``AudioLDM2Pipeline`` that makes waveforms of one channel from spectrograms of latents (4, 4, 4)."""
    from diffusers import (
        AudioLDM2Pipeline,
        AudioLDM2ProjectionModel,
        AudioLDM2UNet2DConditionModel,
        DDIMScheduler,
    )
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2LMHeadModel,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )

    unet: Any = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(WIDTH, WIDTH),
    )
    text = {
        "vocab_size": 272,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "projection_dim": WIDTH,
        "max_position_embeddings": 80,
        "pad_token_id": 1,
    }
    audio = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "num_hidden_layers": 1,
        "hidden_size": 24,
        "patch_embeds_hidden_size": 12,
        "projection_dim": WIDTH,
        "patch_size": 2,
        "patch_stride": 2,
    }
    projection: Any = AudioLDM2ProjectionModel(
        text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=WIDTH
    )
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    speaker = GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_head=2, n_layer=1, vocab_size=16, n_positions=128, **ends))
    speaker.config.max_new_tokens = 2
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16,
            upsample_initial_channel=8,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
            initializer_range=0.3,
        )
    )
    return AudioLDM2Pipeline(
        vae=autoencoder(in_channels=1, out_channels=1),
        text_encoder=ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH)).eval(),
        text_encoder_2=t5_encoder(),
        projection_model=projection.eval(),
        language_model=speaker.eval(),
        tokenizer=roberta_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        feature_extractor=ClapFeatureExtractor(),
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
        ),
        vocoder=vocoder.eval(),
    )
