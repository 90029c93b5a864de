"""The profile: nothing is lost, nothing counts twice, and nothing is measured when nobody asks."""

from types import SimpleNamespace

import pytest
import torch

from lidar_sampling import LiDAR, profiled, testing
from lidar_sampling._profile import _tile, time_part
from lidar_sampling.methods import load


def make(**options):
    settings = {"n": 6, "steps": 4, "scale": 1.0, "reward_scale": 20.0, "reward": "brightness", **options}
    return LiDAR(testing.tiny_stable_diffusion(), **settings)


def test_rows_are_what_the_cost_counts():
    with profiled() as profile:
        result = make()(["a cat", "a dog"], images=2)
    for phase, cost in result.cost.items():
        rows = profile.rows[phase]
        assert rows["network"] == cost.network_evaluations
        assert rows["decode"] == cost.decodes
        assert rows["reward"] == cost.reward_calls


def test_parts_sum_to_the_whole():
    lidar = make(n=12)
    with profiled() as profile:
        result = lidar("a cat", images=4)
    seconds = sum(cost.seconds for cost in result.cost.values())
    found = sum(sum(parts.values()) for parts in profile.seconds.values())
    assert found == pytest.approx(seconds, rel=0.1)
    assert all(value >= 0 for parts in profile.seconds.values() for value in parts.values())


@pytest.fixture
def pause(monkeypatch):
    """Stop the clock of profiles, except for the time that a test lets pass."""
    now = [0.0]
    monkeypatch.setattr("lidar_sampling._profile.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_slow_reward_is_seen_as_one(pause):
    def slow(*, images, prompts):
        pause(0.05)
        return images.mean((1, 2, 3))

    with profiled() as profile:
        make(reward=slow, batch_size=2).look("a cat")
    assert profile.seconds["lookahead"]["reward"] == pytest.approx(0.15)
    assert profile.seconds["lookahead"]["network"] == 0


def test_a_part_inside_another_counts_once(pause):
    with profiled() as profile, time_part("sampling"), time_part("guidance"):
        pause(0.02)
        with time_part("decode"):
            pause(0.05)
    parts = profile.seconds["sampling"]
    assert (parts["decode"], parts["guidance"]) == (pytest.approx(0.05), pytest.approx(0.02))


def test_gradients_and_other_methods_are_told_apart():
    with profiled() as profile:
        load("ug").draw(make(), ["a cat"], images=1, seed=0)
    assert {"network", "decode", "guidance"} <= set(profile.seconds["sampling"])


def test_an_error_leaves_no_clock_and_no_hook():
    lidar = make(reward=lambda *, images, prompts: 1 / 0)
    with pytest.raises(Exception, match="division"), profiled():
        lidar("a cat")
    with profiled() as profile, time_part("sampling"):
        pass
    assert set(profile.seconds) == {"sampling"}
    for module in (lidar.pipe.unet, lidar.pipe.vae.decoder, lidar.pipe.text_encoder):
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_the_ideal_is_work_alone():
    with profiled() as profile:
        make()("a cat", images=2)
    report = profile.report()
    parts = {(part["phase"], part["part"]): part for part in report["parts"]}
    assert parts["lookahead", "network"]["best"] > 0
    assert parts["lookahead", "scheduler"]["best"] is None
    ideal = sum(part["rows"] * part["best"] for part in report["parts"] if part["best"] is not None)
    assert report["ideal"] == pytest.approx(ideal)
    assert report["ratio"] == pytest.approx(report["seconds"] / ideal)


def test_arguments_are_tiled_to_another_size():
    t, x, text = torch.tensor(5), torch.arange(6.0).view(3, 2), {"a": torch.ones(3, 1), "b": None}
    tiled = _tile(((x, t), text, "same"), 3, 5)
    assert tiled[0][0].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert tiled[0][1] is not t
    assert tiled[0][1].item() == 5
    assert tiled[1]["a"].shape == (5, 1)
    assert tiled[1]["b"] is None
    assert tiled[2] == "same"


def test_the_clock_is_that_of_the_pipelines_device():
    from lidar_sampling import _profile

    pipe = testing.tiny_stable_diffusion()
    with profiled():
        assert _profile._current.get().device is None
        LiDAR(pipe, reward="brightness", n=2, steps=2).look("a cat")
        assert _profile._current.get().device == pipe.device
    with profiled("meta"):  # the reported value is unchanged
        LiDAR(pipe, reward="brightness", n=2, steps=2).look("a cat")
        assert _profile._current.get().device.type == "meta"
