"""Small changes of pictures that do not change what they show."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import Draws


def augment(images: Tensor, strength: float, draws: Draws) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] with small random changes of contrast, tint, zoom and place.

    At ``strength`` 1: contrast by 30%, tint by 0.06, zoom by 6%, place by 2% of the picture.
    """
    n = len(images)
    contrast = 1 + strength * (draws.uniform(n, 1, 1, 1) - 0.5) * 0.6
    tint = strength * (draws.uniform(n, 3, 1, 1) - 0.5) * 0.12
    images = (images - 0.5) * contrast + 0.5 + tint
    affine = torch.zeros(n, 2, 3, device=images.device)
    affine[:, 0, 0] = affine[:, 1, 1] = 1 + strength * (draws.uniform(n) - 0.5) * 0.12
    affine[:, :, 2] = strength * (draws.uniform(n, 2) - 0.5) * 0.08
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved.clamp(0, 1)
