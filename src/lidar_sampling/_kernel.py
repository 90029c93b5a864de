r"""One stochastic step for every Gaussian path, whatever the scheduler.

From the level (alpha, sigma) to the next one (alpha', sigma'), with the clean prediction x0 of x,

    x' = alpha' x0 + rho (sigma' / sigma) (x - alpha x0) + sigma' sqrt(1 - rho^2) eps,

whose marginals are those of the path for every rho in [0, 1]: part of the noise that x0 leaves is kept, the rest is
drawn anew. How much has names:

    ddpm    1 - rho^2 = eta^2 (1 - (alpha sigma' / alpha' sigma)^2)
                                                         DDIM with eta, https://arxiv.org/abs/2010.02502, equation 16
    cps     rho = cos(eta pi / 2)                        Flow-CPS, https://arxiv.org/abs/2509.05952

With eta = 0 both are the deterministic step, DDIM's or Euler's; ``ddpm`` with eta = 1 is DDPM's ancestral step. The
marginals are exact for a true x0. A model gives its mean instead, whose spread is less, and each share of noise that
is drawn anew forgets the difference. With ``ddpm`` that share falls with the step, so many steps are exact. With
``cps`` it does not, so its samples stay narrower than the model's however many steps they take
(``tests/test_kernel.py``, docs/methods.md): hence ``ddpm`` is the default here, also of flow models. Transitions over
several steps, ``glass``, are in :mod:`lidar_sampling._glass`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from ._hooks import attach, scheduler_of
from ._levels import NoiseLevel, check, index_of, noise_level
from ._steps import Hook, Step

Rho = Callable[[float, NoiseLevel, "tuple[float, float]"], float]


def _cps(eta: float, here: NoiseLevel, there: tuple[float, float]) -> float:
    return math.cos(eta * math.pi / 2)


def _ddpm(eta: float, here: NoiseLevel, there: tuple[float, float]) -> float:
    ancestral = here.alpha * there[1] / (there[0] * here.sigma)
    return math.sqrt(max(0.0, 1 - eta**2 * max(0.0, 1 - ancestral**2)))


NOISES: dict[str, Rho] = {"ddpm": _ddpm, "cps": _cps}
"""How much of the noise is drawn anew: name -> rho of (eta, level, (alpha', sigma'))."""

DEFAULT = "ddpm"
"""The noise of methods that need some, on samplers that have none."""


GLASS = "glass"
"""The noise of transitions over several steps (:mod:`lidar_sampling._glass`), whose number stands where eta does."""


def read_noise(text: str) -> tuple[str, float]:
    """Return the name of a noise and its eta, 1 where it is left out; of transitions, how many steps each has.

    A noise is written ``NAME`` or ``NAME:ETA``, and transitions ``glass:STEPS``.

    Raises:
        ValueError: no such noise, an eta outside [0, 1], or steps that are not a whole number of at least 1.

    >>> read_noise("cps:0.7"), read_noise("ddpm"), read_noise("glass:5")
    (('cps', 0.7), ('ddpm', 1.0), ('glass', 5.0))
    """
    name, _, value = text.partition(":")
    if name == GLASS:
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(
                f"{GLASS} needs its number of steps per transition, 1 or more, as in {GLASS}:5; got {text!r}"
            )
        return name, float(value)
    if name not in NOISES:
        raise ValueError(
            f"noise must be one of {', '.join(NOISES)}, with its eta as in cps:0.7, or {GLASS} with its steps as in "
            f"{GLASS}:5; got {text!r}"
        )
    try:
        eta = float(value or 1.0)
    except ValueError:
        eta = math.nan
    if not 0 <= eta <= 1:
        raise ValueError(f"eta of a noise must be a number from 0 to 1, as in cps:0.7; got {text!r}")
    return name, eta


class Kernel(Hook):
    """The hook under which every step is that of the formula above, whatever the scheduler made of it.

    So a scheduler loses its memory of earlier steps, and one without noise gets noise.

    Args:
        noise: ``NAME`` or ``NAME:ETA`` of :data:`NOISES`.
        generator: one, or one per row, for pipelines that do not hand theirs to the scheduler.
    """

    def __init__(self, noise: str = DEFAULT, generator: Any = None) -> None:
        self.name, self.eta = read_noise(noise)
        self.generator = generator
        self._there, self._rho = (1.0, 0.0), 1.0

    def before(self, step: Step) -> Step:
        """Learn where the step leads, and draw its noise."""
        self._there = next_level(step)
        self._rho, deviation = new_noise(self.eta, step.level, self._there, NOISES[self.name])
        if not deviation:
            return replace(step, deviation=0.0)
        generator = self.generator if step.generator is None else step.generator
        return step.with_noise(noise_like(step.x_t, generator), deviation)

    def after(self, step: Step, x: Tensor) -> Tensor:
        """Return the sample that the formula gives, in the precision of ``x``."""
        if step.level.sigma == 0:
            return x
        moved = step_without_noise(step.x_t, step.x0, step.level, self._there, self._rho)
        if step.noise is not None and step.deviation:
            moved = moved + step.deviation * step.noise
        return moved.to(x.dtype)


def step_without_noise(x_t: Tensor, x0: Tensor, here: NoiseLevel, there: tuple[float, float], rho: float) -> Tensor:
    """Return the next sample (B, *) without its new noise; for rho = 1 that is the deterministic step.

    Args:
        x_t: the sample (B, *), at the level ``here`` with sigma above 0.
        x0: its clean prediction (B, *).
        here: where the sample is.
        there: where it goes, (alpha', sigma').
        rho: the share of its noise that is kept.
    """
    moved = there[0] * x0
    return moved + rho * (there[1] / here.sigma) * (x_t - here.alpha * x0) if there[1] else moved


def new_noise(eta: float, here: NoiseLevel, there: tuple[float, float], rho: Rho = _ddpm) -> tuple[float, float]:
    """Return the share of the noise that a step from ``here`` to ``there`` keeps, and the deviation of what is new.

    By default it is what DDIM's own eta gives, 0 at the last step.
    """
    share = rho(eta, here, there) if here.sigma and there[1] else 1.0
    return share, there[1] * math.sqrt(max(0.0, 1 - share**2))


@contextmanager
def stochastic(pipe_or_scheduler: Any, noise: str = DEFAULT, *, generator: Any = None) -> Iterator[None]:
    """Draw every sample in the block by stochastic steps, from any model whose noise levels are known.

    Flow models (SD3, FLUX, Wan) have no such sampler of their own. In few steps more noise costs quality;
    docs/methods.md says how much.

    Args:
        pipe_or_scheduler: a diffusers pipeline, or a scheduler of a known family with one evaluation per step.
        noise: ``ddpm`` or ``cps``, with its eta from 0 to 1: ``ddpm:0.5``; or ``glass:5``, by which every 5 steps are
            one transition, sampled by an ODE.
        generator: one, or one per sample. Pipelines of flow models hand theirs to no scheduler, since it has no noise
            of its own; without one here, such noise comes from torch's global generator.

    Raises:
        ValueError: a scheduler of an unknown family, or with several evaluations per step; an unknown noise.

    Example:
        >>> from lidar_sampling import testing
        >>> pipe = testing.tiny_stable_diffusion()
        >>> with stochastic(pipe, "ddpm"):
        ...     images = pipe("a cat", num_inference_steps=3, output_type="pt").images
    """
    from ._glass import Glass

    scheduler = scheduler_of(pipe_or_scheduler)
    check_kernel(scheduler)
    name, value = read_noise(noise)
    with attach(pipe_or_scheduler, Glass(int(value), generator) if name == GLASS else Kernel(noise, generator)):
        yield


def check_kernel(scheduler: Any) -> None:
    """Refuse a scheduler whose steps cannot be replaced.

    Raises:
        ValueError: it is of an unknown family, clips, or asks the model several times per step.
    """
    check(scheduler)
    if getattr(scheduler, "order", 1) != 1:
        raise ValueError(
            f"{type(scheduler).__name__} asks the model several times per step, and noise belongs to one: use "
            "EulerDiscreteScheduler, or FlowMatchEulerDiscreteScheduler for a flow model"
        )


def next_level(step: Step) -> tuple[float, float]:
    """Return (alpha', sigma') of the sample that a step of a diffusers scheduler comes to.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> import torch
        >>> scheduler = DDIMScheduler(set_alpha_to_one=True)
        >>> scheduler.set_timesteps(10)
        >>> last = Step(torch.zeros(1), None, None, timestep=scheduler.timesteps[-1], scheduler=scheduler)
        >>> next_level(last)
        (1.0, 0.0)
    """
    scheduler, timestep = step.scheduler, step.timestep
    if hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "sigmas"):
        signal = _signal_after(scheduler, int(timestep))
        return signal**0.5, max(0.0, 1 - signal) ** 0.5
    times, index = scheduler.timesteps, index_of(scheduler, timestep) + 1
    after = copy(scheduler)
    after._step_index = index
    there = noise_level(after, times[index] if index < len(times) else timestep)
    return there.alpha, there.sigma


def _signal_after(scheduler: Any, timestep: int) -> float:
    """Return the signal power that a scheduler of DDPM's levels steps to."""
    name = type(scheduler).__name__
    if "DDIM" in name:  # a fixed stride, whatever timesteps come after
        previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    else:
        later = [int(t) for t in scheduler.timesteps if int(t) < timestep]
        previous = max(later) if later else -1
    if previous >= 0:
        return float(scheduler.alphas_cumprod[previous])
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0))


def take_again(step: Step) -> None:
    """Make a diffusers scheduler repeat the step that it has just taken; the caller noises the sample back."""
    if getattr(step.scheduler, "_step_index", None) is not None:
        step.scheduler._step_index -= 1


def noise_like(x: Tensor, generator: Any) -> Tensor:
    """Return standard normal noise in the shape (B, *) of ``x``, as the scheduler itself would draw it.

    Args:
        x: what to be like.
        generator: one, one per row, or None.
    """
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
