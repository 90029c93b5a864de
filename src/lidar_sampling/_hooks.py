"""Hooks around the steps of a diffusers scheduler inside a with-block, without touching the pipeline around it.

The scheduler instance's class is swapped for a subclass of itself whose ``step`` shows the call to the hooks held
by the instance. So isinstance checks, signatures, saved configurations and timesteps stay what they were; a copy
or a pickle of the scheduler is plain; and the class is put back when the block ends, whatever happened in it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ._levels import NoiseLevel, clean_prediction, data_scale, noise_level
from ._profile import time_part
from ._steps import Hook as Hook
from ._steps import Step as Step


@dataclass
class Recording(Hook):
    """The samples and steps that :func:`record` saw.

    Attributes:
        samples: what ``scheduler.step`` returned last (B, *), in units of clean latents: the space of banks.
        steps: number of steps so far.
        total: number of steps that this call takes, once the first is reached.
        on_step: called with the number of steps so far after each step.
    """

    samples: Tensor | None = None
    steps: int = 0
    total: int = 0
    on_step: Callable[[int], None] | None = None

    def start(self, steps: int) -> None:
        """Keep how many steps this call takes."""
        self.total = steps

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Keep the sample that the scheduler returned."""
        self.samples, self.steps = x.detach() / data_scale(step.scheduler), self.steps + 1
        if self.on_step is not None:
            self.on_step(self.steps)
        return x


@contextmanager
def record(pipe_or_scheduler: Any, *, on_step: Callable[[int], None] | None = None) -> Iterator[Recording]:
    """Keep what the scheduler returned last: the clean latents in the space that banks live in.

    Works with every scheduler that has a ``step``; changes nothing. ``on_step`` is called with the number of steps
    so far after each of them.

    Example:
        >>> from lidar_sampling import testing
        >>> pipe = testing.tiny_stable_diffusion()
        >>> with record(pipe) as recording:
        ...     images = pipe("a cat", num_inference_steps=2, output_type="pt").images
        >>> recording.samples.shape
        torch.Size([1, 4, 8, 8])
    """
    recording = Recording(on_step=on_step)
    with attach(pipe_or_scheduler, recording):
        yield recording


class DivergedError(RuntimeError):
    """A sample is not finite; the message names its prompt and the step where that began."""


