"""``lidar run``, and what all commands that draw share: check a Job, carry it out, show its result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._values import spell_seconds
from . import _options as o
from ._progress import show_progress
from ._screen import after_drawing, echo, guard_printing, print_json, warn

if TYPE_CHECKING:
    from .._sampler import LiDAR
    from ..evaluation import Row
    from ..runs import Job

JobFile = Annotated[
    Path, typer.Argument(help="A Job as JSON, as --dry-run prints it, or the result.json of a run to repeat.")
]
Out = Annotated[Path, typer.Option(help="Folder to write; it must be empty or absent, or hold the same run.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --ray: number of processes that draw. [default: one per GPU, or per two CPUs without]",
        show_default=False,
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="With --ray: GPUs per worker; a fraction is allowed. [default: 1 if there are any]",
        show_default=False,
    ),
]
JudgeGpus = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="With --ray: compute the rewards in separate processes, one per host, each with this share of a "
        "GPU; 0 is the CPU. [default: in the workers]",
        show_default=False,
    ),
]
Collect = Annotated[
    bool,
    typer.Option("--collect", help="Draw nothing; write result.json, the grid and the tables from what is in --out."),
]


def run(
    job: JobFile,
    out: Out = Path("out"),
    batch_size: Annotated[
        int | None,
        typer.Option(min=0, help="Samples at a time, instead of the Job's batch size.", show_default=False),
    ] = None,
    device: o.Device = None,
    collect: Collect = False,
    ray: o.Ray = None,
    workers: Workers = None,
    gpus: Gpus = None,
    judge_gpus: JudgeGpus = None,
    dry_run: o.DryRun = False,
    profile: o.Profile = False,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Carry out a Job from a file.

    Use it to repeat the run of a result.json, or to draw a share of a large run.

    If --out holds an unfinished run of the same Job, it is continued. With RANK and WORLD_SIZE set, as torchrun does,
    or in a job array or step of SLURM, each process takes its share of the prompts. The last to finish writes
    result.json, the grid and the tables.
    """
    from ..runs import Job
    from ..runs._folder import check_overwrite

    found = Job.read(job)
    changes: dict[str, Any] = {"batch_size": batch_size, "device": device}
    found = replace(found, **{name: value for name, value in changes.items() if value is not None})
    if overwrite:
        check_overwrite(found, out)
    if collect and (overwrite or dry_run):
        raise typer.BadParameter("--collect draws nothing: leave out --overwrite and --dry-run")
    if collect:
        _collect(found, out, json=json)
        return
    carry_out(
        found,
        out,
        ray=ray,
        crew={"workers": workers, "gpus": gpus, "judge_gpus": judge_gpus},
        dry_run=dry_run,
        profile=profile,
        resume=not overwrite,
        overwrite=overwrite,
        json=json,
        quiet=quiet,
    )


def carry_out(
    job: Job,
    out: Path,
    *,
    ray: str | None = None,
    crew: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    profile: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
    command: str | None = None,
) -> None:
    """Draw a Job into ``out``, as the only process or as one of several, and show its result.

    Args:
        job: what to draw.
        out: folder to write.
        ray: the address of a Ray cluster that draws, or "here" to start one; None draws in this process.
        crew: ``workers``, ``gpus`` and ``judge_gpus`` of :func:`lidar_sampling.runs.ray.run`.
        dry_run: only print the Job, and what it would cost.
        profile: also say where the time went.
        resume: go on with the run that is in ``out``.
        overwrite: delete the run that is in ``out`` first.
        json: print JSON instead of a table.
        quiet: show no progress.
        command: what was typed, for the report of a comparison.
    """
    from .. import runs
    from .._files import check_writable
    from ..evaluation.budget import settle

    if dry_run:
        _rehearse(job)
        return
    given = {name: value for name, value in (crew or {}).items() if value is not None}
    if ray is None and given:
        raise typer.BadParameter(f"--{next(iter(given)).replace('_', '-')} belongs to --ray")
    if profile and job.task != "generate":
        what = "a comparison" if job.task == "compare" else "banks"
        raise typer.BadParameter(f"--profile is for runs of pictures: leave it out for {what}")
    if ray is not None and profile:
        raise typer.BadParameter("--profile sees one process: leave out --ray")
    shard = (0, 1) if ray is not None else runs.from_environment(os.environ)
    if shard[1] > 1 and not quiet:
        warn(f"share {shard[0] + 1} of {shard[1]}, as {runs.shard_variables(os.environ)} say")
    with show_progress(quiet=quiet) as tell:
        lidar = None
        if job.budget is not None:
            check_writable(out)
            lidar = runs.load_sampler(job)
            job = settle(job, out, lidar)
        how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "tell": tell}
        if ray is None:
            outcome = runs.run(job, out, shard=shard, lidar=lidar, profile=profile, **how)
        else:
            from ..runs import ray as cluster

            outcome = cluster.run(job, out, address=None if ray == "here" else ray, **given, **how)
    if shard[1] > 1:
        _say_share(job, out, shard, complete=outcome.complete, command=command)
        return
    with after_drawing(out):
        rows = publish(job, out, command=command) if job.task == "compare" else []
    show(job, out, outcome.result, rows, json=json)


