"""Work on images that goes on while the next ones are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

Submit = Callable[..., "Future[Tensor]"]
"""Called with a function, images and further arguments of the function."""


@contextmanager
def worker(overlap: bool) -> Iterator[Submit]:
    """Yield what computes a function of images: at once, or in one thread, with its own stream on CUDA.

    The block ends when all is done, or at once by Ctrl-C, also while a function hangs. If a function raises, its
    future raises when it is asked; without a thread the call raises.

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
    stream_of = functools.cache(torch.cuda.Stream)  # one per device: what it frees is kept for it alone
    tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def later(function: Callable[..., Tensor], images: Tensor, *arguments: Any) -> Future[Tensor]:
        future: Future[Tensor] = Future()
        stream = stream_of(images.device) if images.is_cuda else None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(images.device))
            images.record_stream(stream)

        def task() -> None:
            try:
                with torch.cuda.stream(stream):  # None changes nothing
                    future.set_result(function(images, *arguments))
            except BaseException as error:
                future.set_exception(error)

        tasks.put(task)
        return future

    def work() -> None:
        while (task := tasks.get()) is not None:
            task()

    thread = Thread(target=work, daemon=True)  # Python does not wait for it at its end
    thread.start()
    try:
        yield later
    except Exception:
        tasks.put(None)
        thread.join()  # nobody else may use the reward before it is done
        raise
    tasks.put(None)
    thread.join()
