"""Many pictures of a prompt: what each method is worth as more are kept, at the evaluations that LiDAR takes.

    python -m benchmarks.many --prompts 24 --steps 25 --kept 1 4 16 --out docs/results/many

A bank is paid once, however many pictures M of a prompt are kept, so LiDAR's cost per picture falls with M. The
others get as many network evaluations as LiDAR takes for M pictures, bank included:

    lidar            M guided samples
    vanilla          M plain samples, which cost less: the zero of the gains
    best M of N      of N plain samples in as many steps as LiDAR's
    best M of N@10   of N plain samples in 10 steps
    steered@10       the best M of a population of 10 steps that is resampled early; and in islands, which keep apart
    fk               the best M of N particles of FK steering, in as many steps as LiDAR's
    refine           the best of few-step samples, noised half way and denoised

Samples of LiDAR and of plain sampling do not depend on one another, so a pool of each is drawn once per prompt, and
every M takes its share of it; where a pool holds several such shares, their mean counts. Guiding reward, held-out
reward, GenEval and diversity are means over the kept pictures.

For more pictures than were drawn there is a second table. What LiDAR gains does not depend on M. Best M of N keeps a
share M / N of its samples, so the same share of a pool estimates it; of a sample on the cut its part counts. What is
done is kept in results.jsonl, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lidar_sampling import Cost, LiDAR, glyph, methods
from lidar_sampling.evaluation.budget import within
from lidar_sampling.evaluation.rows import estimate
from lidar_sampling.evaluation.verdicts import LEAST
from lidar_sampling.methods import Method
from lidar_sampling.rewards import diversity, features_of
from lidar_sampling.runs import Job, load_sampler
from lidar_sampling.runs._lines import fill, read_objects
from lidar_sampling.runs._machine import DTYPES

from ._differences import draw_differences

MORE = (64, math.inf)  # pictures kept, more than are drawn
FEW = 10  # steps of the samples that are selected from, where steps are free
JUDGES = ("glyph", "glyph-heldout", "geneval")
DRAWN_ANEW = ("steered-N@10", "steered-N@10:islands={kept}", "fk+best-of-N", "refine-N")


def main() -> None:
    """Draw what is missing; write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24, help="prompts per split, a multiple of 6 (default 24)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps of LiDAR (default 25)")
    parser.add_argument("--kept", type=int, nargs="+", default=[1, 4, 16], help="pictures kept (default 1 4 16)")
    parser.add_argument("--anew", nargs="*", default=DRAWN_ANEW, help="methods that draw for each M anew")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the network (default auto)")
    parser.add_argument("--fast", help="levers of docs/performance.md, such as compile,compile-reward")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl, table.md and figure.svg")
    parser.add_argument("--table", action="store_true", help="draw nothing, write the table of what is there")
    arguments = parser.parse_args()
    if arguments.prompts < 6 or arguments.prompts % 6:  # the tags of one split; the other has three
        parser.error(f"--prompts must be a multiple of 6, so that all tags count alike, got {arguments.prompts}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    if not arguments.table:
        order = list(units(arguments))
        lidar = load_sampler(
            Job(
                [unit["prompt"] for unit in order[:1]],
                settings={"steps": arguments.steps},
                device=arguments.device,
                dtype=arguments.dtype,
                fast=arguments.fast,
            )
        )
        for number, line in enumerate(fill(path, order, lambda unit: measure(lidar, unit)), 1):
            print(number, line["prompt"], line["method"], flush=True)
    lines = [line for line in read_objects(path) if line["steps"] == arguments.steps]
    text = table(lines, arguments.steps) + table_of_more(lines)
    (arguments.out / f"table-{arguments.steps}.md").write_text(text)
    draw_figure(lines, arguments.out / f"figure-{arguments.steps}.svg")
    found, strata = gather(lines)
    found |= {(int(kept), method): row for (kept, method), row in gather_more(lines).items() if kept < math.inf}
    draw_differences(
        {
            method: [
                (m, *gains(found, strata, (m, method), (m, "lidar"), JUDGES[1])[:3]) for m in kept_of(found, method)
            ]
            for method in ("best M of N", f"best M of N@{FEW}")
        },
        arguments.out / f"differences-{arguments.steps}.svg",
        title="glyph, where ten steps are enough",
        unit="held-out reward",
    )


def units(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what is drawn, whole prompts one after another, and both splits by turns."""
    every = {split: glyph.prompts(split) for split in ("geneval", "hard")}
    tags = {split: len({line["tag"] for line in prompts}) for split, prompts in every.items()}
    spread = [glyph.spread(prompts, arguments.prompts // tags[split]) for split, prompts in every.items()]
    turns = [by_turns(lines) for lines in spread]
    for seed in range(arguments.seeds):
        for pair in zip(*turns, strict=True):
            for split, metadata in zip(every, pair, strict=True):
                known = {"prompt": metadata["prompt"], "tag": metadata["tag"], "split": split}
                of = {**known, "steps": arguments.steps, "seed": seed}
                yield {**of, "method": "pools", "kept": arguments.kept}
                for kept in arguments.kept:
                    for method in arguments.anew:
                        if kept > 1 or "{kept}" not in method:
                            yield {**of, "method": method, "kept": [kept]}


def by_turns(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return prompts with the first of each tag first, so that a run that stops early has had all tags alike."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line["tag"], []).append(line)
    return [line for turn in zip_longest(*groups.values()) for line in turn if line is not None]


class Pool(NamedTuple):
    """Judged samples: rewards (m,) by judge, and features (m, d)."""

    scores: dict[str, Tensor]
    features: Tensor


def measure(lidar: LiDAR, unit: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by M and method, the means over the kept pictures, and the evaluations per kept picture."""
    budgets = {kept: methods.load("lidar").cost(lidar, images=kept).network_evaluations for kept in unit["kept"]}
    if unit["method"] != "pools":
        ((kept, budget),) = budgets.items()
        pattern = unit["method"].format(kept=kept)
        name = within(lidar, pattern, budget, prompt=unit["prompt"], images=kept, unit="network_evaluations")
        pool, cost = draw(lidar, methods.load(name), unit, kept)
        return {"results": {str(kept): {_label(unit["method"]): means(pool, [range(kept)], cost / kept)}}}
    most = max(budgets)
    whole, few = methods.load("vanilla"), methods.load(f"vanilla@{FEW}")
    each, each_few = (method.cost(lidar, images=1).network_evaluations for method in (whole, few))
    guided, _ = draw(lidar, methods.load("lidar"), unit, most)
    plain, _ = draw(lidar, whole, unit, budgets[most] // each)
    quick, _ = draw(lidar, few, unit, budgets[most] // each_few)
    found = {}
    for kept, budget in budgets.items():
        blocks = list(_blocks(most, kept))
        found[str(kept)] = {
            "lidar": means(guided, blocks, budget / kept),
            "vanilla": means(plain, blocks, each),
            "best M of N": select(plain, kept, budget // each, budget / kept),
            f"best M of N@{FEW}": select(quick, kept, budget // each_few, budget / kept),
        }
    pools = {"lidar": guided, "vanilla": plain, f"vanilla@{FEW}": quick}
    return {
        "results": found,
        "pools": {name: {judge: _rounded(pool.scores[judge]) for judge in JUDGES} for name, pool in pools.items()},
        "dtype": str(lidar.pipe.dtype).removeprefix("torch."),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _label(pattern: str) -> str:
    return pattern.replace("+best-of-N", "").replace("-N", "").replace("{kept}", "M")


def draw(lidar: LiDAR, method: Method, unit: Mapping[str, Any], images: int) -> tuple[Pool, int]:
    """Draw so many samples and judge them; return them, and the network evaluations that they took."""
    result = lidar.judge(method.draw(lidar, [unit["prompt"]], images=images, seed=unit["seed"]))
    features = features_of([judge for judge in lidar.metrics if judge.name == "glyph-heldout"], result.images[0])
    cost = sum(result.cost.values(), Cost()).network_evaluations
    return Pool({name: values[0] for name, values in result.rewards.items()}, features), cost


def _blocks(size: int, block: int) -> Iterator[range]:
    return (range(start, start + block) for start in range(0, size - block + 1, block))


def select(pool: Pool, kept: int, of: int, cost: float) -> dict[str, float]:
    """Return the means over the best ``kept`` of each ``of`` samples of a pool."""
    guide = pool.scores["glyph"]
    best = []
    for block in _blocks(len(guide), of):
        order = guide[list(block)].argsort(descending=True)
        best.append([block[i] for i in order[:kept]])
    return means(pool, best, cost)


def means(pool: Pool, sets: list[Any], cost: float) -> dict[str, float]:
    """Return the means over sets of samples of a pool, with the evaluations per kept sample."""
    values = {name: np.mean([float(pool.scores[name][list(s)].mean()) for s in sets]) for name in JUDGES}
    apart = np.mean([diversity(pool.features[list(s)]) for s in sets])
    return {**{name: round(float(v), 5) for name, v in {**values, "diversity": apart}.items()}, "evaluations": cost}


def gather(lines: list[dict[str, Any]]) -> tuple[dict[tuple[int, str], dict[tuple[str, int], Any]], dict[str, str]]:
    """Return the results by (M, method) and (prompt, seed), and the stratum of each prompt."""
    found: dict[tuple[int, str], dict[tuple[str, int], Any]] = {}
    for line in lines:
        for kept, results in line["results"].items():
            for method, values in results.items():
                found.setdefault((int(kept), method), {})[line["prompt"], line["seed"]] = values
    return found, {line["prompt"]: f"{line['split']} {line['tag']}" for line in lines}


def kept_of(found: Mapping[tuple[int, str], Mapping[Any, Any]], method: str) -> list[int]:
    """Return the numbers of pictures at which a method was drawn of enough prompts to be shown in a figure."""
    return sorted(kept for kept, name in found if name == method and len(prompts_of(found[kept, name])) >= LEAST)


def prompts_of(row: Mapping[tuple[str, int], Any]) -> set[str]:
    """Return the prompts of a row of any seed."""
    return {prompt for prompt, _ in row}


def evaluations_of(row: Mapping[tuple[str, int], Any]) -> float:
    """Return the mean of the evaluations per kept picture."""
    return float(np.mean([values["evaluations"] for values in row.values()]))


def gains(
    found: Mapping[tuple[int, str], Mapping[Any, Any]], strata: Mapping[str, str], one: tuple, other: tuple, key: str
) -> Any:
    """Return the paired difference of two rows, over the prompts that both have; seeds are averaged first."""
    shared = sorted(set(found[one]) & set(found[other]))
    prompts = list(dict.fromkeys(prompt for prompt, _ in shared))
    values = np.array(
        [np.mean([found[one][u][key] - found[other][u][key] for u in shared if u[0] == prompt]) for prompt in prompts]
    )
    return estimate(values, [strata[prompt] for prompt in prompts])


def table(lines: list[dict[str, Any]], steps: int) -> str:
    """Return gains over vanilla and over LiDAR by M, as Markdown."""
    found, strata = gather(lines)
    text = (
        f"# Many pictures of a prompt, {steps} steps\n\n{len(strata)} prompts. Gains over vanilla in as many steps, "
        "paired, with 95 % bootstrap intervals over prompts; in the last columns the\nheld-out reward less LiDAR's, "
        f"and less that of best M of N@{FEW}.\n\n| kept | method | prompts | evaluations per picture | guiding "
        f"| held-out | GenEval | diversity | less LiDAR's | less best M of N@{FEW} |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for kept, method in sorted(found, key=lambda row: row[0]):
        row = found[kept, method]
        cells = ["-"] * 3 if method == "vanilla" else [_gain(found, strata, kept, method, key) for key in JUDGES]
        spread = "-" if kept == 1 else f"{np.mean([values['diversity'] for values in row.values()]):.3f}"
        less = [
            "-" if method == other else str(gains(found, strata, (kept, method), (kept, other), "glyph-heldout"))
            for other in ("lidar", f"best M of N@{FEW}")
        ]
        text += (
            f"| {kept} | {method} | {len(prompts_of(row))} | {evaluations_of(row):.0f} | "
            + " | ".join([*cells, spread, *less])
            + " |\n"
        )
    return text


def foretell(line: Mapping[str, Any]) -> dict[tuple[float, str], dict[str, float]]:
    """Return, by M and method, the means that the pools of a line foretell for more pictures than were drawn."""
    kept = max(map(int, line["results"]))
    each, guided = (line["results"][str(kept)][method]["evaluations"] for method in ("vanilla", "lidar"))
    bank = (guided - each) * kept
    found = {}
    for more in MORE:
        budget = each + bank / more  # evaluations per kept picture
        for method, pool, share in (
            ("lidar", "lidar", 1.0),
            ("vanilla", "vanilla", 1.0),
            ("best M of N", "vanilla", each / budget),
            (f"best M of N@{FEW}", f"vanilla@{FEW}", each * FEW / line["steps"] / budget),
        ):
            found[more, method] = {**mean_of_share(line["pools"][pool], share), "share": share}
    return found


def mean_of_share(pool: Mapping[str, Sequence[float]], share: float) -> dict[str, float]:
    """Return the means over the best share of a pool by the guiding reward; of one on the cut its part counts."""
    order = np.argsort(pool["glyph"])[::-1]
    weights = np.clip(share * len(order) - np.arange(len(order)), 0, 1)
    return {judge: float(np.average(np.array(pool[judge])[order], weights=weights)) for judge in JUDGES}


def gather_more(lines: list[dict[str, Any]]) -> dict[tuple[float, str], dict[tuple[str, int], Any]]:
    """Return what the pools of lines foretell, by (M, method) and (prompt, seed)."""
    found: dict[tuple[float, str], dict[tuple[str, int], Any]] = {}
    for line in lines:
        for row, values in foretell(line).items() if "pools" in line else ():
            found.setdefault(row, {})[line["prompt"], line["seed"]] = values
    return found


def table_of_more(lines: list[dict[str, Any]]) -> str:
    """Return what the pools of lines foretell for more pictures, as Markdown; nothing if no line has pools."""
    found = gather_more(lines)
    strata = {line["prompt"]: f"{line['split']} {line['tag']}" for line in lines if "pools" in line}
    if not found:
        return ""
    text = (
        "\n## More pictures than were drawn\n\n"
        f"Foretold by the pools of {len(strata)} prompts. Gains as above.\n\n"
        "| kept | method | share kept | guiding | held-out | GenEval | less LiDAR's |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for (kept, method), row in found.items():
        if method == "vanilla":
            continue
        share = np.mean([values["share"] for values in row.values()])
        cells = [_gain(found, strata, kept, method, key) for key in JUDGES]
        less = "-" if method == "lidar" else str(gains(found, strata, (kept, method), (kept, "lidar"), JUDGES[1]))
        text += f"| {kept} | {method} | {share:.2f} | " + " | ".join([*cells, less]) + " |\n"
    return text


def _gain(found: Any, strata: Any, kept: int, method: str, key: str) -> str:
    return str(gains(found, strata, (kept, method), (kept, "vanilla"), key))


def draw_figure(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the held-out gain against the evaluations per kept picture: a line per method, M beside its points."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "many"
    from matplotlib import pyplot

    found, strata = gather(lines)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for method in dict.fromkeys(method for _, method in found if method != "vanilla"):
        points = []
        for kept in kept_of(found, method):
            gain = gains(found, strata, (kept, method), (kept, "vanilla"), "glyph-heldout")
            cost = evaluations_of(found[kept, method])
            points.append((cost, gain.estimate, gain.estimate - gain.low, gain.high - gain.estimate, kept))
        if not points:
            continue
        x, y, low, high, kept_here = zip(*points, strict=True)
        (line,) = axes.plot(x, y, marker="o", label=method)
        axes.errorbar(x, y, yerr=[low, high], fmt="none", ecolor=line.get_color(), alpha=0.4)
        for cost, gain_here, kept in zip(x, y, kept_here, strict=True):
            axes.annotate(str(kept), (cost, gain_here), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    ticks = [evaluations_of(found[kept, "lidar"]) for kept in kept_of(found, "lidar")]
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations per kept picture; at the points, pictures kept")
    axes.set_ylabel("held-out gain over vanilla")
    axes.axhline(0, color="grey", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
