"""``lidar look``: banks of prompts, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o
from ._screen import echo, print_json, shown

Out = Annotated[Path, typer.Option(help="Folder of banks; those that it has already are not drawn again.")]


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
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw and score banks of lookahead samples: phase 1 alone, to be used by 'lidar guide'."""
    texts = o.read_prompts(prompts, prompts_file)
    rows = []
    with o.progress_bar(quiet=quiet) as (label, progress):
        lidar = o.load_sampler(
            model,
            reward=reward,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            call=call,
            fast=fast,
            variant=variant,
            preset=preset,
            n=n,
            lookahead=lookahead,
            guidance_scale=guidance_scale,
            store=out,
        )
        lidar.check_prompts(texts)
        lidar, store = lidar.with_prompts(texts), lidar.store
        for index, prompt in enumerate(texts):
            label(f"{index + 1}/{len(texts)}")
            (bank,) = lidar.look(prompt, seed=seed, progress=progress)
            for name, values in bank.rewards.items():
                rows.append(
                    {
                        "prompt": prompt,
                        "n": len(bank),
                        "reward": name,
                        "mean": values.mean().item(),
                        "best": values.max().item(),
                        "file": str(store.path(prompt, bank.key)) if store else "",
                    }
                )
    with shown():
        if json:
            print_json(rows)
            return
        for row in rows:
            echo(
                f"{row['prompt']}: n {row['n']}, {row['reward']} mean {row['mean']:.2f}, best {row['best']:.2f}, "
                f"{row['file']}"
            )
