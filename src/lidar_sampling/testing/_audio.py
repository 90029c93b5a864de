"""Audio on random weights: Stable Audio."""

from __future__ import annotations

from typing import Any

from ._build import seeded
from ._text import WIDTH, t5_encoder, t5_tokenizer


@seeded
def tiny_stable_audio() -> Any:
    """A ``StableAudioPipeline`` that makes stereo waveforms from latents (4, 16)."""
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
