"""Two further uses of a bank: as the potential of particles, and enriched by refined members.

    python -m benchmarks.bank_uses --out docs/results/bank-uses
    python -m benchmarks.bank_uses --prompts reported --out docs/results/bank-uses/reported

glyph, 25 steps, four pictures of a prompt, a bank of 50 in 5 steps, and the prompts of ``benchmarks.collapse``: the
development ones chose what the reported ones are asked. Every row starts from the same noise:

    lidar                   guided by the bank
    best of 12              of plain samples
    steered by the reward   12 particles, resampled by the rewards of their clean predictions: a decode and a reward
                            call each at three steps
    steered by the bank     the same by the expected future reward that the bank's closed form gives: no decode and no
                            reward call; ``grid 2`` has it given a coarse look at x_t
    steered early ..        the same, resampled once, at a fifth of the steps
    enriched                lidar with 20 more members, offspring of good ones: noised half way, denoised in 5 steps
    enriched, alike         the same without their importance weights

An offspring of a member is as likely as the member where both ways, noising and denoising, are exact. Parents drawn
with probabilities v_i in place of 1 / n therefore leave offspring of weight 1 / (n v_i).

What a potential knows is the rank correlation, over the 12 plain samples of a prompt, of its values on the way with
the rewards at the end. What is done is kept in results.jsonl, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from lidar_sampling import LiDAR, LookaheadBank, methods
from lidar_sampling._draw import Item
from lidar_sampling._guidance import Members, auto_strength, tempering
from lidar_sampling._hooks import Hook, Step
from lidar_sampling._result import Result
from lidar_sampling.evaluation.rows import estimate
from lidar_sampling.methods._face import best, hook_batches, only, rewards_of_predictions
from lidar_sampling.methods.refine import Refine
from lidar_sampling.methods.steered import Resampled, Steered
from lidar_sampling.runs import Job, load_sampler
from lidar_sampling.runs._lines import fill, read_objects
from lidar_sampling.runs._machine import DTYPES

from .collapse import IMAGES, JUDGES, STEPS, by_weights, less, means, prompts_of

N, OFFSPRING, PARTICLES = 50, 20, 12
MOMENTS = (0.2, 0.4, 0.6, 0.8)  # of a run, at which potentials are compared with the end
PAIRS = (
    ("steered early by the bank, grid 2", "steered early by the reward"),
    ("steered by the bank, grid 2", "steered by the reward"),
    ("steered by the bank, grid 2", "best of 12"),
    ("steered early by the bank, grid 2", "best of 12"),
)
GRIDS = {"bank": None, "bank, grid 2": 2, "bank, grid 4": 4}


def main() -> None:
    """Draw what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", choices=PARTS, default="development")
    parser.add_argument("--first", type=int, help="draw no more of them")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the network (default auto)")
    parser.add_argument("--fast", help="levers of docs/performance.md, such as compile,compile-reward")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and table.md")
    parser.add_argument("--table", action="store_true", help="draw nothing, write the table of what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    if not arguments.table:
        prompts = [line["prompt"] for line in prompts_of(arguments.prompts)[: arguments.first]]
        job = Job(prompts, settings={"steps": STEPS, "n": N}, dtype=arguments.dtype, fast=arguments.fast)
        lidar = load_sampler(job)
        parts = PARTS[arguments.prompts]
        units = [{"prompt": prompt, "part": part} for prompt in prompts for part in parts]
        for line in fill(path, units, lambda unit: parts[unit["part"]](lidar, unit["prompt"])):
            print(line["prompt"], line["part"], flush=True)
    (arguments.out / "table.md").write_text(table(read_objects(path), arguments.prompts))


def measure(lidar: LiDAR, prompt: str) -> dict[str, Any]:
    """Return the means over the pictures of each row, and what each potential knew."""
    bank = lidar.look(prompt)[0]
    results, known = draw_plain(lidar, bank, prompt)
    results |= {
        "lidar": lidar.draw_guided([prompt], IMAGES, 0, [bank]),
        "steered by the reward": methods.load(f"steered-{PARTICLES}").draw(lidar, [prompt], images=IMAGES, seed=0),
        "steered by the bank": draw_steered(lidar, bank, prompt, None),
        "steered by the bank, grid 2": draw_steered(lidar, bank, prompt, 2),
        **draw_enriched(lidar, bank, prompt),
    }
    return {"rows": judged(lidar, results), "known": known}


def measure_early(lidar: LiDAR, prompt: str) -> dict[str, Any]:
    """Return the means over the pictures of the rows that resample once, early."""
    return {"rows": judged(lidar, draw_early(lidar, lidar.look(prompt)[0], prompt))}


def measure_again(lidar: LiDAR, prompt: str) -> dict[str, Any]:
    """Return what the development prompts asked to see again, on others."""
    bank = lidar.look(prompt)[0]
    results, known = draw_plain(lidar, bank, prompt)
    results |= {
        "lidar": lidar.draw_guided([prompt], IMAGES, 0, [bank]),
        "steered by the bank, grid 2": draw_steered(lidar, bank, prompt, 2),
        **draw_early(lidar, bank, prompt),
    }
    return {"rows": judged(lidar, results), "known": known}


PARTS = {"development": {"whole": measure, "early": measure_early}, "reported": {"again": measure_again}}


def judged(lidar: LiDAR, results: dict[str, Result]) -> dict[str, dict[str, float]]:
    """Return the means over the pictures of each result."""
    return {name: means(lidar, lidar.judge(result)) for name, result in results.items()}


def members_of(bank: LookaheadBank, grid: int | None) -> Members:
    """Return the bank, ready to give expected future rewards at the strength that fits it."""
    strength = auto_strength(bank.reward(), 0.25)
    return Members(bank.samples, bank.reward(), reward_scale=strength, grid=grid)


class Notes(Hook):
    """The hook that notes what each potential says of the samples of a batch at each moment."""

    def __init__(self, lidar: LiDAR, bank: LookaheadBank, batch: Sequence[Item]) -> None:
        self.members = {name: members_of(bank, grid) for name, grid in GRIDS.items()}
        self.rewards = rewards_of_predictions(lidar, batch)
        self.found: dict[str, list[Tensor]] = {}

    def start(self, steps: int) -> None:
        """Choose the steps of the moments."""
        self.times = {round(moment * steps) for moment in MOMENTS}

    @torch.no_grad()
    def before(self, step: Step) -> Step:
        """Note the values (B,) of all potentials."""
        if step.index in self.times:
            level = step.level
            for name, members in self.members.items():
                _, info = members.shift(step.x_t, alpha=level.alpha, sigma=level.sigma)
                self.found.setdefault(name, []).append(info.log_efr)
            self.found.setdefault("prediction", []).append(self.rewards(step.x0))
        return step


def draw_plain(lidar: LiDAR, bank: LookaheadBank, prompt: str) -> tuple[dict[str, Result], dict[str, list[float]]]:
    """Return the rows of plain samples, and the rank correlation of each potential with their rewards, by moment."""
    around, hooks = hook_batches(lidar, lambda batch: Notes(lidar.with_prompts([prompt]), bank, batch))
    result = lidar.sample([prompt], PARTICLES, 0, around=around, together=PARTICLES)
    (notes,) = hooks
    scores, _ = lidar.scores(result, lidar.parts)
    (end,) = scores.values()
    rows = {"vanilla": only(result, torch.arange(IMAGES)[None]), "best of 12": best(lidar, result, IMAGES)[0]}
    return rows, {
        name: [round(rank_correlation(values, end[0]), 5) for values in moments]
        for name, moments in notes.found.items()
    }


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's correlation of (m,) and (m,); 0 where one is constant."""
    return 0.0 if float(one.std()) == 0 or float(other.std()) == 0 else float(spearmanr(one, other).statistic)


def draw_steered(
    lidar: LiDAR, bank: LookaheadBank, prompt: str, grid: int | None, settings: Steered | None = None
) -> Result:
    """Return the best of particles that are resampled by what the bank says of them."""
    members, how = members_of(bank, grid), settings or Steered(PARTICLES)

    def expect(step: Step) -> Tensor:
        return members.shift(step.x_t, alpha=step.level.alpha, sigma=step.level.sigma)[1].log_efr

    def resample(batch: Sequence[Item]) -> Resampled:
        return Resampled(how, lambda expected: expected, [batch[0].seed], expect)

    around, _ = hook_batches(lidar, resample)
    many = lidar.sample([prompt], PARTICLES, 0, around=around, together=PARTICLES)
    return best(lidar, many, IMAGES)[0]


def draw_early(lidar: LiDAR, bank: LookaheadBank, prompt: str) -> dict[str, Result]:
    """Return the rows that resample once, early."""
    by_reward = methods.load(f"steered-{PARTICLES}:end=0.2").draw(lidar, [prompt], images=IMAGES, seed=0)
    by_bank = draw_steered(lidar, bank, prompt, 2, Steered(PARTICLES, end=0.2))
    return {"steered early by the reward": by_reward, "steered early by the bank, grid 2": by_bank}


def draw_enriched(lidar: LiDAR, bank: LookaheadBank, prompt: str) -> dict[str, Result]:
    """Return samples guided by the bank and by offspring of its good members, weighed and not."""
    r = bank.reward().double()
    chances = (float(tempering(r, 0.1)) * r).softmax(0)
    parents = torch.multinomial(chances, OFFSPRING, replacement=True, generator=torch.Generator().manual_seed(0))
    again, call = Refine(steps=5)._again(lidar)
    offspring = lidar.sample([prompt], OFFSPRING, 1, pipe=again, call=call, rows={"image": bank.samples[parents]})
    (theirs,) = lidar.scores(offspring, lidar.parts)[0].values()
    (name,) = bank.rewards
    more = LookaheadBank(
        torch.cat([bank.samples, offspring.latents[0].to(bank.samples)]),
        {name: torch.cat([bank.reward(), theirs[0].to(bank.reward())])},
        prompt,
    )
    log_weights = torch.cat([torch.zeros_like(r), -(len(r) * chances[parents]).log()])
    return {
        "enriched": by_weights(lidar, more, {"prompt": prompt}, log_weights=log_weights),
        "enriched, alike": by_weights(lidar, more, {"prompt": prompt}),
    }


def table(lines: list[dict[str, Any]], prompts: str) -> str:
    """Return the gains of the rows, and what the potentials knew, as Markdown."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines:
        for name, values in line["rows"].items():
            rows.setdefault(name, {})[line["prompt"]] = values
    text = (
        f"# Further uses of a bank, {prompts} prompts\n\nGains over vanilla, paired, with 95 % bootstrap intervals "
        "over prompts; in the last column the\nheld-out reward less LiDAR's.\n\n"
        "| row | prompts | guiding | held-out | GenEval | diversity | less LiDAR's |\n|---|---|---|---|---|---|---|\n"
    )
    for name, row in rows.items():
        cells = ["-" if name == "vanilla" else less(row, rows["vanilla"], key) for key in JUDGES]
        spread = np.mean([values["diversity"] for values in row.values()])
        last = "-" if name == "lidar" else less(row, rows["lidar"], JUDGES[1])
        text += f"| {name} | {len(row)} | " + " | ".join([*cells, f"{spread:.3f}", last]) + " |\n"
    text += "\n| row | less | prompts | guiding | held-out | diversity |\n|---|---|---|---|---|---|\n"
    for name, other in PAIRS:
        if not {name, other} <= set(rows):
            continue
        cells = [less(rows[name], rows[other], key) for key in (*JUDGES[:2], "diversity")]
        text += f"| {name} | {other} | {len(set(rows[name]) & set(rows[other]))} | " + " | ".join(cells) + " |\n"
    known = [line["known"] for line in lines if "known" in line]
    text += (
        "\n## What a potential knows\n\nRank correlation with the reward of the finished sample, over 12 plain "
        f"samples of a prompt: mean and 95 % interval over {len(known)} prompts.\n\n| potential | "
        + " | ".join(f"{moment:.0%} of the steps" for moment in MOMENTS)
        + " |\n|---|"
        + "---|" * len(MOMENTS)
        + "\n"
    )
    potentials = {name: np.array([values[name] for values in known]) for name in known[0]}
    potentials["bank, grid 2, less prediction"] = potentials["bank, grid 2"] - potentials["prediction"]
    for name, values in potentials.items():
        text += f"| {name} | " + " | ".join(map(interval, values.T)) + " |\n"
    return text


def interval(values: np.ndarray) -> str:
    """Return the mean and its 95 % bootstrap interval over prompts."""
    return str(estimate(values, ["all"] * len(values)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
