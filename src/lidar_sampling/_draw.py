"""Calling a diffusers pipeline so that a sample depends on its prompt and its seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._batches import run_batches
from ._call import alone, apart, blocks_of, for_batch, inputs_of, prompts_for
from ._hooks import DivergedError, Hook, Watch, attach, record
from ._media import check_pictures
from ._values import check_integer


class Item(NamedTuple):
    """One sample to draw: its prompt, and the seed of its own generator."""

    prompt: str
    seed: int


class Drawn(NamedTuple):
    """A batch of samples as a reward sees them, and their latents (B, *) as the scheduler returned them.

    ``images`` are float32: pictures (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1], or audio (B, channels, S).
    """

    items: Sequence[Item]
    images: Tensor
    latents: Tensor


def seed_of(seed: int, stream: str, prompt: str, index: int) -> int:
    """Return the seed of sample ``index`` of ``prompt``; ``stream`` keeps phases that share a seed apart.

    >>> seed_of(0, "target", "a cat", 0) == seed_of(0, "target", "a cat", 0) != seed_of(0, "bank", "a cat", 0)
    True
    """
    digest = hashlib.sha256(f"{seed}\0{stream}\0{prompt}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def items_of(prompts: Sequence[str], count: int, seed: int, stream: str) -> list[Item]:
    """Return ``count`` items per prompt, prompt by prompt; a prompt that comes again gets further seeds.

    Raises:
        ValueError: ``count``, the images of a prompt, or ``seed`` is no whole number, or there are no images.

    >>> a, b = items_of(["a cat", "a cat"], 1, 0, "target")
    >>> a.seed != b.seed, [a, b] == items_of(["a cat"], 2, 0, "target")
    (True, True)
    """
    check_integer("images", count, least=1)
    check_integer("seed", seed)
    return [
        Item(prompt, seed_of(seed, stream, prompt, prompts[:i].count(prompt) * count + k))
        for i, prompt in enumerate(prompts)
        for k in range(count)
    ]


def draw(
    pipe: Any,
    items: Sequence[Item],
    *,
    call: Mapping[str, Any],
    batch_size: int,
    around: Callable[[Sequence[Item]], AbstractContextManager[Any]] | None = None,
    progress: Callable[[float], None] | None = None,
    rows: Mapping[str, Tensor] | None = None,
    together: int = 1,
    differentiable: bool = False,
    decoded: bool = True,
) -> Iterator[Drawn]:
    """Draw ``items`` in their order, in batches that shrink when memory runs out.

    Every sample has a generator of its own on the CPU, so the noise it meets depends neither on the batch nor on
    the device.

    Args:
        pipe: a diffusers pipeline, classic or modular, that takes ``prompt``, ``generator`` and ``output_type``.
        items: what to draw.
        call: further arguments of the pipeline, among them ``num_inference_steps``; a text such as
            ``negative_prompt`` serves every prompt, a :class:`PerPrompt` has one for each.
        batch_size: samples at a time, at most; 1 for pipelines that can draw no more.
        around: a context to run each batch in, such as :func:`lidar_sampling.guide`.
        progress: called with the number of samples done, in fractions, after every step.
        rows: arguments of the pipeline that have a row for each item.
        together: neighbours that must share a batch; they are its smallest part.
        differentiable: keep the graph of each step for a hook that wants gradients; weights get none.
        decoded: False leaves the decoder out; ``images`` are latents then.

    Raises:
        DivergedError: a sample is not finite; the message names its prompt, and the step where that began.
    """
    if hasattr(pipe, "prior_pipe"):
        raise TypeError(
            f"{type(pipe).__name__} runs two pipelines, each with a scheduler of its own: draw with its prior_pipe, "
            "and give what it draws to its decoder_pipe"
        )
    known = inputs_of(pipe)
    missing = [name for name in ("prompt", "generator", "output_type") if name not in known]
    if missing:
        raise TypeError(f"{type(pipe).__name__} takes no {missing[0]}: it is not a text-to-image pipeline")
    if alone(pipe) and together > 1:
        raise ValueError(
            f"{type(pipe).__name__} draws one sample at a time, and this method draws {together} together"
        )
    batch_size = 1 if alone(pipe) else batch_size
    rows = rows or {}
    unknown = [name for name in (*call, *rows) if name not in known]
    if unknown:
        raise TypeError(f"{type(pipe).__name__} takes no argument {unknown[0]!r}")
    done = 0

    def report(step: int, size: int, total: int) -> None:
        if progress is not None:
            progress(done + size * min(1.0, step / max(1, total)))

    def run(groups: Sequence[int]) -> Drawn:
        chosen = slice(groups[0] * together, (groups[-1] + 1) * together)
        batch = items[chosen]
        texts = [item.prompt for item in batch]
        prompt = prompts_for(pipe, texts)
        generators = [torch.Generator().manual_seed(item.seed) for item in batch]
        context, watch = around(batch) if around else nullcontext(), Watch(generators=generators)
        with (
            _quiet(pipe),
            attach(pipe, watch),
            attach(pipe, _OneSchedule(pipe)),
            _explain_refusal(watch, texts),
            context,
            record(pipe) as recording,
        ):
            recording.on_step = lambda step: report(step, len(batch), recording.total)
            pasted = _Pasted(call, known)
            images = (_call_with_graph if differentiable else _call)(
                pipe,
                prompt=prompt,
                generator=generators[0] if isinstance(prompt, str) else generators,
                output_type="pt" if decoded else "latent",
                **for_batch(call, texts, pipe),
                **pasted.arguments,
                **{name: value[chosen] for name, value in rows.items()},
            )
        latents = recording.samples if pasted.latents is None else pasted.latents.detach()
        if latents is None:
            raise TypeError(
                f"{type(pipe).__name__} never stepped its scheduler: it steps copies, which nothing guides"
            )
        if not isinstance(images, Tensor):
            raise TypeError(f"{type(pipe).__name__} did not return samples as a tensor")
        if not len(images) == len(latents) == len(batch):
            raise TypeError(
                f"{type(pipe).__name__} made {len(images)} samples of {len(latents)} latents for {len(batch)} prompts"
                + ("; draw one at a time: batch_size=1" if len(batch) > 1 else "")
            )
        watch.check(latents, texts)
        return Drawn(batch, to_pictures(pipe, images.float()) if decoded else images.float(), latents)

    for groups in _runs(items, together) if apart(pipe) else [range(len(items) // together)]:
        for drawn in run_batches(groups, max(1, batch_size // together), run):
            done += len(drawn.items)
            yield drawn


def _runs(items: Sequence[Item], together: int) -> Iterator[range]:
    """Yield the groups of ``together`` items, as many at a time as follow one another with one prompt.

    >>> list(_runs([Item("a", 0), Item("a", 1), Item("b", 0)], 1))
    [range(0, 2), range(2, 3)]
    """
    start = 0
    for _, same in groupby(items[::together], key=lambda item: item.prompt):
        end = start + len(list(same))
        yield range(start, end)
        start = end


class _Pasted:
    """The latents of a pipeline that paints within a mask, after it has pasted the picture around the mask.

    Attributes:
        arguments: of the call, a callback that gets them; empty if nothing is pasted, or the call has a callback.
        latents: the last ones received.
    """

    def __init__(self, call: Mapping[str, Any], known: Collection[str]) -> None:
        told = "callback_on_step_end"
        asks = call.get("mask_image") is not None and told in known and call.get(told) is None
        self.arguments: dict[str, Any] = {told: self._keep} if asks else {}
        self.latents: Tensor | None = None

    def _keep(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self.latents = tensors.get("latents")  # unless the call asks for other tensors alone
        return tensors


class _OneSchedule(Hook):
    """The hook that refuses a pipeline that runs its schedule twice, such as once per section of a long video.

    A bank would hold the latents of the last section alone, and guide all.
    """

    def __init__(self, pipe: Any) -> None:
        self.name, self.started = type(pipe).__name__, False

    def start(self, steps: int) -> None:
        """Refuse the first step of a second schedule.

        Raises:
            ValueError: there was another schedule before.
        """
        if self.started:
            raise ValueError(
                f"{self.name} draws in sections, each with a schedule of its own, and a bank holds one: ask for no "
                "more frames than one section has"
            )
        self.started = True


@contextmanager
def _explain_refusal(watch: Watch, prompts: Sequence[str]) -> Iterator[None]:
    """Explain a refusal within this block, such as of a picture of NaN, by the step where the fault began.

    Raises:
        DivergedError: in place of the refusal.
    """
    try:
        yield
    except ValueError as error:
        if why := watch.explain(prompts):
            raise DivergedError(why) from error
        raise


def to_pictures(pipe: Any, images: Tensor) -> Tensor:
    """Return what a pipeline drew as pictures in their range, with transparent ones laid over white.

    Audio that overshoots is cut, as it is when it is saved: decoders of audio do not clamp.

    Raises:
        ValueError: the range or the shape is not one that rewards are written for.
    """
    if images.dim() > 3 and images.shape[-3] == 4:
        colours, opacity = images.split([3, 1], -3)
        images = colours * opacity + 1 - opacity
    images = images[:, None] if images.dim() == 2 else images  # audio of one channel
    images = images.clamp(-1, 1) if images.dim() == 3 else images
    if images.isfinite().all():  # where it is not, the bank or the reward says so
        try:
            check_pictures(images)
        except ValueError as error:
            raise ValueError(f"{type(pipe).__name__} draws what no reward is written for: {error}") from None
    return images


def _call(pipe: Any, **arguments: Any) -> Any:
    """Return what ``pipe`` draws: a classic pipeline's first output, or a modular one's output of that kind."""
    if blocks_of(pipe) is None:
        return pipe(**arguments)[0]
    outputs = {output.name for output in blocks_of(pipe).outputs}
    return pipe(output=next(kind for kind in ("images", "videos", "audio") if kind in outputs), **arguments)


def _call_with_graph(pipe: Any, **arguments: Any) -> Any:
    """Call ``pipe`` with the first latents as a leaf of the graph that autograd keeps; weights are constants."""
    inner = getattr(type(pipe).__call__, "__wrapped__", None)  # what torch.no_grad() decorates
    if inner is None or not hasattr(pipe, "prepare_latents"):
        raise TypeError(f"{type(pipe).__name__} cannot be differentiated: use a classic diffusers pipeline")
    prepare = pipe.prepare_latents

    def as_leaf(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        (prepared if isinstance(prepared, Tensor) else prepared[0]).requires_grad_()
        return prepared

    pipe.prepare_latents = as_leaf
    try:
        with constant_weights(pipe), torch.enable_grad():
            return inner(pipe, **arguments)[0].detach()
    except RuntimeError as error:
        if "in-place operation" not in str(error):
            raise
        raise TypeError(
            f"{type(pipe).__name__} changes its latents in place, through which no gradient flows: use a method "
            "without gradients"
        ) from error
    finally:
        del pipe.prepare_latents


@contextmanager
def constant_weights(pipe: Any) -> Iterator[None]:
    """Turn off the gradients of the weights of ``pipe`` inside the block, so that graphs hold less."""
    weights = [p for part in pipe.components.values() if isinstance(part, nn.Module) for p in part.parameters()]
    trained = [p for p in weights if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    settings = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**settings, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**settings)
