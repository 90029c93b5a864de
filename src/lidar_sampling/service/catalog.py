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
        """Return a Job of each model with the first reward, to warm up."""
        return [self._job(model, None) for model in self.models]

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
        base, file = self._of_bank("bank", asked.bank, banks)
        _check_most("images", asked.images, self.limits.images, "images")
        _check_most("steps", asked.steps, self.limits.steps, "steps")
        prompt = base.text(0)
        return self._make_job(
            base,
            {
                "banks": [str(file)],
                "methods": ("lidar",),
                "images": asked.images or self.base.images,
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
        base, file = self._of_bank("bank_id", asked.bank_id, banks)
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
        if asked.reward is not None and self._job(asked.model, asked.reward).reward != base.reward:
            raise RefusedError(
                "reward", "the bank was scored by another reward: leave out reward, or leave out bank_id"
            )
        return self._make_job(base, {**how, "banks": [str(file)]}, settings=settings)

    def _of_bank(self, field: str, name: str, banks: Banks) -> tuple[Job, Path]:
        """Return a Job with the settings of a bank, and the file of the bank.

        Raises:
            RefusedError: there is no such bank, or its model or reward is no longer served.
        """
        job, file = banks.job(name), banks.file(name)
        if job is None or file is None:
            raise RefusedError(field, f"no bank {name!r} here: draw one with POST /v1/banks", 404)
        rewards = [self._job(None, reward).reward for reward in self.rewards or [None]]
        if job.model not in self.models.values() or job.reward not in rewards:
            raise RefusedError(field, f"bank {name!r} is of a model or reward that is no longer served", 404)
        base = replace(self.base, model=job.model, reward=job.reward, prompts=job.prompts)
        return replace(base, settings=job.settings, call=job.call), file

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
        if width * height > self.limits.pixels:
            text = f"size must have at most {self.limits.pixels} pixels, got {size}: ask for a smaller one"
            raise RefusedError("size", text)
        return {"height": height, "width": width}

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


def _check_most(name: str, value: int | None, most: int, what: str) -> None:
    if value is not None and value > most:
        raise RefusedError(name, f"{name} must be at most {most}, got {value}: ask for fewer {what}")


def _check_name(field: str, name: str, known: Mapping[str, Any] | Sequence[str]) -> None:
    """Refuse a name that is not on the server's list."""
    if name in known:
        return
    near = get_close_matches(name, known, n=1)
    mend = f"did you mean {near[0]!r}?" if near else f"this server has {', '.join(known) or 'none to choose'}"
    raise RefusedError(field, f"unknown {field} {name[:80]!r}; {mend}")
