"""The catalog of a server, and how a request becomes a Job: clients can choose only what the server lists."""

from __future__ import annotations

import math
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .._sampler import LiDAR
from ..runs import Job
from .banks import Banks
from .limits import Limits
from .requests import Draw, Generation, Look


class RefusedError(ValueError):
    """A request that cannot be drawn.

    Attributes:
        field: field of the request that is at fault.
        status: HTTP status of the answer.
    """

    def __init__(self, field: str | None, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.field, self.status = field, status


@dataclass
class Catalog:
    """Models, rewards and methods by their names for clients; the first of each is the default.

    Args:
        models: name -> ``glyph``, or the path or hub id of a pipeline.
        rewards: name -> a reward as for the command line; if empty, each model's own reward guides.
        methods: names of :mod:`lidar_sampling.methods`.
        base: a Job with the settings that all Jobs share, such as the device; its prompt does not matter.
        limits: limits of a request.
    """

    models: Mapping[str, str]
    rewards: Mapping[str, str] = field(default_factory=dict)
    methods: Sequence[str] = ("lidar", "vanilla")
    base: Job = field(default_factory=lambda: Job(prompts=["a photo of two cats"], images=1))
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("serve at least one model: give --model")
        if not self.rewards and (lacking := [name for name, model in self.models.items() if model != "glyph"]):
            raise ValueError(f"{lacking[0]} brings no reward: give one with --reward")
        for name in self.methods:
            replace(self.base, methods=(name,))  # this refuses unknown names
        self._seeds = _Seeds()

    def jobs(self) -> list[Job]:
        """Return a Job of each model with the first reward and the usual settings, to warm up."""
        return [replace(self._job(model, None), task="look") for model in self.models]

    def look(self, asked: Look) -> Job:
        """Return the Job that draws a bank.

        Raises:
            RefusedError: it cannot be drawn.
        """
        limits = self.limits
        self._check_prompt(asked.prompt)
        _check_most("n", asked.n, limits.n, "members")
        return self._make_job(
            self._job(asked.model, asked.reward),
            {
                "task": "look",
                "prompts": [asked.prompt],
                "seeds": [self._seeds.of(asked.prompt, asked.seed)],
            },
            settings=_drop_unset(n=asked.n, guidance_scale=asked.guidance_scale),
            call=self._size(asked.size),
        )

    def draw(self, asked: Draw, banks: Banks) -> Job:
        """Return the Job that draws pictures guided by a bank.

        Raises:
            RefusedError: there is no such bank, or it cannot be drawn.
        """
        base, file = self._of_bank("bank", asked.bank, asked.reward, banks)
        images = asked.images or self.base.images
        _check_most("images", images, self.limits.images, "images")
        _check_most("steps", asked.steps, self.limits.steps, "steps")
        prompt = base.text(0)
        return self._make_job(
            base,
            {
                "banks": [str(file)],
                "methods": ("lidar",),
                "images": images,
                "seeds": [self._seeds.of(prompt, asked.seed)],
            },
            settings=_drop_unset(scale=asked.scale, reward_scale=asked.strength, steps=asked.steps),
        )

    def generation(self, asked: Generation, banks: Banks) -> Job:
        """Return the Job of a request to OpenAI's API.

        Raises:
            RefusedError: it cannot be drawn.
        """
        limits = self.limits
        self._check_prompt(asked.prompt)
        _check_most("n", asked.n, limits.images, "images")
        _check_most("steps", asked.steps, limits.steps, "steps")
        _check_most("bank_size", asked.bank_size, limits.n, "members")
        if asked.method is not None:
            _check_name("method", asked.method, self.methods)
        settings = _drop_unset(
            n=asked.bank_size,
            scale=asked.scale,
            reward_scale=asked.strength,
            steps=asked.steps,
            guidance_scale=asked.guidance_scale,
        )
        how: dict[str, Any] = {
            "prompts": [asked.prompt],
            "images": asked.n or 1,
            "seeds": [self._seeds.of(asked.prompt, asked.seed)],
            "methods": (asked.method or self.methods[0],),
        }
        if asked.bank_id is None:
            call = self._size(asked.size)
            return self._make_job(self._job(asked.model, asked.reward), how, settings=settings, call=call)
        base, file = self._of_bank("bank_id", asked.bank_id, asked.reward, banks)
        if base.text(0) != asked.prompt:
            raise RefusedError(
                "prompt", f"the bank is of {base.text(0)!r}, not of {asked.prompt!r}: draw a bank of that prompt"
            )
        same = asked.model is None or self.models.get(asked.model) == base.model
        for name, fine in (
            ("bank_size", asked.bank_size is None),
            ("size", asked.size in (None, "auto")),
            ("model", same),
        ):
            if not fine:
                raise RefusedError(name, f"the bank sets {name}: leave out {name}, or leave out bank_id")
        return self._make_job(base, {**how, "banks": [str(file)]}, settings=settings)

    def guide(self, name: str, banks: Banks) -> str | dict[str, float] | None:
        """Return the reward that a bank guides by where a request names none, as a Job has it."""
        return self._job(None, self._only_reward(name, banks)).reward

    def check_loaded(self, job: Job, lidar: LiDAR) -> None:
        """Refuse a Job that is above the limits by what its request left out: only a loaded model tells its defaults.

        Args:
            job: the Job.
            lidar: its sampler, with its settings.

        Raises:
            RefusedError: the message names the field, and the options of the server that mend it.
        """
        limits, settings = self.limits, lidar.settings_for(lidar.arguments())
        default = f", the default of {self._model_of(job.model)}"
        server = "or start the server with"
        _check_most(
            "steps", settings.steps, limits.steps, "steps", default, f", {server} --steps or a larger --most-steps"
        )
        if job.banks:  # its members are there already
            return
        members = "n" if job.task == "look" else "bank_size"
        _check_most(members, settings.n, limits.n, "members", default, f", {server} --n or a larger --most-n")
        width, height = lidar.pipe_kwargs.get("width"), lidar.pipe_kwargs.get("height")
        if width and height:
            self._check_pixels(width, height, default, f", {server} another --call or a larger --most-pixels")

    def _of_bank(self, field: str, name: str, reward: str | None, banks: Banks) -> tuple[Job, Path]:
        """Return a Job with what drew a bank, guided by a reward, and the file of the bank.

        Args:
            field: the field of the request that names the bank.
            name: id of the bank.
            reward: name of the reward; None takes the only one that has scored the bank, or else the default.
            banks: where the bank is.

        Raises:
            RefusedError: there is no such bank, its model is no longer served, or the reward is not served.
        """
        job, file = banks.job(name), banks.file(name)
        if job is None or file is None:
            raise RefusedError(field, f"no bank {name!r} here: draw one with POST /v1/banks", 404)
        if (model := self._model_of(job.model)) is None:
            raise RefusedError(field, f"bank {name!r} is of a model that is no longer served", 404)
        base = self._job(model, reward or self._only_reward(name, banks))
        settings = {**base.settings, **job.settings}
        return replace(base, prompts=job.prompts, settings=settings, call=job.call), file

    def _only_reward(self, name: str, banks: Banks) -> str | None:
        """Return the name of the only reward that has scored a bank; None if there are more, or it is not served."""
        known = [*banks.scored_by(name).values()]
        return next((reward for reward in self.rewards if [self._job(None, reward).reward] == known), None)

    def _model_of(self, path: str) -> str | None:
        """Return the name of a model for clients; None if it is not served."""
        return next((name for name, known in self.models.items() if known == path), None)

    def _job(self, model: str | None, reward: str | None) -> Job:
        model = next(iter(self.models)) if model is None else model
        _check_name("model", model, self.models)
        if reward is not None:
            _check_name("reward", reward, self.rewards)
        name = reward or next(iter(self.rewards), None)
        return replace(self.base, model=self.models[model], reward=None if name is None else self.rewards[name])

    def _check_prompt(self, prompt: str) -> None:
        if len(prompt) > self.limits.prompt:
            text = f"a prompt has {len(prompt)} characters: give at most {self.limits.prompt}"
            raise RefusedError("prompt", text)

    def _size(self, size: str | None) -> dict[str, int]:
        """Return the pipeline arguments for a size.

        Raises:
            RefusedError: it has too many pixels.
        """
        if size is None or size == "auto":
            return {}
        width, height = map(int, size.split("x"))
        self._check_pixels(width, height)
        return {"height": height, "width": width}

    def _check_pixels(self, width: int, height: int, default: str = "", mend: str = "") -> None:
        if width * height > (most := self.limits.pixels):
            text = f"size must have at most {most} pixels, got {width}x{height}{default}: ask for a smaller one{mend}"
            raise RefusedError("size", text)

    def _make_job(
        self,
        base: Job,
        changes: dict[str, Any],
        *,
        settings: dict[str, Any],
        call: Mapping[str, int] | None = None,
    ) -> Job:
        """Return a Job; refuse what the command line would refuse, with its messages."""
        more = {"settings": {**base.settings, **settings}, "call": {**base.call, **(call or {})}}
        try:
            return replace(base, **{**changes, **more})
        except (ValueError, TypeError) as error:
            raise RefusedError(field_of(str(error)), str(error)) from None


_FIELDS = {
    "reward_scale": "strength",
    "guidance_scale": "guidance_scale",
    "scale": "scale",
    "steps": "steps",
    "height": "size",
    "prompt": "prompt",
}  # name in the library -> field of requests


def field_of(problem: str) -> str | None:
    """Return the field of a request that a message of the library is about; None if it is unclear.

    >>> field_of("reward_scale must be finite and at least 0, got inf"), field_of("out of memory")
    ('strength', None)
    """
    return next((name for word, name in _FIELDS.items() if re.search(rf"\b{word}\b", problem)), None)


class _Seeds:
    """Seeds for requests that name none.

    Different prompts get the same seed, so that they can be drawn together; a repeated prompt gets a new one.
    """

    def __init__(self) -> None:
        self._seed, self._prompts, self._lock = secrets.randbelow(2**32), set[str](), threading.Lock()

    def of(self, prompt: str, given: int | None) -> int:
        """Return the seed of a request, or a seed of ours if it names none."""
        if given is not None:
            return given
        with self._lock:
            if prompt in self._prompts or len(self._prompts) > 10_000:
                self._seed = secrets.randbelow(2**32)
                self._prompts.clear()
            self._prompts.add(prompt)
            return self._seed


def check_size(lidar: Any, call: Mapping[str, Any]) -> None:
    """Refuse a size that the latents of a loaded model do not allow.

    Raises:
        RefusedError: the size does not fit.
    """
    processor = getattr(lidar.pipe, "image_processor", None)  # this accounts for patches, too
    unit = math.lcm(
        8, getattr(getattr(processor, "config", None), "vae_scale_factor", 8)
    )  # 8 is the default of diffusers
    shape = (call.get("width"), call.get("height"))
    if None not in shape and any(length % unit for length in shape if length is not None):
        text = f"size must be a multiple of {unit} in both directions, got {shape[0]}x{shape[1]}: ask for one that is"
        raise RefusedError("size", text)


def _drop_unset(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _check_most(name: str, value: int | None, most: int, what: str, default: str = "", mend: str = "") -> None:
    """Refuse a value above its limit, saying whose ``default`` it is and how else to ``mend`` it."""
    if value is not None and value > most:
        raise RefusedError(name, f"{name} must be at most {most}, got {value}{default}: ask for fewer {what}{mend}")


def _check_name(field: str, name: str, known: Mapping[str, Any] | Sequence[str]) -> None:
    """Refuse a name that is not on the server's list."""
    if name in known:
        return
    near = get_close_matches(name, known, n=1)
    mend = f"did you mean {near[0]!r}?" if near else f"this server has {', '.join(known) or 'none to choose'}"
    raise RefusedError(field, f"unknown {field} {name[:80]!r}; {mend}")
