"""Phase 1: draw a bank of cheap samples of each prompt and score them once (algorithm 1 of arXiv 2602.03211)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from ._bank import BankStore, LookaheadBank, bank_key
from ._cost import Cost, denoisers, metered
from ._decode import decoding_with, pictures
from ._draw import Item, draw, items_of
from ._overlap import worker
from ._space import fingerprint, space_of
from .rewards import Reward, name_of, score
from .solvers import Solver, running


def look(
    pipe: Any,
    prompts: Sequence[str],
    *,
    rewards: Sequence[Reward],
    solver: Solver,
    n: int,
    seed: int,
    call: Mapping[str, Any],
    batch_size: int,
    store: BankStore | None = None,
    preview: Any = None,
    rescore: int = 0,
    overlap: bool = False,
    progress: Callable[[float, int], None] | None = None,
) -> tuple[list[LookaheadBank], Cost]:
    """Banks of ``n`` scored samples for each prompt, from ``store`` where it has them, and what they cost.

    Images are scored batch by batch and dropped, so memory holds the images of one batch and all latents.

    Args:
        pipe: the diffusers pipeline to draw with.
        prompts: the prompts; one named twice is drawn once.
        rewards: what scores the samples; each becomes a reward of the bank.
        solver: the few-step solver.
        n: samples a prompt, at least 1.
        seed: of the bank's noise, which is independent of phase 2's noise at the same seed.
        call: arguments of the pipeline in phase 2; the solver changes what it must.
        batch_size: samples at a time.
        store: where banks are looked up first and kept afterwards.
        preview: an autoencoder that decodes the samples for their rewards, instead of the pipeline's own.
        rescore: members of each bank, best by the preview for each reward, that are decoded in full and scored again.
        overlap: score in a thread, while the next batch is drawn; two batches of images are held then.
        progress: called with (samples done, samples in all).

    Raises:
        ValueError: n below 1.
        RewardError: a reward raised or returned what is not one finite number an image.
        BankError: the solver diverged.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    arguments = solver.arguments(call)
    provenance = {
        **_provenance(pipe),
        "solver": solver.provenance(),
        "n": n,
        "seed": seed,
        "call": _plain(arguments),
    }
    if preview is not None:  # the same samples, but other rewards
        provenance["preview"] = [type(preview).__name__, *fingerprint(preview), rescore]
    names = [name_of(reward) for reward in rewards]
    if len(set(names)) < len(names):
        raise ValueError(f"rewards must have names of their own, got {names}")
    if store is not None and "<lambda>" in names:
        raise ValueError("a store keeps rewards by name: give the reward one (def, or a name attribute)")

    banks: dict[str, LookaheadBank] = {}
    distinct = list(dict.fromkeys(prompts))
    for prompt in distinct:
        kept = store.get(prompt, bank_key(prompt, provenance)) if store else None
        if kept is not None and set(names) <= set(kept.rewards):
            banks[prompt] = kept
    missing = [prompt for prompt in distinct if prompt not in banks]
    items = items_of(missing, n, seed, "lookahead")
    latents: list[Tensor] = []
    scored: list[Future[Tensor]] = []

    def judge(images: Tensor, texts: Sequence[str]) -> Tensor:
        columns = [score(r, images=images, prompts=texts, batch_size=batch_size) for r in rewards]
        return torch.stack(columns, 1) if columns else torch.zeros(len(texts), 0)

    with (
        decoding_with(pipe, preview),
        metered(pipe, "lookahead") as cost,
        running(solver, pipe),
        worker(overlap) as submit,
    ):
        for drawn in draw(
            pipe,
            items,
            call=arguments,
            batch_size=batch_size,
            progress=progress and (lambda done: progress(done, len(items))),
        ):
            if len(scored) > 1:
                scored[-2].result()  # raises what the reward raised, and bounds how many images wait
            scored.append(submit(judge, drawn.images, [item.prompt for item in drawn.items]))
            latents.append(drawn.latents.cpu())
        scores = torch.cat([part.result() for part in scored]) if scored else torch.zeros(0, len(rewards))
    cost.decodes, cost.reward_calls = len(items), len(items) * len(rewards)
    if rescore and missing and rewards:
        with metered(pipe, "lookahead") as more:
            rows = _rescore(pipe, torch.cat(latents), items, scores, n, rescore, batch_size, judge)
        more.decodes, more.reward_calls = rows, rows * len(rewards)
        cost = cost + more

    if missing:
        samples = torch.cat(latents)
        space = space_of(pipe, tuple(samples.shape[1:]))
        for prompt, z, r in zip(missing, samples.split(n), scores.split(n), strict=True):
            bank = LookaheadBank(z, dict(zip(names, r.T.contiguous(), strict=True)), prompt, space, provenance)
            banks[prompt] = bank
            if store is not None:
                kept = store.get(prompt, bank.key)
                store.put(bank if kept is None else kept.with_rewards(bank.rewards))
    return [banks[prompt] for prompt in prompts], cost


def _rescore(
    pipe: Any,
    latents: Tensor,
    items: Sequence[Item],
    scores: Tensor,
    n: int,
    best: int,
    batch_size: int,
    judge: Callable[[Tensor, Sequence[str]], Tensor],
) -> int:
    """Decode in full those of each prompt that some reward puts among its ``best``, and write their scores; how many.

    The tilt of all others is next to nothing, if the preview ranks at all. Their scores move by the mean difference,
    so that those of one decoder compare with those of the other.
    """
    count = 0
    for start in range(0, len(items), n):
        before = scores[start : start + n].clone()
        rows = before.topk(min(best, n), dim=0).indices.unique()
        parts = [
            judge(pictures(pipe, latents[start + some], batch_size), [items[start].prompt] * len(some))
            for some in rows.split(batch_size)
        ]
        scores[start : start + n] += (torch.cat(parts) - before[rows]).mean(0)
        scores[start + rows] = torch.cat(parts)
        count += len(rows)
    return count


def _provenance(pipe: Any) -> dict[str, Any]:
    return {
        "pipeline": type(pipe).__name__,
        "model": str(pipe.config.get("_name_or_path") or ""),
        "weights": [number for module in denoisers(pipe).values() for number in fingerprint(module)],
    }


def _plain(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments as JSON: what is not a plain value goes by its repr, which may miss a cached bank."""
    return {
        name: value if isinstance(value, str | int | float | bool | None) else repr(value)
        for name, value in sorted(call.items())
    }
