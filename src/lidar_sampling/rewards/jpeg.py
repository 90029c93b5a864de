"""The size of an image as a JPEG (Black et al. 2023, https://arxiv.org/abs/2305.13301).

This reward is a black box without weights. The size is in kilobytes of 1,000 bytes, at quality 95 with Pillow's
chroma subsampling (4:2:0), as in the paper's code. Flat pictures are small, noisy ones large. A picture of 512 x 512
pixels has about 80 to 160.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from .._media import to_pil


class JPEGSize:
    """The kilobytes of each image as a JPEG, times ``sign``.

    Args:
        sign: 1 for incompressibility, -1 for compressibility.
        quality: quality of Pillow, 1 to 95.

    Example:
        >>> noise, flat = torch.rand(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
        >>> sizes = JPEGSize(1)(images=torch.cat([noise, flat]), prompts=["noise", "nothing"])
        >>> bool(sizes[0] > sizes[1])
        True
    """

    differentiable = False
    reads_prompt = False

    def __init__(self, sign: int, *, quality: int = 95) -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"quality must be 1 to 95, got {quality}")
        self.sign, self.quality = sign, quality
        self.name = "jpeg-incompressibility" if sign > 0 else "jpeg-compressibility"

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return kilobytes (B,) of images (B, 3, H, W) in [0, 1]; the prompts are ignored."""
        return torch.tensor([self.sign * self._kilobytes(image) for image in images.float().cpu()])

    def _kilobytes(self, image: Tensor) -> float:
        file = io.BytesIO()
        to_pil(image.clamp(0, 1)).save(file, "JPEG", quality=self.quality)
        return file.tell() / 1000


def compressibility(model: None, *, device: torch.device | str, dtype: torch.dtype) -> JPEGSize:
    """Return the reward that is higher for pictures that compress well."""
    return JPEGSize(-1)


def incompressibility(model: None, *, device: torch.device | str, dtype: torch.dtype) -> JPEGSize:
    """Return the reward that is higher for pictures that compress badly."""
    return JPEGSize(1)
