"""The cost of drawing, forecast without drawing.

A copy of the scheduler says which steps a sample takes; at each of them the denoiser sees as many rows as the
pipeline's guidance has branches. Seconds follow from counts by :class:`Rates`, measured once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ._branches import is_guided, with_scales
from ._call import TARGET_ONLY, blocks_of, parameters_of
from ._cost import Cost
from ._levels import NoiseLevel, noise_level
from ._profile import profiled
from ._sampler import LiDAR


def calls_of(pipe: Any, call: Mapping[str, Any]) -> int:
    """Return how many steps a sample takes: the times that the denoiser is called for it, all branches together.

    Args:
        pipe: a diffusers pipeline, which stays as it is.
        call: its arguments: ``num_inference_steps``, or lists of ``timesteps`` or ``sigmas``; ``strength``,
            ``denoising_start`` and ``denoising_end`` cut the schedule as the pipeline cuts it.

    Example:
        >>> from lidar_sampling import testing
        >>> calls_of(testing.tiny_stable_diffusion(), {"num_inference_steps": 3})  # PNDM takes one more
        4
    """
    return len(timesteps_of(pipe, call))


def timesteps_of(pipe: Any, call: Mapping[str, Any]) -> Tensor:
    """Return the timesteps (T, ...) that a call of ``pipe`` walks through; the pipeline stays as it is."""
    return _schedule(pipe, call)[1]


def levels_of(pipe: Any, call: Mapping[str, Any]) -> list[NoiseLevel]:
    """Return the noise level at each of :func:`timesteps_of`.

    Raises:
        ValueError: the family of the scheduler is not known.
    """
    scheduler, timesteps = _schedule(pipe, call)
    levels = []
    for timestep in timesteps:
        levels.append(noise_level(scheduler, timestep))
        if getattr(scheduler, "_step_index", None) is not None:
            scheduler._step_index += 1
    return levels


def _schedule(pipe: Any, call: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """Return a copy of the scheduler of ``pipe``, set for the call, and the timesteps that the call takes."""
    arguments = {**parameters_of(pipe), **call}
    twin = copy(pipe)
    twin.scheduler = scheduler = deepcopy(pipe.scheduler)
    _set_timesteps(scheduler, arguments)
    timesteps = _after_strength(twin, arguments, from_picture=blocks_of(pipe) is None or "image" in call)
    end = arguments.get("denoising_end")
    if isinstance(end, float) and 0 < end < 1:
        trained = scheduler.config.num_train_timesteps
        timesteps = timesteps[timesteps >= round(trained - end * trained)]
    # TrigFlow's schedule ends with the clean sample, at which nothing is left to do.
    return scheduler, timesteps[:-1] if type(scheduler).__name__ == "SCMScheduler" else timesteps


_OF_SCHEDULES = ("max_timesteps", "intermediate_timesteps", "original_inference_steps")  # SANA Sprint's and LCM's


def _set_timesteps(scheduler: Any, arguments: Mapping[str, Any]) -> None:
    """Set ``scheduler`` as pipelines do: a list takes the place of the number."""
    takes = inspect.signature(scheduler.set_timesteps).parameters
    lists = [name for name in ("timesteps", "sigmas") if arguments.get(name) is not None]
    for name in lists:
        if name not in takes:
            raise ValueError(f"{type(scheduler).__name__} takes no {name} of your own: give a number of steps")
    names = [*(lists or ["num_inference_steps"]), *(name for name in _OF_SCHEDULES if name in takes)]
    how = {name: arguments[name] for name in names if name in arguments}
    if scheduler.config.get("use_dynamic_shifting") and "mu" in takes:
        how["mu"] = 1.0  # moves the levels, and changes no number of steps
    scheduler.set_timesteps(**how)
    steps = len(scheduler.timesteps)
    if "sigmas" in takes and steps > 1 and bool((scheduler.timesteps == scheduler.timesteps[0]).all()):
        # Trained with one timestep, as ACE-Step's model: its pipeline brings sigmas of its own.
        how = {"sigmas": np.linspace(1, 1 / steps, steps), **({"mu": 1.0} if "mu" in how else {})}
        scheduler.set_timesteps(**how)


def _after_strength(pipe: Any, arguments: Mapping[str, Any], *, from_picture: bool) -> Tensor:
    """Return the timesteps that are left where a pipeline starts from a picture."""
    timesteps, strength = pipe.scheduler.timesteps, arguments.get("strength")
    if not isinstance(strength, int | float) or not from_picture:
        return timesteps
    steps = _number_of_steps(arguments, timesteps)
    order = getattr(pipe.scheduler, "order", 1)
    own = getattr(pipe, "get_timesteps", None)
    if own is None:
        return timesteps[max(steps - int(steps * strength), 0) * order :]
    known = {**arguments, "num_inference_steps": steps, "timesteps": timesteps, "device": timesteps.device}
    return own(**{name: known[name] for name in inspect.signature(own).parameters if name in known})[0]


def _number_of_steps(arguments: Mapping[str, Any], timesteps: Tensor) -> int:
    given = any(arguments.get(name) is not None for name in ("timesteps", "sigmas"))
    return len(timesteps) if given else int(arguments["num_inference_steps"])


def rows_of(pipe: Any, call: Mapping[str, Any]) -> int:
    """Return how many rows the denoiser sees of a sample at a step: one for each branch of guidance.

    Where branches come and go along the steps, this is the most; :func:`evaluations_of` adds them up as they are.

    Example:
        >>> from lidar_sampling import testing
        >>> pipe = testing.tiny_stable_diffusion()
        >>> [rows_of(pipe, {"guidance_scale": scale}) for scale in (1.0, 3.0)]
        [1, 2]
    """
    if getattr(pipe, "guider", None) is not None:
        return max(_conditions(pipe.guider, timesteps_of(pipe, call)))
    guided = is_guided(pipe, call)
    branches = 3 if guided and "InstructPix2Pix" in type(pipe).__name__ else 1 + guided
    twin = with_scales(pipe, call)
    return branches + sum(bool(getattr(twin, f"do_{name}_guidance", False)) for name in _FURTHER)


_FURTHER = ("perturbed_attention", "spatio_temporal", "modality_isolation")  # PAG's, and two of LTX-2


def evaluations_of(pipe: Any, call: Mapping[str, Any]) -> int:
    """Return the network evaluations of one sample: rows of the denoiser's batch over all its steps.

    Args:
        pipe: a diffusers pipeline, which stays as it is.
        call: its arguments, as the sampler gives them; a value per prompt counts as one that is there.

    Example:
        >>> from lidar_sampling import testing
        >>> evaluations_of(testing.tiny_stable_diffusion(), {"num_inference_steps": 3, "guidance_scale": 7.5})
        8
    """
    arguments, timesteps = {**parameters_of(pipe), **call}, timesteps_of(pipe, call)
    if getattr(pipe, "guider", None) is not None:
        return sum(_conditions(pipe.guider, timesteps))
    calls, rows = len(timesteps), rows_of(pipe, call)
    if not is_guided(pipe, call):
        return calls * rows
    steps = _number_of_steps(arguments, timesteps)
    skipping = cut = 0
    if arguments.get("skip_guidance_layers") is not None:  # SD 3.5: a look without some layers, at early steps
        start, stop = (steps * arguments[f"skip_layer_guidance_{end}"] for end in ("start", "stop"))
        skipping = sum(start < i < stop for i in range(calls))
    if "cfg_trunc_ratio" in arguments:  # Lumina 2 guides no late steps
        cut = sum((i + 1) / steps > arguments["cfg_trunc_ratio"] for i in range(calls))
    return calls * rows + skipping - cut


def _conditions(guider: Any, timesteps: Tensor) -> list[int]:
    """Return the branches at each step of a modular pipeline's guider, which may guide a part of them."""
    twin, branches = copy(guider), []
    for i, timestep in enumerate(timesteps):
        twin.set_state(step=i, num_inference_steps=len(timesteps), timestep=timestep)
        branches.append(twin.num_conditions)
    return branches


