"""The two encoders of BLIP (Li et al. 2022, https://arxiv.org/abs/2201.12086) from weights in its original layout.

The weights of the text encoder already have the names of transformers; those of the vision encoder are renamed. Sizes
are read from the weights; attention heads have 64 channels in both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._weights import build, rename

_HEAD = 64
_RULES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)


def vision_encoder(weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Return a ``BlipVisionModel`` with the weights of BLIP's ``visual_encoder``, a ViT of timm.

    Raises:
        ValueError: a weight is missing, unknown, or of another shape.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    patches, width = weights["pos_embed"].shape[1:]
    patch = weights["patch_embed.proj.weight"].shape[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=_count(weights, "blocks."),
        num_attention_heads=width // _HEAD,
        image_size=round((patches - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # of timm
    )
    return build(BlipVisionModel, config, {rename(name, _RULES): value for name, value in weights.items()}, dtype)


def text_encoder(weights: dict[str, Tensor], dtype: torch.dtype, *, image_width: int) -> Any:
    """Return a ``BlipTextModel`` with the weights of BLIP's ``text_encoder``; call it with ``is_decoder=False``.

    Args:
        weights: the state dict.
        dtype: the precision of the model.
        image_width: channels of the image tokens that it attends to.

    Raises:
        ValueError: a weight is missing, unknown, or of another shape.
    """
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    words, width = weights["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=image_width,
        intermediate_size=len(weights["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_count(weights, "encoder.layer."),
        num_attention_heads=width // _HEAD,
        max_position_embeddings=len(weights["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,  # of BERT
        is_decoder=True,  # gives the layers cross-attention; called as an encoder they have no causal mask
    )
    return build(BlipTextModel, config, weights, dtype, add_pooling_layer=False)


def _count(weights: dict[str, Tensor], stem: str) -> int:
    return len({name.removeprefix(stem).split(".")[0] for name in weights if name.startswith(stem)})
