"""Phase 1: draw a bank of cheap samples per prompt and score them once (algorithm 1 of arXiv 2602.03211)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._bank import BankStore, LookaheadBank, bank_key
from ._call import PerPrompt, per_prompt
from ._contents import OpaqueError, contents, key, pipeline_contents
from ._cost import Cost, meter
from ._decode import decode_with, pictures
from ._draw import Item, draw, items_of
from ._live import Glimpse, Show
from ._overlap import worker
from ._space import space_of
from .rewards import Reward, name_of, score
from .solvers import Solver, use_solver

_log = logging.getLogger(__name__)


def draw_banks(
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
    show: Show | None = None,
    progress: Callable[[float, int], None] | None = None,
) -> tuple[list[LookaheadBank], Cost]:
    """Return banks of ``n`` scored samples per prompt, drawing those that ``store`` lacks, and what they cost.

    Images are scored batch by batch and dropped, so memory holds the images of one batch and all latents.

    Args:
        pipe: the diffusers pipeline to draw with.
        prompts: the prompts; one named twice is drawn once.
        rewards: what scores the samples; each becomes a reward of the bank.
        solver: the few-step solver.
        n: samples per prompt, at least 1.
        seed: of the bank's noise, which is independent of phase 2's noise at the same seed.
        call: arguments of the pipeline in phase 2, lists of a value per prompt among them; the solver changes what it
            must.
        batch_size: samples at a time.
        store: where banks are looked up first and kept afterwards. A bank is found again if everything that its
            drawing read is the same: weights, adapters and their strengths, scheduler, and the contents of every
            argument; and a reward, if it computes the same. If that cannot be read, nothing is kept, and a
            warning says so.
        preview: an autoencoder that decodes the samples for their rewards, instead of the pipeline's own.
        rescore: members of each bank, best by the preview for each reward, that are decoded in full and scored again.
        overlap: score in a thread, while the next batch is drawn; two batches of images are held then.
        show: called with each batch when it is decoded.
        progress: called with (samples done, samples in all).

    Raises:
        ValueError: n below 1.
        RewardError: a reward raised or returned what is not one finite number per image.
        BankError: the solver diverged.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    names = [name_of(reward) for reward in rewards]
    if len(set(names)) < len(names):
        raise ValueError(f"rewards must have names of their own, got {names}")
    if store is not None and "<lambda>" in names:
        raise ValueError("a store keeps rewards by name: give the reward one (def, or a name attribute)")
    arguments = per_prompt(pipe, solver.arguments(call), prompts)
    distinct = list(dict.fromkeys(prompts))
    provenance: dict[str, Any] = {
        "pipeline": type(pipe).__name__,
        "model": str(pipe.config.get("_name_or_path") or ""),
        "solver": solver.provenance(),
        "n": n,
        "seed": seed,
        "rewards": {},
    }
    own: dict[str, Any] = {}
    try:
        own = {prompt: contents(_of_prompt(arguments, prompt), "call") for prompt in distinct}
        if store is not None:  # this reads every weight, which takes time
            with use_solver(solver, pipe):
                provenance["drawn_with"] = pipeline_contents(pipe)
            if preview is not None:  # the same samples, but other rewards
                provenance["preview"] = [contents(preview, "preview"), rescore]
            provenance["rewards"] = _known_rewards(rewards)
    except OpaqueError as error:
        if store is not None:
            _log.warning("banks are neither found nor kept: %s", error)
        store = None

    banks: dict[str, LookaheadBank] = {}
    for prompt in distinct:
        kept = store.get(prompt, bank_key(prompt, {**provenance, "call": own[prompt]})) if store else None
        if kept is not None and all(_holds(kept, name, provenance) for name in names):
            banks[prompt] = kept
    missing = [prompt for prompt in distinct if prompt not in banks]
    items = items_of(missing, n, seed, "lookahead")
    latents: list[Tensor] = []
    scored: list[Future[Tensor]] = []

    def judge(images: Tensor, texts: Sequence[str]) -> Tensor:
        columns = [score(r, images=images, prompts=texts, batch_size=batch_size) for r in rewards]
        return torch.stack(columns, 1) if columns else torch.zeros(len(texts), 0)

    with (
        decode_with(pipe, preview),
        meter(pipe, "lookahead") as cost,
        use_solver(solver, pipe),
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
            if show is not None:
                texts, done = [item.prompt for item in drawn.items], sum(map(len, latents))
                show(Glimpse("lookahead", texts, drawn.images.cpu(), done, len(items)))
        scores = torch.cat([part.result() for part in scored]) if scored else torch.zeros(0, len(rewards))
    cost.decodes, cost.reward_calls = len(items), len(items) * len(rewards)
    if rescore and missing and rewards:
        with meter(pipe, "lookahead") as more:
            rows = _rescore(pipe, torch.cat(latents), items, scores, n, rescore, batch_size, arguments, judge)
        more.decodes, more.reward_calls = rows, rows * len(rewards)
        cost = cost + more

    if missing:
        samples = torch.cat(latents)
        space = space_of(pipe, tuple(samples.shape[1:]))
        for prompt, z, r in zip(missing, samples.split(n), scores.split(n), strict=True):
            if getattr(pipe.config, "expand_timesteps", False) and "image" in call:
                # Wan 2.2 5B puts the picture there at the end; until then it is noise, which would weigh the members.
                z[:, :, 0] = z[:, :, 0].mean(0)
            scored_by = dict(zip(names, r.T.contiguous(), strict=True))
            bank = LookaheadBank(z, scored_by, prompt, space, {**provenance, "call": own.get(prompt)})
            banks[prompt] = bank
            if store is not None:
                _keep(store, bank)
    return [banks[prompt] for prompt in prompts], cost


def _rescore(
    pipe: Any,
    latents: Tensor,
    items: Sequence[Item],
    scores: Tensor,
    n: int,
    best: int,
    batch_size: int,
    call: Mapping[str, Any],
    judge: Callable[[Tensor, Sequence[str]], Tensor],
) -> int:
    """Decode in full the ``best`` members of each prompt by each reward, write their scores, and return their number.

    If the preview ranks at all, the other members hardly count. Their scores move by the mean difference, so that
    scores by one decoder compare with those by the other.
    """
    count = 0
    for start in range(0, len(items), n):
        before = scores[start : start + n].clone()
        rows = before.topk(min(best, n), dim=0).indices.unique()
        parts = []
        for some in (start + rows).split(batch_size):
            chosen = [items[row] for row in some.tolist()]
            decoded = pictures(pipe, latents[some], batch_size, call, chosen)
            parts.append(judge(decoded, [item.prompt for item in chosen]))
        scores[start : start + n] += (torch.cat(parts) - before[rows]).mean(0)
        scores[start + rows] = torch.cat(parts)
        count += len(rows)
    return count


def _of_prompt(arguments: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    return {name: v[prompt] if isinstance(v, PerPrompt) else v for name, v in sorted(arguments.items())}


def _known_rewards(rewards: Sequence[Reward]) -> dict[str, str]:
    """Return what each reward computes, by its name; warn of those whose code cannot be read, and leave them out."""
    known = {}
    for reward in rewards:
        try:
            known[name_of(reward)] = key(contents(reward, f"reward {name_of(reward)!r}"))
        except OpaqueError as error:
            _log.warning("banks are scored anew in every run: %s", error)
    return known


def _holds(bank: LookaheadBank, name: str, provenance: Mapping[str, Any]) -> bool:
    """Return whether ``bank`` has the reward called ``name``, and by the same computation as now."""
    now = provenance["rewards"].get(name)
    return name in bank.rewards and now is not None and bank.provenance.get("rewards", {}).get(name) == now


def _keep(store: BankStore, bank: LookaheadBank) -> None:
    """Write ``bank``; rewards of the same samples that the store already has stay beside its own."""
    kept = store.get(bank.prompt, bank.key)
    if kept is not None:
        both = {**kept.provenance.get("rewards", {}), **bank.provenance["rewards"]}
        bank = replace(kept.with_rewards(bank.rewards), provenance={**bank.provenance, "rewards": both})
    store.put(bank)
