"""``lidar look``: draw banks of prompts into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o
from ._run import carry_out

Out = Annotated[Path, typer.Option(help="Folder of banks; a bank that is already there is not drawn again.")]


def look(
    prompts: o.Prompts = None,
    out: Out = Path("banks"),
    prompts_file: o.PromptsFile = None,
    model: o.Model = "glyph",
    variant: o.Variant = None,
    preset: o.Preset = None,
    reward: o.RewardName = None,
    seed: o.Seed = 0,
    n: o.N = None,
    lookahead: o.Lookahead = None,
    guidance_scale: o.GuidanceScale = None,
    call: o.Call = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    ray: o.Ray = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw and score banks for 'lidar guide'.

    A bank is the scored lookahead samples of one prompt; drawing it is phase 1.
    """
    from ..runs import Job

    job = Job(
        prompts=o.read_lines(prompts, prompts_file),
        task="look",
        model=model,
        variant=variant,
        preset=preset,
        reward=reward,
        settings=o.drop_unset(n=n, lookahead=lookahead, guidance_scale=guidance_scale),
        seeds=(seed,),
        call=o.read_call(call),
        dtype=dtype,
        fast=fast,
        batch_size=batch_size,
        device=device,
    )
    carry_out(job, out, ray=ray, dry_run=dry_run, json=json, quiet=quiet)
