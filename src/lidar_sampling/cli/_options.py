"""Options that several commands share, the sampler they describe, and the progress they show."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._values import annotations_of, check_settings, read_named
from ._screen import console

if TYPE_CHECKING:
    import torch

    from .._sampler import LiDAR, Progress

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
    str | None, typer.Option("--reward", help="A reward of 'lidar rewards'. [default: the model's]")
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
RewardScale = Annotated[float | None, typer.Option(help="Lambda, in 1 / reward. [default: the model's]")]
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


def read_prompts(prompts: Sequence[str] | None, file: Path | None) -> list[str]:
    """Return the texts of the prompts of the command line and of a file."""
    return [line["prompt"] for line in read_metadata(prompts, file)]


def read_metadata(prompts: Sequence[str] | None, file: Path | None) -> list[dict[str, Any]]:
    """Return the prompts of the command line and of a file, each with what it asks for.

    That is what the file says; where it neither includes nor excludes anything, what GenEval's templates read in the
    text.
    """
    from .._geneval import asked
    from .._prompts import check_prompt, read_prompts

    found: list[dict[str, Any]] = [{"prompt": text} for text in prompts or ()]
    if any(not line["prompt"].strip() for line in found):
        raise typer.BadParameter("a prompt must not be empty")
    for line in found:
        check_prompt(line["prompt"])
    if file is not None:
        found += read_prompts(file)
    if not found:
        raise typer.BadParameter("give at least one prompt, in quotes, or --prompts FILE")
    return [
        line if {"include", "exclude"} & set(line) else {**(asked(line["prompt"]) or {}), **line} for line in found
    ]


def read_call(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return arguments of a pipeline from NAME=VALUE; a value is JSON or Python, or else the text itself.

    >>> read_call(["height=512", "negative_prompt=a blurry photo", "clean_caption=False"])
    {'height': 512, 'negative_prompt': 'a blurry photo', 'clean_caption': False}
    """
    return read_named(arguments or (), "--call")


_LEVERS: dict[str, tuple[str, dict[str, Any]]] = {  # what takes them, and which
    "channels-last": ("pipe", {"channels_last": True}),
    "compile": ("pipe", {"compile": "whole"}),
    "compile-blocks": ("pipe", {"compile": "blocks"}),
    "compile-reward": ("reward", {"compile": "whole"}),
    "cuda-graphs": ("pipe", {"cuda_graphs": True}),
    "encode-once": ("pipe", {"encode_once": True}),
    "overlap": ("sampler", {"overlap": True}),
}


def read_levers(text: str | None) -> dict[str, dict[str, Any]]:
    """Levers by name: arguments of :func:`accelerate` for pipe and reward, and of :class:`LiDAR`.

    >>> read_levers("channels-last,preview,rescore=8")
    {'pipe': {'channels_last': True}, 'reward': {}, 'sampler': {'preview': 'tiny', 'rescore': 8}}
    """
    levers: dict[str, dict[str, Any]] = {"pipe": {}, "reward": {}, "sampler": {}}
    options = levers["sampler"]
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        if part in _LEVERS:
            target, arguments = _LEVERS[part]
            levers[target] |= arguments
        elif part == "half-reward":
            options["reward_dtype"] = dtype_of("bfloat16")
        elif name == "preview":
            options["preview"] = value or "tiny"
        elif name == "rescore" and value.isascii() and value.isdecimal():
            options["rescore"] = int(value)
        else:
            known = ", ".join([*_LEVERS, "half-reward", "preview", "rescore=K"])
            raise typer.BadParameter(f"--fast knows {known}; got {part!r}")
    return levers


def set_scheduler(pipe: Any, text: str | None) -> None:
    """Give ``pipe`` the scheduler that the option names."""
    if make := read_scheduler(text):
        pipe.scheduler = make(pipe.scheduler)


