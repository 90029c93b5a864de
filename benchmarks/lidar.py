"""Where LiDAR's time goes on glyph, and how near phase 1 comes to the time of its parts.

    python -m benchmarks.lidar

Phase 1 is timed as the library runs it. Beside it stand its parts alone, each at its best batch size of those
tried: the network evaluations of the solver, the decoding and the scoring. The ratio of the two is the overhead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lidar_sampling import LiDAR
from lidar_sampling.rewards import score

PROMPT = "a photo of a dog right of a teddy bear"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5, help="odd; the median is reported (default 5)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 10, 13, 17, 25, 50])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    lidar = LiDAR.from_pretrained("glyph", device=arguments.device, n=arguments.n)
    pipe, n = lidar.pipe, arguments.n
    bank = lidar.look(PROMPT)[0]
    steps = int(lidar.settings.lookahead.split(":")[1])
    text = torch.randn(1, 24, pipe.unet.config.cross_attention_dim, device=pipe.device)
    latents = bank.samples.to(pipe.device)

    @torch.no_grad()
    def network(size: int) -> None:
        for part in latents.split(size):
            for t in torch.linspace(999, 200, steps, device=pipe.device):
                pipe.unet(torch.cat([part, part]), t, text.expand(2 * len(part), -1, -1))

    @torch.no_grad()
    def decode(size: int) -> torch.Tensor:
        return torch.cat([pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample for z in latents.split(size)])

    pictures = (decode(16) / 2 + 0.5).clamp(0, 1)

    def judge(size: int) -> None:
        score(lidar.reward, images=pictures, prompts=[PROMPT] * n, batch_size=size)

    parts: dict[str, Callable[[int], object]] = {"network": network, "decode": decode, "reward": judge}
    print(f"n = {n}, {steps} steps, {arguments.device}, {torch.get_num_threads()} threads\n")
    print("| part | best batch | seconds |\n|---|---|---|")
    ideal = 0.0
    for name, run in parts.items():
        timed = {size: median(lambda r=run, s=size: r(s), arguments.repeats) for size in arguments.batch_sizes}
        size = min(timed, key=timed.__getitem__)
        ideal += timed[size]
        print(f"| {name} | {size} | {timed[size]:.2f} |")
    look = median(lambda: lidar.look(PROMPT), arguments.repeats)
    print(f"| phase 1 as run | {lidar.batch_size} | {look:.2f} |")
    print(f"\nphase 1 over the sum of its parts: {look / ideal:.3f}")
    guided = median(lambda: lidar(PROMPT, banks=bank), arguments.repeats)
    plain = median(lambda: lidar.vanilla(PROMPT), arguments.repeats)
    print(f"phase 2, 4 images: guided {guided:.2f} s, vanilla {plain:.2f} s, ratio {guided / plain:.3f}")


def median(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``repeats`` runs after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