@dataclass(frozen=True)
class Rates:
    """The time that each part takes with one model, reward and device, estimated from one small batch.

    Text encoders are left out; the bank's model and decoder are taken to be as fast as the target's; and going back
    through the network as long as evaluating it twice.

    Attributes:
        network: seconds per network evaluation, with what the scheduler and the pipeline do beside it.
        decode: seconds per image decoded.
        reward: seconds per reward call.
    """

    network: float
    decode: float
    reward: float

    @classmethod
    def measure(cls, lidar: LiDAR, prompt: str, *, images: int = 1) -> Rates:
        """Draw one batch in two steps and reward it, after the same once to warm up.

        Args:
            lidar: what draws and rewards.
            prompt: of the batch.
            images: samples in it, at most the batch size.
        """
        whole = {name: value for name, value in lidar.arguments().items() if name not in TARGET_ONLY}
        steps = range(min(2, whole["num_inference_steps"]), whole["num_inference_steps"] + 1)
        # Image-to-image pipelines take their share of the steps.
        calls = ({**whole, "num_inference_steps": count} for count in steps)
        call = next((each for each in calls if calls_of(lidar.pipe, each) >= len(steps[:2])), whole)
        for _ in range(2):
            with profiled() as profile:
                result = lidar.sample([prompt], min(images, lidar.batch_size), 0, call=call)
                _, scoring = lidar.scores(result, lidar.parts)
        drawing, drawn = profile.seconds["sampling"], result.cost["sampling"]
        decode = drawing.pop("decode", 0.0)
        drawing.pop("text", None)
        rewarding = sum(profile.seconds["scoring"].values())
        return cls(
            network=sum(drawing.values()) / drawn.network_evaluations,
            decode=decode / drawn.decodes,
            reward=rewarding / scoring.reward_calls,
        )

    def seconds(self, cost: Cost) -> float:
        """Return how long the counts of ``cost`` take.

        >>> Rates(network=0.5, decode=0.25, reward=1.0).seconds(Cost(network_evaluations=8, decodes=2))
        4.5
        """
        evaluations = cost.network_evaluations + 2 * cost.backward_passes
        return self.network * evaluations + self.decode * cost.decodes + self.reward * cost.reward_calls