@dataclass
class Watch(Hook):
    """The hook that remembers for every step whether its sample and the network's output were finite.

    Attach it before all others, so that it sees what the network returned and not what guidance made of
    it. A step adds two sums per sample, which stay on the device: nothing waits for them before :meth:`check`. They
    only say where a fault came from. Whether there is one, the final sample alone decides: so what a scheduler clips
    or a mask leaves out raises no false alarm.

    Attributes:
        total: number of steps that this call takes.
        sums: of each step, the sums (B,) of its sample and of the network's output.
        generators: of the call, one per row, for hooks: few pipelines of flow models hand theirs to the scheduler.
    """

    total: int = 0
    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    generators: Sequence[torch.Generator] | None = None

    def start(self, steps: int) -> None:
        """Keep how many steps this call takes."""
        self.total = steps

    def before(self, step: Step) -> Step:
        """Keep the sums of the sample and of the network's output."""
        if step.output is not None:
            self.sums.append((_sum(step.x_t), _sum(step.output)))
        return step if step.generator is not None else replace(step, generator=self.generators)

    def check(self, samples: Tensor, prompts: Sequence[str]) -> None:
        """Refuse final samples (B, *) that are not finite.

        Args:
            samples: what the last step returned.
            prompts: of the samples, in their order.

        Raises:
            DivergedError: one is not; the message names its prompt, and the step where that began.
        """
        bad = (~samples.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            row = bad[0]
            raise DivergedError(f"{self.origin(row, len(samples)) or self._by(self.total)} for {prompts[row]!r}")

    def explain(self, prompts: Sequence[str]) -> str:
        """Return where the first sample stopped being finite, and its prompt; "" if all are finite."""
        for row, prompt in enumerate(prompts):
            if why := self.origin(row, len(prompts)):
                return f"{why} for {prompt!r}"
        return ""

    def origin(self, row: int, count: int) -> str:
        """Return what made sample ``row`` of ``count`` not finite; "" if nothing did so far."""
        for number, (sample, output) in enumerate(self.sums, 1):
            if not math.isfinite(_of_row(sample, row, count)):
                return self._by(number - 1)
            if not math.isfinite(value := _of_row(output, row, count)):
                what = "NaN" if math.isnan(value) else "infinity"
                return f"the network returned {what} at step {number} of {self.total}"
        return ""

    def _by(self, step: int) -> str:
        if step == 0:
            return "the sample that drawing starts from holds NaN or infinity"
        return f"guidance or scheduler made NaN or infinity of numbers at step {step} of {self.total}"


def _sum(values: Tensor) -> Tensor:
    """Return the sum (B,) of each sample, in float32 at least: it is finite if all of the sample is."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.detach().flatten(1).sum(1, dtype=dtype)


def _of_row(sums: Tensor, row: int, count: int) -> float:
    """Return the sum of one sample of ``count``, some of which may have several rows."""
    rows = max(1, len(sums) // count)
    return float(sums[row * rows : (row + 1) * rows].sum())


@dataclass
class Segment(Hook):
    """The hook under which a pipeline takes only one part of its schedule.

    For schedulers without memory: the next segment starts from what this one returned, as ``latents``, which the
    pipeline scales (:func:`lidar_sampling._levels.start_scale`). The scheduler itself keeps the whole schedule, since
    some look up which timestep comes next.

    Attributes:
        cuts: rising fractions of the steps, between 0 and 1, after each of which a part ends.
        part: which of the ``len(cuts) + 1`` parts, from 0.
        scheduler: that takes the steps.
        x0: the clean prediction (B, *) of the last step that was taken.
        ends: the steps before which parts start and end, from 0 to the number of all.
    """

    cuts: Sequence[float]
    part: int
    scheduler: Any = None
    x0: Tensor | None = None
    ends: list[int] = field(default_factory=list)
    _whole: Tensor | None = None

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """Return those of the part.

        Raises:
            ValueError: a part has no step.
        """
        steps = len(timesteps) - _clean_ends(self.scheduler)
        self.ends = [0, *(round(cut * steps) for cut in self.cuts), steps]
        if not all(a < b for a, b in pairwise(self.ends)):
            raise ValueError(f"keep_at must be rising fractions that differ in {steps} steps, got {tuple(self.cuts)}")
        return self._select(timesteps)

    def _select(self, timesteps: Tensor) -> Tensor:
        """Return the timesteps of the part, out of those of the whole schedule."""
        self._whole, first = timesteps, self.ends[self.part]
        if hasattr(self.scheduler, "_step_index"):
            self.scheduler._step_index = first  # some scale the network's input before the first step starts
        return timesteps[first : self.ends[self.part + 1] + _clean_ends(self.scheduler)]

    def start(self, steps: int) -> None:
        """Give the scheduler its whole schedule back, and the place in it: by now the pipeline has its part."""
        if self.scheduler is not None and self._whole is not None:
            self.scheduler.timesteps = self._whole
            if hasattr(self.scheduler, "_step_index"):
                self.scheduler._step_index = self.ends[self.part]

    def before(self, step: Step) -> Step:
        """Keep what the model thinks the clean sample is."""
        if self._whole is not None:
            step.scheduler.timesteps = self._whole
        self.x0 = step.x0
        return step


def _clean_ends(scheduler: Any) -> int:
    """Return how many timesteps at the end of a schedule stand at the clean sample, which pipelines leave out."""
    return int(type(scheduler).__name__ == "SCMScheduler")


_HOOKS = "_lidar_sampling_hooks"
_NEW = "_lidar_sampling_new"  # the hooks that do not know yet how many steps this call takes
_PIPE = "_lidar_sampling_pipe"  # whose call it is
_TIMES = "_lidar_sampling_times"  # the timesteps where the pipeline has them, and a copy on the host
_COUNT = "_lidar_sampling_count"  # steps of this call so far, and in all
_OURS = (_HOOKS, _NEW, _PIPE, _TIMES, _COUNT)


@contextmanager
def attach(pipe_or_scheduler: Any, hook: Hook) -> Iterator[None]:
    """Let ``hook`` see, and change, every step that the scheduler takes inside the block.

    Args:
        pipe_or_scheduler: a pipeline, which knows how many steps it takes, or its scheduler alone.
        hook: what is called.
    """
    scheduler = scheduler_of(pipe_or_scheduler)
    state = scheduler.__dict__
    outer, pipe = state.get(_HOOKS), state.get(_PIPE)
    base = type(scheduler)
    if outer is None:
        scheduler.__class__ = _subclass_with_hooks(base)  # type: ignore[arg-type]
    state[_HOOKS] = (*(outer or ()), hook)
    state[_NEW] = (*state.get(_NEW, ()), hook)
    if pipe_or_scheduler is not scheduler:
        state[_PIPE] = pipe_or_scheduler
    try:
        yield
        hook.finish()
    finally:
        if outer is None:
            for name in _OURS:
                state.pop(name, None)
            scheduler.__class__ = base
        else:
            state[_HOOKS], state[_PIPE] = outer, pipe
            state[_NEW] = tuple(other for other in state.get(_NEW, ()) if other is not hook)


def steps_of(pipe: Any, scheduler: Any, timestep: Any) -> int:
    """Return how many steps a call takes, given that it is at the first one.

    Diffusers' pipelines say so themselves, after strength (image to image) and denoising_end have cut the schedule.
    Of those that do not, such as modular ones, it is the rest of the scheduler's timesteps from the first on.

    Args:
        pipe: the pipeline; None where the scheduler is driven without one.
        scheduler: after ``set_timesteps``.
        timestep: of the first step.
    """
    told = getattr(pipe, "num_timesteps", None)
    if isinstance(told, int):
        return told
    _, times = scheduler.__dict__.get(_TIMES, (None, scheduler.timesteps))
    first = timestep.to(times.device) if isinstance(timestep, Tensor) else timestep
    if times.dim() == 1 and isinstance(first, Tensor):  # some give each sample its own, all alike
        first = first.flatten()[0]
    here = (times == first).flatten(1).all(1) if times.dim() > 1 else times == first
    return len(times) - int(here.nonzero()[0]) if here.any() else len(times)


@functools.cache
def _signature(base: Any) -> inspect.Signature:
    """Return the signature of a scheduler class's ``step``, read once and not at every step."""
    return inspect.signature(base.step)


@functools.cache
def _subclass_with_hooks(base: type) -> type:
    """Return the subclass, of the same name, of a scheduler class whose ``step`` calls the instance's hooks."""
    signature = _signature(base)

    @functools.wraps(base.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        state = self.__dict__
        hooks = state.get(_HOOKS, ())
        call.arguments["timestep"] = timestep = _on_host(self, call.arguments["timestep"])
        if new := state.pop(_NEW, ()):
            steps = steps_of(state.get(_PIPE), self, timestep)
            state[_COUNT] = (0, steps)
            for hook in new:
                hook.start(steps)
        index, total = state.get(_COUNT, (0, 1))
        state[_COUNT] = (index + 1, total)
        step = _step_of(self, call.arguments, index, total)
        with time_part("guidance"):
            for hook in hooks:
                step = hook.before(step)
        _apply(step, call.arguments)
        with time_part("scheduler"):
            result = base.step(*call.args, **call.kwargs)  # type: ignore[attr-defined]
        previous = result[0]
        with time_part("guidance"):
            for hook in hooks:
                previous = hook.after(step, previous)
        if previous is result[0]:
            return result
        if isinstance(result, tuple):
            return (previous, *result[1:])
        result["prev_sample"] = previous
        return result

    @functools.wraps(base.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        self.__dict__[_NEW] = hooks = self.__dict__.get(_HOOKS, ())
        steps = len(self.timesteps)
        for hook in hooks:
            self.timesteps = hook.timesteps(self.timesteps)
        if len(self.timesteps) > steps and hasattr(self, "set_begin_index"):
            self.set_begin_index(0)  # for a timestep that comes twice it would take the second place
        self.__dict__[_TIMES] = self.timesteps, self.timesteps.to("cpu", copy=True)
        return result

    # Copies and pickles are plain: a pipeline that copies its scheduler does so for another modality.
    def __reduce__(self: Any) -> Any:  # noqa: N807
        return _plain, (base, {key: value for key, value in self.__dict__.items() if key not in _OURS})

    members = {
        "step": step,
        "set_timesteps": set_timesteps,
        "__reduce__": __reduce__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    if not hasattr(base, "scale_model_input"):  # Bria asks every class but diffusers' own flow scheduler for it
        members["scale_model_input"] = lambda self, sample, *args, **kwargs: sample
    return type(base.__name__, (base,), members)


_UNKNOWN = {
    "per_token_timesteps": "a sample of LTXConditionPipeline and its kin has no one noise level; use LTXPipeline",
    "pred_original_sample": "the step takes a clean prediction that was made elsewhere (Cosmos 1), past its guidance",
    "s_churn": "it moves the sample to another noise level; leave it at 0",
}


def _step_of(scheduler: Any, arguments: Mapping[str, Any], index: int, total: int) -> Step:
    """Return the :class:`Step` that a call of ``scheduler.step`` makes, for hooks."""
    output, x_t, timestep = (arguments[name] for name in ("model_output", "sample", "timestep"))

    @functools.cache
    def level() -> NoiseLevel:
        for name, meaning in _UNKNOWN.items():
            value = arguments.get(name)
            if value is not None and not (isinstance(value, float | int) and value == 0):
                raise ValueError(f"guidance does not support {name} of {type(scheduler).__name__}.step: {meaning}")
        return noise_level(scheduler, timestep)

    return Step(
        x_t,
        level,
        functools.cache(lambda: clean_prediction(level(), output, x_t)),
        index=index,
        total=total,
        timestep=timestep,
        generator=arguments.get("generator"),
        output=output,
        eta=float(arguments.get("eta") or 0.0),
        scheduler=scheduler,
    )


def _apply(step: Step, arguments: dict[str, Any]) -> None:
    """Write what hooks made of a step into the arguments of the scheduler's ``step``."""
    output = arguments["model_output"] if step.output is None else step.output
    if step.ends_graph:
        output = output.detach()
    if step.taken is not None:
        output = output[step.taken]
    if step.shift is not None:
        shift = step.level.slope * step.shift
        if output.shape[1] == 2 * step.x_t.shape[1]:  # the half for a learned variance stays as it is
            shift = torch.cat([shift, torch.zeros_like(shift)], 1)
        output = (output + shift).to(output.dtype)
    arguments["model_output"], arguments["sample"] = output, step.x_t
    known = _signature(step.scheduler.__class__).parameters
    if step.noise is not None and "variance_noise" in known:  # drawn already
        arguments["variance_noise"], arguments["generator"] = step.noise, None
    elif step.noise is not None and "generator" in known:  # the call's own generator must not be asked again
        arguments["generator"] = torch.Generator(step.x_t.device).manual_seed(0)
    elif step.generator is not None and "generator" in known:  # which the pipeline may have kept to itself
        arguments["generator"] = step.generator


def _on_host(scheduler: Any, timestep: Any) -> Any:
    """Return the same timestep on the host, if the scheduler's timesteps hold it: reading it waits for no device."""
    times, host = scheduler.__dict__.get(_TIMES, (None, None))
    if times is None or not isinstance(timestep, Tensor) or timestep.dim():
        return timestep
    if timestep.untyped_storage().data_ptr() != times.untyped_storage().data_ptr():
        return timestep
    return host[(timestep.storage_offset() - times.storage_offset()) // times.stride(0)]


def _plain(cls: Any, state: dict[str, Any]) -> Any:
    twin = cls.__new__(cls)
    twin.__dict__.update(state)
    return twin


def scheduler_of(pipe_or_scheduler: Any) -> Any:
    """Return the scheduler of a pipeline, or the scheduler itself.

    Raises:
        TypeError: it is neither.
    """
    if hasattr(pipe_or_scheduler, "prior_pipe"):
        raise TypeError(
            f"{type(pipe_or_scheduler).__name__} runs two pipelines, each with a scheduler of its own: give its "
            "prior_pipe or its decoder_pipe"
        )
    for candidate in (pipe_or_scheduler, getattr(pipe_or_scheduler, "scheduler", None)):
        if callable(getattr(candidate, "step", None)) and hasattr(candidate, "config"):
            return candidate
    raise TypeError(
        f"expected a diffusers pipeline with a scheduler, or a scheduler, got {type(pipe_or_scheduler).__name__}"
    )


def check_memoryless(scheduler: Any, what: str) -> None:
    """Refuse a scheduler that remembers earlier steps, or scales the latents that it is given.

    Raises:
        ValueError: it does; the message says ``what`` the caller does.
    """
    if type(scheduler).__name__ not in _MEMORYLESS:
        raise ValueError(
            f"{what}, which {type(scheduler).__name__} would not follow; use one of {', '.join(_MEMORYLESS)}, or "
            "noise='ddpm' (--noise ddpm), which replaces its steps"
        )


_MEMORYLESS = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
