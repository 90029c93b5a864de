"""The interface that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .._bank import LookaheadBank
from .._cost import Cost, meter
from .._decode import Decoder
from .._draw import Item
from .._forecast import evaluations_of
from .._hooks import Hook, attach
from .._result import Result
from .._sampler import LiDAR
from .._values import check_integer
from ..rewards import RewardError, ask_part, features_of, name_of, score, select_diverse, with_features
from ..rewards.mixture import Mixture
from ..solvers import Solver, use_solver


class Method(Protocol):
    """A way to draw samples that a reward likes."""

    def draw(self, lidar: LiDAR, prompts: Sequence[str], *, images: int, seed: int) -> Result:
        """Draw ``images`` samples per prompt, without judging them; ``cost`` of the result counts them, by phase."""

    def cost(self, lidar: LiDAR, *, images: int) -> Cost:
        """Return what :meth:`draw` will count for ``images`` samples of one prompt, all phases together.

        Nothing is drawn, and what a store already holds is not looked up. Counts alone are known beforehand: seconds
        and memory stay 0. What :meth:`draw` refuses before drawing is refused here too.
        """


H = TypeVar("H", bound=Hook)


def hook_batches(
    lidar: LiDAR, make: Callable[[Sequence[Item]], H], *, pipe: Any = None, whole: bool = False
) -> tuple[Callable[[Sequence[Item]], AbstractContextManager[None]], list[H]]:
    """Return a context to run each batch in, which gives the batch a hook of its own, and the list of hooks so far.

    Args:
        lidar: draws.
        make: makes the hook of a batch.
        pipe: another pipeline than the target.
        whole: leave out the hooks of batches that ran out of memory, whose samples are drawn again in smaller ones.
    """
    hooks: list[H] = []

    @contextmanager
    def around(batch: Sequence[Item]) -> Iterator[None]:
        hook = make(batch)
        if not whole:
            hooks.append(hook)
        with attach(pipe or lidar.pipe, hook):
            yield
        if whole:
            hooks.append(hook)

    return around, hooks


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


def rewards_of_predictions(lidar: LiDAR, batch: Sequence[Item]) -> Callable[[Tensor], Tensor]:
    """Return a function from clean predictions (B, *) of a batch to their guiding rewards (B,).

    Raises:
        ValueError: the reward is a mixture that is standardised over a bank.
        TypeError: the pipeline decodes no latents apart from its own call.
    """
    check_comparable(lidar)
    decoder = Decoder(lidar.pipe, lidar.arguments(), batch, batch_size=lidar.batch_size)
    prompts = [item.prompt for item in batch]

    @torch.no_grad()
    def rewards(x0: Tensor) -> Tensor:
        return score(lidar.reward, images=decoder(x0), prompts=prompts)

    return rewards


def differentiable_rewards(lidar: LiDAR, batch: Sequence[Item]) -> Callable[[Tensor], Tensor]:
    """Return what :func:`rewards_of_predictions` does, as a function through which gradients flow."""
    judge = judge_of(lidar, batch, lidar.pipe, lidar.arguments())
    return lambda x0: judge(x0)[1]


def judge_of(
    lidar: LiDAR, batch: Sequence[Item], pipe: Any, call: Mapping[str, Any]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from clean latents (B, *) of a batch to its samples and rewards (B,), all with gradients.

    Args:
        lidar: whose reward it is.
        batch: the samples.
        pipe: draws them.
        call: its arguments.

    Raises:
        RewardError: the reward returned something else than one finite number per image.
    """
    decoder, prompts = Decoder(pipe, call, batch), [item.prompt for item in batch]

    def judge(x0: Tensor) -> tuple[Tensor, Tensor]:
        images = decoder(x0)
        rewards = ask_part(lidar.reward, images=images, prompts=prompts)
        if rewards.isnan().any():
            raise RewardError(f"reward {name_of(lidar.reward)!r} returned nan, from which no gradient leads on")
        return images, rewards

    return judge


def check_differentiable(lidar: LiDAR, who: str) -> None:
    """Refuse, for the method ``who``, a reward that says it has no gradient, or a mixture that needs a bank.

    Raises:
        ValueError: it is one of these.
    """
    check_comparable(lidar)
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


def sampling_cost(lidar: LiDAR, images: int, *, pipe: Any = None, call: Mapping[str, Any] | None = None) -> Cost:
    """Return what :meth:`LiDAR.sample` will count for ``images`` samples of one prompt.

    Args:
        lidar: draws.
        images: samples.
        pipe: another pipeline than the target.
        call: its arguments, if not the target's.

    Raises:
        ValueError: images below 1.
    """
    check_integer("images", images, least=1)
    each = evaluations_of(pipe or lidar.pipe, call or lidar.arguments())
    return Cost(network_evaluations=images * each, decodes=images)


def solver_cost(lidar: LiDAR, solver: Solver, images: int) -> Cost:
    """Return what ``images`` samples of one prompt by a few-step solver will count.

    An adapter or denoiser changes no count, so it is not loaded; a pipeline of its own is loaded to be asked.
    """
    twin = copy(lidar.lookahead_pipeline(solver) if solver.kind == "pipeline" else lidar.pipe)
    with use_solver(solver, twin):
        return sampling_cost(lidar, images, pipe=twin, call=solver.arguments(lidar.arguments()))


def bank_cost(lidar: LiDAR) -> Cost:
    """Return what the bank of one prompt will count, with the members that are decoded in full after a preview.

    With several rewards those are at most so many: where rewards agree on the best, fewer are decoded.
    """
    n, parts = lidar.settings.n, len(lidar.parts)
    again = min(n, min(lidar.rescore, n) * parts)
    return solver_cost(lidar, lidar.solver, n) + Cost(decodes=again, reward_calls=(n + again) * parts)


