"""``lidar compare``: compare methods on the same prompts, with intervals and costs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as o
from ._run import carry_out, tabulate
from ._screen import guard_printing, print_json

Prompts = Annotated[
    str,
    typer.Option(
        help="glyph or glyph-hard; glyph:N for about N of its prompts; or a file with one prompt per line or "
        "GenEval metadata."
    ),
]
Tags = Annotated[
    str | None, typer.Option(help="Use only prompts with these tags, comma separated.", show_default=False)
]
Methods = Annotated[
    str, typer.Option(help="Methods from 'lidar methods', comma separated. The first is the baseline.")
]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Budget per prompt, in network evaluations, or in seconds as 30s. It sets the N in best-of-N@10 or "
        "halving-N. It does not limit methods without an N.",
        show_default=False,
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds per prompt: 0 to SEEDS - 1.")]
Out = Annotated[Path, typer.Option(help="Folder of results. An unfinished run there is continued.")]
Table = Annotated[
    bool, typer.Option("--table", help="Draw nothing; make tables, figures and the report from the results in --out.")
]


def compare(
    methods: Methods = "vanilla,best-of-9,lidar",
    prompts: Prompts = "glyph:18",
    tags: Tags = None,
    budget: Budget = None,
    out: Out = Path("report"),
    model: o.Model = "glyph",
    variant: o.Variant = None,
    preset: o.Preset = None,
    reward: o.RewardName = None,
    images: o.Images = 4,
    seeds: Seeds = 1,
    n: o.N = None,
    lookahead: o.Lookahead = None,
    steps: o.Steps = None,
    guidance_scale: o.GuidanceScale = None,
    scale: o.Scale = None,
    reward_scale: o.RewardScale = None,
    noise: o.Noise = None,
    call: o.Call = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    fast: o.Fast = None,
    only_table: Table = False,
    ray: o.Ray = None,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare methods on the same prompts, at stated cost.

    Writes results-RANK.jsonl, pictures, tables (.md, .csv, .tex, .json), figures and report.html into --out.

    With RANK and WORLD_SIZE set, as torchrun does, or in a job array or step of SLURM, each process draws its share
    of the prompts first, and then prompts that no other has drawn yet. The last to finish makes the tables.
    """
    from ..methods import split
    from ..runs import Job

    job = Job(
        prompts=_metadata(prompts, tags),
        task="compare",
        model=model,
        variant=variant,
        preset=preset,
        reward=reward,
        methods=split(methods),
        settings=o.drop_unset(
            n=n,
            lookahead=lookahead,
            steps=steps,
            guidance_scale=guidance_scale,
            scale=scale,
            reward_scale=reward_scale,
            noise=noise,
        ),
        images=images,
        seeds=range(seeds),
        call=o.read_call(call),
        dtype=dtype,
        fast=fast,
        budget=budget,
        batch_size=batch_size,
        device=device,
    )
    if only_table:
        tabulate(job, out, json=json, command=_command())
    else:
        carry_out(job, out, ray=ray, dry_run=dry_run, json=json, quiet=quiet, command=_command())


def _command() -> str | None:
    """Return what was typed, or None if Python called this rather than the command line."""
    if "compare" not in sys.argv:
        return None
    typed = sys.argv[sys.argv.index("compare") :]
    return shlex.join(["lidar", *(word for word in typed if word != "--table")])


def methods(json: o.Json = False) -> None:
    """List the methods that 'lidar compare' knows."""
    from ..methods import NAMES

    with guard_printing(saved=False):
        if json:
            print_json(NAMES)
            return
        for name, line in NAMES.items():
            typer.echo(f"{name:16s} {line}")


def _metadata(prompts: str, tags: str | None) -> list[dict[str, Any]]:
    """Return the prompts that the options name, as GenEval metadata."""
    from .. import glyph

    name, _, count = prompts.partition(":")
    found = glyph.prompts(_SPLITS[name]) if name in _SPLITS else o.read_lines(None, Path(prompts))
    if tags is not None:
        wanted = [tag.strip() for tag in tags.split(",")]
        known = dict.fromkeys(str(line.get("tag", "")) for line in found)
        if missing := [tag for tag in wanted if tag not in known]:
            raise typer.BadParameter(
                f"--tags: {prompts} has no prompts of these tags: {', '.join(map(repr, missing))}; "
                f"it has {', '.join(map(repr, known))}"
            )
        found = [line for line in found if line.get("tag", "") in wanted]
    if name not in _SPLITS or not count:
        return found
    kinds = len({line["tag"] for line in found})
    if not count.isdecimal() or int(count) < kinds:
        raise typer.BadParameter(f"--prompts {name}:N takes at least {kinds} prompts, one per tag; got {prompts!r}")
    return glyph.spread(found, int(count) // kinds)


_SPLITS = {"glyph": "geneval", "glyph-hard": "hard"}
