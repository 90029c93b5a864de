"""The grid of a run: for each prompt the vanilla row above the guided one, with rewards under each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SIDE, _GAP, _LINE = 160, 6, 15
_INK, _RIGHT, _WRONG = (30, 30, 30), (20, 140, 60), (200, 40, 40)


def draw_grid(folder: Path, entries: list[dict[str, Any]], *, most: int = 12) -> Image.Image:
    """Draw the grid of the first ``most`` prompts of a run from its files.

    Under each image are its rewards, the guiding one first. If GenEval's judge has a verdict, the image's frame is
    green for correct and red for wrong.
    """
    font = ImageFont.load_default(size=12)
    entries = entries[:most]
    rows = [(entry, name) for entry in entries for name in entry["methods"]]
    label = 2 * _GAP + int(max(font.getlength(name) for _, name in rows))
    columns = max(len(entry[name]["images"]) for entry, name in rows)
    row_height = _SIDE + _LINE + 2 * _GAP
    height = len(entries) * (_LINE + _GAP) + len(rows) * row_height + _GAP
    canvas = Image.new("RGB", (label + columns * (_SIDE + _GAP) + _GAP, height), "white")
    pen = ImageDraw.Draw(canvas)
    y = _GAP
    for entry in entries:
        pen.text((_GAP, y), " ".join(entry["prompt"].split()), fill=_INK, font=font)
        y += _LINE + _GAP
        for name in entry["methods"]:
            pen.text((_GAP, y + _SIDE // 2), name, fill=_INK, font=font)
            for k, file in enumerate(entry[name]["images"]):
                x = label + k * (_SIDE + _GAP)
                with Image.open(folder / file) as image:
                    tile = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                canvas.paste(tile, (x, y))
                rewards = {reward: values[k] for reward, values in entry[name]["rewards"].items()}
                verdict = rewards.pop("geneval", None)
                if verdict is not None:
                    pen.rectangle(
                        (x, y, x + _SIDE - 1, y + _SIDE - 1), outline=_RIGHT if verdict else _WRONG, width=2
                    )
                numbers = "  ".join(f"{value:.2f}" for value in rewards.values() if value is not None)
                pen.text((x + 2, y + _SIDE + 1), numbers, fill=_INK, font=font)
            y += row_height
    return canvas
