"""Work on images that goes on while the next ones are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Submit = Callable[..., "Future[Tensor]"]
"""Called with a function, images and further arguments of the function."""


@contextmanager
def worker(overlap: bool) -> Iterator[Submit]:
    """How to have a function of images worked out: at once, or in one thread, with a stream of its own on CUDA.

    The block ends when all is done. Of what raised, the future raises when it is asked; at once it raises at once.

    Example:
        >>> with worker(overlap=True) as submit:
        ...     future = submit(torch.add, torch.ones(1), 1)
        >>> future.result()
        tensor([2.])
    """

    def at_once(function: Callable[..., Tensor], *arguments: Any) -> Future[Tensor]:
        future: Future[Tensor] = Future()
        future.set_result(function(*arguments))
        return future

    if not overlap:
        yield at_once
        return
    stream_of = functools.cache(torch.cuda.Stream)  # one a device: what it frees is kept for it alone
    with ThreadPoolExecutor(1) as executor:

        def later(function: Callable[..., Tensor], images: Tensor, *arguments: Any) -> Future[Tensor]:
            if not images.is_cuda:
                return executor.submit(function, images, *arguments)
            stream = stream_of(images.device)
            stream.wait_stream(torch.cuda.current_stream(images.device))
            images.record_stream(stream)

            def on_stream() -> Tensor:
                with torch.cuda.stream(stream):
                    return function(images, *arguments)

            return executor.submit(on_stream)

        yield later
