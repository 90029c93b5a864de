"""A Job on Ray: the same results as on one machine, and nothing lost or drawn twice when processes die."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidar_sampling import testing
from lidar_sampling.rewards import REGISTRY, RewardError
from lidar_sampling.rewards.server import serve
from lidar_sampling.runs import Job, local, ray
from lidar_sampling.testing import brightness

RAY = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lidar-sampling[ray]'")

PROMPTS = ["a cat", "a dog", "two cups", "a cow", "a photo of a dog"]
FEW = {"n": 3, "steps": 3, "lookahead": "dpm:2", "scale": 1.0, "reward_scale": 5.0, "eta": 1.0}


def registering():
    """Return a function that registers the reward ``moody`` in a process; an inner function is sent by value."""

    def register():
        import os
        import sys
        import time
        import types

        from lidar_sampling import rewards

        def moody(*, images, prompts):
            for word, act in (("slow", lambda: time.sleep(0.3)), ("deadly", lambda: os._exit(1))):
                if any(word in prompt for prompt in prompts):
                    act()
            if any("raises" in prompt for prompt in prompts):
                raise ArithmeticError("a bad day")
            return images.flatten(1).mean(1)

        module = types.ModuleType("lidar_sampling.rewards.moody")
        module.load = lambda model, *, device, dtype: moody
        sys.modules[module.__name__] = module
        rewards.REGISTRY["moody"] = rewards.Entry("moody:load", "brightness, but for what some prompts say")

    return register


@pytest.fixture(scope="module")
def cluster():
    """Start Ray on this machine once, with room for four workers on any machine."""
    own = {
        "RAY_AUTH_MODE": "disabled",  # otherwise it writes a token into the user's home
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # otherwise other programs delay the workers
        "RAY_prestart_worker_first_driver": "0",  # unused processes would import torch
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    register = registering()
    register()
    RAY.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.2",
        runtime_env={"worker_process_setup_hook": register},
    )
    yield RAY
    RAY.shutdown()
    REGISTRY.pop("moody")
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    testing.tiny_stable_diffusion().save_pretrained(path)
    return Job(
        prompts=PROMPTS,
        model=str(path),
        reward="brightness",
        settings=FEW,
        images=2,
        device="cpu",
        batch_size=4,  # two prompts together
        scheduler="DDIMScheduler:clip_sample=False",
    )


def pictures(out):
    return {str(file.relative_to(out)): np.array(Image.open(file)) for file in sorted(out.rglob("*.png"))}


def same(first, second):
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name]) for name in first)


def timeless(value):
    """Remove values that depend on the clock or the machine's memory."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "peak_memory", "batch_size")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def lines(out):
    found = [json.loads(line) for file in out.glob("results-*.jsonl") for line in file.read_text().splitlines()]
    return sorted(json.dumps(timeless(line), sort_keys=True) for line in found)