def read_scheduler(text: str | None) -> Callable[[Any], Any] | None:
    """Return what makes the scheduler that the option names of the pipeline's own; None without an option.

    Raises:
        typer.BadParameter, ValueError: no such scheduler, or a setting that it does not have.
    """
    if text is None:
        return None
    import diffusers

    name, _, settings = text.partition(":")
    cls: Any = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin) and hasattr(cls, "from_config")):
        raise typer.BadParameter(f"--scheduler names no scheduler of diffusers: {name!r}")
    changes = read_named(filter(None, re.split(r",(?=\w+=)", settings)), "--scheduler")
    check_settings(name, changes, annotations_of(cls.__init__))

    def make(own: Any) -> Any:
        try:
            return cls.from_config(own.config, **changes)
        except Exception as error:  # diffusers' own words do not name the option
            raise ValueError(f"--scheduler {text} cannot be made: {error}") from None

    return make


def load_sampler(
    model: str,
    *,
    reward: str | None,
    device: str | None,
    dtype: str,
    batch_size: int,
    call: Sequence[str] | None = None,
    fast: str | None = None,
    scheduler: str | None = None,
    variant: str | None = None,
    preset: str | None = None,
    **settings: Any,
) -> LiDAR:
    """The sampler that the options describe; settings that are None stay the model's."""
    from .._accelerate import accelerate, largest_batch
    from .._sampler import LiDAR
    from .._settings import preset as find_preset

    quieten()
    if preset is not None and scheduler is not None:
        raise typer.BadParameter(
            "--preset brings its scheduler: leave out --scheduler, or set the numbers one by one"
        )
    levers, make, arguments = read_levers(fast), read_scheduler(scheduler), read_call(call)
    _check_early(model, arguments)
    options = {} if preset is None else {"settings": find_preset(preset)}
    lidar = LiDAR.from_pretrained(
        model,
        reward=reward,
        device=device_of(device),
        dtype=dtype_of(dtype, device_of(device)),
        batch_size=batch_size or 1,
        pipe_kwargs=arguments,
        variant=variant,
        scheduler=make,
        **options,
        **levers["sampler"],
        **{name: value for name, value in settings.items() if value is not None},
    )
    if levers["pipe"]:
        accelerate(lidar.pipe, **levers["pipe"])
    if levers["reward"]:
        accelerate(lidar.reward, **levers["reward"])
    if batch_size == 0:
        lidar.batch_size = largest_batch(lidar, "a photo")
    return lidar


def _check_early(model: str, call: dict[str, Any]) -> None:
    """Refuse arguments that the pipeline does not take before its weights are loaded, if its class can be told."""
    import diffusers

    from .._call import check_call

    try:
        name = diffusers.DiffusionPipeline.load_config(model)["_class_name"] if model != "glyph" else ""
    except (OSError, ValueError, KeyError):  # loading says what is wrong with the model
        return
    cls: Any = getattr(diffusers, name or "StableDiffusionPipeline", None)
    if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline):  # a modular one says it when loaded
        check_call(cls, call)


def device_of(option: str | None) -> str:
    """The device that was named, or the machine's accelerator, or its CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return option or (accelerator.type if accelerator else "cpu")


def dtype_of(option: str, device: str = "cpu") -> torch.dtype:
    """The precision that was named; ``auto`` is the fastest of full range that ``device`` has instructions for."""
    import torch

    if option == "auto":
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float32
    if option not in ("float32", "float16", "bfloat16"):
        raise typer.BadParameter(f"--dtype must be float32, float16, bfloat16 or auto, got {option}")
    return getattr(torch, option)


def _computes_in_bfloat16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return device == "cpu" and any(ask is not None and ask() for ask in told)


def quieten() -> None:
    """Keep the loading bars and advice of diffusers and transformers away from the user."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()  # it counts its attempts to reach the hub

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[tuple[Any, Progress | None]]:
    """A bar on stderr: a function that names what is under way, and the callback of the sampler."""
    if quiet or not sys.stderr.isatty():
        yield (lambda _: None), None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        name = ""

        def label(text: str) -> None:
            nonlocal name
            name = text

        def update(phase: str, done: float, total: int) -> None:
            bar.update(task, description=f"{name} {phase}", completed=done, total=total)

        yield label, update
