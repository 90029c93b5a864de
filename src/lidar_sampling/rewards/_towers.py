"""The image tower and the text tower of CLIP (https://arxiv.org/abs/2103.00020) and SigLIP models.

CLIP, PickScore, HPS and the aesthetic predictor differ in weights, in preprocessing, and in what they do with the
unit features ``u`` of an image and ``v`` of a prompt; they share the towers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._pixels import Preprocessing
from ._weights import Source, load_pretrained, where


class Towers:
    """The towers of a ``CLIPModel`` or a ``SiglipModel``, with features of unit length.

    Args:
        model: the model of transformers, on its device and in its precision.
        tokenizer: tokenizer of its text tower.
        preprocessing: preprocessing of its image tower.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocessing: Preprocessing) -> None:
        self.model = model.eval().requires_grad_(False)
        self.networks = [model.vision_model]  # there are few texts
        self._tokenizer = tokenizer
        self._preprocessing = preprocessing
        self._lowercase = model.config.model_type == "siglip"  # both generations of SigLIP were trained so

    @classmethod
    def load(
        cls, source: Source, *, processor: Source | None = None, device: torch.device | str, dtype: torch.dtype
    ) -> Towers:
        """Load from a folder or a hub repository in the layout of transformers.

        Args:
            source: the model.
            processor: where its tokenizer and preprocessing are; None means with the model.
            device: where the model runs.
            dtype: its precision.

        Raises:
            FileNotFoundError: it is neither a folder, nor in the hub's cache, nor reachable.
            ValueError: the model is of another kind.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.image_processing_base import ImageProcessingMixin

        processor = processor or source
        kind = load_pretrained(AutoConfig.from_pretrained, source).model_type
        if kind not in ("clip", "siglip"):
            hint = "; of SigLIP 2 the models of fixed resolution load, NaFlex does not" if kind == "siglip2" else ""
            raise ValueError(f"{where(source)[0]} is a {kind} model, not CLIP or SigLIP{hint}")
        model = load_pretrained(AutoModel.from_pretrained, source, dtype=dtype).to(device)
        config, _ = load_pretrained(ImageProcessingMixin.get_image_processor_dict, processor)
        return cls(
            model, load_pretrained(AutoTokenizer.from_pretrained, processor), Preprocessing.from_config(config)
        )

    def image(self, images: Tensor) -> Tensor:
        """Return unit features (B, d) float32 of images (B, 3, H, W) in [0, 1], on the model's device."""
        pixels = self._preprocessing(images.to(self.model.device))
        return _unit(self.model.get_image_features(pixel_values=pixels.to(self.model.dtype)))

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Return unit features (B, d) float32 of B prompts; equal prompts are encoded once, long ones truncated."""
        distinct = list(dict.fromkeys(prompts))
        tokens = self._tokenizer(
            [prompt.lower() for prompt in distinct] if self._lowercase else distinct,
            padding="max_length",  # SigLIP reads the last token, padding or not; CLIP's causal mask hides padding
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        features = _unit(self.model.get_text_features(input_ids=tokens["input_ids"].to(self.model.device)))
        return features[[distinct.index(prompt) for prompt in prompts]]

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return cos(u, v) of each image and its prompt, (B,) float32."""
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        text = self.text(prompts)
        return (self.image(images) * text).sum(1)


def _unit(features: Any) -> Tensor:
    """Return rows of unit length from a tensor or an output object, as versions of transformers differ."""
    return F.normalize(getattr(features, "pooler_output", features).float(), dim=1)
