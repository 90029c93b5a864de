"""A small program of a user, for type checkers: what the public face takes and gives, and what it refuses.

It is checked, not run (``tests/test_typing.py``). A line that a checker must refuse says so, and a checker that does
not refuse it reports a comment without use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor

import lidar_sampling
from lidar_sampling import (
    BankStore,
    Cost,
    LiDAR,
    LookaheadBank,
    Result,
    Settings,
    ShiftInfo,
    citation,
    expected_future_reward,
    glyph,
    guide,
    mean_shift,
    methods,
    noise_level,
    record,
    rewards,
    testing,
)


def brightness(*, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A plain function is a reward."""
    return images.mean((1, 2, 3))


class Redness:
    """So is an object, with attributes if it likes."""

    name = "redness"
    differentiable = True

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images[:, 0].mean((1, 2))


# Sampling
lidar = LiDAR(testing.tiny_stable_diffusion(), reward=brightness, n=4, steps=5)
result = lidar(["a cat", "a dog"], images=2, seed=0)
assert_type(result, Result)
assert_type(result.images, Tensor)
assert_type(result.rewards, dict[str, Tensor])
assert_type(lidar.settings, Settings)
assert_type(lidar.vanilla("a cat", images=2), Result)
assert_type(lidar.with_settings(n=8), LiDAR)
LiDAR(testing.tiny_stable_diffusion(), reward=Redness())
LiDAR(testing.tiny_stable_diffusion(), reward="brightness", metrics=["brightness", Redness()])
LiDAR.from_pretrained("glyph", device="cpu", dtype=torch.float32, n=16)
lidar(3)  # type: ignore[arg-type]
LiDAR(testing.tiny_stable_diffusion(), reward=3)  # type: ignore[arg-type]
lidar("a cat", image=2)  # type: ignore[call-arg]

# Banks
banks = lidar.look(["a cat"])
for bank in banks:
    assert_type(bank, LookaheadBank)
    bank.save(Path("cat.safetensors"))
loaded = LookaheadBank.load("cat.safetensors")
assert_type(loaded.rewards, Mapping[str, Tensor])
assert_type(loaded.best(3), LookaheadBank)
lidar(["a cat"], banks=banks)
BankStore("banks")

# Attached by hand
pipe: Any = testing.tiny_stable_diffusion()
with guide(pipe, [loaded], scale=6.0, reward_scale=20.0) as trace:
    pipe("a cat")
assert_type(trace.steps[0].info, ShiftInfo)
with record(pipe) as recorded:
    pipe("a cat")
level = noise_level(pipe.scheduler, 0)
assert_type(level.alpha, float)

# The mathematics
x = torch.zeros(1, 4)
shift, info = mean_shift(x, torch.zeros(3, 4), torch.zeros(3), alpha=0.6, sigma=0.8, reward_scale=1.0)
assert_type(shift, Tensor)
assert_type(info, ShiftInfo)
assert_type(expected_future_reward(x, x, torch.zeros(1), alpha=0.6, sigma=0.8, reward_scale=1.0), Tensor)
mean_shift(x, x, x)  # type: ignore[call-arg]

# Rewards, methods, the embedded model
reward = rewards.load("brightness", device="cpu")
assert_type(reward(images=torch.ones(1, 3, 2, 2), prompts=["a cat"]), Tensor)
method = methods.load("best-of-4")
assert_type(method.draw(lidar, ["a cat"], images=1, seed=0), Result)
assert_type(method.cost(lidar, images=1), Cost)
assert_type(citation("fk", "svdd"), str)
assert_type(glyph.prompts(), list[dict[str, Any]])
assert_type(lidar_sampling.__version__, str)
