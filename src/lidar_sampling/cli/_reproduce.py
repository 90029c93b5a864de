"""``lidar reproduce``: plan, draw and judge the paper's tables on real weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._values import read_seconds, spell_seconds
from . import _options as o
from ._progress import show_progress
from ._run import publish
from ._screen import after_drawing, echo, guard_printing, print_json, warn

if TYPE_CHECKING:
    from .._sampler import LiDAR
    from ..evaluation.reproduce import Plan, Target
    from ..evaluation.verdicts import Findings
    from ..runs import Job
    from ..runs.local import Tell

TableName = Annotated[
    str | None,
    typer.Argument(metavar="TABLE", help="A table of the paper, such as table2. Without one, the tables are listed."),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="sd15, sd15-dpo, sdxl or flux; a path or hub id of such a model; or both, as sd15=PATH. [default: "
        "the first of the table]",
        show_default=False,
    ),
]
GenEval = Annotated[
    Path | None,
    typer.Option(
        envvar="GENEVAL_METADATA",
        help="GenEval's prompts: the file prompts/evaluation_metadata.jsonl of djghosh13/geneval.",
        show_default=False,
    ),
]
Gpus = Annotated[int, typer.Option(min=1, help="GPUs that draw side by side; more than one needs Ray.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Time limit, as 90min or 2h: as many prompts as fit are drawn, in a fixed random order. [default: "
        "all prompts]",
        show_default=False,
    ),
]
As = Annotated[
    str,
    typer.Option(
        "--as",
        help="Which to follow where the paper and its released code differ: paper or official (docs/reproduce.md).",
    ),
]
Without = Annotated[
    str,
    typer.Option(
        help="Rows to leave out, comma separated, by the names that --dry-run prints; 'ours' leaves out all "
        "rows that the paper lacks."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision of the pipeline. [default: as in the paper, float16, and bfloat16 for FLUX; on a CPU "
        "float32]",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of results. An unfinished run there is continued. [default: reproduce/TABLE-MODEL, with "
        "-official at the end for --as official]",
        show_default=False,
    ),
]
Pictures = Annotated[int, typer.Option(min=0, help="Number of prompts per row whose pictures are kept.")]
Collect = Annotated[bool, typer.Option("--collect", help="Draw nothing; write the tables from the results in --out.")]


def reproduce(
    table: TableName = None,
    model: Model = None,
    geneval: GenEval = None,
    gpus: Gpus = 1,
    budget: Budget = None,
    manner: As = "paper",
    without: Without = "",
    out: Out = None,
    variant: o.Variant = None,
    dtype: Dtype = None,
    device: o.Device = None,
    batch_size: o.BatchSize = 16,
    fast: o.Fast = None,
    pictures: Pictures = 12,
    ray: o.Ray = None,
    collect: Collect = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Draw nothing; print the plan with its Jobs as JSON, and its cost.")
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw a table of the LiDAR paper with its settings.

    The report sets the paper's figures beside yours and says which claims hold.

    The first minute measures how fast this machine is; then the command says how long the rest will take. Rows of
    this library, at LiDAR's cost, are added to the paper's rows. In --out it writes reproduce.md, reproduce.json, and
    one folder per run as lidar compare does. The same command continues where it stopped, also with a larger
    --budget. With RANK and WORLD_SIZE set, each process takes its share.
    """
    from .. import runs
    from ..evaluation import reproduce as room

    if table is None:
        _list(json=json)
        return
    what = room.read_target(table, model)
    if manner not in ("paper", "official"):
        raise typer.BadParameter(f"--as must be paper or official, got {manner!r}")
    left = [name.strip() for name in without.split(",") if name.strip()]
    room.check_without(what.study, left)
    seconds = None if budget is None else read_seconds(budget)
    crew = runs.from_environment(os.environ)[1] if ray is None and gpus == 1 else gpus
    prompts = _prompts(geneval)
    out = out or Path("reproduce", f"{table}-{what.model}" + ("" if manner == "paper" else f"-{manner}"))
    dtype = dtype or _dtype(what, manner, device)
    asks: dict[str, Any] = {
        **what._asdict(),
        "as": manner,
        "without": sorted(left),
        "budget": seconds,
        "gpus": gpus,
        "prompts": hashlib.sha256(repr(sorted(map(str, prompts))).encode()).hexdigest(),
        "dtype": dtype,
        "variant": variant,
    }
    how: dict[str, Any] = {"device": device, "batch_size": batch_size, "fast": fast, "pictures": pictures}
    made = None if dry_run else room.read_plan(out, asks)
    if collect:
        if made is None:
            raise typer.BadParameter(
                f"nothing was planned in {out} with these options: draw it first, without --collect"
            )
        _show(what, made, out, manner, json=json)
        return
    load = _Loader()
    if made is None:
        made, samplers = _plan(
            what,
            prompts,
            load,
            None if dry_run else out,
            asks,
            manner,
            left,
            None if seconds is None else seconds * crew,
            dtype=dtype,
            variant=variant,
            **how,
        )
    else:
        samplers = {}
    made = replace(made, jobs={name: replace(job, **how) for name, job in made.jobs.items()})
    _announce(what, made, crew)
    if dry_run:
        with guard_printing(saved=False):
            print_json({**made.to_json(), "jobs": [job.to_json() for job in made.jobs.values()]})
        return
    if _draw(made, samplers, load, out, ray=ray, gpus=gpus, quiet=quiet):
        with after_drawing(out):
            for name, job in made.jobs.items():
                publish(job, out / name, command=None)
        _show(what, made, out, manner, json=json)
    else:
        warn(
            "this share is done, others are still drawing; the last to finish writes the tables, or run this "
            "with --collect"
        )


