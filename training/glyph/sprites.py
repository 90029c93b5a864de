"""Stage ``sprites``: one 96 x 96 glyph per class, from Noto Color Emoji (SIL OFL 1.1)."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lidar_sampling.glyph import DATA

from .output import MissingError, Output
from .render import GLYPH, SPRITE

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_STRIKE = 109  # the only size of the font's bitmaps
_CANVAS, _PEN = (180, 180), (20, 20)  # large enough for every glyph of that size

log = logging.getLogger(__name__)


def make(output: Output) -> None:
    """Write ``sprites.npz`` with ``sprites`` (80, 96, 96, 4) uint8."""
    sprites = render()
    output.root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output.sprites, sprites=sprites)
    log.info("%d sprites in %s", len(sprites), output.sprites)


def render(font: Path = FONT) -> np.ndarray:
    """Return the sprites (80, 96, 96, 4) uint8, premultiplied RGBA, of the characters in ``classes.json``.

    Raises:
        MissingError: the font is not installed.
    """
    if not font.exists():
        raise MissingError(f"{font} does not exist; install it with: apt-get install fonts-noto-color-emoji")
    face = ImageFont.truetype(str(font), _STRIKE)
    classes = json.loads((DATA / "classes.json").read_text(encoding="utf-8"))
    return np.stack([_sprite(entry["char"], face) for entry in classes.values()])


def _sprite(character: str, face: ImageFont.FreeTypeFont) -> np.ndarray:
    glyph = Image.new("RGBA", _CANVAS, (0, 0, 0, 0))
    ImageDraw.Draw(glyph).text(_PEN, character, font=face, embedded_color=True)
    box = glyph.getchannel("A").point(lambda alpha: 255 * (alpha > 40)).getbbox()
    if box is None:
        raise MissingError(f"{FONT} has no glyph {character!r}; install a newer fonts-noto-color-emoji")
    glyph = glyph.crop(box)
    pixels = np.asarray(glyph).astype(np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]  # premultiplied, so that edges do not take the colour of invisible pixels
    scale = GLYPH / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    channels = [Image.fromarray(pixels[..., c]).resize(size, Image.Resampling.LANCZOS) for c in range(4)]
    resized = np.clip(np.stack([np.asarray(channel) for channel in channels], -1), 0, 1)
    resized[..., :3] = np.minimum(resized[..., :3], resized[..., 3:])  # Lanczos overshoots
    height, width = resized.shape[:2]
    top, left = (SPRITE - height) // 2, (SPRITE - width) // 2
    sprite = np.zeros((SPRITE, SPRITE, 4), np.float32)
    sprite[top : top + height, left : left + width] = resized
    return (sprite * 255).round().astype(np.uint8)
