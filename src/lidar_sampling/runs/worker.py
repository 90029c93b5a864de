"""Loading the pipeline and the rewards of a Job."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_origin

from .._call import check_call
from .._files import check_writable
from .._quiet import quieten
from .._sampler import LiDAR
from .._settings import preset
from .._values import annotations_of
from ..rewards import Reward, name_of
from ._levers import read_levers, read_scheduler
from ._machine import device_of, dtype_of
from .job import Job


def on_this_machine(job: Job) -> Job:
    """Return the Job with ``auto`` replaced by the precision that it means on this machine."""
    if job.dtype != "auto":
        return job
    return replace(job, dtype=str(dtype_of("auto", device_of(job.device))).removeprefix("torch."))


def load_sampler(job: Job, *, judges: Mapping[str, Reward] | None = None, pipe: Any = None) -> LiDAR:
    """Return the sampler of a Job; settings that it leaves open are the model's defaults.

    Args:
        job: the Job.
        judges: rewards that are already loaded, by their names in the Job; the others are loaded.
        pipe: the pipeline of a Job with the same model and levers, if it is already loaded.

    Raises:
        OSError, ValueError: there is no such model, or it cannot draw this Job.
    """
    from .._accelerate import accelerate, largest_batch

    if job.store is not None:
        check_writable(job.store, "--banks")
    quieten()
    levers, device = read_levers(job.fast), device_of(job.device)
    call, given = _arguments_of(job.model, job.call), dict(judges or {})
    reward: Any = job.reward
    elsewhere = [given[name] for name in (reward if isinstance(reward, dict) else [reward]) if name in given]
    if isinstance(reward, dict):
        from ..rewards.mixture import Mixture

        dtype = {"dtype": levers["sampler"]["reward_dtype"]} if "reward_dtype" in levers["sampler"] else {}
        weights = {name_of(given[name]) if name in given else name: weight for name, weight in reward.items()}
        reward = Mixture(weights, rewards=elsewhere, device=device, **dtype)
    elif elsewhere:
        (reward,) = elsewhere
    lidar = LiDAR.from_pretrained(
        job.model,
        reward=reward,
        device=device,
        dtype=dtype_of(job.dtype, device),
        batch_size=job.batch_size or 1,
        pipe_kwargs=call,
        variant=job.variant,
        scheduler=read_scheduler(job.scheduler),
        store=job.store,
        pipe=pipe,
        **({} if job.preset is None else {"settings": preset(job.preset)}),
        **({} if job.metrics is None else {"metrics": [given.get(name, name) for name in job.metrics]}),
        **levers["sampler"],
        **job.settings,
    )
    if levers["pipe"] and pipe is None:
        accelerate(lidar.pipe, **levers["pipe"])
    if levers["reward"] and not elsewhere:
        accelerate(lidar.reward, **levers["reward"])
    if job.batch_size == 0:
        lidar.batch_size = largest_batch(lidar, job.text(0))
    return lidar


def _arguments_of(model: str, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with tuples where the pipeline needs them, since JSON has only lists.

    Arguments that the pipeline does not take are refused before its weights are loaded, if its class is known.
    """
    import diffusers

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # arguments of diffusers for the hub
            name = diffusers.DiffusionPipeline.load_config(model)["_class_name"] if model != "glyph" else ""
    except (OSError, ValueError, KeyError):  # loading will report what is wrong with the model
        return dict(call)
    cls: Any = getattr(diffusers, name or "StableDiffusionPipeline", None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):  # these check it themselves
        return dict(call)
    check_call(cls, call)
    hints = annotations_of(cls.__call__)
    return {name: tuple(value) if _wants_tuple(hints.get(name), value) else value for name, value in call.items()}


def _wants_tuple(hint: Any, value: Any) -> bool:
    kinds = [get_origin(one) or one for one in getattr(hint, "__args__", (hint,))]
    return isinstance(value, list) and (tuple in kinds or get_origin(hint) is tuple) and list not in kinds
