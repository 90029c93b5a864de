"""Human preference scores v2 and v2.1 (Wu et al. 2023, https://arxiv.org/abs/2306.09341).

``cos(u, v)`` of a CLIP ViT-H/14 in the layout of OpenCLIP, without its logit scale
(https://github.com/tgxs002/HPSv2, hpsv2/img_score.py). Scores are not comparable between the two versions nor, as its
authors say, between prompts.

The longest side of a picture becomes 224, and the rest is black: ``img_score.py`` passes ``light_augmentation=True``,
for which ``create_model_and_transforms`` sets ``resize_longest_max=True``. The central crop in
``src/open_clip/transform.py`` is the other branch and is not reached. The original turns bytes into a float tensor
first and resizes that, so nothing is rounded or clamped. On square pictures the two branches agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._pixels import Preprocessing, pad_to_square
from ._towers import Towers
from ._weights import CLIP_H, Source, build, load_pretrained, name_with_source, rename, state_dict, where

_RULES = (
    (r"^visual\.(class_embedding)$", r"vision_model.embeddings.\1"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # the spelling of transformers
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)


class HPS:
    """Human preference of an image for its prompt: a cosine, .14 to .31 in its authors' benchmark.

    Args:
        model: a published checkpoint, or the path of a checkpoint in the layout of OpenCLIP.
        tokenizer: a folder, hub id or published repository with a CLIP tokenizer.
        device: where the model runs.
        dtype: its precision; pixels and cosines are float32.

    Raises:
        FileNotFoundError: the checkpoint or the tokenizer is neither on this machine nor reachable.
        ValueError: the checkpoint holds another model.
    """

    differentiable = True

    def __init__(
        self,
        model: Source,
        *,
        tokenizer: Source = CLIP_H,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoTokenizer, CLIPModel

        file = str(getattr(model, "file", model))
        self.name = name_with_source("hpsv2.1" if "v2.1" in file else "hpsv2", model)
        config, weights = from_openclip(state_dict(model), where(model)[0])
        words = load_pretrained(AutoTokenizer.from_pretrained, tokenizer)
        network = build(CLIPModel, config, weights, dtype).to(device)
        self._towers = Towers(network, words, Preprocessing(config.vision_config.image_size, pad_to_square))
        self.networks = self._towers.networks

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return cosines (B,) float32 of images (B, 3, H, W) in [0, 1] and B prompts, on the model's device.

        Prompts longer than 77 tokens are truncated, as in the original.
        """
        return self._towers.cosine(images, prompts)


def from_openclip(weights: dict[str, Tensor], origin: str = "the checkpoint") -> tuple[Any, dict[str, Tensor]]:
    """Return configuration and weights of a ``CLIPModel`` from weights of an OpenCLIP ViT like ViT-H-14.

    Sizes are read from the weights. Such models have heads of 80 channels in the image tower and 64 in the text
    tower, and the exact GELU.

    Args:
        weights: the state dict.
        origin: its name in error messages.

    Raises:
        ValueError: the weights have another layout.
    """
    from transformers import CLIPConfig

    if not {"visual.conv1.weight", "visual.proj", "token_embedding.weight", "text_projection"} <= weights.keys():
        raise ValueError(f"{origin} is no CLIP in the layout of OpenCLIP: it has no visual.conv1.weight")
    converted: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = rename(key, _RULES)
        if key in ("visual.proj", "text_projection"):
            converted[name] = value.T.contiguous()
        elif match := re.search(r"in_proj_(weight|bias)$", name):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                converted[f"{name[: match.start()]}{part}_proj.{match[1]}"] = rows.contiguous()
        else:
            converted[name] = value
    patches, width = weights["visual.positional_embedding"].shape
    patch = weights["visual.conv1.weight"].shape[-1]
    words, text_width = weights["token_embedding.weight"].shape
    projection = weights["text_projection"].shape[1]
    shared = {"hidden_act": "gelu", "projection_dim": projection}
    config = CLIPConfig(
        vision_config={
            **shared,
            **_depth(converted, "vision_model"),
            "hidden_size": width,
            "num_attention_heads": width // 80,
            "image_size": round((patches - 1) ** 0.5) * patch,
            "patch_size": patch,
        },
        text_config={
            **shared,
            **_depth(converted, "text_model"),
            "hidden_size": text_width,
            "num_attention_heads": text_width // 64,
            "vocab_size": words,
            "max_position_embeddings": len(weights["positional_embedding"]),
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,  # OpenCLIP finds it as the largest token
        },
        projection_dim=projection,
    )
    return config, converted


def _depth(weights: dict[str, Tensor], tower: str) -> dict[str, int]:
    layer = re.compile(rf"{tower}\.encoder\.layers\.\d+\.mlp\.fc1\.bias")
    inner = [len(value) for name, value in weights.items() if layer.fullmatch(name)]
    return {"num_hidden_layers": len(inner), "intermediate_size": max(inner, default=1)}
