"""Does a tiny decoder rank a bank like the full one? On glyph, by Kendall's tau and by whether the best is kept.

    python -m benchmarks.preview --prompts 12 --n 50 --out docs/results/preview.md

Each prompt has a bank of ``dpm:5``, scored twice: on the pictures of the full decoder and on those of
``glyph.load_tiny_decoder()``. Agreement is Kendall's tau-b (Kendall 1945) between the two over the members of a
prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from benchmarks.peers.clock import median_seconds
from benchmarks.quality import pictures_of
from lidar_sampling import LiDAR, glyph, rewards
from lidar_sampling._decode import decode_with
from lidar_sampling.evaluation.statistics import bootstrap, interval

from ._command import command

LOOKAHEAD, JUDGES, KEPT, BATCHES = "dpm:5", ("glyph", "glyph-heldout"), (1, 3, 5, 10), (8, 13, 25)
COLUMNS = ("tau", "bias", "spread", *(f"best in {k}" for k in KEPT), "lost")

HEADER = """# Scoring a bank with a tiny decoder

`{command}`: rewards of bank members (glyph, `dpm:5`) by
`glyph.load_tiny_decoder()` against rewards of the same members by the full decoder. No reward had a part in its
training.

"""
NOTES = """
tau: Kendall's tau within a prompt. bias: tiny minus full, mean; spread: standard deviation of the full decoder's
rewards within a prompt. best in k: how often the best member by the full decoder is among the k that the tiny
decoder likes best (chance: k / n). lost: reward (by the full decoder) of the best member minus that of the tiny
decoder's favourite.
95 % bootstrap intervals over prompts, all tags together; where every prompt is a hit they say nothing: of p prompts,
p hits leave room for a share of misses of 3 / p.
"""


def main() -> None:
    """Draw, score twice, time, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12, help="prompts, spread over the six tags (default 12)")
    parser.add_argument("--n", type=int, default=50, help="members per bank (default 50)")
    parser.add_argument(
        "--repeats", type=int, default=7, help="repeats per timing; the median is reported (default 7)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="file of the page")
    arguments = parser.parse_args()
    if arguments.n < max(KEPT):
        parser.error(f"--n takes {max(KEPT)} or more, got {arguments.n}")

    chosen = glyph.spread(glyph.prompts(), arguments.prompts // 6)
    texts = [line["prompt"] for line in chosen]
    lidar = LiDAR.from_pretrained("glyph", device=arguments.device, lookahead=LOOKAHEAD, n=arguments.n, metrics=[])
    tiny = glyph.load_tiny_decoder().to(arguments.device)
    judges = [rewards.load(name, device=arguments.device) for name in JUDGES]
    agreed: dict[str, list[list[float]]] = {name: [] for name in JUDGES}
    for number, bank in enumerate(lidar.look(texts, seed=arguments.seed), 1):
        scores = {}
        for decoder in (None, tiny):
            with decode_with(lidar.pipe, decoder):
                drawn = pictures_of(lidar.pipe, bank)
            scores[decoder] = [
                rewards.score(judge, images=drawn, prompts=[bank.prompt] * len(bank)) for judge in judges
            ]
        for name, wanted, got in zip(JUDGES, scores[None], scores[tiny], strict=True):
            agreed[name].append(agreement(wanted, got))
        print(number, bank.prompt, flush=True)
    page = HEADER.format(command=command()) + table(agreed) + NOTES
    arguments.out.write_text(page + timings(lidar, tiny, judges[0], arguments.repeats))


def agreement(full: Tensor, tiny: Tensor) -> list[float]:
    """Return the figures of one prompt, in the order of COLUMNS, from the rewards (n,) by both decoders."""
    best, order = int(full.argmax()), tiny.argsort(descending=True).tolist()
    return [
        float(kendalltau(full, tiny).statistic),
        float((tiny - full).mean()),
        float(full.std()),
        *(float(best in order[:k]) for k in KEPT),
        float(full[best] - full[order[0]]),
    ]


def table(agreed: dict[str, list[list[float]]]) -> str:
    """Return one row per reward, as Markdown; not stratified, since two prompts per tag give too narrow intervals."""
    lines = ["| reward | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name, rows in agreed.items():
        draws = bootstrap(np.array(rows), ["all"] * len(rows))
        lines.append(f"| {name} | " + " | ".join(str(interval(column)) for column in draws.T) + " |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def timings(lidar: LiDAR, tiny: Any, reward: rewards.Reward, repeats: int) -> str:
    """Measure milliseconds per image for each part of phase 1, by batch size; return Markdown."""
    pipe, steps = lidar.pipe, int(LOOKAHEAD.split(":")[1])
    text = torch.randn(1, 24, pipe.unet.config.cross_attention_dim, device=pipe.device)
    lines = [
        f"\n## Milliseconds an image\n\nMedian of {repeats}; {pipe.device.type}, float32, "
        f"{torch.get_num_threads()} thread(s). network: {steps} steps with classifier-free guidance. "
        "Noisy: read ratios.\n",
        "| batch | network | full decoder | tiny decoder | full / tiny | reward | saved of all, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in BATCHES:
        latents = torch.randn(size, 4, 16, 16, device=pipe.device)
        images = torch.rand(size, 3, 128, 128)
        both, texts = torch.cat([latents, latents]), text.expand(2 * size, -1, -1)
        parts: list[Callable[[], object]] = [
            lambda both=both, texts=texts: pipe.unet(both, 500, texts),
            lambda latents=latents: pipe.vae.decode(latents / pipe.vae.config.scaling_factor),
            lambda latents=latents: tiny.decode(latents),
            lambda images=images: rewards.score(reward, images=images, prompts=["a photo of a dog"] * len(images)),
        ]
        network, full, small, judged = (1000 * median_seconds(part, pipe.device, repeats) / size for part in parts)
        network *= steps
        saved = 100 * (full - small) / (network + full + judged)
        lines.append(
            f"| {size} | {network:.1f} | {full:.2f} | {small:.2f} | {full / small:.1f} | {judged:.2f} | {saved:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
