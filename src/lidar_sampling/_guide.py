"""Guide a diffusers pipeline by banks inside a with-block; see what guidance did at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._bank import BankError, LookaheadBank, as_banks
from ._guidance import Members, ShiftInfo, auto_strength, check_cells
from ._hooks import Hook, Step, attach, scheduler_of
from ._levels import NoiseLevel, check
from ._settings import Strength, check_reward_scale, check_strength, check_window
from ._space import space_of


class GuidanceError(RuntimeError):
    """Guidance could not do what was asked of it; the message says why."""


class TraceStep(NamedTuple):
    """One guided step: the timestep as the scheduler counts it, the noise level, and numbers (B,), one per sample."""

    timestep: float
    level: NoiseLevel
    info: ShiftInfo


@dataclass
class Trace:
    """What guidance did, step by step; fills while the block of :func:`guide` runs.

    Attributes:
        steps: the guided steps, in order.
        seen: number of scheduler steps in the block, guided or not.
        reward_scales: lambda of each sample's bank, once the first step is guided.
    """

    steps: list[TraceStep] = field(default_factory=list)
    seen: int = 0
    reward_scales: list[float] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per guided step, JSON values only; lists have one number per sample."""
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

    def of(self, rows: Sequence[int]) -> Trace:
        """Return the trace of some samples of the batch."""
        taken = list(rows)
        steps = [step._replace(info=ShiftInfo(*(values[taken] for values in step.info))) for step in self.steps]
        return Trace(steps, self.seen, [self.reward_scales[row] for row in taken] if self.reward_scales else [])

    @staticmethod
    def join(traces: Sequence[Trace]) -> Trace:
        """Return the trace of a batch whose parts were sampled one after another by the same steps."""
        if not traces:
            return Trace()
        steps = [
            parts[0]._replace(info=ShiftInfo(*map(torch.cat, zip(*(p.info for p in parts), strict=True))))
            for parts in zip(*(trace.steps for trace in traces), strict=True)
        ]
        return Trace(steps, traces[0].seen, [each for trace in traces for each in trace.reward_scales])


