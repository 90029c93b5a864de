"""Checks of a reward on known pictures; your own reward should pass them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .._media import read_picture
from ._score import Reward, RewardError, ask, score, score_pictures

PROMPTS = ('a red sign that says "OPEN"', 'two cats under a sign that says "SHUT"')
"""Prompts of the pictures; some rewards need words in quotes."""

_TOLERANCE, _HALF = 1e-3, 2e-2  # tolerances as shares of the scores' spread; the second for half precision


class Finding(NamedTuple):
    """One question and its answer: ``pass``, ``FAIL``, or ``note`` if either answer is right."""

    question: str
    verdict: str
    answer: str


def pictures(size: int = 64) -> Tensor:
    """Return six pictures (6, 3, size, size) in 8 bits: black, white, red, a ramp, a chessboard and noise.

    >>> pictures(8).shape
    torch.Size([6, 3, 8, 8])
    """
    ramp = torch.linspace(0, 1, size).expand(3, size, size)
    rows = torch.arange(size)
    board = ((rows[:, None] // 8 + rows // 8) % 2).float().expand(3, size, size)
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, size, size)
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    known = torch.stack([torch.zeros_like(ramp), torch.ones_like(ramp), red, ramp, board, noise])
    return known.mul(255).round().div(255)


def examine(reward: Reward) -> Iterator[Finding]:
    """Check ``reward`` on known pictures, and yield each answer as it comes.

    Args:
        reward: the reward.

    Example:
        >>> def mean(*, images, prompts):
        ...     return images.mean((1, 2, 3))
        >>> [finding.question for finding in examine(mean) if finding.verdict == "FAIL"]
        []
    """
    known = pictures()
    prompts = [PROMPTS[k % 2] for k in range(len(known))]

    def of(images: Tensor, asked: Sequence[str] = prompts) -> Tensor:
        return score(reward, images=images, prompts=asked)

    try:
        together = of(known)
    except RewardError as error:
        yield Finding("scores six pictures of 64 x 64", "FAIL", str(error))
        return
    yield Finding("scores six pictures of 64 x 64", "pass", ", ".join(f"{value:.4g}" for value in together.tolist()))
    spread = float(together.max() - together.min())
    ends = f"from {together.min():.4g} to {together.max():.4g}"
    yield Finding("tells them apart", "pass" if spread else "FAIL", ends)

    def same(
        question: str, expected: Tensor, ask_again: Callable[[], Tensor], tolerance: float = _TOLERANCE
    ) -> Finding:
        try:
            apart = float((ask_again() - expected).abs().max())
        except (RewardError, ValueError) as error:
            return Finding(question, "FAIL", str(error))
        return Finding(question, "pass" if apart <= tolerance * spread else "FAIL", f"at most {apart:.2g} apart")

    order = torch.tensor([3, 0, 5, 1, 4, 2])
    yield same("gives the same again", together, lambda: of(known))
    yield same(
        "gives each alone what it gives in a batch",
        together,
        lambda: torch.cat([of(known[k : k + 1], prompts[k : k + 1]) for k in range(len(known))]),
    )
    yield same("keeps the order", together[order], lambda: of(known[order], [prompts[k] for k in order.tolist()]))
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        rounded = known.to(dtype)
        yield same(f"takes {name}", of(rounded.float()), partial(of, rounded), _HALF)
    yield _takes("takes pictures of 96 x 48", lambda: of(torch.nn.functional.interpolate(known, (48, 96))))
    yield same(
        "reads transparent files as laid over white, and grey ones as grey",
        of(_over_white(known)),
        lambda: _of_files(reward, known, prompts),
    )
    yield _takes("takes one picture", lambda: of(known[:1], prompts[:1]))
    yield _examine_nan(reward, known, prompts)
    yield _spoils(reward, known, prompts)
    yield _reads_prompts(reward, known, together, prompts)
    yield from _measure_speed(reward, prompts)


def _takes(question: str, ask_again: Callable[[], Tensor]) -> Finding:
    try:
        return Finding(question, "pass", f"{len(ask_again())} numbers")
    except (RewardError, ValueError) as error:
        return Finding(question, "FAIL", str(error))


def _opacity(images: Tensor) -> Tensor:
    """Return the opacity of each pixel of the transparent files: 0 at the left, 1 at the right."""
    return images[3, :1]  # the ramp


def _over_white(images: Tensor) -> Tensor:
    """Return the pictures as their files show them: half of the files are transparent, half are grey."""
    opacity = _opacity(images)
    return torch.cat([images[:3] * opacity + 1 - opacity, images[3:, :1].expand(-1, 3, -1, -1)])


def _of_files(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    opacity, found = _opacity(images), []
    for mode, channels in [("RGBA", torch.cat([image, opacity])) for image in images[:3]] + [
        ("L", image[:1]) for image in images[3:]
    ]:
        pixels = channels.mul(255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2)
        file = io.BytesIO()
        Image.fromarray(pixels.numpy(), mode).save(file, format="PNG")
        found.append(read_picture(file.getvalue()))
    return torch.tensor(score_pictures(reward, pictures=found, prompts=prompts))


def _examine_nan(reward: Reward, images: Tensor, prompts: list[str]) -> Finding:
    question, broken = "has no score for a picture of NaN", images.clone()
    broken[0] = torch.nan
    try:
        with torch.no_grad():
            value = torch.as_tensor(ask(reward, images=broken, prompts=prompts))[0]
    except Exception as error:
        return Finding(question, "pass", f"it raises {type(error).__name__}")
    finite = bool(value.isfinite())
    return Finding(question, "note" if finite else "pass", f"it gives {float(value):.4g}")


def _spoils(reward: Reward, images: Tensor, prompts: list[str]) -> Finding:
    own, texts = images.clone(), list(prompts)
    with torch.no_grad():
        reward(images=own, prompts=texts)
    spoiled = not torch.equal(own, images) or texts != prompts
    return Finding("leaves what it is given as it was", "note" if spoiled else "pass", "it gets copies in any case")


def _reads_prompts(reward: Reward, images: Tensor, scores: Tensor, prompts: Sequence[str]) -> Finding:
    other = score(reward, images=images, prompts=[PROMPTS[1 - PROMPTS.index(prompt)] for prompt in prompts])
    reads, says = bool((other != scores).any()), getattr(reward, "reads_prompt", True)
    said = "it does" if reads else "it does not"
    if says and not reads:
        return Finding("reads the prompt", "note", f"{said}: say so with reads_prompt = False")
    return Finding("reads the prompt", "pass" if reads == says else "FAIL", f"{said}, and reads_prompt is {says}")


def _measure_speed(reward: Reward, prompts: Sequence[str]) -> Iterator[Finding]:
    """Yield the time per picture in batches of several sizes, and the peak of the GPU's memory."""
    for size in (1, 4, 16):
        images = pictures(256)[[k % 6 for k in range(size)]]
        texts = [prompts[k % 6] for k in range(size)]
        call: dict[str, Any] = {"images": images, "prompts": texts}
        with torch.no_grad():
            ask(reward, **call)
            start = time.perf_counter()
            torch.as_tensor(ask(reward, **call)).cpu()  # waits for the device
        each = 1000 * (time.perf_counter() - start) / size
        used = (
            f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of the GPU" if torch.cuda.is_available() else ""
        )
        yield Finding(f"speed at 256 x 256 in batches of {size}", "note", f"{each:.3g} ms per picture{used}")
