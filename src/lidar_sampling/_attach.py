"""Guide or record a diffusers scheduler inside a with-block, without touching the pipeline around it.

The scheduler instance's class is swapped for a subclass of itself whose ``step`` shows the call to the hooks held
by the instance. So isinstance checks, signatures, saved configurations and timesteps stay what they were; a copy
or a pickle of the scheduler is plain; and the class is put back when the block ends, whatever happened in it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._bank import BankError, LookaheadBank, as_banks
from ._guidance import Members, ShiftInfo
from ._levels import NoiseLevel, check, clean_prediction, data_scale, noise_level
from ._profile import timed
from ._settings import check_strength, check_window
from ._space import space_of


class GuidanceError(RuntimeError):
    """Guidance could not do what was asked of it; the message says why."""


class TraceStep(NamedTuple):
    """One guided step: the timestep as the scheduler counts it, the noise level, and numbers (B,) a sample."""

    timestep: float
    level: NoiseLevel
    info: ShiftInfo


@dataclass
class Trace:
    """What guidance did, step by step; fills while the block of :func:`guide` runs.

    Attributes:
        steps: the guided steps, in order.
        seen: number of scheduler steps in the block, guided or not.
    """

    steps: list[TraceStep] = field(default_factory=list)
    seen: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a guided step, JSON values only; lists have one number a sample."""
        return [
            {
                "timestep": step.timestep,
                "time": step.level.time,
                "alpha": step.level.alpha,
                "sigma": step.level.sigma,
                **{name: value.tolist() for name, value in step.info._asdict().items()},
            }
            for step in self.steps
        ]

    def of(self, rows: slice) -> Trace:
        """The trace of some samples of the batch."""
        steps = [step._replace(info=ShiftInfo(*(values[rows] for values in step.info))) for step in self.steps]
        return Trace(steps, self.seen)

    @staticmethod
    def join(traces: Sequence[Trace]) -> Trace:
        """The trace of a batch whose parts were sampled one after another by the same steps."""
        if not traces:
            return Trace()
        steps = [
            parts[0]._replace(info=ShiftInfo(*map(torch.cat, zip(*(p.info for p in parts), strict=True))))
            for parts in zip(*(trace.steps for trace in traces), strict=True)
        ]
        return Trace(steps, traces[0].seen)


@contextmanager
def guide(
    pipe_or_scheduler: Any,
    banks: LookaheadBank | Sequence[LookaheadBank],
    *,
    scale: float,
    reward_scale: float,
    window: tuple[float, float] = (1.0, 0.2),
    reward: str | None = None,
    bank_dtype: torch.dtype | None = None,
) -> Iterator[Trace]:
    """Guide every sample drawn in the block toward the reward-tilted distribution of its bank.

    At each step the clean prediction moves by ``scale * Delta`` (:func:`lidar_sampling.mean_shift`), after
    classifier-free guidance and its rescaling. It costs no network evaluation and draws no random number: with
    ``scale=0`` samples are bit-identical to those of the pipeline alone.

    Args:
        pipe_or_scheduler: a diffusers pipeline, or a scheduler of a known family.
        banks: one bank for the whole batch, or one a prompt in the order of the prompts; the batch is
            prompt-major, as diffusers lays it out with several images a prompt.
        scale: s, at least 0; 1 is exact when the bank comes from the sampler itself.
        reward_scale: lambda, at least 0, in units of one over the reward.
        window: (start, end) of guidance in diffusion time, 1 at pure noise and 0 at the clean sample; steps at
            start >= time > end are guided, and with end 0 also the one at time 0.
        reward: which of the banks' rewards; may be left out when each bank has one.
        bank_dtype: precision in which banks are kept beside the samples, centred; by default that of the computation.
            bfloat16 halves their memory and moves the shift by less than a hundredth (docs/performance.md).

    Yields:
        A :class:`Trace` that fills as the block runs.

    Raises:
        ValueError: a scheduler of an unknown family or one that clips, a scale or window out of range.
        BankError: a bank of another space, or without the reward.
        GuidanceError: the block ended and no step was guided.

    Example:
        >>> from lidar_sampling import testing
        >>> pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank()
        >>> with guide(pipe, bank, scale=1.0, reward_scale=5.0) as trace:
        ...     images = pipe(bank.prompt, num_inference_steps=4, output_type="pt").images
        >>> len(trace.steps), trace.seen
        (4, 5)
    """
    scheduler = scheduler_of(pipe_or_scheduler)
    check(scheduler)
    banks = as_banks(banks)
    check_strength("scale", scale)
    check_strength("reward_scale", reward_scale)
    check_window(window)
    for bank in {id(bank): bank for bank in banks}.values():
        bank.reward(reward)
    if pipe_or_scheduler is not scheduler:
        for space in {bank.space for bank in banks if bank.space is not None}:
            if why := space.difference(space_of(pipe_or_scheduler, space.shape)):
                raise BankError(f"a bank was drawn in another latent space: {why}")

    hook = _Guide(banks, reward, scale, reward_scale, window, bank_dtype)
    with attached(scheduler, hook):
        yield hook.trace
    if not hook.trace.steps:
        raise GuidanceError(
            f"no step was guided: none of the {hook.trace.seen} steps fell into the window {window}"
            if hook.trace.seen
            else f"no step was guided: this {type(scheduler).__name__} was never stepped inside the block "
            f"(a pipeline whose scheduler is replaced afterwards loses its guidance)"
        )