@contextmanager
def guide(
    pipe_or_scheduler: Any,
    banks: LookaheadBank | Sequence[LookaheadBank],
    *,
    scale: float,
    reward_scale: Strength,
    window: tuple[float, float] = (1.0, 0.2),
    reward: str | None = None,
    bank_dtype: torch.dtype | None = None,
    ess: float = 0.25,
    grid: int | None = None,
) -> Iterator[Trace]:
    """Guide every sample drawn in the block toward the reward-tilted distribution of its bank.

    At each step the clean prediction moves by ``scale * Delta`` (:func:`lidar_sampling.mean_shift`), after
    classifier-free guidance and its rescaling. It costs no network evaluation and draws no random number: with
    ``scale=0`` samples are bit-identical to those of the pipeline alone.

    Args:
        pipe_or_scheduler: a diffusers pipeline, or a scheduler of a known family.
        banks: one bank for the whole batch, or one per prompt in the order of the prompts; the batch is
            prompt-major, as diffusers lays it out with several images per prompt.
        scale: s, at least 0; 1 is exact when the bank comes from the sampler itself.
        reward_scale: lambda, at least 0, in units of one over the reward; ``"auto"`` gives each bank its own, at
            which its weights at pure noise have the effective sample size ``ess``: then the unit of the reward, and
            where it has its zero, do not matter.
        window: (start, end) of guidance in diffusion time, 1 at pure noise and 0 at the clean sample; steps at
            start >= time > end are guided, and with end 0 also the one at time 0.
        reward: which of the banks' rewards; may be left out when each bank has one.
        bank_dtype: precision in which banks are kept beside the samples, centred; by default that of the computation.
            bfloat16 halves their memory and moves the shift by less than a hundredth (docs/performance.md).
        ess: of the automatic strength, as a share of the members, in (0, 1].
        grid: cells per side that latents are averaged over before they are compared with the bank's, so that weights
            rest on more members for longer; None compares every number.

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
    check_reward_scale(reward_scale, ess)
    check_window(window)
    check_cells(grid)
    for bank in {id(bank): bank for bank in banks}.values():
        bank.reward(reward)
    if pipe_or_scheduler is not scheduler:
        for space in {bank.space for bank in banks if bank.space is not None}:
            if why := space.difference(space_of(pipe_or_scheduler, space.shape)):
                raise BankError(f"a bank was drawn in another latent space: {why}")

    hook = _Guide(banks, reward, scale, reward_scale, ess, window, bank_dtype, grid)
    with attach(scheduler, hook):
        yield hook.trace
    if not hook.trace.steps:
        raise GuidanceError(
            f"no step was guided: none of the {hook.trace.seen} steps fell into the window {window}"
            if hook.trace.seen
            else f"no step was guided: this {type(scheduler).__name__} was never stepped inside the block "
            f"(a pipeline whose scheduler is replaced afterwards loses its guidance)"
        )


class _Guide(Hook):
    """The hook that moves the clean prediction by ``scale * Delta``."""

    def __init__(
        self,
        banks: list[LookaheadBank],
        reward: str | None,
        scale: float,
        reward_scale: Strength,
        ess: float,
        window: tuple[float, float],
        bank_dtype: torch.dtype | None,
        grid: int | None,
    ) -> None:
        self.count = len(banks)
        # Neighbours that share a bank are shifted together.
        groups = [list(same) for _, same in groupby(banks, key=id)]
        self.runs = [(same[0].samples, same[0].reward(reward), len(same)) for same in groups]
        self.strengths = [auto_strength(r, ess) if reward_scale == "auto" else reward_scale for _, r, _ in self.runs]
        self.members: list[Members] = []  # of each run; made at the first step, where the samples are
        self.scale, self.window, self.bank_dtype, self.grid = scale, window, bank_dtype, grid
        self.trace = Trace()

    def before(self, step: Step) -> Step:
        level = step.level
        self.trace.seen += 1
        start, end = self.window
        if level.sigma == 0 or level.time > start or (level.time <= end and end > 0):
            return step
        delta, info = self._shift(step.x_t, level)
        self.trace.steps.append(TraceStep(float(torch.as_tensor(step.timestep).reshape(-1)[0]), level, info))
        return step.with_shift(self.scale * delta) if self.scale else step

    @torch.no_grad()
    def _shift(self, sample: Tensor, level: NoiseLevel) -> tuple[Tensor, ShiftInfo]:
        if len(sample) % self.count:
            raise ValueError(f"a batch of {len(sample)} cannot be shared among {self.count} banks")
        rows = len(sample) // self.count
        made = len(self.members)
        for (bank, rewards, count), strength in zip(self.runs[made:], self.strengths[made:], strict=True):
            if sample.shape[1:] != bank.shape[1:]:
                raise BankError(
                    f"the scheduler steps samples of shape {tuple(sample.shape[1:])} but the bank holds "
                    f"{tuple(bank.shape[1:])}: draw the bank at the same size"
                )
            members = Members(
                bank.to(sample.device),
                rewards.to(sample.device),
                reward_scale=strength,
                grid=self.grid,
                dtype=sample.dtype,
                resident=True,
                storage=self.bank_dtype,
            )
            self.members.append(members)
            self.trace.reward_scales += [strength] * (rows * count)
        parts = sample.split([rows * count for *_, count in self.runs])
        shifts = [
            members.shift(x_t, alpha=level.alpha, sigma=level.sigma)
            for members, x_t in zip(self.members, parts, strict=True)
        ]
        deltas, infos = zip(*shifts, strict=True)
        return torch.cat(deltas), ShiftInfo(*map(torch.cat, zip(*infos, strict=True)))
