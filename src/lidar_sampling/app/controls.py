"""The controls of the page: their values as a Job, and a Job, or a picture's settings, as their values."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..runs import Job

_NO_BANK = ("n", "scale", "reward_scale", "lookahead", "window", "ess")  # settings that plain samples do not use
_OPTIONS = {"n": "--n", "scale": "--scale", "reward_scale": "--reward-scale", "steps": "--steps"}
_FLAGS = {"lookahead": "--lookahead", "guidance_scale": "--guidance-scale", "noise": "--noise", "window": "--window"}
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
    settings = {name: value for name, value in job.settings.items() if name not in _NO_BANK}
    return replace(job, methods=["vanilla"], settings=settings, bank_seed=None)


def restore(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the controls that a Job from a picture or an order sets; others are not included.

    Nothing is checked or imported here; that happens on drawing.

    Raises:
        ValueError: the Job names no prompt.
    """
    prompts = said.get("prompts") or [""]
    prompt = prompts[0]["prompt"] if isinstance(prompts[0], Mapping) else prompts[0]
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("the picture names no prompt")
    found: dict[str, Any] = {"prompt": prompt, "only": ",".join(map(str, said.get("only", ())))}
    found |= {"reward": _one_word(said["reward"])} if said.get("reward") else {}
    found |= {"method": said["methods"][-1]} if said.get("methods") else {}
    found |= {"images": said.get("images", 4), "seed": (said.get("seeds") or [0])[0]}
    bank_seed = said.get("bank_seed")
    found["bank_seed"] = found["seed"] if bank_seed is None else bank_seed
    settings = said.get("settings", {})
    found |= {name: settings[name] for name in ("n", "scale", "steps") if name in settings}
    if "reward_scale" in settings:
        found["auto"] = settings["reward_scale"] == "auto"
        found |= {} if found["auto"] else {"strength": settings["reward_scale"]}
    return found


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
    words += [] if job.reward is None else ["--reward", shlex.quote(_one_word(job.reward))]
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


def _one_word(reward: str | Mapping[str, float]) -> str:
    """Return a reward, or a mixture, in the form of ``--reward``."""
    return reward if isinstance(reward, str) else "+".join(f"{name}:{weight}" for name, weight in reward.items())


def _places(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"the only pictures to draw must be numbers from 0, comma separated, got {text!r}")
    return tuple(map(int, parts))


def _quote(text: str) -> str:
    """Return a text in double quotes if a shell reads it unchanged there, else quoted by shlex."""
    return f'"{text}"' if not any(letter in text for letter in '"$`\\!\n') else shlex.quote(text)
