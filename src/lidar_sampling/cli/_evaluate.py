"""``lidar evaluate``: judge a folder of pictures by GenEval's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .._geneval import read_requirements
from . import _options as o
from ._score import check_once, inside, metadata_line, metadata_of, read_picture
from ._screen import echo, guard_printing, print_json

Place = Annotated[
    Path, typer.Argument(help="A folder in GenEval's layout: NUMBER/metadata.jsonl and NUMBER/samples/*.png.")
]
JudgeName = Annotated[
    str,
    typer.Option(
        help="glyph: the embedded model's detector, only for its emoji scenes of 128 x 128; "
        "mask2former: Mask2Former and CLIP, for photographs of any size (2 GB, downloaded once)."
    ),
]


def evaluate(folder: Place, judge: JudgeName = "glyph", device: o.Device = None, json: o.Json = False) -> None:
    """Judge pictures by GenEval's rules.

    Each tag's figure is the share of its pictures that are right; overall is the mean over the tags, as in GenEval.
    Intervals are 95 % bootstrap intervals over prompts. What a picture should show is read from its metadata.jsonl
    (include, exclude), or else from its prompt, if that follows a GenEval template.
    """
    from .. import glyph, rewards
    from ..evaluation.statistics import bootstrap, interval

    if judge not in ("glyph", "mask2former"):
        raise typer.BadParameter(f"--judge must be glyph or mask2former, got {judge!r}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    from .._quiet import quieten
    from ..runs import device_of

    quieten()
    files = inside(folder)
    lacking = [file for file in files if not metadata_of(file).is_file()]
    if len(lacking) == len(files):
        raise typer.BadParameter(f"{folder} holds no pictures in GenEval's layout (NUMBER/samples/*.png)")
    if lacking:
        raise typer.BadParameter(
            f"there is no {metadata_of(lacking[0])} to say what {lacking[0].name} should show: put it back, or take "
            "its folder away"
        )
    check_once(files)
    place = device_of(device)
    decide = glyph.Judge(device=place) if judge == "glyph" else rewards.load("geneval", device=place)
    lines = {file.parent: _metadata(file) for file in files}
    verdicts: dict[Path, list[float]] = {}
    for file in files:
        line = lines[file.parent]
        picture = read_picture(file)
        if judge == "glyph" and picture.shape[1:] != (glyph.SIDE, glyph.SIDE):
            size = " x ".join(map(str, picture.shape[1:]))
            raise typer.BadParameter(
                f"glyph's detector judges pictures of {glyph.SIDE} x {glyph.SIDE}, {file} has {size}: "
                "--judge mask2former"
            )
        (verdict,) = decide(images=picture[None], prompts=[line]).tolist()
        verdicts.setdefault(file.parent, []).append(verdict)
    rates = np.array([[np.mean(values)] for values in verdicts.values()])
    names = [lines[folder]["tag"] for folder in verdicts]
    result: dict[str, Any] = {
        "overall": str(interval(bootstrap(rates, names)[:, 0])),
        "tags": {
            tag: str(interval(bootstrap(rates[[t == tag for t in names]], [tag] * names.count(tag))[:, 0]))
            for tag in dict.fromkeys(names)
        },
        "prompts": len(names),
        "pictures": len(files),
    }
    with guard_printing(saved=False):
        if json:
            print_json(result)
            return
        for tag, rate in result["tags"].items():
            echo(f"{tag:16s} {rate}")
        echo(f"{'overall':16s} {result['overall']}   ({len(files)} pictures of {len(names)} prompts)")


def _metadata(picture: Path) -> dict[str, Any]:
    """Return what ``picture`` should show.

    Raises:
        ValueError: it cannot be judged; the message names the file.
    """
    line, path = metadata_line(picture), metadata_of(picture)
    if "tag" not in line:
        raise ValueError(f"{path} has no tag: it is not GenEval's metadata")
    try:
        wanted = read_requirements(line)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if wanted is None:
        raise ValueError(f"{path} includes no objects, and its prompt follows no template of GenEval")
    return line
