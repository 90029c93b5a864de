"""``lidar score``: rewards of any pictures."""

from __future__ import annotations

import json as _json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _options as o

if TYPE_CHECKING:
    from torch import Tensor

Images = Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.", show_default=False)]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="One for all pictures, or one for each in order.", show_default=False),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at a time; halved when memory runs out.")]
RewardNames = Annotated[list[str], typer.Option("--reward", help="A reward of 'lidar rewards'; repeat for more.")]
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def score(
    images: Images,
    reward: RewardNames,
    prompt: Prompt = None,
    prompts_file: o.PromptsFile = None,
    batch_size: BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    json: o.Json = False,
) -> None:
    """Score pictures with one or more rewards.

    Without a prompt, those of GenEval's layout are taken: metadata.jsonl beside the folder of a picture. Of a run in
    that layout, such as that of 'lidar generate', the samples are scored, not its grid or what lies in vanilla/.
    """
    from .. import rewards

    o.quieten()
    files = _pictures(images)
    prompts = _prompts(files, o.read_prompts(prompt, prompts_file) if prompt or prompts_file else [])
    judges = {name: rewards.load(name, device=o.device_of(device), dtype=o.dtype_of(dtype)) for name in reward}
    rows: list[dict[str, Any]] = [
        {"file": str(file), "prompt": text} for file, text in zip(files, prompts, strict=True)
    ]
    for start in range(0, len(files), batch_size):
        batch = rows[start : start + batch_size]
        pixels = [read_picture(Path(row["file"])) for row in batch]
        for name, judge in judges.items():
            values = rewards.score_pictures(judge, pictures=pixels, prompts=[row["prompt"] for row in batch])
            for row, value in zip(batch, values, strict=True):
                row[name] = value
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in judges}
    if json:
        typer.echo(_json.dumps({"images": rows, "mean": mean}))
    else:
        _print(rows, mean)


def _pictures(places: Sequence[Path]) -> list[Path]:
    files = []
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"no picture or folder at {place}")
        found = inside(place) if place.is_dir() else [place]
        if not found:
            raise typer.BadParameter(f"{place} holds no pictures ({', '.join(_ENDINGS)})")
        files += found
    return files


def inside(folder: Path) -> list[Path]:
    """Pictures in ``folder``, sorted: the samples of a run in GenEval's layout, or else all, however deep."""
    samples = [file for file in folder.glob("[0-9]*/samples/*") if metadata_of(file).is_file()]
    return sorted(file for file in samples or folder.rglob("*") if file.suffix.lower() in _ENDINGS)


def metadata_of(picture: Path) -> Path:
    """Where GenEval's layout says what ``picture`` should show."""
    return picture.parent.parent / "metadata.jsonl"


def _prompts(files: list[Path], given: list[str]) -> list[str]:
    """The prompt of each picture: one for all, one for each, or that of the folder it lies in."""
    if len(given) == 1:
        return given * len(files)
    if given and len(given) != len(files):
        raise typer.BadParameter(f"give one prompt, or one for each of the {len(files)} pictures, got {len(given)}")
    if given:
        return given
    from ..glyph import read_metadata

    found = []
    for file in files:
        metadata = metadata_of(file)
        if not metadata.is_file():
            raise typer.BadParameter(f"give --prompt: there is no {metadata} to say what {file.name} should show")
        lines = read_metadata(metadata)
        if not lines:
            raise typer.BadParameter(f"give --prompt: {metadata} is empty")
        found.append(lines[0]["prompt"])
    return found


def read_picture(file: Path) -> Tensor:
    """A picture (3, H, W) in [0, 1], upright, transparency over white."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut, not scale
                raise ValueError(f"{file} has pixels of mode {image.mode}: save it with 8 bits a channel")
            image = ImageOps.exif_transpose(image).convert("RGBA")
    except UnidentifiedImageError:
        raise ValueError(f"{file} is not a picture") from None
    except (OSError, Image.DecompressionBombError) as error:
        if getattr(error, "filename", None):  # it cannot be opened, and says which
            raise
        raise ValueError(f"{file} cannot be read: {error}") from None
    page = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return torch.from_numpy(np.array(page)).movedim(-1, 0).float() / 255


def _print(rows: list[dict[str, Any]], mean: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("picture", overflow="fold")
    for name in mean:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["file"], *(f"{row[name]:.4f}" for name in mean))
    if len(rows) > 1:
        table.add_section()
        table.add_row(f"mean of {len(rows)}", *(f"{value:.4f}" for value in mean.values()))
    Console().print(table)