def selection_cost(lidar: LiDAR, count: int) -> Cost:
    """Return what :func:`guiding_scores` of ``count`` samples will count."""
    return Cost(reward_calls=count * len(lidar.parts))


def looks_cost(lidar: LiDAR, looks: int, *, backward_passes: int = 0) -> Cost:
    """Return what it costs to decode and reward so many predictions on the way; each part of a mixture is called."""
    return Cost(backward_passes=backward_passes, decodes=looks) + selection_cost(lidar, looks)


def charge_looks(lidar: LiDAR, result: Result, looks: int, *, backward_passes: int = 0) -> Result:
    """Return ``result`` with the decodes and reward calls of so many predictions on the way added to its cost."""
    more = looks_cost(lidar, looks, backward_passes=backward_passes)
    return replace(result, cost={**result.cost, "sampling": result.cost["sampling"] + more})


def best(
    lidar: LiDAR, result: Result, count: int, diverse: float = 0.0, *, weight: float | None = None, islands: int = 1
) -> tuple[Result, Cost]:
    """Return the best ``count`` samples per prompt by the guiding reward, best first, and what choosing them cost.

    With ``diverse`` or ``weight`` above 0 they are the best set, as :func:`lidar_sampling.rewards.select_diverse` has
    it; the features of a sample count as one more call of the reward.

    Args:
        lidar: scores the samples.
        result: the samples.
        count: how many to keep.
        diverse: what an average distance is worth, in standard deviations of the reward.
        weight: what the distance of a pair is worth, in the unit of the reward, in the place of ``diverse``.
        islands: groups of equal size that follow one another among the samples of a prompt; those that are kept by
            their rewards alone are spread over them, as :func:`spread` has it.

    Raises:
        ValueError: neither reward nor metrics have features of the samples, and a best set is wanted.
    """
    scores, cost = guiding_scores(lidar, result)
    chosen = spread(scores, count, islands)
    if wants_features(diverse, weight):
        with meter(lidar.pipe, "selection") as looking:
            features = [features_of([*lidar.parts, *lidar.metrics], images) for images in result.images]
        chosen = torch.tensor(
            [
                select_diverse(values, seen, count, diverse, weight=weight)
                for values, seen in zip(scores, features, strict=True)
                if seen is not None
            ]
        )
        cost = cost + replace(looking, reward_calls=scores.numel())
    return only(result, chosen), cost


def only(result: Result, chosen: Tensor) -> Result:
    """Return the result with those samples alone whose places (P, k) are chosen, in that order."""
    rows = torch.arange(len(chosen))[:, None]
    places = (rows * result.images.shape[1] + chosen).flatten().tolist()
    return replace(
        result,
        images=result.images[rows, chosen],
        latents=result.latents[rows, chosen],
        trace=result.trace.of(places),
    )


def where_better(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return ``new`` (P, m, *) where ``better`` (P, m) says so, and ``old`` (P, m, *) elsewhere.

    >>> where_better(torch.tensor([[True, False]]), torch.ones(1, 2, 1), torch.zeros(1, 2, 1)).flatten()
    tensor([1., 0.])
    """
    return torch.where(better.view(*better.shape, *[1] * (old.dim() - 2)), new, old)


def best_cost(lidar: LiDAR, count: int, diverse: float = 0.0, *, weight: float | None = None) -> Cost:
    """Return what :func:`best` of ``count`` samples will count."""
    return selection_cost(lidar, count) + Cost(reward_calls=count if wants_features(diverse, weight) else 0)


def wants_features(diverse: float, weight: float | None = None) -> bool:
    """Return whether these settings choose a diverse set, which needs features, and not by the rewards alone."""
    return (diverse if weight is None else weight) > 0


def spread(scores: Tensor, count: int, islands: int) -> Tensor:
    """Return the places (P, count) of the best samples, best first, as evenly from all islands as can be.

    The best of every island come before any second best, and so on.

    Args:
        scores: (P, m) of the samples, m a multiple of ``islands``.
        count: 1 to m.
        islands: groups of neighbours, of equal size.

    Example:
        >>> scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
        >>> spread(scores, 3, 1), spread(scores, 3, 3), spread(scores, 4, 3)
        (tensor([[0, 1, 2]]), tensor([[0, 2, 4]]), tensor([[0, 1, 2, 4]]))
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    if islands > 1:
        within = scores.unflatten(1, (islands, -1)).argsort(dim=2, descending=True, stable=True)
        turn = within.argsort(dim=2).flatten(1)  # how many of its own island are better
        first = order.gather(1, turn.gather(1, order).argsort(dim=1, stable=True))[:, :count]
        order = first.gather(1, scores.gather(1, first).argsort(dim=1, descending=True, stable=True))
    return order[:, :count]


def check_features(lidar: LiDAR) -> None:
    """Refuse a choice of diverse samples if nothing measures their differences.

    Raises:
        ValueError: neither the guiding reward nor a metric has features.
    """
    if with_features([*lidar.parts, *lidar.metrics]) is None:
        raise ValueError(
            "diverse needs features that tell samples apart, and neither the reward nor a metric has any: give one "
            'that does, as metrics=["clip"]'
        )


def guiding_scores(lidar: LiDAR, result: Result) -> tuple[Tensor, Cost]:
    """Return the guiding reward (P, m) of the samples, and what scoring them cost.

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
