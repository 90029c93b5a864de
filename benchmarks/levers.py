"""Measure what each lever gains on glyph, and whether its pictures are as good.

    python -m benchmarks.levers --prompts 12 --out docs/results/levers

Every lever draws the same prompts with the same seed, prompt by prompt beside the run without levers, so that a slow
minute of the machine affects both. On one thread the clock is the process's own. Results are kept line by line, and a
stopped run continues. Three levers are measured separately: prompts drawn together, the compiled reward, and the
reward in a thread, for which the reward waits as if it were behind a network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from benchmarks.peers.clock import now
from benchmarks.quality import pictures_of
from lidar_sampling import LiDAR, accelerate, glyph, rewards
from lidar_sampling.evaluation.statistics import bootstrap, interval
from lidar_sampling.runs._lines import fill, read_objects

from ._command import command

NONE = "none"
JUDGES = ("glyph", "glyph-heldout", "geneval")
WAIT = 2.0  # seconds per batch that the waiting reward waits


def main() -> None:
    """Draw what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12, help="prompts, spread over the six tags (default 12)")
    parser.add_argument("--levers", default=",".join(levers("cpu")), help="comma separated (default all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl, alone.md and table.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    chosen = glyph.spread(glyph.prompts(), arguments.prompts // 6)
    names = [NONE, *arguments.levers.split(",")]
    if unknown := set(names[1:]) - set(levers(arguments.device)):
        parser.error(f"unknown lever {min(unknown)!r}; known are {', '.join(levers(arguments.device))}")
    makers = {NONE: lambda: plain(arguments.device), **levers(arguments.device)}
    made = cache(lambda name: prepare(makers[name]))

    @lru_cache(maxsize=1)
    def of_none(prompt: str) -> tuple[dict[str, Any], Any]:
        return draw_once(made(NONE)[0], prompt, None, made(NONE)[0])

    def draw(unit: Mapping[str, Any]) -> dict[str, Any]:
        name, prompt = unit["lever"], unit["prompt"]
        line, reference = of_none(prompt)  # beside it, so that a slow minute of the machine affects both
        if name != NONE:
            line, _ = draw_once(made(name)[0], prompt, reference, made(NONE)[0])
        return {"first": made(name)[1], **line}

    units = [{"lever": name, "prompt": line["prompt"], "tag": line["tag"]} for line in chosen for name in names]
    for line in fill(path, units, draw):
        print(f"{line['prompt']}, {line['lever']}: {line['seconds']:.1f} s", flush=True)
    lines = read_objects(path)
    kept = arguments.out / "alone.md"
    if not kept.exists():
        kept.write_text(alone(arguments.device))
    drawn_by = [name for name in [NONE, *levers(arguments.device)] if any(line["lever"] == name for line in lines)]
    (arguments.out / "table.md").write_text(table(lines, drawn_by) + kept.read_text())


def plain(device: str = "cpu", **options: Any) -> LiDAR:
    """Return a sampler of glyph without levers."""
    return LiDAR.from_pretrained("glyph", device=device, **options)


def levers(device: str) -> dict[str, Callable[[], LiDAR]]:
    """Return each lever by name, and combinations that work well."""

    def pull(**levers: Any) -> LiDAR:
        lidar = plain(device)
        accelerate(lidar.pipe, **levers)
        return lidar

    def higher_order(steps: int) -> LiDAR:
        lidar = plain(device, steps=steps)
        lidar.pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            lidar.pipe.scheduler.config, algorithm_type="sde-dpmsolver++", timestep_spacing="linspace"
        )
        return lidar

    def together() -> LiDAR:
        lidar = plain(device, dtype=torch.bfloat16, preview="tiny", reward_dtype=torch.bfloat16)
        accelerate(lidar.pipe, encode_once=True)
        return lidar

    return {
        "channels-last": lambda: pull(channels_last=True),
        "encode-once": lambda: pull(encode_once=True),
        "compile-blocks": lambda: pull(compile="blocks"),
        "compile": lambda: pull(compile="whole"),
        "compile+channels-last": lambda: pull(compile="whole", channels_last=True),
        "bfloat16": lambda: plain(device, dtype=torch.bfloat16),
        "half-reward": lambda: plain(device, reward_dtype=torch.bfloat16),
        "preview": lambda: plain(device, preview="tiny"),
        "preview+rescore=10": lambda: plain(device, preview="tiny", rescore=10),
        "dpm:5-unguided": lambda: plain(device, lookahead="dpm:5-unguided"),
        "sde-dpm++ in 25 steps": lambda: higher_order(25),
        "sde-dpm++ in 15 steps": lambda: higher_order(15),
        "ddim in 25 steps": lambda: plain(device, steps=25),
        "bfloat16+encode-once+preview+half-reward": together,
    }


def prepare(make: Callable[[], LiDAR]) -> tuple[LiDAR, float]:
    """Return a sampler after a warm-up call with every later batch size, and the seconds that it took."""
    lidar = make()
    start = time.perf_counter()
    lidar.with_settings(steps=2, n=25)("a photo of a cat")
    return lidar, time.perf_counter() - start