class Hook:
    """What :func:`attached` calls around every ``scheduler.step``; by default it changes nothing."""

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """See what ``scheduler.set_timesteps`` chose; return the timesteps to take."""
        return timesteps

    def before(self, scheduler: Any, arguments: dict[str, Any]) -> Tensor:
        """See the arguments of ``step`` by name, and change them; return the model output to use."""
        return arguments["model_output"]

    def after(self, scheduler: Any, previous: Tensor) -> Tensor:
        """See the sample that ``step`` returned; return the one to go on with."""
        return previous


@dataclass
class Recording(Hook):
    """What :func:`record` saw.

    Attributes:
        samples: what ``scheduler.step`` returned last (B, *), in units of clean latents: the space of banks.
        steps: number of steps so far.
        on_step: called with that number after each step.
    """

    samples: Tensor | None = None
    steps: int = 0
    on_step: Callable[[int], None] | None = None

    def after(self, scheduler: Any, previous: Tensor) -> Tensor:
        """Keep the sample that the scheduler returned."""
        self.samples, self.steps = previous.detach() / data_scale(scheduler), self.steps + 1
        if self.on_step is not None:
            self.on_step(self.steps)
        return previous


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
    with attached(scheduler_of(pipe_or_scheduler), recording):
        yield recording


@dataclass
class Segment(Hook):
    """The hook under which a pipeline takes only the steps ``start`` to ``stop`` of its schedule.

    For schedulers without memory: the next segment starts from what this one returned, as ``latents``.

    Attributes:
        start: first step.
        stop: the step before which it ends; None for the end.
        x0: the clean prediction (B, *) of the last step that was taken.
    """

    start: int = 0
    stop: int | None = None
    x0: Tensor | None = None

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """Those of the segment."""
        return timesteps[self.start : self.stop]

    def before(self, scheduler: Any, arguments: dict[str, Any]) -> Tensor:
        """Keep what the model thinks the clean sample is."""
        output = arguments["model_output"]
        level = noise_level(scheduler, arguments["timestep"])
        self.x0 = clean_prediction(level, output, arguments["sample"])
        return output


_UNSUPPORTED = {
    "per_token_timesteps": "a sample of LTXConditionPipeline and its kin has no one noise level; use LTXPipeline",
    "s_churn": "it moves the sample to another noise level; leave it at 0",
}


class _Guide(Hook):
    """The hook that adds ``slope * scale * Delta`` to the model output."""

    def __init__(
        self,
        banks: list[LookaheadBank],
        reward: str | None,
        scale: float,
        reward_scale: float,
        window: tuple[float, float],
        bank_dtype: torch.dtype | None,
    ) -> None:
        self.count = len(banks)
        # Neighbours that share a bank are shifted together.
        groups = [list(same) for _, same in groupby(banks, key=id)]
        self.runs = [(same[0].samples, same[0].reward(reward), len(same)) for same in groups]
        self.members: list[Members] = []  # of each run; made at the first step, where the samples are
        self.scale, self.reward_scale, self.window, self.bank_dtype = scale, reward_scale, window, bank_dtype
        self.trace = Trace()

    def before(self, scheduler: Any, arguments: dict[str, Any]) -> Tensor:
        for name, meaning in _UNSUPPORTED.items():
            value = arguments.get(name)
            if value is not None and not (isinstance(value, float | int) and value == 0):
                raise ValueError(f"guidance does not support {name} of {type(scheduler).__name__}.step: {meaning}")
        output, sample, timestep = (arguments[k] for k in ("model_output", "sample", "timestep"))
        self.trace.seen += 1
        level = noise_level(scheduler, timestep)
        start, end = self.window
        if level.sigma == 0 or level.time > start or (level.time <= end and end > 0):
            return output

        delta, info = self._shift(sample, level)
        self.trace.steps.append(TraceStep(float(torch.as_tensor(timestep).reshape(-1)[0]), level, info))
        if self.scale == 0:
            return output
        if output.shape[1] == 2 * sample.shape[1]:  # learned variance: its half is left alone
            delta = torch.cat([delta, torch.zeros_like(delta)], 1)
        return (output + (self.scale * level.slope) * delta).to(output.dtype)

    @torch.no_grad()
    def _shift(self, sample: Tensor, level: NoiseLevel) -> tuple[Tensor, ShiftInfo]:
        if len(sample) % self.count:
            raise ValueError(f"a batch of {len(sample)} cannot be shared among {self.count} banks")
        for bank, rewards, _ in self.runs[len(self.members) :]:
            if sample.shape[1:] != bank.shape[1:]:
                raise BankError(
                    f"the scheduler steps samples of shape {tuple(sample.shape[1:])} but the bank holds "
                    f"{tuple(bank.shape[1:])}: draw the bank at the same size"
                )
            members = Members(
                bank.to(sample.device),
                rewards.to(sample.device),
                reward_scale=self.reward_scale,
                dtype=sample.dtype,
                resident=True,
                storage=self.bank_dtype,
            )
            self.members.append(members)
        rows = len(sample) // self.count
        parts = sample.split([rows * count for *_, count in self.runs])
        shifts = [
            members.shift(x_t, alpha=level.alpha, sigma=level.sigma)
            for members, x_t in zip(self.members, parts, strict=True)
        ]
        deltas, infos = zip(*shifts, strict=True)
        return torch.cat(deltas), ShiftInfo(*map(torch.cat, zip(*infos, strict=True)))


