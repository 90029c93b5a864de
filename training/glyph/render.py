"""Pictures of scenes: tinted sprites, tilted and scaled over a plain or graded background, in batches.

A tint keeps a glyph's shading: its luminance, stretched to [0, 1], is mapped to a ramp from dark to light.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_sampling._geneval import COLORS

from .world import CANVAS, SLOTS, Scenes

SPRITE = 96  # pixels per side
GLYPH = 88  # the longest side of the glyph in its sprite
SMALL = 58  # objects up to this size are drawn from a blurred sprite, so that shrinking does not alias
_VISIBLE = 0.35  # alpha above which a pixel belongs to an object's box
_RAMPS = {
    "red": ((105, 0, 5), (235, 25, 25), (255, 120, 105)),
    "orange": ((170, 70, 0), (250, 125, 10), (255, 185, 95)),
    "yellow": ((165, 135, 0), (250, 215, 20), (255, 245, 130)),
    "green": ((0, 60, 10), (25, 160, 45), (120, 225, 120)),
    "blue": ((0, 15, 110), (25, 75, 230), (115, 165, 255)),
    "purple": ((50, 0, 80), (130, 35, 185), (195, 120, 240)),
    "pink": ((205, 60, 125), (255, 130, 185), (255, 195, 220)),
    "brown": ((45, 22, 8), (120, 68, 30), (180, 125, 80)),
    "black": ((0, 0, 0), (28, 28, 30), (80, 80, 84)),
    "white": ((185, 185, 188), (243, 243, 245), (255, 255, 255)),
}


def load_sprites(path: Path) -> Tensor:
    """Load the file of :mod:`.sprites` as (80, 4, 96, 96) premultiplied RGBA in [0, 1]."""
    return torch.from_numpy(np.load(path)["sprites"]).float().permute(0, 3, 1, 2) / 255


def tints(sprites: Tensor) -> Tensor:
    """Tint premultiplied sprites (80, 4, 96, 96); return (80, 11, 4, 96, 96): natural, then GenEval's colours."""
    alpha = sprites[:, 3:]
    shade = _shading(sprites)
    tinted = [sprites]
    for color in COLORS:
        dark, middle, light = (torch.tensor(rgb).float().view(1, 3, 1, 1) / 255 for rgb in _RAMPS[color])
        lower = dark + (middle - dark) * (shade * 2)
        upper = middle + (light - middle) * (shade * 2 - 1)
        tinted.append(torch.cat([torch.where(shade < 0.5, lower, upper) * alpha, alpha], 1))
    return torch.stack(tinted, 1)


def _shading(sprites: Tensor) -> Tensor:
    """Return the luminance (80, 1, 96, 96) of each glyph, stretched around its middle to [0, 1]."""
    rgb = sprites[:, :3] / sprites[:, 3:].clamp_min(1 / 255)
    luminance = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    shades = torch.zeros_like(luminance)
    for shade, light, alpha in zip(shades, luminance, sprites[:, 3], strict=True):
        solid = light[alpha > 0.6]
        low, high = torch.quantile(solid, 0.04), torch.quantile(solid, 0.96)
        spread = max(float(high - low), 0.3) * 1.15  # flat glyphs are not stretched into noise
        middle = float(solid.median()) * 0.7 + float(high + low) / 2 * 0.3
        shade.copy_(((light - middle) / spread + 0.5).clamp(0, 1))
    return shades[:, None]


class Renderer:
    """A renderer of scenes; in half precision on a GPU.

    Args:
        sprites: (80, 4, 96, 96) premultiplied RGBA in [0, 1].
        device: device of the pictures.
    """

    def __init__(self, sprites: Tensor, device: torch.device) -> None:
        self._dtype = torch.float32 if device.type == "cpu" else torch.float16
        sharp = tints(sprites)
        half = F.interpolate(sharp.flatten(0, 1), size=SPRITE // 2, mode="area")
        soft = F.interpolate(half, size=SPRITE, mode="bilinear", align_corners=False).view_as(sharp)
        self._sprites = torch.stack([sharp, soft]).to(device, self._dtype)  # (2, 80, 11, 4, 96, 96)
        line = torch.linspace(-1, 1, int(CANVAS), device=device)
        y, x = torch.meshgrid(line, line, indexing="ij")
        self._xy = torch.stack([x, y])

    @torch.no_grad()
    def __call__(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, 128, 128) in [0, 1] and boxes (B, 4, 4), x1 y1 x2 y2 in pixels, zero if absent.

        A box bounds the object as drawn, hidden parts included. Later objects cover earlier ones.
        """
        slope = torch.einsum("bk,kij->bij", scenes.gradient, self._xy)
        images = (scenes.background[:, :, None, None] + slope[:, None]).to(self._dtype)
        boxes = torch.zeros(len(images), SLOTS, 4, device=images.device)
        for slot in range(SLOTS):
            rows = scenes.present[:, slot].nonzero()[:, 0]
            if len(rows) == 0:
                continue
            drawn = self._object(scenes, rows, slot)
            images[rows] = images[rows] * (1 - drawn[:, 3:]) + drawn[:, :3]
            boxes[rows, slot] = _bounds(drawn[:, 3] > _VISIBLE)
        return images.clamp(0, 1).float(), boxes

    def _object(self, scenes: Scenes, rows: Tensor, slot: int) -> Tensor:
        """Return the objects of one slot alone on the canvas: (R, 4, 128, 128) premultiplied RGBA."""
        size, angle = scenes.sizes[rows, slot], scenes.angles[rows, slot]
        blurred = (size <= SMALL).long()
        sprites = self._sprites[blurred, scenes.classes[rows, slot], scenes.colors[rows, slot]]
        shrink = CANVAS / (size * SPRITE / GLYPH)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
        turn = turn * shrink[:, None, None]  # canvas to sprite coordinates, both in [-1, 1]
        center = (scenes.centers[rows, slot] - CANVAS / 2) / (CANVAS / 2)
        affine = torch.cat([turn, -(turn @ center[:, :, None])], 2)
        shape = [len(rows), 4, int(CANVAS), int(CANVAS)]
        grid = F.affine_grid(affine, shape, align_corners=False).to(self._dtype)
        return F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _bounds(mask: Tensor) -> Tensor:
    """Return boxes (R, 4) around the true pixels of masks (R, H, W)."""
    sides = []
    for line in (mask.any(1).float(), mask.any(2).float()):
        sides.append((line.argmax(1), line.shape[1] - line.flip(1).argmax(1)))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], 1).float()
