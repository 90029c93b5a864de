"""Options that several commands share, and functions that read their values."""

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
        help="A reward from 'lidar rewards', your own package.module:function, or a mixture such as "
        "clip:0.9+ocr:0.1. "
        "[default: the model's]",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all noise.")]
Images = Annotated[int, typer.Option(min=1, help="Samples per prompt.")]
N = Annotated[int | None, typer.Option("--n", help="Lookahead samples per prompt. [default: the model's]")]
Lookahead = Annotated[
    str | None,
    typer.Option(
        help="Few-step solver: dpm:N, dpm:N-karras, own:N, or one of 'lidar solvers'. [default: the model's]"
    ),
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")]
GuidanceScale = Annotated[
    float | None, typer.Option(help="Scale of classifier-free guidance in both phases. [default: the model's]")
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
        help="Lambda, in units of 1 / reward; auto fits it to the rewards of each bank. [default: the model's]",
        show_default=False,
    ),
]
Noise = Annotated[
    str | None,
    typer.Option(
        help="Stochastic steps instead of the scheduler's: ddpm or cps, with an eta as in ddpm:0.5; or glass:5, "
        "which makes each transition in 5 inner steps. "
        "[default: the scheduler's own]",
        show_default=False,
    ),
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Start and end of guidance in diffusion time; 1 is pure noise. [default: the model's]"),
]
Call = Annotated[
    list[str] | None,
    typer.Option(
        "--call",
        help="Another argument of the pipeline, as NAME=VALUE, such as height=512. Repeat for more.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=0,
        help="Samples at a time, halved when memory runs out. 0 means as many as fit, estimated from two small "
        "batches.",
    ),
]
Device = Annotated[str | None, typer.Option(help="Device to compute on. [default: cuda or mps if there, else cpu]")]
Host = Annotated[
    str,
    typer.Option(help="Address to listen on. The default serves only this machine; other addresses need a --token."),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
Fast = Annotated[
    str | None,
    typer.Option(
        help="Speed options, comma separated (docs/performance.md): channels-last, compile, compile-blocks, "
        "compile-reward, cuda-graphs, encode-once, half-reward, overlap, preview or preview=PATH, rescore=K.",
        show_default=False,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Another diffusers scheduler for the target, as CLASS:NAME=VALUE,..., such as "
        "DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++. [default: the model's]",
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Precision of the networks: float32, float16, bfloat16, or auto (bfloat16 where the device "
        "computes in it, else float32)."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Named settings: paper-sd15 or paper-sdxl; each brings its scheduler. [default: the model's]",
        show_default=False,
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(help="Variant of the weights, such as fp16. [default: the only one in the folder]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Profile = Annotated[
    bool, typer.Option("--profile", help="Also show where the time went, beside the least time for the same work.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Finish the run that is in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run of pictures that is in --out first.")]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Draw on a Ray cluster: HOST:PORT, or auto for this machine's cluster. Without an address, Ray "
        "starts here.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Draw nothing; print the Job as JSON for 'lidar run', and its cost.")
]


def read_prompts(prompts: Sequence[str] | None, file: Path | None) -> list[str]:
    """Return the texts of the prompts on the command line and in a file."""
    return [line["prompt"] for line in read_lines(prompts, file)]


def read_lines(prompts: Sequence[str] | None, file: Path | None) -> list[dict[str, Any]]:
    """Return the prompts on the command line and in a file, each with its metadata."""
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
    """Return the settings that were given; the model has defaults for the others."""
    return {name: value for name, value in settings.items() if value is not None}


def read_call(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return arguments of a pipeline from NAME=VALUE; a value is read as JSON, as Python, or else as text.

    >>> read_call(["height=512", "negative_prompt=a blurry photo", "clean_caption=False"])
    {'height': 512, 'negative_prompt': 'a blurry photo', 'clean_caption': False}
    """
    return read_named(arguments or (), "--call")


def set_scheduler(pipe: Any, text: str) -> None:
    """Replace the scheduler of a pipeline by the one that ``--scheduler`` names, with the same configuration.

    Raises:
        ValueError: there is no such scheduler, or it does not have a setting.
    """
    from ..runs._levers import read_scheduler

    if (make := read_scheduler(text)) is not None:
        pipe.scheduler = make(pipe.scheduler)
