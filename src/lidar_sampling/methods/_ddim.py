"""What a step of DDIM does (Song et al. 2021, https://arxiv.org/abs/2010.02502), for methods that must know.

From timestep t it goes to ``s = t - N / T`` of N training steps, to ``abar_s``, whatever timesteps come after; the
noise that it adds there has the standard deviation (equation 16 of the paper)

    eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Transition(NamedTuple):
    """The step from timestep t to s.

    Attributes:
        abar_t: signal power before it.
        abar_s: signal power after it.
        noise: standard deviation of the noise that it adds.
    """

    abar_t: float
    abar_s: float
    noise: float


def transition(scheduler: Any, timestep: Any, eta: float = 1.0) -> Transition:
    """What the next ``scheduler.step`` at ``timestep`` does.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(10)
        >>> transition(scheduler, scheduler.timesteps[-1]).noise  # the last step arrives at abar = 1
        0.0
    """
    t = int(timestep)
    s = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    abar_t = float(scheduler.alphas_cumprod[t])
    abar_s = float(scheduler.alphas_cumprod[s] if s >= 0 else scheduler.final_alpha_cumprod)
    variance = (1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)
    return Transition(abar_t, abar_s, eta * variance**0.5)


def check_ddim(scheduler: Any, what: str) -> None:
    """Refuse any scheduler but DDIM.

    Raises:
        ValueError: it is another; ``what`` the caller does, the message says.
    """
    if type(scheduler).__name__ != "DDIMScheduler":
        raise ValueError(f"{what} with DDIMScheduler alone, got {type(scheduler).__name__}")
