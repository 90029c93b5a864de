"""The order for a run, as one value: everything that draws pictures takes a Job.

A :class:`Job` converts to plain JSON and back, so that it can be kept beside its results, sent to another machine and
drawn again. It is checked when it is made, before any weights are read. Its fields have the names of the options of
the command line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

from .._geneval import with_requirements
from .._prompts import check_prompt, read_prompts
from .._settings import GLYPH, Settings, preset
from .._values import accepts, spelt
from ._identity import read_json
from ._levers import read_levers, read_scheduler
from ._machine import check_dtype

SETTINGS = tuple(name for name in Settings.__dataclass_fields__ if name not in ("source", "scheduler", "tuned_for"))
"""The settings that a Job can set."""


@dataclass(frozen=True)
class Job:
    """The order for a run: what to draw, with which model and methods, and what to keep.

    Attributes:
        prompts: at least one: a text, or a mapping with ``"prompt"`` and metadata for judges, such as GenEval's. An
            ``"id"`` must be unique. A path to a file of prompts is read when the Job is made.
        task: ``generate`` keeps pictures, a folder per prompt; ``compare`` keeps lines of results, one per prompt,
            seed and method; ``look`` keeps banks.
        model: ``glyph``, or a path or hub id of a diffusers pipeline.
        variant: variant of the weights, such as ``fp16``.
        preset: name of a set of settings, such as ``paper-sd15``.
        reward: the guiding reward: a name of :mod:`lidar_sampling.rewards`, or names with weights, which make a
            mixture; None takes the model's own.
        metrics: names of rewards that judge and never guide; None takes the model's own.
        methods: names of :mod:`lidar_sampling.methods`. ``generate`` takes one, or ``vanilla`` and one. With a budget
            a name may hold ``N`` for the number that the budget allows.
        settings: fields of :class:`lidar_sampling.Settings` that differ from the model's: ``n``, ``steps``, ...
        images: samples per prompt, at least 1.
        only: indices, from 0, of the samples of ``images`` that ``generate`` draws, each as it would be among all;
            empty for all. The method must draw independent samples: lidar or vanilla.
        seeds: seeds of all noise. ``generate`` and ``look`` take one.
        bank_seed: seed of the banks' noise, for ``generate``; None takes the seed of the samples.
        call: other arguments of the pipeline, such as ``height``.
        scheduler: another diffusers scheduler, ``CLASS:NAME=VALUE,...``.
        dtype: precision of the pipeline: float32, float16, bfloat16 or auto.
        fast: levers of docs/performance.md, comma separated.
        banks: files or folders of banks to guide by, instead of drawing banks.
        store: folder that keeps banks between runs.
        budget: budget per prompt: network evaluations as ``480``, or seconds as ``30s``.
        pictures: number of prompts whose pictures of the first seed ``compare`` keeps.
        batch_size: samples at a time; 0 takes as many as fit.
        device: where to draw; None takes the accelerator of the machine.

    Raises:
        ValueError: a field has a wrong type or an impossible value; the message names the field and the value.

    Example:
        >>> job = Job(prompts=["a cat"], settings={"n": 8}, images=2)
        >>> Job.from_json(job.to_json()) == job
        True
        >>> Job(prompts=["a cat"], methods=["best-off-4"])
        Traceback (most recent call last):
        ValueError: unknown method 'best-off-4'; did you mean 'best-of-N'? ...
    """

    prompts: Sequence[str | Mapping[str, Any]] | str | Path
    task: Literal["generate", "compare", "look"] = "generate"
    model: str = "glyph"
    variant: str | None = None
    preset: str | None = None
    reward: str | dict[str, float] | None = None
    metrics: Sequence[str] | None = None
    methods: Sequence[str] = ("lidar",)
    settings: dict[str, Any] = field(default_factory=dict)
    images: int = 4
    only: Sequence[int] = ()
    seeds: Sequence[int] = (0,)
    bank_seed: int | None = None
    call: dict[str, Any] = field(default_factory=dict)
    scheduler: str | None = None
    dtype: str = "float32"
    fast: str | None = None
    banks: Sequence[str] = ()
    store: str | None = None
    budget: str | None = None
    pictures: int = 12
    batch_size: int = 16
    device: str | None = None

    def __post_init__(self) -> None:
        from ..rewards import read_mixture

        object.__setattr__(self, "prompts", _check_prompts(self.prompts))
        for name in ("metrics", "methods", "only", "seeds", "banks"):
            if isinstance(value := getattr(self, name), list | range):
                object.__setattr__(self, name, tuple(value))
        for name, kind in get_type_hints(Job).items():
            if name != "prompts" and not accepts(kind, value := getattr(self, name)):
                raise ValueError(f"{name} must be {spelt(kind)}, got {value!r}")
        if isinstance(self.settings.get("window"), list):
            object.__setattr__(self, "settings", {**self.settings, "window": tuple(self.settings["window"])})
        if isinstance(self.reward, str) and (weights := read_mixture(self.reward)):
            object.__setattr__(self, "reward", weights)
        _check_json(self)
        _check_drawing(self)
        _check_methods(self)
        _check_judges(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str) -> Job:
        """Return the Job from JSON values, or from a text of JSON.

        Raises:
            ValueError: it is not a JSON object, a field is unknown, or as for the class.

        Example:
            >>> Job.from_json('{"prompts": ["a cat"], "imagse": 2}')
            Traceback (most recent call last):
            ValueError: a Job has no field 'imagse'; did you mean 'images'?
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"a Job must be JSON ({error})") from None
        if not isinstance(value, Mapping):
            raise ValueError(f"a Job must be a JSON object, got {type(value).__name__}")
        known = [each.name for each in fields(cls)]
        for name in value:
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
                raise ValueError(f"a Job has no field {name!r}; {hint}")
        if "prompts" not in value:
            raise ValueError("a Job needs prompts: give it a list of texts")
        return cls(**value)

    @classmethod
    def read(cls, path: str | Path) -> Job:
        """Return the Job in a file: its own, or the ``result.json`` of a run, which holds the Job that made it.

        Raises:
            OSError: the file cannot be read.
            ValueError: as :meth:`from_json`; the message begins with the path.
        """
        path = Path(path)
        found = read_json(path, mend="give the file of a Job, or the result.json of a run")
        job = found["job"] if isinstance(found.get("job"), dict) else found
        if isinstance(job.get("prompts"), str):  # relative to the file that names them
            job = {**job, "prompts": str(path.parent / job["prompts"])}
        try:
            return cls.from_json(job)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_json(self, *, brief: bool = False, without: Collection[str] = ()) -> dict[str, Any]:
        """Return the Job as JSON values: every field, or with ``brief`` only those that differ from the defaults.

        Fields in ``without`` are left out, such as many prompts, which take the most time.

        >>> Job(prompts=["a cat"], images=2).to_json(brief=True)
        {'prompts': ['a cat'], 'images': 2}
        """
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in without}
        if brief:
            usual = {each.name: {} if each.default is MISSING else each.default for each in fields(self)}
            found = {name: value for name, value in found.items() if value != usual[name]}
        return json.loads(json.dumps(found))

    def text(self, index: int) -> str:
        """Return the text of prompt ``index``."""
        return text_of(self._prompts[index])

    def texts(self) -> list[str]:
        """Return the texts of the prompts."""
        return [text_of(prompt) for prompt in self._prompts]

    def line(self, index: int) -> dict[str, Any]:
        """Return prompt ``index`` with its metadata.

        The metadata is its own mapping. If that neither includes nor excludes anything, the text is read by GenEval's
        templates.
        """
        prompt = self._prompts[index]
        return with_requirements({"prompt": prompt} if isinstance(prompt, str) else prompt)

    def lines(self) -> list[dict[str, Any]]:
        """Return all prompts with their metadata."""
        return [self.line(index) for index in range(len(self))]

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self._prompts)

    @property
    def _prompts(self) -> tuple[str | Mapping[str, Any], ...]:
        return cast("tuple[str | Mapping[str, Any], ...]", self.prompts)  # the types after the Job is made


