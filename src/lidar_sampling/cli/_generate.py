"""``lidar generate`` and ``lidar guide``: guided images of prompts, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o
from ._run import carry_out

Out = Annotated[Path, typer.Option(help="Folder for the pictures; it must be empty or absent.")]
BesideVanilla = Annotated[bool, typer.Option("--beside-vanilla", help="Also draw the same seeds without guidance.")]
MethodName = Annotated[
    str,
    typer.Option(
        "--method", help="A method from 'lidar methods': lidar, best-of-12@10, steered-12@10, lidar:scale=3, ..."
    ),
]
Only = Annotated[
    list[int] | None,
    typer.Option(
        "--only",
        min=0,
        help="Draw only this one of the --images samples, counted from 0; it comes out as it would among all. "
        "--only 2 draws the third. Repeat "
        "for more.",
        show_default=False,
    ),
]
BankSeed = Annotated[
    int | None,
    typer.Option(
        help="Seed of the banks' noise; set it to use one bank with several values of --seed. [default: --seed]",
        show_default=False,
    ),
]
Store = Annotated[
    Path | None,
    typer.Option("--banks", help="Folder that keeps banks between runs; a bank found there is not drawn again."),
]
Banks = Annotated[
    list[Path], typer.Option("--banks", help="Folder of banks from 'lidar look', or bank files. Repeat for more.")
]


def generate(
    prompts: o.Prompts = None,
    out: Out = Path("out"),
    prompts_file: o.PromptsFile = None,
    model: o.Model = "glyph",
    variant: o.Variant = None,
    preset: o.Preset = None,
    reward: o.RewardName = None,
    images: o.Images = 4,
    only: Only = None,
    seed: o.Seed = 0,
    bank_seed: BankSeed = None,
    n: o.N = None,
    lookahead: o.Lookahead = None,
    steps: o.Steps = None,
    guidance_scale: o.GuidanceScale = None,
    scale: o.Scale = None,
    reward_scale: o.RewardScale = None,
    noise: o.Noise = None,
    window: o.Window = None,
    method: MethodName = "lidar",
    beside_vanilla: BesideVanilla = False,
    banks: Store = None,
    call: o.Call = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    scheduler: o.Scheduler = None,
    profile: o.Profile = False,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    ray: o.Ray = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw guided images of prompts.

    LiDAR looks ahead, scores, and guides; --method selects another method. LiDAR costs n few-step samples and n
    reward calls per prompt, plus plain sampling. The costs of other methods are in docs/methods.md; docs/choosing.md
    helps to pick one.
    """
    from ..runs import Job

    job = Job(
        prompts=o.read_lines(prompts, prompts_file),
        model=model,
        variant=variant,
        preset=preset,
        reward=reward,
        methods=_methods(method, beside_vanilla=beside_vanilla),
        settings=o.drop_unset(
            n=n,
            lookahead=lookahead,
            steps=steps,
            guidance_scale=guidance_scale,
            scale=scale,
            reward_scale=reward_scale,
            noise=noise,
            window=window,
        ),
        images=images,
        only=tuple(only or ()),
        seeds=(seed,),
        bank_seed=bank_seed,
        call=o.read_call(call),
        scheduler=scheduler,
        dtype=dtype,
        fast=fast,
        store=None if banks is None else str(banks),
        batch_size=batch_size,
        device=device,
    )
    carry_out(
        job,
        out,
        ray=ray,
        dry_run=dry_run,
        profile=profile,
        resume=resume,
        overwrite=overwrite,
        json=json,
        quiet=quiet,
    )


def guide(
    banks: Banks,
    prompts: o.Prompts = None,
    out: Out = Path("out"),
    prompts_file: o.PromptsFile = None,
    model: o.Model = "glyph",
    variant: o.Variant = None,
    preset: o.Preset = None,
    reward: o.RewardName = None,
    images: o.Images = 4,
    seed: o.Seed = 0,
    steps: o.Steps = None,
    guidance_scale: o.GuidanceScale = None,
    scale: o.Scale = None,
    reward_scale: o.RewardScale = None,
    noise: o.Noise = None,
    window: o.Window = None,
    beside_vanilla: BesideVanilla = False,
    call: o.Call = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    scheduler: o.Scheduler = None,
    profile: o.Profile = False,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    ray: o.Ray = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw guided images from banks of 'lidar look'.

    This is phase 2 alone: it costs as much as plain sampling.
    """
    from ..runs import Job

    job = Job(
        prompts=o.read_lines(prompts, prompts_file),
        model=model,
        variant=variant,
        preset=preset,
        reward=reward,
        methods=_methods("lidar", beside_vanilla=beside_vanilla),
        settings=o.drop_unset(
            steps=steps,
            guidance_scale=guidance_scale,
            scale=scale,
            reward_scale=reward_scale,
            noise=noise,
            window=window,
        ),
        images=images,
        seeds=(seed,),
        call=o.read_call(call),
        scheduler=scheduler,
        dtype=dtype,
        fast=fast,
        banks=tuple(map(str, banks)),
        batch_size=batch_size,
        device=device,
    )
    carry_out(
        job,
        out,
        ray=ray,
        dry_run=dry_run,
        profile=profile,
        resume=resume,
        overwrite=overwrite,
        json=json,
        quiet=quiet,
    )


def _methods(name: str, *, beside_vanilla: bool) -> tuple[str, ...]:
    return ("vanilla", name) if beside_vanilla and name != "vanilla" else (name,)
