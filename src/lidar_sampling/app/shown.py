"""An order on the page: pictures with captions, the bank by reward, the trace, what to copy and download."""

from __future__ import annotations

import base64
import html
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .._files import open_whole
from .._guidance import mean_sizes, reading
from .._media import to_pil
from ..runs._embedded import read_embedded
from ..service import Order
from . import words
from .controls import as_command, as_python
from .plot import trace_svg

_MOST_UNDER_WAY, _THUMB = 8, 256  # most pictures of unfinished samples, and their pixels


def under_way(order: Order) -> str:
    """Return the unfinished samples as HTML, as the model predicts them."""
    if (glimpse := order.glimpse) is None:
        return ""
    unit = "samples" if glimpse.phase == "lookahead" else "steps"
    figures = [_figure(_as_data(image), "") for image in glimpse.images[:_MOST_UNDER_WAY]]
    return _section(f"Under way, after {glimpse.step} of {glimpse.total} {unit}", figures)


def pictures(order: Order, title: str) -> str:
    """Return the pictures of a finished order as HTML, each with its rewards and the seed of its noise."""
    if order.state != "done":
        return ""
    entry, method = order.result(), order.job.methods[-1]
    files = [order.out / name for name in entry[method]["images"]]
    places = order.job.only or range(order.job.images)
    figures = []
    for k, (place, file) in enumerate(zip(places, files, strict=True)):
        lines = words.scores({name: values[k] for name, values in entry[method]["rewards"].items()})
        said = read_embedded(file) if file.suffix == ".png" else None
        if said is not None and said["noise_seed"] is not None:
            lines.append(f"seed {said['noise_seed']}")
        figures.append(_figure(_url(file), f"#{place}", lines))
    return _section(title, figures)


def bank(order: Order) -> str:
    """Return the members of the bank as HTML, best first by the guiding reward."""
    if order.bank is None:
        return ""
    rewards = order.bank.rewards
    figures = [
        _figure(
            _url(order.bank.pictures[member]),
            f"{place}.",
            words.scores({name: values[member] for name, values in rewards.items()}),
        )
        for place, member in enumerate(order.bank.best_first(), 1)
    ]
    found = "" if order.bank.drawn else ", which was there already"
    return _section(f"The bank{found}, best first", figures, small=True)


def _section(title: str, figures: list[str], *, small: bool = False) -> str:
    return f'<h3>{html.escape(title)}</h3><div class="pictures{" small" if small else ""}">{"".join(figures)}</div>'


def _figure(source: str, name: str, lines: Sequence[str] = ()) -> str:
    """Return the HTML of a picture that a click or the space bar enlarges."""
    said = html.escape(" ".join([name, *lines]))
    below = "".join(f"<span>{html.escape(line)}</span>" for line in lines)
    caption = f"<figcaption><b>{html.escape(name)}</b>{below}</figcaption>" if name else ""
    return (
        f'<figure><label><input type="checkbox" aria-label="show large: {said}">'
        f'<img src="{html.escape(source)}" alt="{said}" loading="lazy"></label>{caption}</figure>'
    )


def _url(file: Path) -> str:
    return f"gradio_api/file={quote(str(file))}"


def _as_data(image: Any) -> str:
    if image.dim() == 2:
        return "data:,"  # audio has no picture
    picture = to_pil(image[0] if image.dim() == 4 else image)
    picture.thumbnail((_THUMB, _THUMB))
    content = io.BytesIO()
    picture.save(content, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode()


def trace(order: Order) -> str:
    """Return the plot of the trace and a sentence that explains it, as HTML."""
    if order.state != "done":
        return ""
    entry = order.result()
    if not (rows := entry.get("trace")):
        return ""
    members, strength = len(next(iter(entry["bank"].values()), [])), entry.get("reward_scale")
    said = reading(mean_sizes(rows), members) + ("" if strength is None else f" Its strength was {strength:.4g}.")
    return f'<h3>What guidance did</h3><p class="reading">{html.escape(said)}</p>{trace_svg(rows)}'


def label(order: Order) -> str:
    """Return a line that identifies an order."""
    job = order.job
    how = job.methods[-1] + "".join(
        f", {name} {value:g}" if isinstance(value, int | float) else f", {name} {value}"
        for name, value in job.settings.items()
        if name in ("n", "scale", "reward_scale")
    )
    state = f" ({order.state})" if order.ended and order.state != "done" else ""
    return f"{order.id.split('-')[0].lstrip('0')}: {job.text(0)[:60]} - {how}, seed {job.seeds[0]}{state}"


def texts(order: Order) -> tuple[str, str, str]:
    """Return the order as a command, as Python and as JSON."""
    job = order.job
    return as_command(job), as_python(job), json.dumps(job.to_json(brief=True), indent=1, ensure_ascii=False)


def archive(order: Order) -> str | None:
    """Return a ZIP with pictures, numbers and bank of a finished order."""
    if order.state != "done":
        return None
    path = order.folder / f"lidar-{order.id}.zip"
    if not path.exists():
        with open_whole(path) as whole, zipfile.ZipFile(whole, "w") as file:
            for found in sorted(order.out.rglob("*")):
                if found.is_file():
                    file.write(found, found.relative_to(order.out))
            if order.bank is not None and order.bank.file.exists():
                file.write(order.bank.file, "bank.safetensors")
    return str(path)


def said_by(file: str | Path) -> dict[str, Any]:
    """Return the Job that is embedded in a picture.

    Raises:
        ValueError: it holds no Job.
    """
    said = read_embedded(file)
    if said is None:
        raise ValueError("this picture does not say how lidar drew it: give one that lidar wrote, not a copy")
    return said["job"]