def read_budget(text: str) -> tuple[float, str]:
    """Return a budget and the field of :class:`lidar_sampling.Cost` that it limits.

    Raises:
        ValueError: it is neither a positive number nor a number of seconds.

    >>> read_budget("480"), read_budget("30s")
    ((480.0, 'network_evaluations'), (30.0, 'seconds'))
    """
    number, unit = (text[:-1], "seconds") if text.endswith("s") else (text, "network_evaluations")
    try:
        if 0 < (limit := float(number)) < math.inf:
            return limit, unit
    except ValueError:
        pass
    raise ValueError(f"--budget takes network evaluations as 480, or seconds as 30s; got {text!r}")


def text_of(prompt: str | Mapping[str, Any]) -> str:
    """Return the text of a prompt."""
    return prompt if isinstance(prompt, str) else prompt["prompt"]


def _check_prompts(prompts: Any) -> tuple[str | Mapping[str, Any], ...]:
    """Return the prompts, checked; a mapping with only a text becomes the text, to save memory."""
    if isinstance(prompts, str | Path):
        prompts = read_prompts(prompts)
    if not isinstance(prompts, Sequence):
        raise ValueError(f"prompts must be a list of texts, or the path of a file of them, got {prompts!r}")
    if not prompts:
        raise ValueError("prompts must hold at least one prompt")
    seen: dict[Any, str] = {}
    found: list[str | Mapping[str, Any]] = []
    for line in prompts:
        if isinstance(line, str):
            check_prompt(line)
            found.append(line)
            continue
        if not isinstance(line, Mapping):
            raise ValueError(f"a prompt must be a text, or an object with a prompt, got {line!r}")
        check_prompt(line.get("prompt"))
        found.append(line["prompt"] if list(line) == ["prompt"] else line)
        if (name := line.get("id")) is not None:
            if not isinstance(name, str | int):
                raise ValueError(f"an id must be a text or a whole number, got {name!r}")
            if name in seen:
                raise ValueError(f"two prompts have the id {name!r}: {seen[name]!r} and {line['prompt']!r}")
            seen[name] = line["prompt"]
    return tuple(found)