def workers():
    """Return the process ids of the workers of this test's own cluster."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if not path.joinpath("cmdline").read_bytes().startswith(b"ray::Worker"):
                continue
            above = path.name
            while above not in ("0", "1", str(os.getpid())):
                above = Path("/proc", above, "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if above == str(os.getpid()):
            found.append(int(path.name))
    return found


def test_pictures_are_those_of_one_machine(job, cluster, tmp_path):
    told = []
    alone = local.run(job, tmp_path / "alone")
    outcome = ray.run(job, tmp_path / "many", workers=2, tell=told.append)
    assert outcome.complete
    assert timeless(outcome.result) == timeless(alone.result)
    assert same(pictures(tmp_path / "many"), pictures(tmp_path / "alone"))
    assert outcome.cost.network_evaluations == alone.cost.network_evaluations
    assert (told[0].done, told[0].phase, told[-1].done, told[-1].total) == (0, "starting workers", 5, 5)
    assert told[-1].cost.network_evaluations == alone.cost.network_evaluations
    assert all(each.what or each.done in (0, 5) for each in told)  # which of them are running depends on the moment
    there = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert there == [*(f"{k:05d}" for k in range(5)), "grid.png", "result.json", "run.json"]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").rglob("*.png") if path.name != "grid.png"}
    again = ray.run(job, tmp_path / "many", workers=1, resume=True)  # a driver that was killed at the very end
    assert (again.cost.network_evaluations, again.complete) == (0, True)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ValueError, match=r"many was made with n=3, now it is 4"):
        ray.run(replace(job, settings={**FEW, "n": 4}), tmp_path / "many", workers=1)


def test_every_line_is_there_once_though_a_worker_is_killed(job, cluster, tmp_path):
    both = replace(job, task="compare", methods=["vanilla", "lidar"], seeds=[0, 1], pictures=1, reward="moody")
    both = replace(both, prompts=[f"slow {prompt}" for prompt in PROMPTS[:3]])
    killed = []

    def kill(now):
        if now.done and not killed and (found := workers()):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    local.run(both, tmp_path / "alone")
    assert ray.run(both, tmp_path / "many", workers=2, tell=kill).complete
    assert killed
    assert lines(tmp_path / "many") == lines(tmp_path / "alone")
    assert len(lines(tmp_path / "many")) == 3 * 2 * 2
    assert same(pictures(tmp_path / "many"), pictures(tmp_path / "alone"))


def test_prompts_that_raise_or_end_their_process_are_named_and_the_others_are_there(job, cluster, tmp_path):
    bad = replace(job, reward="moody", prompts=["a cat", "deadly", "raises", *PROMPTS[1:4]])
    told = r"2 of 6 prompts are not in .*, first 'deadly': its process ended 3 times, .*; also 'raises'"
    with pytest.raises(RuntimeError, match=told):
        ray.run(bad, tmp_path / "out", workers=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000",
        *(f"0000{k}" for k in (3, 4, 5)),
        "run.json",
    ]


def test_a_reward_that_fails_for_all_ends_the_run_at_once(job, cluster, tmp_path):
    bad = replace(job, reward="moody", prompts=[f"raises {k}" for k in range(50)])
    with pytest.raises(RewardError, match=r"50 of 50 prompts are not in .*, first 'raises 0': reward 'moody' raised"):
        ray.run(bad, tmp_path / "out", workers=1)


def test_judges_score_pictures_of_eight_bits_and_a_run_goes_on_without_them(job, cluster, tmp_path):
    mixed = replace(job, reward={"brightness": 1.0, "moody": 0.5}, metrics=["jpeg-compressibility"])
    few = replace(mixed, prompts=PROMPTS[:2], methods=["vanilla", "best-of-2"])
    alone = local.run(few, tmp_path / "alone").result
    judged = ray.run(few, tmp_path / "many", workers=1, judge_gpus=0).result
    for ours, theirs in zip(judged["prompts"], alone["prompts"], strict=True):
        for name, values in theirs["vanilla"]["rewards"].items():
            scale = 1 / 255 if name != "jpeg-compressibility" else 0.1
            assert ours["vanilla"]["rewards"][name] == pytest.approx(values, abs=scale)
    assert judged["prompts"][0]["vanilla"]["rewards"] != alone["prompts"][0]["vanilla"]["rewards"]
    (tmp_path / "many" / "00001" / "result.json").unlink()
    assert local.run(few, tmp_path / "many", resume=True).complete


def test_paths_are_those_of_the_driver(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    there = ray._at_home(replace(job, model="./model", store="kept", banks=["one.safetensors"]))
    assert (there.model, there.store) == (str(tmp_path / "model"), str(tmp_path / "kept"))
    assert there.banks == (str(tmp_path / "one.safetensors"),)
    for model in ("glyph", "owner/name", str(tmp_path)):
        assert ray._at_home(replace(job, model=model)) == replace(job, model=model)


def test_banks_are_drawn_on_ray_too(job, cluster, tmp_path):
    look = replace(job, task="look", prompts=PROMPTS[:3])
    alone = local.run(look, tmp_path / "alone").result["banks"]
    banks = ray.run(look, tmp_path / "many", workers=1).result["banks"]
    assert [bank["prompt"] for bank in banks] == PROMPTS[:3]
    assert [bank["rewards"] for bank in banks] == [bank["rewards"] for bank in alone]
    assert all(Path(bank["file"]).is_file() for bank in banks)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "nobody", "ray://127.0.0.1:10001", "127.0.0.1:ten", "127.0.0.1:99999"]
)
def test_an_address_where_no_cluster_answers_is_one_line(job, tmp_path, address):
    with pytest.raises(ValueError, match="Ray cluster") as refusal:
        ray.run(job, tmp_path / "out", address=address)
    assert "\n" not in str(refusal.value)
    assert address in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_another_service_at_the_address_is_told_at_once(job, tmp_path):
    with (
        serve([brightness], port=0) as url,
        pytest.raises(ValueError, match=r"something else listens|no Ray") as refusal,
    ):
        ray.run(job, tmp_path / "out", address=url.removeprefix("http://"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ({"workers": 1.5}, "workers must be"),
        ({"gpus": -1}, "gpus must be a number of at least 0, got -1"),
        ({"judge_gpus": float("nan")}, "judge_gpus must be"),
        ({"gpus": "all"}, "gpus must be"),
    ],
)
def test_wrong_numbers_are_refused_before_ray_is_started(job, tmp_path, how, words):
    with pytest.raises(ValueError, match=words):
        ray.run(job, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_overwrite_spares_a_comparison_before_ray_is_started(job, tmp_path):
    (tmp_path / "results-0.jsonl").write_text("{}\n")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--overwrite deletes runs of pictures, and .* holds lines of a comparison"):
        ray.run(job, tmp_path, overwrite=True)
    assert (tmp_path / "results-0.jsonl").exists()


def test_what_cannot_be_drawn_is_refused_in_one_line(job, cluster, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="holds no run of lidar"):
        ray.run(job, tmp_path / "mine", overwrite=True)
    with pytest.raises(ValueError, match="its own GPU, got --device 'cuda:1': use cuda"):
        ray.run(replace(job, device="cuda:1"), tmp_path / "out")
    with pytest.raises(ValueError, match="this machine has 0 GPUs"):
        ray.run(job, tmp_path / "out", gpus=1)
    with pytest.raises(ValueError, match="names none"):
        ray.run(Job(prompts=["a cat"]), tmp_path / "out", judge_gpus=0)
    with pytest.raises(ValueError, match="no host of the cluster has a GPU"):
        ray.run(job, tmp_path / "out", judge_gpus=0.5)
    with pytest.raises(OSError, match="nowhere"):
        ray.run(replace(job, model=str(tmp_path / "nowhere/model")), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
