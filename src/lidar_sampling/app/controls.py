"""The controls of the page: their values as a Job, and a Job, or a picture's settings, as their values."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._geneval import with_requirements
from .._settings import OF_BANKS
from ..runs import Job

_OPTIONS = {"n": "--n", "scale": "--scale", "reward_scale": "--reward-scale", "steps": "--steps"}
_FLAGS = {"lookahead": "--lookahead", "guidance_scale": "--guidance-scale", "noise": "--noise", "window": "--window"}
_KEPT = ("model", "variant", "preset", "metrics", "call", "scheduler", "dtype", "fast", "banks")  # without a control
_TEXTS = ("model", "variant", "preset", "scheduler", "dtype", "fast", "device")


@dataclass(frozen=True)
class Controls:
    """The values of the controls, as the page has them.

    Attributes:
        prompt: what to draw.
        reward: a name, a mixture, or the user's package.module:function.
        method: a method of ``lidar methods``.
        images: number of samples.
        seed: seed of the samples' noise.
        bank_seed: seed of the bank's noise, so that a new seed of the samples needs no new bank.
        only: indices of the only samples to draw, comma separated, from 0; empty for all.
        n: number of lookahead samples.
        scale: strength of the shift.
        auto: whether lambda is fitted to the bank.
        strength: lambda, if it is not fitted.
        steps: denoising steps.
        beside: whether to draw also without guidance.
    """

    prompt: str
    reward: str
    method: str
    images: int
    seed: int
    bank_seed: int
    only: str
    n: int
    scale: float
    auto: bool
    strength: float
    steps: int
    beside: bool

    def job(self, base: Job) -> Job:
        """Return the Job with these values, and the model of ``base``.

        Raises:
            ValueError: nothing can be drawn with a value; the message names it.
        """
        for name, value in vars(self).items():
            if value is None:  # a control that was cleared
                raise ValueError(f"{name.replace('_', ' ')} is empty: give it a value")
        if not self.prompt.strip():
            raise ValueError("write a prompt first")
        settings: dict[str, Any] = {"n": int(self.n), "scale": float(self.scale), "steps": int(self.steps)}
        settings["reward_scale"] = "auto" if self.auto else float(self.strength)
        return replace(
            base,
            prompts=[self.prompt],
            reward=self.reward.strip() or base.reward,
            methods=[self.method.strip()],
            settings={**base.settings, **settings},
            images=int(self.images),
            seeds=[int(self.seed)],
            bank_seed=int(self.bank_seed),
            only=_places(self.only),
        )


def plain(job: Job) -> Job:
    """Return the Job of the same samples without guidance; it does not depend on the bank and its strength."""
    settings = {name: value for name, value in job.settings.items() if name not in OF_BANKS}
    return replace(job, methods=["vanilla"], settings=settings, bank_seed=None)


def restore(said: Mapping[str, Any], base: Job, usual: Controls) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the controls for the Job of a picture or an order, and what of the Job has no control.

    A control that the Job says nothing of gets its usual value. Only ``beside`` is left out, since no Job says it.
    Nothing is checked or imported here; that happens on drawing.

    Args:
        said: the Job as JSON values; fields that are left out have their defaults.
        base: the Job that the page starts from.
        usual: the first values of the controls.

    Raises:
        ValueError: the Job names no prompt.
    """
    (line, *_) = said.get("prompts") or [""]
    prompt = line["prompt"] if isinstance(line, Mapping) else line
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("the picture names no prompt")
    settings, seed = dict(said.get("settings", {})), (said.get("seeds") or [0])[0]
    bank_seed, strength = said.get("bank_seed"), settings.get("reward_scale")
    own = "glyph" if said.get("model", "glyph") == "glyph" else usual.reward  # only glyph brings a reward
    reward, method = one_word(said.get("reward") or own), (said.get("methods") or ["lidar"])[-1]
    found: dict[str, Any] = {
        "prompt": prompt,
        "reward": reward,
        "method": method,
        "images": said.get("images", 4),
        "seed": seed,
        "bank_seed": seed if bank_seed is None else bank_seed,
        "only": ",".join(map(str, said.get("only", ()))),
        **{name: settings.get(name, getattr(usual, name)) for name in ("n", "scale", "steps")},
        "auto": usual.auto if strength is None else strength == "auto",
        "strength": usual.strength if strength in (None, "auto") else strength,
    }
    lost = _lost(said, base, line)
    if strength is None and method != "vanilla" and reward != usual.reward:
        lost.append("reward_scale")  # the usual one was chosen for another reward
    return found, lost