_HOOKS = "_lidar_sampling_hooks"
_TIMES = "_lidar_sampling_times"  # the timesteps where the pipeline has them, and a copy on the host


@contextmanager
def attached(scheduler: Any, hook: Hook) -> Iterator[None]:
    """Let ``hook`` see, and change, every step that ``scheduler`` takes inside the block."""
    base, outer = type(scheduler), scheduler.__dict__.get(_HOOKS)
    if outer is None:
        scheduler.__class__ = _hooked(base)  # type: ignore[arg-type]
    scheduler.__dict__[_HOOKS] = (*(outer or ()), hook)
    try:
        yield
    finally:
        if outer is None:
            del scheduler.__dict__[_HOOKS]
            scheduler.__dict__.pop(_TIMES, None)
            scheduler.__class__ = base
        else:
            scheduler.__dict__[_HOOKS] = outer


@functools.cache
def _hooked(base: type) -> type:
    """The subclass of a scheduler class whose ``step`` calls the instance's hooks; it answers to the same name."""
    signature = inspect.signature(base.step)  # type: ignore[attr-defined]

    @functools.wraps(base.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        hooks = self.__dict__.get(_HOOKS, ())
        call.arguments["timestep"] = _on_host(self, call.arguments["timestep"])
        with timed("guidance"):
            for hook in hooks:
                call.arguments["model_output"] = hook.before(self, call.arguments)
        with timed("scheduler"):
            result = base.step(*call.args, **call.kwargs)  # type: ignore[attr-defined]
        previous = result[0]
        with timed("guidance"):
            for hook in hooks:
                previous = hook.after(self, previous)
        if previous is result[0]:
            return result
        if isinstance(result, tuple):
            return (previous, *result[1:])
        result["prev_sample"] = previous
        return result

    @functools.wraps(base.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        for hook in self.__dict__.get(_HOOKS, ()):
            self.timesteps = hook.timesteps(self.timesteps)
        self.__dict__[_TIMES] = self.timesteps, self.timesteps.to("cpu", copy=True)
        return result

    # Copies and pickles are plain: a pipeline that copies its scheduler does so for another modality.
    def __reduce__(self: Any) -> Any:  # noqa: N807
        return _plain, (base, {key: value for key, value in self.__dict__.items() if key not in (_HOOKS, _TIMES)})

    members = {
        "step": step,
        "set_timesteps": set_timesteps,
        "__reduce__": __reduce__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (base,), members)


def _on_host(scheduler: Any, timestep: Any) -> Any:
    """The same timestep on the host, where reading it waits for no device, if it is an element of the scheduler's."""
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
    """The scheduler of a pipeline, or the scheduler itself.

    Raises:
        TypeError: it is neither.
    """
    for candidate in (pipe_or_scheduler, getattr(pipe_or_scheduler, "scheduler", None)):
        if callable(getattr(candidate, "step", None)) and hasattr(candidate, "config"):
            return candidate
    raise TypeError(
        f"expected a diffusers pipeline with a scheduler, or a scheduler, got {type(pipe_or_scheduler).__name__}"
    )


def check_memoryless(scheduler: Any, what: str) -> None:
    """Refuse a scheduler that remembers earlier steps, or scales the latents that it is given.

    Raises:
        ValueError: it does; ``what`` the caller does, the message says.
    """
    if type(scheduler).__name__ not in _MEMORYLESS:
        raise ValueError(
            f"{what}, which {type(scheduler).__name__} would not follow; use one of {', '.join(_MEMORYLESS)}"
        )


_MEMORYLESS = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