def _say_share(job: Job, out: Path, shard: tuple[int, int], *, complete: bool, command: str | None) -> None:
    """Say on stderr that a share is done; if it was the last one, also make the tables."""
    rank, number = shard
    if complete and job.task == "compare":
        with after_drawing(out):
            publish(job, out, command=command)
    end = f"all of it is in {out}" if complete else "others are still drawing"
    warn(f"share {rank + 1} of {number} is done; {end if job.task != 'look' else f'its banks are in {out}'}")


def _collect(job: Job, out: Path, *, json: bool) -> None:
    """Write and show the result of a run whose units are all there."""
    from ..runs import task_of

    if job.task == "look":
        raise typer.BadParameter("a folder of banks needs no --collect: it has no index")
    if job.task == "compare":
        tabulate(job, out, json=json)
    else:
        _check_drawn(job, out)
        show(job, out, task_of(job, out).collect(), [], json=json)


_DRAWN_BY = ("images", "seeds", "bank_seed", "only", "call", "scheduler", "reward", "preset", "dtype")


def _check_drawn(job: Job, out: Path) -> None:
    """Refuse to collect, as the result of a Job, what another drew.

    Raises:
        ValueError: run.json says something else than the Job; the message names the field.
    """
    from ..runs import read_json

    before, now = read_json(out / "run.json", {"settings": dict}), job.to_json()
    asked = {name: now[name] for name in _DRAWN_BY}
    for drawn, wanted in ((before, asked), (before["settings"], now["settings"])):
        for name, value in wanted.items():
            if drawn.get(name, value) != value:
                raise ValueError(
                    f"{out} was drawn with {name}={drawn[name]}, and this Job has {value}: give the Job that drew it"
                )


def tabulate(job: Job, out: Path, *, json: bool, command: str | None = None) -> None:
    """Write and show the tables of a comparison whose lines are in ``out``."""
    from ..evaluation.budget import settle

    job = settle(job, out, None)
    show(job, out, {}, publish(job, out, command=command), json=json)


def show(job: Job, out: Path, result: dict[str, Any], rows: Sequence[Row], *, json: bool) -> None:
    """Print the result of a run, and where it is."""
    from ._report import print_banks, print_profile, print_table

    if job.task == "compare":
        from ..evaluation.data import records
        from ..evaluation.figures import available

        with guard_printing():
            if not available():
                warn("no figures without matplotlib: pip install 'lidar-sampling[plot]'")
            if json:
                print_json(records(rows))
            else:
                typer.echo((out / "table.md").read_text(encoding="utf-8"))
                names = [name for name in ("table.md", "report.html", "pictures") if (out / name).exists()]
                warn(f"{_enumerate(names)} are in {out}")
        return
    with guard_printing():
        if job.task == "look":
            print_banks(result["banks"], json=json)
        elif json:
            print_json(result)
        else:
            print_table(result)
            if "profile" in result:
                print_profile(result["profile"])
            written = ["images", *(["grid.png"] if (out / "grid.png").exists() else []), "result.json"]
            echo(f"{_enumerate(written)} are in {out}")


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))


def publish(job: Job, out: Path, *, command: str | None) -> list[Row]:
    """Write tables, figures and the report of a comparison from its lines."""
    from .. import evaluation
    from ..evaluation.comparison import lines_of

    return evaluation.publish(lines_of(job, out), out, command=command)


def _rehearse(job: Job) -> None:
    """Print the Job, and on stderr what it will cost, if the model is on this machine."""
    with guard_printing(saved=False):
        print_json(job.to_json())
    if job.model != "glyph" and not Path(job.model).is_dir():
        warn(f"what it costs is not known before {job.model} is on this machine")
        return
    from .. import runs
    from ..evaluation.budget import settle

    lidar = runs.load_sampler(job)
    for line in _costs(settle(job, None, lidar), lidar):
        warn(line)


def _costs(job: Job, lidar: LiDAR) -> Sequence[str]:
    """Return one line per method that says what it will cost; of banks alone one line."""
    from .._cost import spell_counts
    from .._forecast import Rates
    from ..runs._pictures import cost_of_method

    prompt, units = job.text(0), len(job) * len(job.seeds)
    lidar = lidar.with_prompts(job.texts())
    rates = Rates.measure(lidar, prompt)
    lines = []
    for name in job.methods:
        cost = cost_of_method(job, name, lidar)
        seconds = rates.seconds(cost)
        lines.append(
            f"{'bank' if job.task == 'look' else name}: {spell_counts(cost)} per prompt, about "
            f"{spell_seconds(seconds)} here; about {spell_seconds(seconds * units)} for all {units}"
        )
    return lines