def _check_json(job: Job) -> None:
    """Refuse values that JSON cannot hold, since they could not be sent to another machine."""
    for name in ("prompts", "settings", "call"):
        try:
            json.dumps(getattr(job, name), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must hold only JSON values ({error})") from None


def _check_drawing(job: Job) -> None:
    """Refuse values that nothing can be drawn with."""
    if job.images < 1:
        raise ValueError(f"images must be at least 1, got {job.images}")
    if job.batch_size < 0:
        raise ValueError(f"batch_size must be at least 0, got {job.batch_size}")
    if not job.seeds or len(set(job.seeds)) < len(job.seeds):
        raise ValueError(f"seeds must be different whole numbers, at least one, got {list(job.seeds)}")
    if job.task != "compare" and len(job.seeds) > 1:
        raise ValueError(f"{job.task} takes one seed, got {list(job.seeds)}")
    if job.bank_seed is not None and job.task != "generate":
        raise ValueError(f"bank_seed belongs to generate: {job.task} draws banks from its seeds")
    check_dtype(job.dtype)
    read_levers(job.fast)
    read_scheduler(job.scheduler)
    if job.preset is not None and job.scheduler is not None:
        raise ValueError("--preset brings its scheduler: leave out --scheduler, or set the numbers one by one")
    found = GLYPH if job.preset is None else preset(job.preset)
    for name in job.settings:
        if name not in SETTINGS:
            near = get_close_matches(name, SETTINGS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SETTINGS)}"
            raise ValueError(f"unknown setting {name!r}; {hint}")
    replace(found, **job.settings)  # checks types and ranges
    if (solver := job.settings.get("lookahead")) is not None:
        from ..solvers import load as load_solver

        load_solver(solver)


def _check_methods(job: Job) -> None:
    """Refuse methods that are unknown, or that the task does not allow."""
    from ..methods import check_name

    if not job.methods or len(set(job.methods)) < len(job.methods):
        raise ValueError(f"methods must be different names, at least one, got {list(job.methods)}")
    if job.budget is not None:
        read_budget(job.budget)
    _check_only(job)
    for name in job.methods:
        numbered = check_name(name)
        if job.budget is None and numbered != name:
            raise ValueError(f"{name} needs a number for its N, or a --budget that sets it")
    if job.task == "look" and job.methods != ("lidar",):
        raise ValueError(f"look draws banks by lidar alone, got the methods {', '.join(job.methods)}")
    if job.task == "generate":
        if job.methods[:-1] not in ((), ("vanilla",)):
            raise ValueError(
                f"generate draws by one method, or by vanilla and another, got {', '.join(job.methods)}: "
                "compare takes any"
            )
        if job.budget is not None:
            raise ValueError("a budget belongs to compare: it makes methods cost the same")
    if job.banks and (job.task, job.methods[-1]) != ("generate", "lidar"):
        raise ValueError("banks guide the method lidar of generate alone: leave them out")


def _check_only(job: Job) -> None:
    """Refuse ``only`` for samples that do not exist, or that depend on the others."""
    from ..methods import draws_each_alone

    if not job.only:
        return
    if len(set(job.only)) < len(job.only) or not all(0 <= place < job.images for place in job.only):
        raise ValueError(f"only must name different samples of 0 to {job.images - 1}, got {list(job.only)}")
    if job.task != "generate":
        raise ValueError(f"only belongs to generate: {job.task} draws all samples")
    for name in job.methods:
        if not draws_each_alone(name):
            raise ValueError(f"only draws samples of lidar or vanilla again: those of {name} depend on one another")


def _check_judges(job: Job) -> None:
    """Refuse unknown rewards."""
    from .. import rewards

    if isinstance(job.reward, dict):
        if not job.reward:
            raise ValueError("reward must name at least one reward")
        for name, weight in job.reward.items():
            if not accepts(float, weight) or not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be a finite number, got {weight!r}")
    names = job.reward if isinstance(job.reward, dict) else [job.reward]
    for name in (*names, *(job.metrics or ())):
        if name is not None:
            rewards.check_name(name)
