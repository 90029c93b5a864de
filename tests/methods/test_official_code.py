"""The statements of docs/official-code.md on the official code's folders and flags."""

import json
import re
from pathlib import Path

import torch
from tiny_lidar import make

from lidar_sampling import LookaheadBank
from lidar_sampling.methods import FKSteering, load

PAGE = Path(__file__).parents[2] / "docs" / "official-code.md"


def test_a_folder_of_phase_1_is_read_as_a_bank(tmp_path):
    """The layout is a list of latents in half precision, rewards by metric, and the prompt once per sample."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    scope = {}
    exec(compile(code, "documentation", "exec"), scope)
    latents = list(torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half())
    (tmp_path / "samples").mkdir()
    torch.save(latents, tmp_path / "samples" / "latent.pt")
    results = {
        "ImageReward": {"result": [1.5, 0.5, 0.0, -0.5, -1.0], "mean": 0.1},
        "Clip-Score": {"result": [0.3, 0.2, 0.25, 0.1, 0.2]},
        "prompt": ["a cat"] * 5,
        "prompt_index": 0,
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    bank = scope["official_bank"](tmp_path)
    assert isinstance(bank, LookaheadBank)
    assert bank.prompt == "a cat"
    assert bank.reward().tolist() == results["ImageReward"]["result"]
    assert torch.equal(bank.samples, torch.stack(latents).float())
    guided = make().draw_guided(["a cat"], 2, 0, [bank])
    assert len(guided.trace.steps) > 0
    other = scope["official_bank"](tmp_path, "Clip-Score")
    assert other.reward().tolist()[0] == torch.tensor(0.3).item()


def test_published_flags_of_fk_steering_are_the_defaults():
    assert load("fk:reward_scale=10,potential=max,start=.2,end=.8,every=.2") == FKSteering()
    assert not FKSteering().adaptive
    assert FKSteering().form == "code"
