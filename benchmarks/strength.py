"""Compare the automatic strength with a tuned one, for the reward of the tuning and for others, on glyph.

    python -m benchmarks.strength --prompts 24 --out docs/results/strength

Every guide uses the same banks and starts from the same noise, at the lambda tuned for glyph's own reward and at
``reward_scale="auto"``. The prompts differ from those of ``glyph:18``, on which the target of ``auto`` was chosen.
Results are kept in results.jsonl, and a stopped run continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lidar_sampling import LiDAR, glyph, rewards
from lidar_sampling.evaluation.statistics import bootstrap, interval
from lidar_sampling.rewards import diversity, features_of
from lidar_sampling.runs._lines import fill, read_objects

from ._command import command

MIXTURE = "glyph:0.5+glyph-heldout:0.5"
GUIDES = ("glyph", "glyph-heldout", "brightness", "jpeg-incompressibility", MIXTURE)
TUNED = 20.0  # lambda of glyph's own reward
JUDGES = ("glyph", "glyph-heldout", "geneval", "brightness", "jpeg-incompressibility")


def main() -> None:
    """Draw what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24, help="prompts, spread over the six tags (default 24)")
    parser.add_argument("--images", type=int, default=2, help="images per prompt (default 2)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and others.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen_on = {line["prompt"] for line in glyph.spread(glyph.prompts(), 3)}
    others = [line for line in glyph.prompts() if line["prompt"] not in chosen_on]
    judges = {name: glyph.Judge() if name == "geneval" else rewards.load(name) for name in JUDGES}
    with TemporaryDirectory() as store:  # one bank per prompt, for all guides
        samplers = {
            guide: LiDAR.from_pretrained(
                "glyph", reward=guide, metrics=[], steps=arguments.steps, store=store, batch_size=16
            )
            for guide in GUIDES
        }

        def draw(unit: Mapping[str, Any]) -> dict[str, Any]:
            how = {"images": arguments.images, "seed": arguments.seed}
            if unit["guide"] is None:
                result = samplers["glyph"].sample([unit["prompt"]], **how)
            else:
                sampler = samplers[unit["guide"]].with_settings(reward_scale=unit["strength"])
                result = sampler.draw_guided([unit["prompt"]], **how, banks=None)
            scores = {
                name: rewards.score(judge, images=result.images[0], prompts=[unit["prompt"]] * arguments.images)
                for name, judge in judges.items()
            }
            spread = diversity(features_of([judges["glyph-heldout"]], result.images[0]))
            return {**{name: float(values.mean()) for name, values in scores.items()}, "diversity": spread}

        drawn = [(None, None), *((guide, strength) for guide in GUIDES for strength in (TUNED, "auto"))]
        units = [
            {"prompt": line["prompt"], "tag": line["tag"], "guide": guide, "strength": strength}
            for line in glyph.spread(others, arguments.prompts // 6)
            for guide, strength in drawn
        ]
        path = arguments.out / "results.jsonl"
        for number, line in enumerate(fill(path, units, draw), 1):
            print(f"{number}/{len(units)} {line['prompt']}, {line['guide']}, {line['strength']}", flush=True)
    (arguments.out / "others.md").write_text(table(read_objects(path), arguments))


def table(lines: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return each guide at both strengths beside vanilla, and the two beside each other, as Markdown."""
    rows: dict[tuple[str | None, Any], dict[str, dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault((line["guide"], line["strength"]), {})[line["prompt"]] = line
    prompts = sorted(set.intersection(*(set(row) for row in rows.values())))
    vanilla = rows[None, None]
    tags = [vanilla[prompt]["tag"] for prompt in prompts]

    def apart(one: Mapping[str, Any], other: Mapping[str, Any], judge: str) -> str:
        if judge == MIXTURE:
            values = np.array(
                [np.mean([one[p][part] - other[p][part] for part in ("glyph", "glyph-heldout")]) for p in prompts]
            )
        else:
            values = np.array([one[p][judge] - other[p][judge] for p in prompts])
        return str(interval(bootstrap(values[:, None], tags)[:, 0]))

    text = (
        f"# The automatic strength with other rewards, on glyph\n\n`{command()}`: "
        f"{len(prompts)} prompts, {arguments.images} images each, {arguments.steps} steps, one seed; none of the "
        "prompts is among those on which the target of `auto` was chosen.\nGains over vanilla, paired; 95 % "
        "bootstrap intervals over prompts. The third row of each guide is `auto` minus\nthe tuned strength. A "
        "mixture's own gain is the mean of its parts'.\n\n"
        "| guide | strength | its own gain | glyph | held-out CLIP | GenEval | diversity |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    columns = ("glyph", "glyph-heldout", "geneval", "diversity")
    for guide in GUIDES:
        tuned, auto = rows[guide, TUNED], rows[guide, "auto"]
        for name, one, other in (
            (f"{TUNED:g}", tuned, vanilla),
            ("auto", auto, vanilla),
            ("auto - tuned", auto, tuned),
        ):
            cells = [apart(one, other, judge) for judge in (guide, *columns)]
            text += f"| {guide} | {name} | " + " | ".join(cells) + " |\n"
    return text


if __name__ == "__main__":
    main()
