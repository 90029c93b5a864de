"""Levers that make a pipeline faster without changing what it computes, up to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ._cost import read_proc
from ._parts import decoders, denoisers, text_encoders

if TYPE_CHECKING:
    from ._sampler import LiDAR


def accelerate(
    target: Any,
    *,
    channels_last: bool = False,
    compile: Literal["whole", "blocks"] | None = None,
    cuda_graphs: bool = False,
    encode_once: bool = False,
    backend: str = "inductor",
) -> None:
    """Speed up the denoisers and the decoder of a pipeline, or the networks of a reward, in place.

    Nothing is compiled before the first call, which then takes its time: see docs/performance.md for what each
    lever gains, and when it pays.

    Args:
        target: a diffusers pipeline, a reward with ``networks``, or a module.
        channels_last: lay convolutions' memory out with the channels last (torch.channels_last).
        compile: ``torch.compile`` whole networks, or the repeated blocks of those that have such and the rest whole:
            the same gain on transformers, in a fraction of the time that compiling takes. Where a gradient flows, as
            in DATE, networks run uncompiled.
        cuda_graphs: record the kernels of a whole network once, and launch them together; wants ``compile="whole"``.
        encode_once: let text encoders of a pipeline see equal rows of a batch once.
        backend: of ``torch.compile``.

    Raises:
        TypeError: ``target`` is not one of these.
        ValueError: CUDA graphs without ``compile="whole"``.

    Example:
        >>> from lidar_sampling import accelerate, testing
        >>> pipe = testing.tiny_stable_diffusion()
        >>> accelerate(pipe, channels_last=True, encode_once=True)
    """
    if compile not in (None, "whole", "blocks"):
        raise ValueError(f"compile must be 'whole', 'blocks' or None, got {compile!r}")
    if cuda_graphs and compile != "whole":
        raise ValueError("cuda_graphs records a compiled network: give compile='whole' beside it")
    found = [*denoisers(target).values(), *decoders(target), *getattr(target, "networks", ())]
    networks = [target] if isinstance(target, nn.Module) else found
    if not networks:
        raise TypeError(
            f"expected a diffusers pipeline, a reward with networks or a module, got {type(target).__name__}"
        )
    for network in networks:
        if channels_last:
            _lay_channels_last(network)
        if compile is not None:
            _compile(network, compile, cuda_graphs, backend)
    if encode_once:
        for encoder in text_encoders(target):
            _see_equal_rows_once(encoder)


def _lay_channels_last(network: nn.Module) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def _compile(network: nn.Module, what: str, cuda_graphs: bool, backend: str) -> None:
    options: dict[str, Any] = {"backend": backend}
    repeated = (getattr(network, "_repeated_blocks", None) or ()) if what == "blocks" else ()
    if blocks := [module for module in network.modules() if type(module).__name__ in repeated]:
        for block in blocks:
            _compile_forward(block, fullgraph=True, **options)
        return
    if cuda_graphs:
        options["mode"] = "reduce-overhead"
        network.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
    network.register_forward_pre_hook(_expect_other_batches, with_kwargs=True)
    _compile_forward(network, **options)


def _compile_forward(module: nn.Module, **options: Any) -> None:
    """Compile the forward of a module, so that hooks around it, such as those that count, stay outside.

    Where a gradient flows into the module, it runs as it is: a compiled decoder had none (docs/pitfalls.md, 36).
    """
    plain, compiled = module.forward, torch.compile(module.forward, **options)

    def forward(*args: Any, **kwargs: Any) -> Any:
        flows = torch.is_grad_enabled() and any(
            isinstance(value, Tensor) and value.requires_grad for value in tree_leaves((args, kwargs))
        )
        return (plain if flows else compiled)(*args, **kwargs)

    module.forward = forward


def _expect_other_batches(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the compiler know that batches come in many sizes, so that it does not compile for the first alone."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor) and value.dim()]
    for value in given:
        if len(value) == len(given[0]) > 1:  # torch compiles a batch of one row for itself in any case
            torch._dynamo.maybe_mark_dynamic(value, 0)


def _see_equal_rows_once(encoder: nn.Module) -> None:
    """Encode the distinct rows of a batch of tokens once, and copy the results to the rows that equal them."""
    inverse: Tensor | None = None

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal inverse
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        tokens = given[0]
        batched = [value for value in given if value.dim() == 2 and len(value) == len(tokens)]
        distinct, inverse = torch.cat([v.long() for v in batched], 1).unique(dim=0, return_inverse=True)
        first = torch.full((len(distinct),), len(tokens), device=tokens.device)
        first.scatter_reduce_(0, inverse, torch.arange(len(tokens), device=tokens.device), "amin")

        def choose(value: Any) -> Any:
            return value[first] if isinstance(value, Tensor) and len(value) == len(tokens) else value

        return tuple(map(choose, args)), {name: choose(value) for name, value in kwargs.items()}

    def spread(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[inverse]
        if isinstance(value, dict):  # and the output objects of transformers
            return type(value)(**{name: spread(item) for name, item in value.items()})
        return type(value)(map(spread, value)) if isinstance(value, tuple | list) else value

    encoder.register_forward_pre_hook(before, with_kwargs=True)
    # This hook comes first, so that hooks that were registered before it see the whole batch, as they expect.
    encoder.register_forward_hook(lambda _module, _args, output: spread(output), prepend=True)


def largest_batch(lidar: LiDAR, prompt: str, *, share: float = 0.8, most: int = 256) -> int:
    """Return how many lookahead samples fit into ``share`` of the free memory, as two small batches measure it.

    On a GPU a large batch is a fast one; on a CPU it is not, and 8 to 16 is a good size there.

    Args:
        lidar: the sampler; two and four samples are drawn with it.
        prompt: of the samples.
        share: of the free memory, in (0, 1].
        most: the largest size that is of use.

    Example:
        >>> from lidar_sampling import LiDAR, testing
        >>> lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=5)
        >>> lidar.batch_size = largest_batch(lidar, "a cat", most=32)
    """
    peaks = []
    for n in (2, 4):
        small = lidar.with_settings(n=n)
        small.store, small.batch_size = None, n
        peaks.append(small.draw_banks([prompt], 0)[1].peak_memory)
    each = max((peaks[1] - peaks[0]) / 2, peaks[1] / 8, 1.0)
    return max(1, min(most, int(share * _free(torch.device(lidar.pipe.device)) / each)))


def _free(device: torch.device) -> int:
    """Return the bytes that are free on a CUDA device, or on the machine; 16 GiB where neither can be read."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return read_proc("meminfo", "MemAvailable") or 1 << 34
