"""Measure where LiDAR's time goes on glyph, and how near it comes to the least time for the same work.

    python -m benchmarks.lidar

The program draws one prompt, both phases, several times, and shows the median run part by part. Beside each part of
work is the time per row at the best of three batch sizes: half, once and twice the size used. The ideal is all rows
at their best; the ratio to it is the cost of overhead and of a poor batch size. `lidar generate --profile` prints the
same for any run.
"""

from __future__ import annotations

import argparse
import time

import torch

from lidar_sampling import LiDAR, profiled

PROMPT = "a photo of a dog right of a teddy bear"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="odd; the median is shown (default 3)")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    lidar = LiDAR.from_pretrained(
        "glyph",
        device=arguments.device,
        n=arguments.n,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        metrics=[],
    )
    lidar.with_settings(n=2, steps=2)(PROMPT, images=1)  # a first call loads more
    profiles = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        with profiled(arguments.device) as profile:
            lidar(PROMPT, images=arguments.images)
        profiles.append((time.perf_counter() - start, profile))
    median = sorted(profiles, key=lambda timed: timed[0])[len(profiles) // 2][1]
    print(
        f"n = {arguments.n}, {lidar.settings.lookahead}, {arguments.images} images in {arguments.steps} steps, "
        f"{arguments.device}, {torch.get_num_threads()} threads"
    )
    report = median.report()
    print(f"{'phase':10s} {'part':10s} {'s':>7s} {'rows':>6s} {'ms per row':>11s} {'at best':>8s}")
    for part in report["parts"]:
        each = f"{1000 * part['seconds'] / part['rows']:.2f}" if part["rows"] else ""
        best = "" if part["best"] is None else f"{1000 * part['best']:.2f}"
        print(
            f"{part['phase']:10s} {part['part']:10s} {part['seconds']:7.2f} {part['rows']:6d} {each:>11s} {best:>8s}"
        )
    print(f"{report['seconds']:.2f} s; at its best {report['ideal']:.2f} s, ratio {report['ratio']:.2f}")
    start = time.perf_counter()
    lidar.vanilla(PROMPT, images=arguments.images)
    print(f"vanilla, {arguments.images} images: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
