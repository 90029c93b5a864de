"""Settings embedded in a PNG, as text that people and other tools can read.

``lidar`` is JSON: the Job that draws the picture again, its index, the seed of its noise, and its rewards.
``parameters`` is the text that Stable Diffusion's web interfaces write and read
(https://github.com/AUTOMATIC1111/stable-diffusion-webui, ``modules/infotext_utils.py``). Videos and audio carry
neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .._draw import seed_of
from ..methods import draws_each_alone
from .job import Job

if TYPE_CHECKING:
    from .._result import Result

# Fields of a Job that are given for the one picture instead, or that change no picture.
_WITHOUT = ("prompts", "methods", "only", "pictures", "store", "batch_size", "device")


def texts_of(job: Job, method: str, result: Result, line: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the texts to embed in each picture of one prompt, by their key in the PNG.

    Args:
        job: the Job that drew it.
        method: the method that drew it.
        result: the result of this prompt alone.
        line: the prompt, with its metadata for judges.
    """
    asked = {**job.to_json(brief=True, without=_WITHOUT), "prompts": [dict(line)], "methods": [method]}
    alone, texts = draws_each_alone(method), []
    for k, place in enumerate(job.only or range(result.images.shape[1])):
        seed = seed_of(job.seeds[0], "target", line["prompt"], place) if alone else None
        said = {
            "version": __version__,
            "job": {**asked, **({"only": [place]} if alone else {})},
            "image": place,
            "noise_seed": seed,
            "rewards": {name: _number(values[0, k].item()) for name, values in result.rewards.items()},
        }
        texts.append({"parameters": _parameters(job, result, seed), "lidar": json.dumps(said)})
    return texts


def _parameters(job: Job, result: Result, seed: int | None) -> str:
    """Return the text for web interfaces: the prompt, the negative prompt, and a line of settings."""
    settings, (height, width) = result.settings, result.images.shape[-2:]
    named = {
        "Steps": settings.steps,
        "CFG scale": settings.guidance_scale,
        "Seed": job.seeds[0] if seed is None else seed,
        "Size": f"{width}x{height}",
        "Model": job.model.replace(",", " "),
        "LiDAR n": settings.n if result.banks else None,
        "LiDAR scale": settings.scale if result.banks else None,
        "Version": f"lidar-sampling {__version__}",
    }
    negative = job.call.get("negative_prompt")
    return "\n".join(
        [
            result.prompts[0],
            *([f"Negative prompt: {negative}"] if isinstance(negative, str) else []),
            ", ".join(f"{name}: {value}" for name, value in named.items() if value is not None),
        ]
    )


def read_embedded(path: str | Path) -> dict[str, Any] | None:
    """Return the JSON that a picture holds under ``lidar``; None if it holds none.

    The Job in it is not checked; :meth:`Job.from_json` does that.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a picture, or its JSON is damaged; the message names the file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            text = picture.info.get("lidar")
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture") from None
    if text is None:
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("job"), dict):
        raise ValueError(f"the settings in {path} are damaged: give a picture that lidar wrote")
    return said


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