def draw_once(lidar: LiDAR, prompt: str, reference: Any, judge: LiDAR) -> tuple[dict[str, Any], Any]:
    """Draw one prompt; return seconds, scores by ``judge``, and how near samples and bank are to ``reference``."""
    device = torch.device(lidar.pipe.device)
    start = now(device)
    result = lidar.draw_guided([prompt], 4, 0, None)
    seconds = now(device) - start
    result, cost = judge.judge(result), result.cost
    line = {
        "seconds": seconds,
        "evaluations": cost["lookahead"].network_evaluations + cost["sampling"].network_evaluations,
        **{judge: result.rewards[judge].nanmean().item() for judge in JUDGES},
    }
    if reference is not None:
        line["apart"] = (result.latents - reference.latents).abs().mean().item()
        both = [r.banks[0].reward(JUDGES[0]) for r in (result, reference)]
        line["tau"] = float(kendalltau(*both).statistic)
    return line, result


def table(lines: list[dict[str, Any]], names: list[str]) -> str:
    """Return each lever beside none, over the prompts that it has drawn, as Markdown."""
    by = {(line["lever"], line["prompt"]): line for line in lines}
    drawn_for = dict.fromkeys(line["prompt"] for line in lines)
    text = (
        f"# Levers on glyph\n\n`{command()}`: 4 images per prompt, n = 50, 50 steps, "
        f"{torch.get_num_threads()} threads. Seconds are of both\n"
        "phases; `of none` is their ratio to the run without levers, paired by prompt, `first` what the first calls\n"
        "took, compiling and all. Rewards are differences to none; `apart` is the mean distance of a latent value,\n"
        "`tau` Kendall's, of the bank's rewards. 95 % bootstrap intervals over prompts,\n"
        "all tags together.\n\n"
        "| lever | prompts | s | of none | first, s | evaluations | guiding | held out | GenEval | apart | tau |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for name in names:
        prompts = [prompt for prompt in drawn_for if (name, prompt) in by]
        mine, base = ([by[lever, prompt] for prompt in prompts] for lever in (name, NONE))
        cells = [str(len(prompts)), f"{np.mean([line['seconds'] for line in mine]):.1f}"]
        ratio = np.array([a["seconds"] / b["seconds"] for a, b in zip(mine, base, strict=True)])
        cells.append(brief(ratio) if name != NONE else "1")
        cells.append(f"{mine[0]['first']:.0f}")
        cells.append(f"{mine[0]['evaluations']}")
        for judge in JUDGES:
            values = np.array([line[judge] for line in mine])
            if name == NONE:
                cells.append(f"{np.nanmean(values):.2f}")
            else:
                cells.append(brief(values - [line[judge] for line in base], "+"))
        for key in ("apart", "tau"):
            cells.append("" if name == NONE else f"{np.mean([line[key] for line in mine]):.3f}")
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    return text


def brief(values: np.ndarray, sign: str = "") -> str:
    """Return a mean and its interval; not stratified, since two prompts per tag are too few to resample."""
    found = interval(bootstrap(values[:, None], ["all"] * len(values))[:, 0])
    return f"{found.estimate:{sign}.2f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def alone(device: str) -> str:
    """Measure levers that need several prompts, another reward, or only a reward; return Markdown.

    The lever with the waiting reward is timed by the wall clock.
    """
    lidar = plain(device, metrics=[], n=8, steps=20)
    texts = [metadata["prompt"] for metadata in glyph.spread(glyph.prompts(), 1)][:4]
    own, place = lidar.reward, torch.device(device)

    def wait(*, images: Tensor, prompts: list[str]) -> Tensor:
        time.sleep(WAIT)
        return own(images=images, prompts=prompts)

    slow = {flag: plain(device, metrics=[], n=48, reward=wait, overlap=flag) for flag in (False, True)}
    (bank,) = lidar.with_settings(n=48).look(texts[0])
    judged = {"images": pictures_of(lidar.pipe, bank), "prompts": [texts[0]] * 48, "batch_size": 16}
    compiled = rewards.load("glyph", device=device)
    accelerate(compiled, compile="whole")
    start = time.perf_counter()
    rewards.score(compiled, **judged)
    first = time.perf_counter() - start
    runs: dict[str, tuple[Callable[[], Any], Callable[[], float]]] = {
        "one by one": (lambda: [lidar(text) for text in texts], lambda: now(place)),
        "together": (lambda: lidar(texts), lambda: now(place)),
        "at once": (lambda: slow[False].look(texts[0]), time.perf_counter),
        "overlap": (lambda: slow[True].look(texts[0]), time.perf_counter),
        "reward": (lambda: rewards.score(own, **judged), lambda: now(place)),
        "compiled": (lambda: rewards.score(compiled, **judged), lambda: now(place)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for name, (run, clock) in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    return (
        f"\nFour prompts x 4 images, n = 8, 20 steps, medians of three: one by one {median['one by one']:.1f} s, "
        f"together {median['together']:.1f} s, ratio {median['together'] / median['one by one']:.2f}.\n\n"
        f"A bank of 48 in batches of 16, with a reward that waits {WAIT} s per batch: {median['at once']:.1f} "
        f"s, with "
        f"`overlap` {median['overlap']:.1f} s, ratio {median['overlap'] / median['at once']:.2f}.\n\n"
        f"48 pictures scored: {1000 * median['reward']:.0f} ms, by a compiled reward "
        f"{1000 * median['compiled']:.0f} ms, ratio {median['compiled'] / median['reward']:.2f}; its first call took "
        f"{first:.0f} s.\n"
    )


if __name__ == "__main__":
    main()
