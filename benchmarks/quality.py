"""Does guidance help on glyph? LiDAR beside vanilla, best-of-N and the best of the bank, on the same prompts.

    python -m benchmarks.quality --per-tag 11 --out docs/results/quality

Prompts are spread evenly over the six tags of the shipped set. For each prompt the program draws one bank of n
samples and then, from the same noise, 4 guided images and 9 vanilla ones (as many network evaluations as LiDAR spends
on 4, bank included). A stopped run continues where it was; ``--table`` prints the table of the results so far.

Rows: ``vanilla`` and ``lidar`` are means over the 4 images returned. ``best 1 of 4`` and ``best 4 of 9`` keep the
vanilla images that the guiding reward likes best; ``best 1 of bank`` and ``best 4 of bank`` keep bank members.
Every row is judged by the guiding reward, by the held-out reward and by the detector under GenEval's rules.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lidar_sampling import LiDAR, LookaheadBank, glyph
from lidar_sampling._decode import pictures
from lidar_sampling.evaluation.statistics import bootstrap, interval
from lidar_sampling.rewards import name_of, score
from lidar_sampling.runs._lines import fill, read_objects

from ._command import command

JUDGES = ("glyph", "glyph-heldout", "geneval")
IMAGES, EQUAL_COST = 4, 9
HEADER = """# Quality on glyph

`{command}`, default settings of the model; the numbers of each prompt lie beside this table
(their seconds were taken beside other work: do not read them). Intervals are 95 % bootstrap intervals over prompts,
stratified by tag. `lidar` and `vanilla` are means over the 4 images returned, the others over the images kept; the
guiding reward selects.
"""


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-tag", type=int, default=11, help="prompts per tag (default 11)")
    parser.add_argument("--prompts", type=Path, help="a file of GenEval metadata instead of the shipped set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and table.md")
    parser.add_argument("--table", action="store_true", help="measure nothing; print the table of the results so far")
    arguments = parser.parse_args()

    path = arguments.out / "results.jsonl"
    if not arguments.table:
        arguments.out.mkdir(parents=True, exist_ok=True)
        everything = glyph.read_metadata(arguments.prompts) if arguments.prompts else glyph.prompts()
        lidar = LiDAR.from_pretrained("glyph", device=arguments.device)
        chosen = glyph.spread(everything, arguments.per_tag)
        units = [{"prompt": metadata["prompt"], "tag": metadata["tag"]} for metadata in chosen]
        for k, line in enumerate(fill(path, units, lambda unit: measure(lidar, unit["prompt"], arguments.seed)), 1):
            print(k, line["prompt"], flush=True)
    table = summarise(read_objects(path))
    if not arguments.table:
        (arguments.out / "table.md").write_text(table)
    print(table)


def measure(lidar: LiDAR, prompt: str, seed: int) -> dict[str, Any]:
    """Draw one prompt; return every row's judgements, and the costs of drawing."""
    guided = lidar(prompt, images=IMAGES, seed=seed)
    vanilla = lidar.vanilla(prompt, images=EQUAL_COST, seed=seed)
    bank = guided.banks[0]
    pictures = pictures_of(lidar.pipe, bank)
    texts = [prompt] * len(pictures)
    of_bank = {
        name_of(judge): score(judge, images=pictures, prompts=texts, allow_nan=True)
        for judge in (lidar.reward, *lidar.metrics)
    }
    of_vanilla = {name: values[0] for name, values in vanilla.rewards.items()}
    of_guided = {name: values[0] for name, values in guided.rewards.items()}
    rows = {
        "vanilla": take(of_vanilla, range(IMAGES)),
        "lidar": take(of_guided, range(IMAGES)),
        "best 1 of 4": take(of_vanilla, best({k: v[:IMAGES] for k, v in of_vanilla.items()}, 1)),
        "lidar, best 1 of 4": take(of_guided, best(of_guided, 1)),
        "best 4 of 9": take(of_vanilla, best(of_vanilla, IMAGES)),
        "bank, mean": take(of_bank, range(len(pictures))),
        "best 1 of bank": take(of_bank, best(of_bank, 1)),
        "best 4 of bank": take(of_bank, best(of_bank, IMAGES)),
    }
    costs = {"lookahead": guided.cost["lookahead"], "lidar": guided.cost["sampling"]}
    costs["vanilla 9"] = vanilla.cost["sampling"]
    return {"rows": rows, "cost": {name: vars(cost) for name, cost in costs.items()}}


def pictures_of(pipe: Any, bank: LookaheadBank) -> Tensor:
    """Return the bank's pictures (n, 3, H, W) in [0, 1], as the pipeline decodes them."""
    return pictures(pipe, bank.samples, 16).cpu()


def best(scores: dict[str, Tensor], k: int) -> list[int]:
    """Return the indices of the ``k`` highest guiding rewards."""
    return scores[JUDGES[0]].argsort(descending=True)[:k].tolist()


def take(scores: dict[str, Tensor], indices: Any) -> dict[str, float]:
    """Return the mean judgement of some of the images."""
    return {name: float(scores[name][list(indices)].mean()) for name in JUDGES}


def summarise(lines: list[dict[str, Any]]) -> str:
    """Return the table as Markdown: estimates with 95 % bootstrap intervals, and differences to vanilla."""
    tags = [line["tag"] for line in lines]
    out = [
        HEADER.format(command=command()),
        f"{len(lines)} prompts, { {t: tags.count(t) for t in dict.fromkeys(tags)} }\n",
        "| row | guiding reward | held-out reward | GenEval | position | GenEval minus vanilla |",
        "|---|---|---|---|---|---|",
    ]
    values = {
        row: np.array([[line["rows"][row][judge] for judge in JUDGES] for line in lines]) for row in lines[0]["rows"]
    }
    for row, numbers in values.items():
        draws = bootstrap(numbers, tags)
        position = numbers[[tag == "position" for tag in tags], 2].mean()
        difference = interval(bootstrap(numbers - values["vanilla"], tags)[:, 2])
        cells = [str(interval(draws[:, k])) for k in range(3)]
        out.append(f"| {row} | {' | '.join(cells)} | {position:.3f} | {difference} |")
    for other in ("vanilla", "best 4 of 9", "best 4 of bank"):
        difference = bootstrap(values["lidar"] - values[other], tags)
        out.append(
            f"\nLiDAR minus {other}, paired: "
            + ", ".join(f"{judge} {interval(difference[:, k])}" for k, judge in enumerate(JUDGES))
        )
    out.append(
        "\nMean cost per prompt:\n\n| part | network evaluations | decodes | reward calls |\n|---|---|---|---|"
    )
    for part in lines[0]["cost"]:
        mean = {k: np.mean([line["cost"][part][k] for line in lines]) for k in lines[0]["cost"][part]}
        out.append(
            f"| {part} | {mean['network_evaluations']:.0f} | {mean['decodes']:.0f} | {mean['reward_calls']:.0f} |"
        )
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()