class _Loader:
    """A loader of samplers for Jobs, which loads the model and each reward once."""

    def __init__(self) -> None:
        self._pipe: Any = None
        self._judges: dict[str, Any] = {}

    def __call__(self, job: Job) -> LiDAR:
        from .. import runs
        from ..evaluation.reproduce import reward_names

        lidar = runs.load_sampler(job, judges=self._judges, pipe=self._pipe)
        self._pipe = lidar.pipe
        self._judges |= dict(zip(reward_names(job), [*lidar.parts, *lidar.metrics], strict=True))
        return lidar

    def forget(self) -> None:
        """Free the memory of the model for other processes."""
        import torch

        self._pipe, self._judges = None, {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _plan(
    what: Target,
    prompts: Sequence[Mapping[str, Any]],
    load: _Loader,
    out: Path | None,
    asks: Mapping[str, Any],
    manner: Any,
    without: Sequence[str],
    budget: float | None,
    **fields: Any,
) -> tuple[Plan, dict[str, LiDAR]]:
    """Measure this machine, and return the plan; write it into ``out``."""
    from .._files import check_writable
    from ..evaluation import reproduce as room

    if out is not None:
        check_writable(out)
    warn(f"loading {what.weights}, then measuring how fast this machine is")
    made, samplers = room.plan(what, prompts, load, out, manner=manner, without=without, budget=budget, **fields)
    if any(getattr(lidar.pipe, "safety_checker", None) is not None for lidar in samplers.values()):
        warn("this pipeline has a safety checker, which blackens some pictures: see docs/reproduce.md")
    return (made if out is None else room.keep(out, asks, made)), samplers


def _announce(what: Target, made: Plan, crew: int) -> None:
    """Say on stderr what will be drawn and how long that takes."""
    from .._cost import spell_counts
    from ..evaluation.verdicts import LEAST

    each, all_of = made.forecast, made.forecast.seconds * made.of / crew
    warn(
        f"{what.table} of {what.model} in {len(made.jobs)} runs ({', '.join(made.jobs)}); a step of one picture "
        f"takes {made.step:.3g} s here"
    )
    for name, rows in made.methods.items():
        warn(f"{name}: {'; '.join(f'{key} = {method}' for key, method in rows.items())}")
    warn(f"one prompt takes {each.pictures} pictures, {spell_counts(each.cost)}, about {spell_seconds(each.seconds)}")
    total = made.prompts * each.cost.network_evaluations
    begin, end = f"all {made.of} prompts", ""
    if made.prompts < made.of:
        begin = f"for the budget only the first {made.prompts} of {made.of} prompts in a fixed random order"
        end = f"; all would take about {spell_seconds(all_of)}"
    warn(
        f"{begin}: {made.prompts * each.pictures:,} pictures, {total:,} network evaluations, about "
        f"{spell_seconds(made.seconds / crew)}{end}"
    )
    if made.prompts < LEAST:
        warn(f"with fewer than {LEAST} prompts no claim can be decided: give a larger --budget, or leave rows out")


def _draw(
    made: Plan, samplers: dict[str, LiDAR], load: _Loader, out: Path, *, ray: str | None, gpus: int, quiet: bool
) -> bool:
    """Draw what is not there yet; return whether all of it is there now, including what others drew."""
    from .. import runs
    from ..evaluation.reproduce import complete

    if ray is not None or gpus > 1:
        from ..runs import ray as cluster

        samplers.clear()
        load.forget()
        address = None if ray in (None, "here") else ray
        with show_progress(quiet=quiet) as tell:
            for number, (name, job) in enumerate(made.jobs.items(), 1):
                cluster.run(job, out / name, address=address, workers=gpus, tell=_of_run(tell, number, made))
        return complete(made, out)
    shard = runs.from_environment(os.environ)
    with show_progress(quiet=quiet) as tell:
        for number, (name, job) in enumerate(made.jobs.items(), 1):
            lidar = samplers[name] if name in samplers else load(job)
            runs.run(job, out / name, shard=shard, lidar=lidar, tell=_of_run(tell, number, made))
    return complete(made, out)


def _of_run(tell: Tell | None, number: int, made: Plan) -> Tell | None:
    """Return a callback that says which run of the plan the progress and the time left belong to."""
    if tell is None or len(made.jobs) == 1:
        return tell
    return lambda now: tell(replace(now, what=f"run {number} of {len(made.jobs)}, {now.what}"))


def _show(what: Target, made: Plan, out: Path, manner: str, *, json: bool) -> None:
    """Write reproduce.md and reproduce.json, and print one of them."""
    from .._files import write_atomically, write_json
    from ..evaluation.comparison import lines_of
    from ..evaluation.parts import markdown
    from ..evaluation.verdicts import findings, tables, to_json

    with after_drawing(out):
        lines = {name: lines_of(job, out / name) for name, job in made.jobs.items()}
        found = findings(what.study, made.methods, lines)
        text = _title(what, made, found, manner) + "\n" + markdown(tables(found, study=what.study, of=made.of))
        value = {**what._asdict(), "as": manner, "of": made.of, "paper": _PAPER, **to_json(found)}
        write_atomically(out / "reproduce.md", text.encode("utf-8", "backslashreplace"))
        write_json(out / "reproduce.json", value)
    with guard_printing():
        if json:
            print_json(value)
        else:
            echo(text)
            echo(f"reproduce.md and reproduce.json are in {out}")


_PAPER = "https://arxiv.org/abs/2602.03211"


def _title(what: Target, made: Plan, found: Findings, manner: str) -> str:
    """Return the lines above the tables: what was drawn, on how many prompts, and how many claims hold."""
    from ..evaluation.published import PROMPTS, TABLES
    from ..evaluation.verdicts import FAILS, HOLDS

    answers = [each.answer for each in found.verdicts if not each.ours]
    prompts = "" if made.of == PROMPTS else f" These are not the paper's {PROMPTS} prompts."
    return (
        f"# {what.table} of the LiDAR paper ({_PAPER}): {TABLES[what.table].title}\n\n"
        f"{what.model}, {what.weights}, as {'the paper says' if manner == 'paper' else 'released code does'}; "
        f"{made.prompts} of {made.of} prompts.{prompts} Of {len(answers)} verdicts on claims "
        f"{answers.count(HOLDS)} hold, {answers.count(FAILS)} do not, and the others cannot be told at this size or "
        "were not drawn.\n"
    )


def _prompts(file: Path | None) -> list[dict[str, Any]]:
    """Return GenEval's prompts from a file; refuse a file of other prompts.

    Raises:
        BadParameter: no file was given, or a line is not GenEval's metadata.
    """
    from ..evaluation.published import PROMPTS, PROMPTS_MD5

    if file is None:
        raise typer.BadParameter(
            "give GenEval's prompts by --geneval FILE or GENEVAL_METADATA: prompts/evaluation_metadata.jsonl of "
            "https://github.com/djghosh13/geneval"
        )
    found = o.read_lines(None, file)
    for number, line in enumerate(found, 1):
        if "tag" not in line or "include" not in line:
            raise typer.BadParameter(
                f"--geneval: {file}, prompt {number} is not GenEval's metadata: it has no tag or include"
            )
    if hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != PROMPTS_MD5:
        warn(f"{file} is not the file of the paper's {PROMPTS} prompts: figures cannot be set against the paper's")
    return found


def _dtype(what: Target, manner: str, device: str | None) -> str:
    """Return the precision of the paper, or float32 on a CPU, where the paper's is slow."""
    from ..evaluation.published import MODELS
    from ..runs import device_of

    return "float32" if device_of(device).startswith("cpu") and manner == "paper" else MODELS[what.model].dtype


def _list(*, json: bool) -> None:
    """Print the tables, and how long the paper's authors took for their rows."""
    from ..evaluation.published import ELSEWHERE, MODELS, PROMPTS, TABLES
    from ..evaluation.reproduce import paper_seconds

    with guard_printing(saved=False):
        if json:
            print_json(
                {name: {"title": table.title, "models": list(table.studies)} for name, table in TABLES.items()}
            )
            return
        for name, table in TABLES.items():
            echo(f"{name}\n  {table.title}")
            for model, study in table.studies.items():
                took = paper_seconds(study)
                hours = f"; its rows took the authors {spell_seconds(PROMPTS * took)} on an A100" if took else ""
                echo(f"  {model}: {MODELS[model].weights or 'no pipeline of it is on the hub'}{hours}")
        for name, why in ELSEWHERE.items():
            echo(f"{name}\n  not drawn here: {why}")