def as_command(job: Job) -> str:
    """Return the command that draws a Job.

    >>> print(as_command(Job(prompts=["a cat's hat"], settings={"n": 8}, images=2, seeds=[3])))
    lidar generate "a cat's hat" --images 2 --seed 3 --n 8 --out out/
    """
    prompt = _quote(job.text(0))
    option = job.text(0).startswith("-")  # such a text needs a form that cannot be mistaken for an option
    words = ["lidar", "generate", *([] if option else [prompt])]
    usual = Job(prompts=["-"])
    for name in _TEXTS:
        if (value := getattr(job, name)) != getattr(usual, name):
            words += [f"--{name}", shlex.quote(value)]
    words += [] if job.reward is None else ["--reward", shlex.quote(one_word(job.reward))]
    if job.methods != usual.methods:
        words += ["--method", shlex.quote(job.methods[-1])]
    words += ["--images", str(job.images), "--seed", str(job.seeds[0])]
    words += [] if job.bank_seed is None else ["--bank-seed", str(job.bank_seed)]
    for place in job.only:
        words += ["--only", str(place)]
    for name, value in job.settings.items():
        shown = map(str, value) if name == "window" else [str(value)]
        words += [{**_OPTIONS, **_FLAGS}[name], *map(shlex.quote, shown)]
    for name, value in job.call.items():
        words += ["--call", shlex.quote(f"{name}={value}")]
    return " ".join([*words, "--out", "out/", *(["--", prompt] if option else [])])


def as_python(job: Job) -> str:
    """Return the Python code that draws a Job.

    >>> exec(as_python(Job(prompts=["a cat"], images=2)).split("run(")[0])
    """
    wanted = {name: value for name, value in job.to_json(brief=True).items() if name not in ("device", "batch_size")}
    lines = "".join(f"    {name}={value!r},\n" for name, value in wanted.items())
    return f'from lidar_sampling.runs import Job, run\n\njob = Job(\n{lines})\nrun(job, "out")\n'


def one_word(reward: str | Mapping[str, float]) -> str:
    """Return a reward, or a mixture, in the form of ``--reward``."""
    return reward if isinstance(reward, str) else "+".join(f"{name}:{weight}" for name, weight in reward.items())


def _lost(said: Mapping[str, Any], base: Job, line: str | Mapping[str, Any]) -> list[str]:
    """Return the names of what a Job says otherwise than ``base``, and that no control sets.

    Args:
        said: the Job as JSON values; fields that are left out have their defaults.
        base: the Job that the page starts from.
        line: the prompt of the Job, perhaps with metadata for judges.
    """
    usual, own = Job(prompts=["-"]).to_json(), base.to_json()
    lost = [name for name in _KEPT if said.get(name, usual[name]) != own[name]]
    settings, ours = dict(said.get("settings", {})), own["settings"]
    names = dict.fromkeys([*settings, *ours])
    lost += [name for name in names if name not in _OPTIONS and settings.get(name) != ours.get(name)]
    if isinstance(line, Mapping):
        plain_line = {"prompt": line["prompt"]}
        if line not in (plain_line, json.loads(json.dumps(with_requirements(plain_line)))):
            lost.append("the metadata of the prompt")
    return lost


def _places(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"the only pictures to draw must be numbers from 0, comma separated, got {text!r}")
    return tuple(map(int, parts))


def _quote(text: str) -> str:
    """Return a text in double quotes if a shell reads it unchanged there, else quoted by shlex."""
    return f'"{text}"' if not any(letter in text for letter in '"$`\\!\n') else shlex.quote(text)
