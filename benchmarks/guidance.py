"""What the guidance arithmetic costs: seconds beside a denoiser step, and peak memory beside the naive broadcast.

    python -m benchmarks.guidance

Latents and UNet are glyph's, four images with classifier-free guidance. Each memory figure is the growth of the
peak resident size over a fresh process that already holds the bank, so banks themselves do not count. The naive
form subtracts every bank member from every sample: (B, n, D).
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lidar_sampling import glyph, mean_shift

BATCH, SHAPE = 4, (4, 16, 16)
LEVEL = {"alpha": 0.6, "sigma": 0.8}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[50, 1000, 20_000])
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(growth_of_peak(arguments.peak[0], int(arguments.peak[1])))
        return

    step = unet_step()
    print(f"UNet step, {BATCH} images with CFG: {1e3 * step:.1f} ms, {torch.get_num_threads()} threads\n")
    print("| n | mean_shift, ms | share of a step | naive, ms | bank, MiB | mean_shift, MiB | naive, MiB |")
    print("|---|---|---|---|---|---|---|")
    for n in arguments.n:
        ours, theirs = (median_seconds(form, n) for form in (streamed, naive))
        ours_mib, theirs_mib = (peak(name, n) for name in ("streamed", "naive"))
        print(
            f"| {n} | {1e3 * ours:.2f} | {ours / step:.1%} | {1e3 * theirs:.2f} | {n * 4096 / 2**20:.1f} | "
            f"{ours_mib:.0f} | {theirs_mib:.0f} |"
        )


def problem(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, a bank of ``n`` and its rewards."""
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(BATCH, *SHAPE, generator=g),
        torch.randn(n, *SHAPE, generator=g),
        torch.randn(n, generator=g),
    )


def streamed(x: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """The library's form."""
    return mean_shift(x, z, r, **LEVEL, reward_scale=20.0)[0]


def naive(x: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """The published form: direct differences, all at once."""
    distance = (x[:, None] - LEVEL["alpha"] * z[None]).square().sum((2, 3, 4))
    logits = -distance / (2 * LEVEL["sigma"] ** 2)
    weights = (logits + 20.0 * r).softmax(1) - logits.softmax(1)
    return torch.einsum("bn,nchw->bchw", weights, z)


def median_seconds(form: Callable[[Tensor, Tensor, Tensor], Tensor], n: int) -> float:
    """Median of as many calls as take about a second."""
    arguments = problem(n)
    form(*arguments)
    times: list[float] = []
    while sum(times) < 1 or len(times) < 5:
        start = time.perf_counter()
        form(*arguments)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def unet_step() -> float:
    """Median seconds of one evaluation of glyph's UNet for the batch, both halves of CFG."""
    unet = glyph.load_pipeline().unet
    x = torch.randn(2 * BATCH, *SHAPE)
    text = torch.randn(2 * BATCH, 24, unet.config.cross_attention_dim)
    times = []
    with torch.no_grad():
        for _ in range(12):
            start = time.perf_counter()
            unet(x, torch.tensor(500), text)
            times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def peak(form: str, n: int) -> float:
    """MiB by which the peak of a fresh process grows in one call."""
    command = [sys.executable, "-m", "benchmarks.guidance", "--peak", form, str(n)]
    return float(subprocess.check_output(command, text=True))


def growth_of_peak(form: str, n: int) -> float:
    """The same, in this process; a call on a small bank first loads what a first call loads (Linux)."""
    call = {"streamed": streamed, "naive": naive}[form]
    call(*problem(8))
    arguments = problem(n)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = peak_of_this_process()
    call(*arguments)
    return peak_of_this_process() - before


def peak_of_this_process() -> float:
    """Peak resident size in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


if __name__ == "__main__":
    main()
