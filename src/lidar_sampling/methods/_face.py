"""The face that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .._bank import LookaheadBank
from .._cost import Cost
from .._decode import decode, pictures
from .._draw import Item
from .._hooks import Hook, attached
from .._result import Result
from .._sampler import LiDAR
from ..rewards import ask, name_of, score
from ..rewards.mixture import Mixture


class Method(Protocol):
    """A way to draw samples that a reward likes."""

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """``images`` samples a prompt, not yet judged; ``cost`` tells what they took, by phase."""


H = TypeVar("H", bound=Hook)


def hooked(
    lidar: LiDAR, make: Callable[[Sequence[Item]], H]
) -> tuple[Callable[[Sequence[Item]], AbstractContextManager[None]], list[H]]:
    """What to run each batch in so that a hook of its own sees the scheduler, and the hooks that were made so far."""
    hooks: list[H] = []

    @contextmanager
    def around(batch: Sequence[Item]) -> Iterator[None]:
        hooks.append(make(batch))
        with attached(lidar.pipe, hooks[-1]):
            yield

    return around, hooks


def check_reached(who: str, taken: int, promised: int) -> None:
    """Refuse, for the method ``who``, a run that took another number of steps than the pipeline promised.

    Raises:
        ValueError: it did.
    """
    if taken != promised:
        raise ValueError(
            f"{who} was set for the {promised} steps that the pipeline promised, and it took {taken}: leave out what "
            "cuts its schedule short, such as denoising_end"
        )


def in_steps(lidar: LiDAR, steps: int | None, **changes: Any) -> dict[str, Any]:
    """Return the arguments of the target's call with ``changes``, in so many steps where a method names a number.

    A number names the scheduler's own spacing, so timesteps and sigmas of the call are left out then.

    >>> from lidar_sampling import testing
    >>> pipe = testing.tiny_stable_diffusion()
    >>> lidar = LiDAR(pipe, reward="brightness", steps=2, pipe_kwargs={"timesteps": [9, 5]})
    >>> [in_steps(lidar, steps).get("timesteps") for steps in (None, 3)], in_steps(lidar, 3)["num_inference_steps"]
    ([[9, 5], None], 3)
    """
    if steps is None:
        return lidar.arguments(**changes)
    call = lidar.arguments(num_inference_steps=steps, **changes)
    return {name: value for name, value in call.items() if name not in ("timesteps", "sigmas")}


def rewards_of_predictions(lidar: LiDAR, prompts: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """From clean predictions (B, *) of B prompts to their guiding rewards (B,).

    Raises:
        ValueError: the reward is a mixture that is standardised over a bank.
    """
    check_comparable(lidar)
    return lambda x0: score(lidar.reward, images=pictures(lidar.pipe, x0, lidar.batch_size), prompts=prompts)


def differentiable_rewards(lidar: LiDAR, prompts: Sequence[str]) -> Callable[[Tensor], Tensor]:
    """As :func:`rewards_of_predictions`, through which gradients flow."""
    return lambda x0: ask(lidar.reward, images=decode(lidar.pipe, x0), prompts=prompts)


def check_differentiable(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method that ``who`` names, a reward that says it has no gradient.

    Raises:
        ValueError: it does.
    """
    reward: Any = lidar.reward
    if not getattr(reward, "differentiable", True):
        raise ValueError(f"{who} needs the gradient of the reward, and {reward.name!r} has none")


def check_comparable(lidar: LiDAR) -> None:
    """Refuse a mixture that is standardised over a bank: its values cannot be compared from step to step.

    Raises:
        ValueError: it is one.
    """
    if isinstance(lidar.reward, Mixture) and lidar.reward.calibration is None:
        raise ValueError("this method compares rewards as it goes: give the mixture a calibration")


def charged(result: Result, looks: int, *, backward_passes: int = 0) -> Result:
    """``result`` with the predictions that were decoded and rewarded on the way in its cost."""
    more = Cost(backward_passes=backward_passes, decodes=looks, reward_calls=looks)
    return replace(result, cost={**result.cost, "sampling": result.cost["sampling"] + more})


def best(lidar: LiDAR, result: Result, count: int) -> tuple[Result, Cost]:
    """The ``count`` samples a prompt that the guiding reward likes best, best first, and what choosing them cost."""
    scores, cost = guiding_scores(lidar, result)
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    rows = torch.arange(len(chosen))[:, None]
    return replace(result, images=result.images[rows, chosen], latents=result.latents[rows, chosen]), cost


def guiding_scores(lidar: LiDAR, result: Result) -> tuple[Tensor, Cost]:
    """The guiding reward (P, m) of the samples, and what scoring them cost.

    A mixture without a calibration is standardised over the samples of each prompt.
    """
    scores, cost = lidar.scores(result, lidar.parts)
    if not isinstance(lidar.reward, Mixture):
        return scores[name_of(lidar.reward)], cost
    mixed = []
    for row, prompt in enumerate(result.prompts):
        bank = LookaheadBank(result.latents[row], {name: values[row] for name, values in scores.items()}, prompt)
        mixed.append(lidar.reward.on(bank).reward(lidar.reward.name))
    return torch.stack(mixed), cost
