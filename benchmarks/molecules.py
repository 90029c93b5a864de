"""Guided molecules: the experiment of the LiDAR paper's table 4 on the embedded model, with rivals beside it.

    python -m benchmarks.molecules --out docs/results/molecules

For each reward and seed the program draws 1,024 samples in 32 steps: plain, guided in three forms by the first n of a
bank of 8-step samples, the better of two, the best of five 8-step samples (as many evaluations as guidance with n =
1,024), and FK steering of populations of 4 and 16. Results are kept in results.jsonl, and a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lidar_sampling import Cost, LookaheadBank
from lidar_sampling._space import magnitudes
from lidar_sampling.discrete import TokenFKSteering, TokenLiDAR, TokenResult, molecules
from lidar_sampling.runs._lines import fill
from lidar_sampling.runs._lines import read_objects as read

from ._command import command

FORMS = ("token-independent", "single-site", "joint")
LOOKAHEAD, STEPS = 8, 32
COLUMNS = {
    "valid": "valid",
    "unique": "unique",
    "novel_raw": "novel, raw",
    "novel": "novel",
    "reward": "reward",
    "reward_novel_raw": "reward, novel raw",
    "reward_novel": "reward, novel",
    "evaluations": "evaluations",
    "reward_calls": "reward calls",
}


def main() -> None:
    """Draw what is missing, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewards", default="ring-count,qed", help="comma separated (default ring-count,qed)")
    parser.add_argument("--samples", type=int, default=1024, help="a multiple of 16 (default 1024)")
    parser.add_argument("--ns", default="16,256,1024,4096", help="bank sizes (default 16,256,1024,4096)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reward-scale", type=float, default=1.5, help="the paper's (default 1.5)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl, table.md and figure.svg")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model: Any = molecules.load_model().to(arguments.device)
    how = {
        "samples": arguments.samples,
        "reward_scale": arguments.reward_scale,
        "weights": list(magnitudes(model.parameters())),
    }
    agree(arguments.out / "run.json", how)
    path = arguments.out / "results.jsonl"
    for seed in range(arguments.seeds):
        tokens: list[torch.Tensor] = []
        for name in arguments.rewards.split(","):
            lidar = TokenLiDAR(
                model,
                reward=molecules.reward(name),
                n=max(map(int, arguments.ns.split(","))),
                lookahead_steps=LOOKAHEAD,
                steps=STEPS,
                reward_scale=arguments.reward_scale,
            )
            known = methods(lidar, tokens, arguments, seed)
            units = [{"reward_name": name, "method": method, "seed": seed} for method in known]
            start = time.perf_counter()
            for line in fill(path, units, lambda unit: judge(lidar, known[unit["method"]]())):  # noqa: B023
                print(f"{name} {line['method']} seed {seed}: {time.perf_counter() - start:.0f} s so far", flush=True)
    lines = read(path)
    (arguments.out / "table.md").write_text(table(lines, arguments))
    draw_figure(lines, arguments.out / "figure.svg")


def methods(
    lidar: TokenLiDAR, tokens: list[torch.Tensor], arguments: argparse.Namespace, seed: int
) -> dict[str, Callable[[], TokenResult]]:
    """Return each method by its name; ``tokens`` keeps those of the bank, which all rewards share."""
    count = arguments.samples

    def bank(n: int) -> LookaheadBank:
        if not tokens:
            tokens.append(lidar.look(seed=seed).samples)
        chosen = tokens[0][:n]
        return LookaheadBank(chosen, {"r": lidar.score(chosen)}, "molecules")

    def draw_guided(form: str, n: int) -> TokenResult:
        members = bank(n)
        result = lidar.with_settings(form=form, n=n)(count, seed=seed, bank=members)
        result.cost["lookahead"] = Cost(network_evaluations=n * LOOKAHEAD, reward_calls=n)
        return result

    def best_of(k: int, steps: int) -> TokenResult:
        many = lidar.with_settings(steps=steps).vanilla(k * count, seed=seed)
        rewards = many.rewards.view(count, k)
        rows = torch.arange(count) * k + rewards.argmax(1)
        cost = {"sampling": many.cost["sampling"] + many.cost["scoring"]}
        return TokenResult(many.tokens[rows], rewards.amax(1), cost, many.settings, seed)

    def fk(k: int) -> TokenResult:
        stepper = TokenFKSteering(lidar.score, lidar.kernel, reward_scale=arguments.reward_scale, particles=k)
        return lidar.sample(count, seed=seed, stepper=stepper)

    found: dict[str, Callable[[], TokenResult]] = {"plain": lambda: lidar.vanilla(count, seed=seed)}
    for n in map(int, arguments.ns.split(",")):
        for form in FORMS:
            found[f"{form}, n = {n}"] = lambda form=form, n=n: draw_guided(form, n)  # type: ignore[misc]
    found["best of 2"] = lambda: best_of(2, STEPS)
    found[f"best of 5, {LOOKAHEAD} steps"] = lambda: best_of(5, LOOKAHEAD)
    for k in (4, 16):
        found[f"FK steering, k = {k}"] = lambda k=k: fk(k)  # type: ignore[misc]
    return found


