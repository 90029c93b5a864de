"""Do glyph's rewards understand the hard prompts? Right renders are compared with renders wrong in one thing.

    python -m benchmarks.hard_prompts --prompts 20 --pictures 6

For each of the shipped hard prompts we render scenes that show what it asks for, and scenes that miss it by one
change. The program prints the share of (right, wrong) pairs that a reward orders correctly, by kind of change, and
the share of pictures that the judge accepts. It needs the font of training/glyph (README there).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from lidar_sampling import glyph, rewards
from lidar_sampling._geneval import CLASSES, COLORS, HARD_TAGS, RELATIONS
from training.glyph.captions import TAGS, Attributes
from training.glyph.draws import Draws
from training.glyph.render import Renderer
from training.glyph.sprites import render
from training.glyph.world import SLOTS, World

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
Object = tuple[str, str | None]  # class, colour


class Scene:
    """A renderer of given objects with the layouts of training."""

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures
        self.render = Renderer(torch.from_numpy(render()).float().permute(0, 3, 1, 2) / 255, torch.device("cpu"))
        self.world = World(torch.tensor([[0, 1]]), Draws(0, torch.device("cpu")))

    def __call__(self, objects: list[Object], relation: str | None = None) -> Tensor:
        """Return pictures (B, 3, 128, 128); a relation is that of the first object to the second."""
        n, count = self.pictures, len(objects)
        tag = "position" if relation else {1: "single_object", 2: "two_object"}.get(count, "counting")
        none = torch.zeros(n, dtype=torch.long)
        where = torch.full_like(none, RELATIONS.index(relation) if relation else 0)
        number = torch.full_like(none, max(0, count - 2))
        scenes = self.world.lay_out(
            Attributes(torch.full_like(none, TAGS.index(tag)), none, none, none, none, where, number)
        )
        classes, colors = (torch.zeros(n, SLOTS, dtype=torch.long) for _ in range(2))
        for slot, (name, color) in enumerate(objects):
            classes[:, slot] = CLASSES.index(name)
            colors[:, slot] = 1 + COLORS.index(color) if color else 0
        present = (torch.arange(SLOTS) < count).expand(n, SLOTS)
        return self.render(scenes._replace(classes=classes, colors=colors, present=present))[0]


def variants(metadata: dict[str, Any], scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
    """Return right pictures of a hard prompt, and wrong ones by kind."""
    include = metadata["include"]
    match metadata["tag"]:
        case "color_position":
            second, first = include
            relation = first["position"][0]
            a, b = (first["class"], first["color"]), (second["class"], second["color"])
            return scene([a, b], relation), {
                "other side": scene([a, b], OPPOSITE[relation]),
                "colours swapped": scene([(a[0], b[1]), (b[0], a[1])], relation),
                "one not coloured": scene([(a[0], None), b], relation),
            }
        case "two_counts":
            a, b = ((o["class"], None) for o in include)
            i, j = (o["count"] for o in include)
            wrong = {"one more": (i, j + 1), "one less": (i - 1, j) if i > 1 else (i, j - 1), "swapped": (j, i)}
            return scene([a] * i + [b] * j), {
                kind: scene([a] * x + [b] * y)
                for kind, (x, y) in wrong.items()
                if (x, y) != (i, j) and x and y and x + y <= SLOTS
            }
        case _:
            objects = [(o["class"], None) for o in include]
            other = next(name for name in CLASSES if name not in [o["class"] for o in include])
            return scene(objects), {
                "first missing": scene(objects[1:]),
                "last missing": scene(objects[:2]),
                "last another": scene([*objects[:2], (other, None)]),
            }


def main() -> None:
    """Render, score, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20, help="prompts per tag")
    parser.add_argument("--pictures", type=int, default=6, help="pictures per scene")
    options = parser.parse_args()
    scene, judge = Scene(options.pictures), glyph.Judge()
    readers = {name: rewards.load(name) for name in ("glyph", "glyph-heldout")}
    print("| tag | wrong in | glyph | glyph-heldout | judged right: right, wrong |\n|---|---|---|---|---|")
    for tag in HARD_TAGS:
        found: dict[str, list[list[float]]] = {}
        for metadata in [line for line in glyph.prompts("hard") if line["tag"] == tag][: options.prompts]:
            right, wrong = variants(metadata, scene)
            text = [metadata["prompt"]] * options.pictures
            scores = {name: reward(images=right, prompts=text) for name, reward in readers.items()}
            accepted = judge(images=right, prompts=text).mean()
            for kind, pictures in wrong.items():
                ordered = [
                    float((scores[name][:, None] > reward(images=pictures, prompts=text)).float().mean())
                    for name, reward in readers.items()
                ]
                verdicts = judge(images=pictures, prompts=text).mean()
                found.setdefault(kind, []).append([*ordered, float(accepted), float(verdicts)])
        for kind, rows in found.items():
            a, b, good, bad = torch.tensor(rows).mean(0).tolist()
            print(f"| {tag} | {kind} | {a:.2f} | {b:.2f} | {good:.2f}, {bad:.2f} |")


if __name__ == "__main__":
    main()
