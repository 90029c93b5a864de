"""``lidar compare``: methods beside each other on the same prompts, with intervals and costs."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _options as o
from ._screen import after_drawing, print_json, shown, warn

Prompts = Annotated[
    str,
    typer.Option(
        help="glyph or glyph-hard, glyph:N for about N prompts of it, or a file: one a line, or GenEval metadata."
    ),
]
Tags = Annotated[str | None, typer.Option(help="Only prompts of these tags, comma separated.", show_default=False)]
Methods = Annotated[str, typer.Option(help="Methods of 'lidar methods', comma separated; the first is the baseline.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="What a prompt may cost, in network evaluations or as 30s in seconds: it sets the N in best-of-N@10 or "
        "halving-N. Methods without an N cost what they cost.",
        show_default=False,
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of every prompt: 0 to SEEDS - 1.")]
Out = Annotated[Path, typer.Option(help="Folder of results; a run that is there goes on.")]
Table = Annotated[
    bool, typer.Option("--table", help="Draw nothing: make tables, figures and report of what is there.")
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
    call: o.Call = None,
    batch_size: o.BatchSize = 16,
    device: o.Device = None,
    dtype: o.Dtype = "float32",
    only_table: Table = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare methods: results-RANK.jsonl, pictures, tables (.md, .csv, .tex, .json), figures, report.html in --out.

    With RANK and WORLD_SIZE set, as torchrun does, each process takes its share of the prompts first, and then what
    the others have not drawn yet; make the table with --table when all are done.
    """
    from .._files import natural_order
    from ..evaluation import compare as run
    from ..evaluation import publish
    from ..evaluation.budget import settled, with_number, within
    from ..evaluation.comparison import claim, read
    from ..evaluation.data import records
    from ..evaluation.figures import available
    from ..methods import load, split
    from ..runs import from_environment

    names = split(methods)
    limit, unit = _budget(budget)
    for name in names:
        load(with_number(name, 64))  # a wrong name is refused before anything is drawn
        if budget is None and with_number(name, 64) != name:
            raise typer.BadParameter(f"{name} needs a number for its N, or a --budget that sets it")
    metadata = _metadata(prompts, tags)
    rank, number = from_environment(os.environ)
    if not only_table:
        settings: dict[str, Any] = {
            "n": n,
            "lookahead": lookahead,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "scale": scale,
            "reward_scale": reward_scale,
        }
        with o.progress_bar(quiet=quiet) as (label, progress):
            lidar = o.load_sampler(
                model,
                variant=variant,
                preset=preset,
                reward=reward,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                call=call,
                **settings,
            )
            lidar.check_prompts(metadata)
            lidar = lidar.with_prompts([line["prompt"] for line in metadata])
            claim(out, lidar, images)

            def show(done: int, total: int, what: str) -> None:
                label(what)
                if progress is not None:
                    progress("", done, total)

            def sized(name: str) -> str:
                label(f"what {name} costs")
                return within(lidar, name, limit, prompt=metadata[0]["prompt"], images=images, unit=unit)

            if budget is not None:
                names = settled(out / "budget.json", budget, names, sized)
            for _ in run(
                lidar,
                metadata,
                {name: load(name) for name in names},
                out=out,
                images=images,
                seeds=range(seeds),
                shard=(rank, number),
                help_others=True,
                progress=show,
            ):
                pass
        if number > 1:
            warn(f"share {rank + 1} of {number} is done; 'lidar compare --table' makes the table")
            return
    elif budget is not None:
        names = settled(out / "budget.json", budget, names, _undrawn)
    wanted = {line["prompt"]: line.get("tag", "") for line in metadata}
    lines = [
        {**line, "tag": wanted[line["prompt"]]}  # as the prompts are tagged today
        for line in read(*sorted(out.glob("results-*.jsonl"), key=natural_order))
        if line["method"] in names and line["prompt"] in wanted and line["seed"] < seeds
    ]
    lines.sort(key=lambda line: names.index(line["method"]))
    with nullcontext() if only_table else after_drawing(out):
        rows = publish(lines, out, command=_command())
    with shown():
        if not available():
            warn("no figures without matplotlib: pip install 'lidar-sampling[plot]'")
        if json:
            print_json(records(rows))
        else:
            typer.echo((out / "table.md").read_text(encoding="utf-8"))


def _command() -> str | None:
    """What was typed, if this is the command and not a call from Python."""
    if "compare" not in sys.argv:
        return None
    typed = sys.argv[sys.argv.index("compare") :]
    return shlex.join(["lidar", *(word for word in typed if word != "--table")])


def methods(json: o.Json = False) -> None:
    """List the methods that 'lidar compare' knows."""
    from ..methods import NAMES

    with shown(saved=False):
        if json:
            print_json(NAMES)
            return
        for name, line in NAMES.items():
            typer.echo(f"{name:16s} {line}")


def _undrawn(name: str) -> str:
    """A name that stands for itself; one with an N that was not found yet has no results."""
    from ..evaluation.budget import with_number

    if with_number(name, 1) != name:
        raise typer.BadParameter(f"nothing was drawn of {name} with this budget: leave --table out")
    return name


def _budget(text: str | None) -> tuple[float, str]:
    """A budget and what it counts."""
    if text is None:
        return float("inf"), ""
    number, unit = (text[:-1], "seconds") if text.endswith("s") else (text, "network_evaluations")
    try:
        if 0 < (limit := float(number)) < float("inf"):
            return limit, unit
    except ValueError:
        pass
    raise typer.BadParameter(f"--budget takes network evaluations as 480, or seconds as 30s; got {text!r}")


def _metadata(prompts: str, tags: str | None) -> list[dict[str, Any]]:
    """The prompts that the options name, as GenEval metadata."""
    from .. import glyph

    name, _, count = prompts.partition(":")
    found = glyph.prompts(_SPLITS[name]) if name in _SPLITS else o.read_metadata(None, Path(prompts))
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
        raise typer.BadParameter(f"--prompts {name}:N takes at least {kinds} prompts, one a tag; got {prompts!r}")
    return glyph.spread(found, int(count) // kinds)


_SPLITS = {"glyph": "geneval", "glyph-hard": "hard"}
