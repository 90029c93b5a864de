"""More diffusion transformers for pictures on random weights: HiDream, Lumina 2, CogView 4."""

from __future__ import annotations

from typing import Any

from ._build import with_seed
from ._language import glm, llama, qwen_tokenizer
from ._stable_diffusion import autoencoder
from ._text import WIDTH, clip_text_encoder, clip_tokenizer, gemma, gemma_tokenizer, t5_encoder, t5_tokenizer

_SHIFTED: dict[str, Any] = {
    "shift_factor": 0.1159,
    "scaling_factor": 0.3611,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@with_seed
def tiny_hidream() -> Any:
    """Return a ``HiDreamImagePipeline``; four encoders read its prompts.

    It draws 128 x 128 pixels from latents (4, 128, 128), since the pipeline enlarges every requested size to that
    many latents.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel

    transformer: Any = HiDreamImageTransformer2DModel(
        patch_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
    )
    return HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(block_out_channels=(8,), sample_size=128, mid_block_add_attention=False, **_SHIFTED),
        text_encoder=clip_text_encoder(projection=True, positions=128),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_encoder(projection=True, positions=128),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama(),
        tokenizer_4=qwen_tokenizer(),
        transformer=transformer.eval(),
    )


@with_seed
def tiny_lumina_2() -> Any:
    """Return a ``Lumina2Pipeline`` that draws 16 x 16 pixels from latents (4, 8, 8), which it takes for 64 x 64."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    transformer: Any = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return Lumina2Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(**_SHIFTED),
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


@with_seed
def tiny_cogview_4() -> Any:
    """Return a ``CogView4Pipeline`` that draws 16 x 16 pixels from latents (4, 8, 8)."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler

    transformer: Any = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return CogView4Pipeline(
        tokenizer=t5_tokenizer(),  # like GLM's own, it makes a token even from an empty text
        text_encoder=glm(),
        vae=autoencoder(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            time_shift_type="linear",
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
        ),
    )
