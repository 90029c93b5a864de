"""``lidar score``: score any pictures with rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from .._files import natural_order
from .._geneval import with_requirements
from .._media import read_picture as read_picture
from .._media import read_sample
from .._prompts import read_lines
from . import _options as o
from ._screen import console, guard_printing, print_json

Images = Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.", show_default=False)]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="The prompt of all pictures, or one per picture in order.", show_default=False),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures at a time, halved when memory runs out.")]
Diversity = Annotated[
    bool,
    typer.Option(
        "--diversity",
        help="Also show how different the pictures of a prompt are; needs a reward with features, such as clip.",
    ),
]
RewardNames = Annotated[list[str], typer.Option("--reward", help="A reward from 'lidar rewards'. Repeat for more.")]
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def score(
    images: Images,
    reward: RewardNames,
    prompt: Prompt = None,
    prompts_file: o.PromptsFile = None,
    diversity: Diversity = False,
    batch_size: BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    json: o.Json = False,
) -> None:
    """Score pictures with one or more rewards.

    Several prompts are matched to the pictures in order: files as you give them, and the files of a folder by the
    numbers in their names, so that 2.png comes before 10.png. Without a prompt, each picture's prompt is read from
    the metadata.jsonl beside its folder (GenEval's layout). In a folder of that layout, such as one from 'lidar
    generate', only the samples are scored, not the grid or vanilla/.
    """
    import torch

    from .. import rewards
    from .._quiet import quieten
    from ..runs import device_of, dtype_of

    quieten()
    if again := [name for k, name in enumerate(reward) if name in reward[:k]]:
        raise typer.BadParameter(f"--reward {again[0]} is given twice: leave one out")
    places = _pictures(images)
    files = [file for found in places.values() for file in found]
    prompts = _prompts(
        places,
        [with_requirements(line) for line in o.read_lines(prompt, prompts_file)] if prompt or prompts_file else [],
    )
    judges = {name: rewards.load(name, device=device_of(device), dtype=dtype_of(dtype)) for name in reward}
    for judge in judges.values():
        rewards.check_prompts(judge, prompts)
    if diversity and rewards.with_features(judges.values()) is None:
        raise typer.BadParameter("--diversity needs a reward with features, such as clip: give one more --reward")
    rows: list[dict[str, Any]] = [
        {"file": str(file), "prompt": line["prompt"]} for file, line in zip(files, prompts, strict=True)
    ]
    features: dict[str, list[Any]] = {}
    for start in range(0, len(files), batch_size):
        some = slice(start, start + batch_size)
        pixels = [read_sample(file) for file in files[some]]
        for name, judge in judges.items():
            values = rewards.score_pictures(judge, pictures=pixels, prompts=prompts[some])
            for row, value in zip(rows[some], values, strict=True):
                row[name] = value
        for line, picture in zip(prompts[some], pixels if diversity else (), strict=diversity):
            features.setdefault(line["prompt"], []).append(rewards.features_of([*judges.values()], picture[None]))
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in judges}
    spread = {text: rewards.diversity(torch.cat(found)) for text, found in features.items()}
    with guard_printing(saved=False):
        if json:
            print_json({"images": rows, "mean": mean, **({"diversity": spread} if diversity else {})})
        else:
            _print(rows, mean)
            for text, value in spread.items():
                console().print(f"diversity of the {len(features[text])} pictures of {text!r}: {value:.4f}")


def _pictures(places: Sequence[Path]) -> dict[Path, list[Path]]:
    """Return the pictures of each place; a picture is a place of its own."""
    found: dict[Path, list[Path]] = {}
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"no picture or folder at {place}")
        if place in found:
            raise typer.BadParameter(f"{place} is given twice: leave one out")
        found[place] = inside(place) if place.is_dir() else [place]
        if not found[place]:
            raise typer.BadParameter(f"{place} holds no pictures ({', '.join(_ENDINGS)})")
    check_once([file for files in found.values() for file in files])
    return found


def check_once(files: Sequence[Path]) -> None:
    """Refuse a picture that appears twice, through a link or in two places."""
    seen: dict[Path, Path] = {}
    for file in files:
        other = seen.setdefault(file.resolve(), file)
        if other is not file:
            raise typer.BadParameter(f"{other} and {file} are the same picture, and would count twice: leave one out")


def inside(folder: Path) -> list[Path]:
    """Return the pictures in ``folder``, by the numbers in their names.

    If the folder holds samples in GenEval's layout, with or without metadata, only these are returned; else all
    pictures at any depth. Hidden files and folders, whose names begin with a dot, are left out.
    """
    pictures = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _ENDINGS
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    ]
    samples = [file for file in pictures if file.absolute().parent.name == "samples"]
    if any(metadata_of(file).is_file() for file in samples):
        pictures = samples
    return sorted(pictures, key=lambda file: (natural_order(file.relative_to(folder)), str(file)))


def metadata_of(picture: Path) -> Path:
    """Return the file that says what ``picture`` should show, in GenEval's layout."""
    folder = picture.parent if picture.parent.name else picture.parent.absolute()
    return folder.parent / "metadata.jsonl"


def metadata_line(picture: Path) -> dict[str, Any]:
    """Return what GenEval's layout says that ``picture`` should show.

    Raises:
        ValueError: the file does not hold exactly one JSON object with a prompt.
    """
    path = metadata_of(picture)
    lines = read_lines(path)
    if len(lines) != 1:
        problem = f"has {len(lines)} prompts" if lines else "is empty"
        raise ValueError(f"{path} {problem}: it must have one, for {picture.name}")
    return lines[0]


def _prompts(places: dict[Path, list[Path]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the prompt of each picture: the one for all, its own, or that of its folder."""
    files = [file for found in places.values() for file in found]
    if len(given) == 1:
        return given * len(files)
    if given and len(given) != len(files):
        raise typer.BadParameter(f"give one prompt, or one for each of the {len(files)} pictures, got {len(given)}")
    if given:
        _check_order(places)
        return given
    for file in files:
        if not metadata_of(file).is_file():
            raise typer.BadParameter(
                f"give --prompt: there is no {metadata_of(file)} to say what {file.name} should show"
            )
    return [metadata_line(file) for file in files]


def _check_order(places: dict[Path, list[Path]]) -> None:
    """Refuse pictures whose order may differ from what the user means, since prompts are matched by it."""
    for place, found in places.items():
        folders = list(dict.fromkeys(file.parent for file in found))
        if len(folders) > 1:
            raise typer.BadParameter(
                f"the pictures in {place} lie in {len(folders)} folders, such as {folders[0]} and {folders[1]}, "
                "which have no order: score each folder with its own prompts, or leave them to its metadata.jsonl"
            )
        for order in (natural_order, _decimal_order):
            seen: dict[Any, Path] = {}
            for file in found:
                if (other := seen.setdefault(order(file.stem), file)) is not file:
                    raise typer.BadParameter(
                        f"{other} and {file} have the same number, so the prompts have no order: rename one, "
                        "or name the pictures one by one"
                    )
        for one, other in pairwise(found):
            if _decimal_order(one.stem) > _decimal_order(other.stem):
                raise typer.BadParameter(
                    f"{one} comes before {other} by whole numbers and after it by numbers with a point or a minus "
                    "sign, so the prompts have no order: name the pictures one by one"
                )
    named = [place for place, found in places.items() if found == [place]]
    if named == sorted(named, key=str) != sorted(named, key=lambda file: natural_order(str(file))):
        first = next(k for k, (a, b) in enumerate(pairwise(named)) if natural_order(a) > natural_order(b))
        raise typer.BadParameter(
            f"{named[first].name} comes before {named[first + 1].name}, as a shell sorts names, so the prompts may "
            "belong to others: give the folder, whose pictures are taken by their numbers"
        )


_DECIMAL = re.compile(r"((?:(?<![^_=\s])-)?[0-9]+(?:\.[0-9]+)?)")


def _decimal_order(stem: str) -> tuple[str | Decimal, ...]:
    """Return the key of :func:`natural_order`, except that a number may have a minus sign and a point."""
    return tuple(Decimal(part) if k % 2 else part for k, part in enumerate(_DECIMAL.split(stem)))


def _print(rows: list[dict[str, Any]], mean: dict[str, float]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("picture", overflow="fold")
    table.add_column("prompt", overflow="fold")
    for name in mean:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(row["file"], row["prompt"], *(f"{row[name]:.4f}" for name in mean))
    if len(rows) > 1:
        table.add_section()
        table.add_row(f"mean of {len(rows)}", "", *(f"{value:.4f}" for value in mean.values()))
    console().print(table)
