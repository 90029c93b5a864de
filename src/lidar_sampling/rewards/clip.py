"""The image-text logit of a CLIP model (Radford et al. 2021, https://arxiv.org/abs/2103.00020) as a reward.

``exp(logit_scale) cos(image, text)``: for OpenAI's models 100 times the cosine, which is CLIPScore (Hessel et al.
2021, https://arxiv.org/abs/2104.08718) without its clamp and weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..glyph import DATA

_DEFAULT = "openai/clip-vit-large-patch14"


class CLIPReward:
    """How well images match their prompts, by a ``transformers.CLIPModel``.

    Args:
        model: path or hub id.
        name: what results and banks call the reward; by default ``clip:`` and the model.
        device: where the model runs.
        dtype: its precision.

    Example:
        >>> from lidar_sampling.rewards import load
        >>> import torch
        >>> reward = load("glyph")
        >>> reward(images=torch.rand(2, 3, 128, 128), prompts=["a photo of a cat"] * 2).shape
        torch.Size([2])
    """

    differentiable = True

    def __init__(
        self,
        model: str | Path = _DEFAULT,
        *,
        name: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.image_processing_base import ImageProcessingMixin

        self.name = name or f"clip:{model}"
        loaded: Any = CLIPModel.from_pretrained(model, dtype=dtype)
        self._model = loaded.to(device).eval().requires_grad_(False)
        self._tokenizer = CLIPTokenizer.from_pretrained(model)
        self._size = self._model.config.vision_config.image_size
        processor, _ = ImageProcessingMixin.get_image_processor_dict(model)
        self._mean, self._std = (
            torch.tensor(processor[key], device=device, dtype=dtype).view(1, 3, 1, 1)
            for key in ("image_mean", "image_std")
        )

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and B prompts to logits (B,), on the model's device.

        Prompts beyond the model's context are truncated, as CLIP does.
        """
        distinct = list(dict.fromkeys(prompts))
        text = self._text(distinct)[[distinct.index(prompt) for prompt in prompts]]
        return self._model.logit_scale.exp() * (self._image(images) * text).sum(1)

    def _image(self, images: Tensor) -> Tensor:
        pixels = images.to(self._mean)
        if pixels.shape[2:] != (self._size, self._size):
            pixels = _resize_and_crop(pixels, self._size)
        pooled = self._model.vision_model(pixel_values=(pixels - self._mean) / self._std).pooler_output
        return F.normalize(self._model.visual_projection(pooled), dim=1)

    def _text(self, prompts: list[str]) -> Tensor:
        tokens = self._tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        pooled = self._model.text_model(input_ids=tokens["input_ids"].to(self._mean.device)).pooler_output
        return F.normalize(self._model.text_projection(pooled), dim=1)


def glyph_reward(*, device: torch.device | str = "cpu") -> CLIPReward:
    """The CLIP that guides the embedded model."""
    return CLIPReward(DATA / "reward-clip", name="glyph", device=device)


def glyph_heldout(*, device: torch.device | str = "cpu") -> CLIPReward:
    """The CLIP that judges the embedded model and never guides it."""
    return CLIPReward(DATA / "heldout-clip", name="glyph-heldout", device=device)


def _resize_and_crop(pixels: Tensor, size: int) -> Tensor:
    """Shortest side to ``size`` (bicubic, antialiased), then the central square."""
    height, width = pixels.shape[2:]
    scale = size / min(height, width)
    new = (max(size, round(height * scale)), max(size, round(width * scale)))
    pixels = F.interpolate(pixels, size=new, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return pixels[:, :, top : top + size, left : left + size]
