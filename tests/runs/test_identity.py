"""The identity of a run: everything that changes results, and nothing else."""

import json
from dataclasses import replace
from threading import Lock

import pytest
import torch

from lidar_sampling import LiDAR, testing
from lidar_sampling.rewards import Mixture
from lidar_sampling.runs import agree, identity, read_json
from lidar_sampling.runs._identity import difference
from lidar_sampling.solvers import Solver


def sampler(pipe=None, **options):
    options = {"reward": "brightness", "n": 4, "steps": 5, **options}
    return LiDAR(pipe or testing.tiny_stable_diffusion(), **options)


def contrast(*, images, prompts):
    return images.flatten(1).std(1)


def scaled():
    pipe = testing.tiny_stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_in.weight.data.mul_(1.01)
    return pipe


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (lambda: sampler(n=5), "n"),
        (lambda: sampler(steps=6), "steps"),
        (lambda: sampler(scale=2.0), "scale"),
        (lambda: sampler(window=(1.0, 0.5)), "window"),
        (lambda: sampler(lookahead="own:4"), "lookahead"),
        (lambda: sampler(pipe_kwargs={"negative_prompt": "ugly"}), "call.negative_prompt"),
        (lambda: sampler(metrics=[contrast]), "judges.contrast"),
        (lambda: sampler(reward=Mixture({"brightness": 0.5})), "reward.name"),
        (lambda: sampler(scaled()), "model.components.unet"),
        (lambda: sampler(testing.tiny_stable_diffusion().to(torch.float64)), "precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_results_is_named(other, field):
    assert difference(identity(sampler()), identity(other()))[0] == field


def test_what_does_not_may_differ(tmp_path):
    pipe = testing.tiny_stable_diffusion()
    pipe.save_pretrained(tmp_path / "elsewhere")
    there = LiDAR.from_pretrained(tmp_path / "elsewhere", reward="brightness", n=4, steps=5)
    same = identity(sampler(pipe))
    assert identity(there) == identity(sampler(pipe, batch_size=1)) == identity(sampler(pipe, store=tmp_path)) == same
    assert identity(sampler(pipe, overlap=True)) == same
    assert json.loads(json.dumps(same)) == same


def test_settings_that_older_versions_lacked_count_only_where_they_are_used():
    """Else a folder of a run before them could not be continued."""
    assert not {"noise", "grid"} & set(identity(sampler()))
    assert identity(sampler(grid=2))["grid"] == 2
    assert identity(sampler(noise="ddpm"))["noise"] == "ddpm"


def test_the_reward_that_a_strength_was_tuned_for_does_not_count(tmp_path):
    """It draws nothing, and folders of versions that counted it can be continued."""
    pipe, now = testing.tiny_stable_diffusion(), identity(sampler())
    assert identity(sampler(pipe, settings=replace(sampler(pipe).settings, tuned_for="brightness"))) == now
    agree(tmp_path, {**now, "tuned_for": "brightness"}, now, "")


def test_a_judge_that_cannot_be_told_from_others_is_named(caplog):
    class Locked:
        name = "locked"

        def __init__(self):
            self.lock = Lock()

        def __call__(self, *, images, prompts):
            return images.flatten(1).mean(1)

    found = identity(sampler(reward=Locked()))
    assert found["judges"]["locked"].endswith("Locked")
    assert "a folder cannot tell this" in caplog.text
    told = Locked()
    told.stands_for = "the mean, version 1"
    assert identity(sampler(reward=told))["judges"]["locked"] == "the mean, version 1"


def test_two_mixtures_of_the_same_parts_differ():
    one, other = (sampler(reward=Mixture({"brightness": weight})) for weight in (0.5, 0.7))
    assert difference(identity(one), identity(other)) == ("reward.weights.brightness", 0.5, 0.7)


def test_the_refusal_names_the_field_both_values_and_the_mend(tmp_path):
    with pytest.raises(ValueError, match=r"out was made with images=4, now it is 2: choose another --out$"):
        agree(tmp_path / "out", {"images": 4}, {"images": 2}, "choose another --out")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"images": ')
    with pytest.raises(ValueError, match=r"run\.json is damaged .*: remove it, or choose another --out"):
        read_json(tmp_path / "run.json")


def twin(solver):
    return identity(sampler(lookahead=solver))


def test_solvers_of_one_name_are_told_apart():
    base = twin(Solver("mine", 2))
    others = [
        Solver("mine", 4),
        Solver("mine", 2, guidance_scale=1.0),
        Solver("mine", 2, call={"negative_prompt": "x"}),
        Solver("mine", 2, pipeline=scaled()),
        Solver("mine", 2, scheduler=lambda own: type(own).from_config(own.config)),
    ]
    assert all(difference(base, twin(other))[0].startswith("solver.") for other in others)
    assert twin(Solver("mine", 2)) == base


def test_what_would_be_taken_anyway_may_be_said():
    same = identity(sampler())
    assert identity(sampler(pipe_kwargs={"guidance_rescale": 0.0})) == same
    assert identity(sampler(pipe_kwargs={"num_inference_steps": 5})) == same


def test_a_shift_that_was_set_counts():
    pipe = testing.tiny_stable_diffusion_3()
    before = identity(sampler(pipe))
    pipe.scheduler.set_shift(9.0)
    assert difference(before, identity(sampler(pipe)))[0].startswith("model.scheduler")
