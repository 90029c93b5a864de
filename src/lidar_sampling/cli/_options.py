"""Options that several commands share, and what they read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from .._values import read_named

Prompts = Annotated[list[str] | None, typer.Argument(help="Prompts, each in quotes.", show_default=False)]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="A file of prompts: one per line (.txt), or JSON objects with a prompt, such as GenEval's metadata "
        "(.jsonl, .json).",
    ),
]
Model = Annotated[
    str, typer.Option(help="'glyph' (the embedded model), or a path or hub id of a diffusers pipeline.")
]
RewardName = Annotated[
    str | None,
    typer.Option(
        "--reward",
        help="A reward of 'lidar rewards'; package.module:function of your own; or a mixture, clip:0.9+ocr:0.1. "
        "[default: the model's]",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all noise.")]
Images = Annotated[int, typer.Option(min=1, help="Samples a prompt.")]
N = Annotated[int | None, typer.Option("--n", help="Lookahead samples a prompt. [default: the model's]")]
Lookahead = Annotated[
    str | None,
    typer.Option(help="Few-step solver: dpm:N, dpm:N-karras, own:N, or of 'lidar solvers'. [default: the model's]"),
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")]
GuidanceScale = Annotated[
    float | None, typer.Option(help="Classifier-free guidance, both phases. [default: the model's]")
]
Scale = Annotated[float | None, typer.Option(help="Strength of the shift, s. [default: the model's]")]


def _strength(text: str) -> Any:
    """Return a number, or the word auto.

    Raises:
        BadParameter: it is neither.
    """
    if text == "auto":
        return text
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise typer.BadParameter(f"must be a number or auto, got {text!r}")


RewardScale = Annotated[
    Any,
    typer.Option(
        parser=_strength,
        metavar="FLOAT|auto",
        help="Lambda, in 1 / reward; auto fits it to the rewards of each bank. [default: the model's]",
        show_default=False,
    ),
]
Noise = Annotated[
    str | None,
    typer.Option(
        help="Stochastic steps instead of the scheduler's own: ddpm or cps, with an eta as in ddpm:0.5, or "
        "glass:5, of which 5 are one transition. "
        "[default: the scheduler's own]",
        show_default=False,
    ),
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Start and end of guidance in diffusion time, 1 at pure noise. [default: the model's]"),
]
Call = Annotated[
    list[str] | None,
    typer.Option(
        "--call",
        help="A further argument of the pipeline, as NAME=VALUE: height=512. Repeat for more.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=0,
        help="Samples at a time, halved when memory runs out; 0 for as many as fit, which two small batches tell.",
    ),
]
Device = Annotated[str | None, typer.Option(help="[default: cuda or mps if there, else cpu]")]
Host = Annotated[
    str, typer.Option(help="Address to listen on; the default answers this machine alone, others need a --token.")
]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.")]
Fast = Annotated[
    str | None,
    typer.Option(
        help="Levers of docs/performance.md, comma separated: channels-last, compile, compile-blocks, "
        "compile-reward, cuda-graphs, encode-once, half-reward, overlap, preview or preview=PATH, rescore=K.",
        show_default=False,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Another scheduler of diffusers for the target, as CLASS:NAME=VALUE,...: "
        "DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++. [default: the model's]",
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the pipeline: float32, float16, bfloat16, or auto, which is bfloat16 where the device "
        "computes in it, else float32."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Settings by name: paper-sd15 or paper-sdxl, which bring their scheduler. [default: the model's]",
        show_default=False,
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(help="Variant of the weights, such as fp16. [default: that of a folder which has no other]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Profile = Annotated[
    bool, typer.Option("--profile", help="Also say where the time went, and what the same work takes at its best.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Finish the run that is in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in --out first.")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Draw on a Ray cluster: at HOST:PORT, or auto for the one that this machine belongs to. Without an "
        "address Ray is started here.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Draw nothing: print the Job, which 'lidar run' takes, and what it costs.")
]


def read_prompts(prompts: Sequence[str] | None, file: Path | None) -> list[str]:
    """Return the texts of the prompts of the command line and of a file."""
    return [line["prompt"] for line in read_lines(prompts, file)]


def read_lines(prompts: Sequence[str] | None, file: Path | None) -> list[dict[str, Any]]:
    """Return the prompts of the command line and of a file, each with what the file says of it."""
    from .._prompts import check_prompt
    from .._prompts import read_prompts as read

    found: list[dict[str, Any]] = [{"prompt": text} for text in prompts or ()]
    if any(not line["prompt"].strip() for line in found):
        raise typer.BadParameter("a prompt must not be empty")
    for line in found:
        check_prompt(line["prompt"])
    if file is not None:
        found += read(file)
    if not found:
        raise typer.BadParameter("give at least one prompt, in quotes, or --prompts FILE")
    return found


def drop_unset(**settings: Any) -> dict[str, Any]:
    """Return the settings that were given; the others are the model's."""
    return {name: value for name, value in settings.items() if value is not None}


def read_call(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return arguments of a pipeline from NAME=VALUE; a value is JSON or Python, or else the text itself.

    >>> read_call(["height=512", "negative_prompt=a blurry photo", "clean_caption=False"])
    {'height': 512, 'negative_prompt': 'a blurry photo', 'clean_caption': False}
    """
    return read_named(arguments or (), "--call")


def set_scheduler(pipe: Any, text: str) -> None:
    """Give a pipeline the scheduler that ``--scheduler`` names, made of its own.

    Raises:
        ValueError: there is no such scheduler, or it does not have a setting.
    """
    from ..runs._levers import read_scheduler

    if (make := read_scheduler(text)) is not None:
        pipe.scheduler = make(pipe.scheduler)
