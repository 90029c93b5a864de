"""Measure the cost of the guidance arithmetic beside a denoiser step and the naive broadcast, and its exactness.

    python -m benchmarks.guidance

Latents and UNet are glyph's, four images with classifier-free guidance. Each memory figure is the growth of the
peak resident size over a fresh process that already holds the bank, so banks themselves do not count. The naive
form subtracts every bank member from every sample: (B, n, D). `prepared` is the form of `guide` at each step, with a
bank that was centred once.

Errors are relative to float64 from the same float32 inputs. The table shows the largest over banks of 50 and 400
members and latents of SD (16,384 values) and SDXL (65,536). This is the hard case: members differ by about the noise,
so that they share the weight.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lidar_sampling import glyph, mean_shift
from lidar_sampling._guidance import Members

BATCH, SHAPE = 4, (4, 16, 16)
LEVEL = {"alpha": 0.6, "sigma": 0.8}
VARIANCES = (0.99, 0.73, 0.25, 0.11, 0.02, 0.0017)
STORAGES = (None, torch.float16, torch.bfloat16)
SIZES = ((16_384, 50), (16_384, 400), (65_536, 50), (65_536, 400))


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, nargs="+", default=[50, 1000, 20_000])
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(growth_of_peak(arguments.peak[0], int(arguments.peak[1])))
        return

    step = unet_step()
    print(f"UNet step, {BATCH} images with CFG: {1e3 * step:.1f} ms, {torch.get_num_threads()} threads\n")
    head = (
        "n",
        "prepared, ms",
        "of a step",
        "mean_shift, ms",
        "naive, ms",
        "bank, MiB",
        "mean_shift, MiB",
        "naive, MiB",
    )
    print("| " + " | ".join(head) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for n in arguments.n:
        _, z, r = problem(n)
        members = Members(z, r, reward_scale=20.0, resident=True)
        ready = median_seconds(lambda x, z, r, m=members: m.shift(x, **LEVEL)[0], n)  # type: ignore[misc]
        ours, theirs = (median_seconds(form, n) for form in (stream, naive))
        ours_mib, theirs_mib = (peak(name, n) for name in ("streamed", "naive"))
        print(
            f"| {n} | {1e3 * ready:.2f} | {ready / step:.1%} | {1e3 * ours:.2f} | {1e3 * theirs:.2f} | "
            f"{n * 4096 / 2**20:.1f} | {ours_mib:.0f} | {theirs_mib:.0f} |"
        )
    print(f"\nkernels a step, prepared: {kernels()}\n")
    print("| 1 - alpha_bar | float32 | kept in float16 | kept in bfloat16 |\n|---|---|---|---|")
    for variance in VARIANCES:
        errors = [max(error(variance, storage, *size) for size in SIZES) for storage in STORAGES]
        print(f"| {variance} | " + " | ".join(f"{e:.1e}" for e in errors) + " |")


def problem(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch, a bank of ``n`` and its rewards."""
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(BATCH, *SHAPE, generator=g),
        torch.randn(n, *SHAPE, generator=g),
        torch.randn(n, generator=g),
    )


def stream(x: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """Compute the shift in the library's form."""
    return mean_shift(x, z, r, **LEVEL, reward_scale=20.0)[0]


def naive(x: Tensor, z: Tensor, r: Tensor) -> Tensor:
    """Compute the shift in the published form: direct differences, all at once."""
    distance = (x[:, None] - LEVEL["alpha"] * z[None]).square().sum((2, 3, 4))
    logits = -distance / (2 * LEVEL["sigma"] ** 2)
    weights = (logits + 20.0 * r).softmax(1) - logits.softmax(1)
    return torch.einsum("bn,nchw->bchw", weights, z)


def tight(variance: float, dim: int = 16_384, n: int = 50) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
    """Return x_t (4, D) near members of a bank (n, D) that differ by about the noise, rewards (n,), alpha, sigma."""
    g = torch.Generator().manual_seed(0)
    alpha, sigma = math.sqrt(1 - variance), math.sqrt(variance)
    spread = 2 * sigma / alpha / math.sqrt(dim)
    z = torch.randn(dim, generator=g) + spread * torch.randn(n, dim, generator=g)
    r = torch.randn(n, generator=g)
    x = alpha * z[:4] + sigma * torch.randn(4, dim, generator=g)
    return x, z, r, {"alpha": alpha, "sigma": sigma}


def error(variance: float, storage: torch.dtype | None, dim: int, n: int) -> float:
    """Return the relative error of the shift from a prepared bank whose members differ by about the noise."""
    x, z, r, levels = tight(variance, dim, n)
    exact, _ = mean_shift(x.double(), z.double(), r.double(), **levels, reward_scale=1.0)
    prepared = Members(z, r, reward_scale=1.0, resident=True, storage=storage)
    delta, _ = prepared.shift(x, **levels)
    return ((delta - exact).norm() / exact.norm()).item()


def kernels() -> int:
    """Count the operations of a step that are not views: the kernels that a GPU must launch."""

    class Count(TorchDispatchMode):
        launched = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made = result if isinstance(result, Tensor) else result[0]
            given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
            Count.launched += made.untyped_storage().data_ptr() not in given
            return result

    x, z, r = problem(50)
    members = Members(z, r, reward_scale=20.0, resident=True)
    with Count():
        members.shift(x, **LEVEL)
    return Count.launched


def median_seconds(form: Callable[[Tensor, Tensor, Tensor], Tensor], n: int) -> float:
    """Return the median seconds of as many calls as take about a second."""
    arguments = problem(n)
    form(*arguments)
    times: list[float] = []
    while sum(times) < 1 or len(times) < 5:
        start = time.perf_counter()
        form(*arguments)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def unet_step() -> float:
    """Return the median seconds of one evaluation of glyph's UNet for the batch, both halves of CFG."""
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
    """Return the MiB by which the peak of a fresh process grows in one call."""
    command = [sys.executable, "-m", "benchmarks.guidance", "--peak", form, str(n)]
    return float(subprocess.check_output(command, text=True))


def growth_of_peak(form: str, n: int) -> float:
    """Return the same for this process, after a warm-up call on a small bank (Linux only)."""
    call = {"streamed": stream, "naive": naive}[form]
    call(*problem(8))
    arguments = problem(n)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the resident size
    before = peak_of_this_process()
    call(*arguments)
    return peak_of_this_process() - before


def peak_of_this_process() -> float:
    """Return the peak resident size in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


if __name__ == "__main__":
    main()
