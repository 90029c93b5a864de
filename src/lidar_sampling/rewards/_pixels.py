"""Preprocessing of reward models: resize, crop or pad to a square, normalise, with gradients.

Most models were trained on 8-bit pictures that Pillow had resized. Pillow resizes in two passes, along the rows and
then along the columns, and rounds to bytes after each (``src/libImaging/Resample.c``,
https://github.com/python-pillow/Pillow). :func:`resize` does the same on tensors; the gradient ignores the rounding
(straight through: Bengio et al. 2013, https://arxiv.org/abs/1308.3432).

The long side of a picture whose short side becomes ``size`` is ``int(size * long / short)``, and the crop starts at
``gap // 2``, as in transformers. torchvision starts at ``round(gap / 2)``, which is a pixel later where gap % 4 == 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_FILTERS = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow and preprocessor_config.json


def resize(pixels: Tensor, height: int, width: int, filter: str = "bicubic") -> Tensor:
    """Resize as Pillow does; a side that already has its length is left as it is.

    Args:
        pixels: (B, 3, H, W) float32 in [0, 1].
        height: the new H.
        width: the new W.
        filter: ``bicubic`` or ``bilinear``, antialiased.

    Returns:
        (B, 3, height, width), multiples of 1/255 in [0, 1] if anything was resized.
    """
    for size in ((pixels.shape[2], width), (height, width)):
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size=size, mode=filter, antialias=True).clamp(0, 1)
            pixels = pixels + ((pixels * 255 + 0.5).floor() / 255 - pixels).detach()
    return pixels


def crop_to_square(pixels: Tensor, size: int, filter: str = "bicubic") -> Tensor:
    """Resize the shortest side to ``size``, then cut out the central square."""
    height, width = pixels.shape[2:]
    short = min(height, width)
    pixels = resize(pixels, size * height // short, size * width // short, filter)
    top, left = (pixels.shape[2] - size) // 2, (pixels.shape[3] - size) // 2
    return pixels[:, :, top : top + size, left : left + size]


def stretch_to_square(pixels: Tensor, size: int, filter: str = "bicubic") -> Tensor:
    """Resize both sides to ``size``, without keeping the proportions."""
    return resize(pixels, size, size, filter)


def pad_to_square(pixels: Tensor, size: int, filter: str = "bicubic") -> Tensor:
    """Resize the longest side to ``size``, centred on black, as floats and not as bytes, so values may overshoot."""
    height, width = pixels.shape[2:]
    scale = size / max(height, width)
    if scale != 1:
        height, width = round(height * scale), round(width * scale)
        pixels = F.interpolate(pixels, size=(height, width), mode=filter, antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(pixels, (left, size - width - left, top, size - height - top))


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of pictures for a model.

    Attributes:
        size: side of the model's square input.
        fit: how a picture of another shape is made square.
        mean: number to subtract, one per channel.
        std: number to divide by, one per channel.
        filter: filter of the resizing.

    Example:
        >>> Preprocessing(8)(torch.rand(2, 3, 20, 30)).shape
        torch.Size([2, 3, 8, 8])
    """

    size: int
    fit: Callable[[Tensor, int, str], Tensor] = crop_to_square
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    filter: str = "bicubic"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read a ``preprocessor_config.json`` of transformers.

        Raises:
            ValueError: it asks for an unknown filter or shape.
        """
        size, resample = config["size"], config.get("resample", 3)
        side = size if isinstance(size, int) else size.get("shortest_edge", size.get("height"))
        crop = config.get("crop_size", side) if config.get("do_center_crop") else side
        square = not isinstance(size, int) and size.get("height") == size.get("width") is not None
        if resample not in _FILTERS or crop not in (side, {"height": side, "width": side}):
            raise ValueError(f"unknown preprocessing: size {size}, crop {crop}, resample {resample}")
        return cls(
            side,
            stretch_to_square if square else crop_to_square,
            tuple(config["image_mean"]),
            tuple(config["image_std"]),
            _FILTERS[resample],
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) in [0, 1] into (B, 3, size, size) float32, on their device."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W) in [0, 1], got shape {tuple(images.shape)}")
        pixels = images.float()
        if pixels.shape[2:] != (self.size, self.size):
            pixels = self.fit(pixels, self.size, self.filter)
        mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std
