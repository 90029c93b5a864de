"""Actors of Ray: workers with a Job's sampler, judges with one reward, and rewards that call judges.

Actors are made from texts and numbers, never from handles, so that Ray can restart a judge wherever there is room. A
bank stays in the worker that drew it; pictures go to the shared folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._accelerate import accelerate
from .._cost import Cost
from .._quiet import quieten
from ..rewards import ask, check_prompts, name_of
from ..rewards import load as load_reward
from ._identity import short
from ._levers import read_levers
from ._machine import device_of
from .job import Job
from .local import draw_each, in_groups, task_of
from .worker import load_sampler, on_this_machine

ANSWER = 600  # seconds that a judge may take per batch


class Ready(NamedTuple):
    """The answer of a worker whose sampler is loaded: how many prompts it draws together, and its precision."""

    size: int
    dtype: str


class Drawn(NamedTuple):
    """The outcome of a unit: its cost, or the problem that left it undrawn; for a bank also its record."""

    number: int
    cost: Cost
    problem: str = ""
    record: dict[str, Any] | None = None


class Worker:
    """A worker, which draws units of a Job, given by number, and keeps them in the folder.

    Args:
        job: as JSON.
        out: the folder.
        rank: rank that names the file of a comparison's lines.
        sign: a file in ``out`` that the driver made.
        judges: arguments of :class:`RayReward` for each reward with a judge, by its name in the Job.
    """

    def __init__(self, job: str, out: str, rank: int, sign: str, judges: Mapping[str, Mapping[str, Any]]) -> None:
        self._job, self._out, self._rank, self._sign, self._judges = job, Path(out), rank, sign, dict(judges)

    def ready(self) -> Ready:
        """Load the sampler and take the folder.

        Raises:
            OSError, ValueError: as :func:`lidar_sampling.runs.run`, or the folder is not the driver's.
        """
        job = on_this_machine(Job.from_json(self._job))
        if not (self._out / self._sign).exists():
            import socket

            raise ValueError(
                f"{self._out} on {socket.gethostname()} is another folder than the driver's: "
                "choose an --out on a disk that all hosts share"
            )
        lidar = load_sampler(job, judges={name: RayReward(**how) for name, how in self._judges.items()})
        lidar.overlap = lidar.overlap or bool(self._judges)
        self.task = task_of(job, self._out, rank=self._rank)
        self.task.begin(lidar, shared=True)
        return Ready(self.task.together, job.dtype)

    def draw(self, numbers: Sequence[int]) -> list[Drawn]:
        """Draw, judge and keep units; return the outcome of each."""
        task = self.task
        number_of = {task.units[number]: number for number in numbers}
        found = []
        for group in in_groups(task, list(number_of)):
            for unit, record in draw_each(task, group, task.lidar):
                if isinstance(record, Exception):
                    found.append(Drawn(number_of[unit], Cost(), str(record)))
                else:
                    kept = None if task.indexed else record
                    found.append(Drawn(number_of[unit], task.cost(record), record=kept))
        return found


class Judge:
    """A judge, which computes one reward of a Job.

    Args:
        name: name of the reward.
        fast: levers of the Job if the reward guides.
        device: device to compute on; None is the accelerator that Ray assigned.
    """

    def __init__(self, name: str, fast: str | None, device: str | None) -> None:
        self._name, self._fast, self._device = name, fast, device
        self._reward: Any = None

    def ready(self, job: str) -> dict[str, Any]:
        """Load the reward and check that it reads the prompts of a Job; return its attributes for :class:`RayReward`.

        Raises:
            OSError, ValueError: the reward cannot be loaded, or refuses a prompt.
        """
        reward = self._load()
        check_prompts(reward, Job.from_json(job).lines())
        return {
            "name": name_of(reward),
            "reads_metadata": bool(getattr(reward, "reads_metadata", False)),
            "modality": str(getattr(reward, "modality", "image")),
            "stands_for": short(reward),
        }

    def score(self, pictures: np.ndarray, prompts: Sequence[Any]) -> np.ndarray:
        """Return the scores of pictures (B, ...) in bytes, or of audio in floats."""
        images = torch.tensor(pictures)  # arrays from Ray's store are read-only
        with torch.no_grad():
            seen = images.float() / 255 if images.dtype == torch.uint8 else images
            return torch.as_tensor(ask(self._load(), images=seen, prompts=prompts)).float().cpu().numpy()

    def _load(self) -> Any:
        if self._reward is None:  # also after Ray restarted the process
            quieten()
            levers, device = read_levers(self._fast), device_of(self._device)
            dtype = levers["sampler"].get("reward_dtype", torch.float32)
            self._reward = load_reward(self._name, device=device, dtype=dtype)
            if levers["reward"]:
                accelerate(self._reward, **levers["reward"])
        return self._reward


class RayReward:
    """A reward that a :class:`Judge` computes, on this host if it has one, else on another.

    Pictures are sent in 8 bits, as they would be saved: a pixel changes by at most 1/510, and a score changes
    accordingly. The judge has checked the prompts of the Job on loading.

    Args:
        name: name of the reward in results.
        places: node of Ray -> name of the judge there.
        reads_metadata: as of the reward.
        modality: as of the reward.
        stands_for: identity of the reward in the identity of a run, which may continue without judges.
    """

    differentiable = False

    def __init__(
        self, name: str, places: Mapping[str, str], *, reads_metadata: bool, modality: str, stands_for: str
    ) -> None:
        self.name, self.places, self.stands_for = name, dict(places), stands_for
        self.reads_metadata, self.modality = reads_metadata, modality

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What determines its scores: the reward, and pictures of 8 bits."""
        return {"reward": self.stands_for, "bits": 8}

    def __call__(self, *, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Score images (B, 3, H, W) in [0, 1], or videos or audio, for B prompts; return (B,), on the CPU.

        Raises:
            RuntimeError: no judge answers.
            Exception: the reward's own error.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        pictures = images.detach().float().cpu()
        if pictures.dim() > 3:
            pictures = (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
        here, last = ray.get_runtime_context().get_node_id(), ""
        for node in sorted(self.places, key=lambda node: node != here):
            try:
                judge = ray.get_actor(self.places[node])
                return torch.tensor(ray.get(judge.score.remote(pictures.numpy(), list(prompts)), timeout=ANSWER))
            except RayTaskError as error:
                raise error.cause or error from None
            except (RayError, ValueError) as error:  # lost, slower than ANSWER, or not found (ValueError)
                last = str(error).split("\n")[0]
        raise RuntimeError(f"none of its {len(self.places)} judges answers (the last: {last})")
