"""Plans to reproduce a table of the paper: which rows, on how many prompts, and how long they will take.

Each run of :mod:`.published` becomes one comparison. The rows that we added get the number at which they cost as much
as LiDAR. Prompts are taken from the front of one fixed random order, so that a larger budget continues where a
smaller one stopped. The plan is written before anything is drawn, and every process of a run, and a resumed run,
follows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from .._cost import Cost
from .._files import write_once
from .._forecast import Rates, rows_of
from .._sampler import LiDAR
from .._values import spell_seconds
from ..methods import load as load_method
from ..methods.vanilla import Vanilla
from ..runs import Job, read_json
from ..runs._lines import key as key_of
from .budget import settle
from .comparison import lines_of
from .published import ELSEWHERE, IR, JUDGES, MODELS, SECONDS, TABLES, Manner, Row, Run, Study

_MEND = "leave the row out with --without"
LIDAR = "lidar"  # the row whose cost the added rows must match


class Target(NamedTuple):
    """The table to reproduce, for one model and its weights.

    Attributes:
        table: a key of :data:`~lidar_sampling.evaluation.published.TABLES`.
        model: a key of :data:`~lidar_sampling.evaluation.published.MODELS`.
        weights: path or hub id of the pipeline to draw with.
    """

    table: str
    model: str
    weights: str

    @property
    def study(self) -> Study:
        """The part of the table on the model."""
        return TABLES[self.table].studies[self.model]


def read_target(table: str, model: str | None) -> Target:
    """Return what to reproduce: the table, its model, and where the weights are.

    Args:
        table: name of the table.
        model: a name, a path or hub id, or both as ``NAME=PATH``; None is the first of the table.

    Raises:
        ValueError: there is no such table, it has other models, or the kind of model at the path is unknown.

    >>> read_target("table10", None)
    Target(table='table10', model='sdxl', weights='stabilityai/stable-diffusion-xl-base-1.0')
    >>> read_target("table5", "sd15-dpo=models/dpo").weights
    'models/dpo'
    """
    if table in ELSEWHERE:
        raise ValueError(f"{table} is not drawn here: {ELSEWHERE[table]}")
    if table not in TABLES:
        near = get_close_matches(table, TABLES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no table {table!r}; {hint}there are {', '.join(TABLES)}")
    studies = TABLES[table].studies
    name, equals, path = (model or next(iter(studies))).partition("=")
    if name in MODELS and (equals or not Path(name).exists()):
        weights = path if equals else MODELS[name].weights
        if not weights:
            raise ValueError(f"no pipeline of {name} is known on the hub: give one, --model {name}=PATH")
    else:
        weights = model or ""
        name = _find_model(weights, studies)
    if name not in studies:
        raise ValueError(f"{table} is of {' and '.join(studies)}, not of {name}")
    return Target(table, name, weights)


def _find_model(weights: str, studies: Collection[str]) -> str:
    """Return the name of the paper's model at a path or hub id, by the class of its pipeline."""
    import diffusers

    try:
        found = diffusers.DiffusionPipeline.load_config(weights)["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        first = next(iter(studies))
        raise ValueError(
            f"cannot read what kind of model {weights!r} is: give a name ({', '.join(MODELS)}), a path, or both, "
            f"--model {first}={weights}"
        ) from None
    fits = [name for name, model in MODELS.items() if model.pipeline == found]
    if not fits:
        raise ValueError(f"{weights} is a {found}, and the paper's models are {', '.join(MODELS)}")
    return next((name for name in fits if name in studies), fits[0])


def in_order(prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return prompts in the fixed random order of reproductions, with each tag spread evenly.

    A budget takes prompts from the front. The order comes from a hash of the texts, so it does not depend on the
    order of the file or on the machine.

    >>> lines = [{"prompt": str(k), "tag": "odd" if k % 2 else "even"} for k in range(6)]
    >>> sorted(line["tag"] for line in in_order(lines)[:4])
    ['even', 'even', 'odd', 'odd']
    """
    tags: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(prompts, key=lambda line: hashlib.sha256(line["prompt"].encode()).digest()):
        tags.setdefault(line.get("tag", ""), []).append(dict(line))
    placed = [((k + 0.5) / len(lines), line) for lines in tags.values() for k, line in enumerate(lines)]
    return [line for _, line in sorted(placed, key=lambda pair: pair[0])]


def choose_rows(run: Run, without: Collection[str]) -> list[Row]:
    """Return the rows of a run except those in ``without``, where ``ours`` means all that we added."""
    ours = () if "ours" in without else run.ours
    return [row for row in (*run.rows, *ours) if row.key not in without]


def check_without(study: Study, without: Collection[str]) -> None:
    """Refuse names of rows that the study does not have, and names that leave no row.

    Raises:
        ValueError: the message names the row, or says that nothing is left.
    """
    known = {row.key: None for run in study.runs for row in choose_rows(run, ())} | {"ours": None}
    for key in without:
        if key not in known:
            raise ValueError(f"--without: no row {key!r}; there are {', '.join(known)}")
    if not any(choose_rows(run, without) for run in study.runs):
        raise ValueError(f"--without {','.join(without)} leaves nothing to draw")


def judges_of(study: Study) -> list[str]:
    """Return the judges with figures in the table."""
    figures = {judge for run in study.runs for row in run.rows for judge in row.figures}
    return [judge for judge in JUDGES if judge in figures]


def job_of(
    what: Target, run: Run, prompts: Sequence[Mapping[str, Any]], *, manner: Manner = "paper", **changes: Any
) -> Job:
    """Return the Job of a run with the rows of the paper.

    Args:
        what: the reproduction that the run is part of.
        run: settings and rows of the run.
        prompts: GenEval metadata.
        manner: ``paper`` or ``official``: which to follow where the paper and released code differ.
        **changes: other fields of the Job.

    >>> what = read_target("table2", "sd15")
    >>> job = job_of(what, what.study.runs[1], [{"prompt": "a photo of a cat", "tag": "single_object"}])
    >>> job.preset, job.settings, job.methods[3]
    ('paper-sd15', {'steps': 50, 'eta': 0.0}, 'date:rho=0.1,every=2')
    """
    guides = [run.reward] if isinstance(run.reward, str) else list(run.reward)
    return Job(
        prompts=prompts,
        task="compare",
        model=what.weights,
        preset=MODELS[what.model].preset,
        reward=run.reward if isinstance(run.reward, str) else dict(run.reward),
        metrics=[judge for judge in judges_of(what.study) if judge not in guides],
        methods=list(dict.fromkeys(row.drawn_by(manner) for row in run.rows)),
        settings=dict(run.settings),
        images=run.images,
        **changes,
    )


class Pace(NamedTuple):
    """The speed of this machine, measured on a first batch.

    Attributes:
        rates: rates of drawing.
        judging: seconds per picture for all judges together.
        step: seconds per denoising step of one picture.
    """

    rates: Rates
    judging: float
    step: float

    @classmethod
    def measure(cls, lidar: LiDAR, line: Mapping[str, Any], images: int) -> Pace:
        """Time small batches of one prompt, drawn and judged, each after a run to warm up."""
        images = min(images, lidar.batch_size)
        rates = Rates.measure(lidar, line["prompt"], images=images)
        drawn = Vanilla(steps=2).draw(lidar, [line["prompt"]], images=images, seed=0)
        judges = [*lidar.parts, *lidar.metrics]
        scoring = [lidar.scores(drawn, judges, [line])[1].seconds for _ in range(2)][-1]
        return cls(rates, scoring / images, rates.network * rows_of(lidar.pipe, lidar.arguments()))


class Forecast(NamedTuple):
    """The cost of one prompt, for all runs and rows together.

    Attributes:
        pictures: number of pictures that are kept and judged.
        cost: counts of calls.
        seconds: estimated, on one GPU.
    """

    pictures: int
    cost: Cost
    seconds: float

    @classmethod
    def of(cls, jobs: Mapping[str, Job], samplers: Mapping[str, LiDAR], pace: Pace) -> Forecast:
        """Return the cost of one prompt of these settled Jobs; refuse a row that cannot be drawn.

        Raises:
            TypeError, ValueError: a method cannot draw with this model; the message says how to leave it out.
        """
        pictures, total = 0, Cost()
        for name, job in jobs.items():
            for method in job.methods:
                try:
                    total += load_method(method).cost(samplers[name], images=job.images)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{method}: {error}; {_MEND}") from error
                pictures += job.images
        return cls(pictures, total, pace.rates.seconds(total) + pace.judging * pictures)

    def prompts_within(self, budget: float, most: int) -> int:
        """Return how many prompts fit into ``budget`` seconds of one GPU.

        Raises:
            ValueError: not even one prompt fits.

        >>> Forecast(8, Cost(), 60.0).prompts_within(3600, 553)
        60
        """
        if budget < self.seconds:
            raise ValueError(
                f"a budget of {spell_seconds(budget)} is too small: one prompt takes about "
                f"{spell_seconds(self.seconds)} here; give more, or leave rows out with --without"
            )
        return min(most, int(budget / self.seconds))


@dataclass(frozen=True)
class Plan:
    """The plan of a reproduction.

    Attributes:
        jobs: run -> its settled Job, with its prompts.
        methods: run -> key of a row -> the method that draws it.
        of: number of prompts in the file.
        forecast: cost per prompt.
        step: seconds per denoising step of one picture.
    """

    jobs: dict[str, Job]
    methods: dict[str, dict[str, str]]
    of: int
    forecast: Forecast
    step: float

    @property
    def prompts(self) -> int:
        """The number of prompts to draw."""
        return len(next(iter(self.jobs.values())))

    @property
    def seconds(self) -> float:
        """The time on one GPU."""
        return self.prompts * self.forecast.seconds

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "prompts": self.prompts,
            "of": self.of,
            "per_prompt": {**self.forecast._asdict(), "cost": vars(self.forecast.cost)},
            "seconds_per_step": self.step,
            "methods": self.methods,
            "jobs": {name: job.to_json() for name, job in self.jobs.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Return the plan from the values of :meth:`to_json`."""
        each = value["per_prompt"]
        return cls(
            {name: Job.from_json(job) for name, job in value["jobs"].items()},
            value["methods"],
            value["of"],
            Forecast(each["pictures"], Cost(**each["cost"]), each["seconds"]),
            value["seconds_per_step"],
        )


def plan(
    what: Target,
    prompts: Sequence[Mapping[str, Any]],
    samplers: Callable[[Job], LiDAR],
    out: Path | None,
    *,
    manner: Manner = "paper",
    without: Collection[str] = (),
    budget: float | None = None,
    **changes: Any,
) -> tuple[Plan, dict[str, LiDAR]]:
    """Plan a reproduction; return what to draw, and the samplers that draw it.

    Args:
        what: the table and the model.
        prompts: GenEval metadata, in any order.
        samplers: loads the sampler of a Job.
        out: folder that keeps the numbers of the added rows; None does not keep them.
        manner: ``paper`` or ``official``: which to follow where the paper and released code differ.
        without: keys of rows to leave out.
        budget: seconds of one GPU; None allows all prompts.
        **changes: other fields of the Jobs.

    Raises:
        TypeError, ValueError: a row cannot be drawn, or the budget is too small for one prompt.
    """
    ordered = in_order(prompts)
    jobs: dict[str, Job] = {}
    methods: dict[str, dict[str, str]] = {}
    found: dict[str, LiDAR] = {}
    for run in what.study.runs:
        rows = choose_rows(run, without)
        if not rows:
            continue
        job = job_of(what, run, ordered, manner=manner, **changes)
        found[run.name] = lidar = samplers(job)
        names = [row.drawn_by(manner) for row in rows]
        job = replace(job, methods=list(dict.fromkeys(names)), budget=_cost_of_lidar(run, manner, lidar))
        try:
            settled = settle(job, None if out is None else out / run.name, lidar)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}; {_MEND}") from error
        number = dict(zip(job.methods, settled.methods, strict=True))
        methods[run.name] = {row.key: number[name] for row, name in zip(rows, names, strict=True)}
        jobs[run.name] = settled
    largest = max(jobs, key=lambda name: jobs[name].images)  # most of the work is done in batches of this size
    pace = Pace.measure(found[largest], ordered[0], jobs[largest].images)
    forecast = Forecast.of(jobs, found, pace)
    count = len(ordered) if budget is None else forecast.prompts_within(budget, len(ordered))
    jobs = {name: replace(job, prompts=ordered[:count]) for name, job in jobs.items()}
    return Plan(jobs, methods, len(ordered), forecast, pace.step), found


def _cost_of_lidar(run: Run, manner: Manner, lidar: LiDAR) -> str | None:
    """Return the network evaluations of the row whose cost the added rows must match; None if no rows were added."""
    if not run.ours:
        return None
    row = next(row for row in run.rows if row.key == LIDAR)
    return str(load_method(row.drawn_by(manner)).cost(lidar, images=run.images).network_evaluations)


def read_plan(out: Path, asks: Mapping[str, Any]) -> Plan | None:
    """Return the plan in ``out`` for these options; None if there is no such plan.

    Raises:
        ValueError: the plan is damaged.
    """
    file = _file(out, asks)
    if not file.exists():
        return None
    mend = "remove it, and it is planned again"
    found = read_json(file, {"plan": dict}, mend=mend)["plan"]
    try:
        return Plan.from_json(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): {mend}") from None


def keep(out: Path, asks: Mapping[str, Any], made: Plan) -> Plan:
    """Write a plan and return it; if another process was first, return that process's plan."""
    out.mkdir(parents=True, exist_ok=True)
    write_once(_file(out, asks), (json.dumps({"asked": asks, "plan": made.to_json()}, indent=1) + "\n").encode())
    return read_plan(out, asks) or made


def _file(out: Path, asks: Mapping[str, Any]) -> Path:
    text = json.dumps(asks, sort_keys=True)
    return out / f"plan-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def reward_names(job: Job) -> list[str]:
    """Return the rewards that a Job names, guiding rewards first."""
    guides = list(job.reward) if isinstance(job.reward, dict) else [job.reward or IR]
    return [*guides, *(job.metrics or ())]


def complete(made: Plan, out: Path) -> bool:
    """Return whether ``out`` holds all lines of a plan, whichever process drew them."""
    for name, job in made.jobs.items():
        there = {key_of(line) for line in lines_of(job, out / name)}
        prompts = set(job.texts())  # a line is of a prompt's text, so a prompt that comes twice has one
        if len(there) < len(prompts) * len(job.seeds) * len(job.methods):
            return False
    return True


def paper_seconds(study: Study) -> float:
    """Return how long a prompt took the paper's authors on an A100: the sum of the seconds in its rows."""
    return sum(row.figures.get(SECONDS, 0.0) for run in study.runs for row in run.rows)