def judge(lidar: TokenLiDAR, result: TokenResult) -> dict[str, Any]:
    """Return the scores of samples and their cost; the mean of nothing is None."""
    reward: Any = lidar.reward
    strings = molecules.decode(reward.tokenizer, result.tokens)
    summary = asdict(molecules.summarize(strings, result.rewards.tolist(), molecules.load_known()))
    drawn = [part for phase, part in result.cost.items() if phase != "scoring"]  # this only measures
    return {
        **{name: None if value != value else value for name, value in summary.items()},
        "evaluations": sum(part.network_evaluations for part in drawn),
        "reward_calls": sum(part.reward_calls for part in drawn),
    }


def agree(path: Path, how: dict[str, Any]) -> None:
    """Write the settings of the results, or refuse a folder with results of other settings."""
    if path.exists() and json.loads(path.read_text()) != how:
        raise SystemExit(f"{path.parent} holds results of other options or weights: choose another --out")
    path.write_text(json.dumps(how, indent=1) + "\n")


def table(lines: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return means over seeds, with the range if there are several, as Markdown."""
    text = (
        f"# Guided molecules\n\n`{command()}`: "
        f"{arguments.samples} samples of the embedded model in {STEPS} steps, banks of {LOOKAHEAD}-step samples,\n"
        f"reward_scale {arguments.reward_scale:g}. Mean over seeds [least, most]. Novel counts distinct molecules\n"
        "that QM9 lacks; `raw` counts strings, as the published figures do, so another spelling of a known molecule\n"
        "is new.\n"
    )
    for name in dict.fromkeys(line["reward_name"] for line in lines):
        mine = [line for line in lines if line["reward_name"] == name]
        seeds = len({line["seed"] for line in mine})
        text += f"\n## {name}, {seeds} seed{'s' * (seeds > 1)}\n\n| method | " + " | ".join(COLUMNS.values()) + " |\n"
        text += "|---|" + "---|" * len(COLUMNS) + "\n"
        for method in dict.fromkeys(line["method"] for line in mine):
            rows = [line for line in mine if line["method"] == method]
            text += f"| {method} | " + " | ".join(cell([row[key] for row in rows]) for key in COLUMNS) + " |\n"
    return text


def cell(values: list[float | None]) -> str:
    """Return the mean and the range of the values that are not None, and their number if some are None."""
    found = [v for v in values if v is not None]
    if not found:
        return "-"
    form = "{:.0f}" if all(float(v).is_integer() for v in found) else "{:.3f}"
    text = form.format(float(np.mean(found)))
    if min(found) < max(found):
        text += f" [{form.format(min(found))}, {form.format(max(found))}]"
    return text if len(found) == len(values) else f"{text} ({len(found)} of {len(values)})"


def draw_figure(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the mean reward of valid samples, and novel molecules, against the size of the bank."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(line["reward_name"] for line in lines))
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), squeeze=False, layout="constrained")
    for column, name in enumerate(names):
        mine = [line for line in lines if line["reward_name"] == name]
        for row, (key, label) in enumerate((("reward", f"{name}, valid samples"), ("novel", "novel molecules"))):
            ax = axes[row, column]
            for form, color in zip(FORMS, ("C3", "C0", "C2"), strict=True):
                points: dict[int, list[float]] = {}
                for line in mine:
                    if line["method"].startswith(f"{form}, n = ") and line[key] is not None:
                        points.setdefault(int(line["method"].rsplit(" ", 1)[1]), []).append(line[key])
                ns = sorted(points)
                ax.plot(ns, [np.mean(points[n]) for n in ns], "o-", color=color, ms=4, label=form)
            for method, style in (("plain", "-"), ("best of 2", "--"), ("FK steering, k = 4", ":")):
                values = [line[key] for line in mine if line["method"] == method and line[key] is not None]
                if values:
                    ax.axhline(np.mean(values), color="0.5", ls=style, lw=1, label=method)
            ax.set(xscale="log", xlabel="n", ylabel=label)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
