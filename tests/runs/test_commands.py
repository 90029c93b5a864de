"""Runs of the command in a folder with a run: the same run continues, another is refused, nothing is lost."""

import json
import os
import re

import pytest
import torch
from test_cli import FAST, failure, lidar, tiny

from lidar_sampling import testing
from lidar_sampling.runs import Job, load_sampler, run, task_of

__all__ = ["lidar", "tiny"]  # fixtures

COMPARE = ["--methods", "vanilla", "--steps", "2", "--images", "1", "--quiet", "--json"]
MINE = {"tag": "mine", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "my dog in the park"}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\n")
    return path


@pytest.fixture
def other(tmp_path):
    pipe = testing.tiny_stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.5)
    pipe.save_pretrained(tmp_path / "other")
    return ["--model", str(tmp_path / "other"), "--reward", "brightness", "--device", "cpu"]


class TestAnotherRun:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--call", "negative_prompt=ugly"], "call.negative_prompt=None, now it is 'ugly'"),
            (["--seed", "7"], "seed=0, now it is 7"),
            (["--method", "vanilla"], "method='lidar', now it is 'vanilla'"),
            (["--beside-vanilla"], "vanilla=False, now it is True"),
            (["--scheduler", "DDIMScheduler:clip_sample=False"], "model.scheduler"),
            (["--dtype", "float16"], "precision='float32', now it is 'float16'"),
        ],
    )
    def test_is_not_resumed(self, lidar, tiny, tmp_path, change, message):
        lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path / "out")
        err = failure(lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path / "out", "--resume", *change))
        assert message in err
        assert "choose another --out" in err

    def test_of_another_model_is_neither_resumed_nor_compared(self, lidar, tiny, other, prompts, tmp_path):
        lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path / "out")
        err = failure(lidar("generate", "a cat", *other, *FAST, "--out", tmp_path / "out", "--resume"))
        assert "model.components.unet='UNet2DConditionModel " in err
        run = ["compare", "--prompts", prompts, *COMPARE, "--out", tmp_path / "report"]
        assert lidar(*run, *tiny)[0] == 0
        before = (tmp_path / "report/results-0.jsonl").read_bytes()
        assert "model.components.unet=" in failure(lidar(*run, *other))
        assert (tmp_path / "report/results-0.jsonl").read_bytes() == before


class TestTheSameRun:
    def test_goes_on_from_another_place_with_another_batch(self, lidar, tiny, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path / "out")[0] == 0
        assert lidar("generate", "a cat", *tiny, *FAST, "--out", "out", "--resume", "--batch-size", "1")[0] == 0
        os.rename("out", "moved")
        assert lidar("generate", "a cat", *tiny, *FAST, "--out", "moved", "--resume", "--quiet")[0] == 0

    def test_goes_on_with_the_weights_elsewhere(self, lidar, tiny, tmp_path):
        assert lidar("generate", "a cat", *tiny, *FAST, "--out", tmp_path / "out")[0] == 0
        testing.tiny_stable_diffusion().save_pretrained(tmp_path / "copy")
        copy = ["--model", tmp_path / "copy", *tiny[2:]]
        assert lidar("generate", "a cat", *copy, *FAST, "--out", tmp_path / "out", "--resume")[0] == 0

    def test_of_a_comparison_goes_on_with_levers_that_compute_the_same(self, lidar, tiny, prompts, tmp_path):
        run = ["compare", "--prompts", prompts, *tiny, *COMPARE, "--out", tmp_path / "report"]
        assert lidar(*run, "--fast", "encode-once")[0] == 0
        before = (tmp_path / "report/results-0.jsonl").read_bytes()
        assert lidar(*run, "--fast", "channels-last")[0] == 0
        assert (tmp_path / "report/results-0.jsonl").read_bytes() == before
        assert "--fast knows channels-last" in failure(lidar(*run, "--fast", "warp"))

    def test_uses_what_other_processes_drew(self, lidar, tiny, prompts, tmp_path, monkeypatch):
        run = ["compare", "--prompts", prompts, *tiny, *COMPARE, "--out", tmp_path / "report"]
        for environment in ({"RANK": "1", "WORLD_SIZE": "3"}, {"RANK": "0", "WORLD_SIZE": "2"}, {}):
            for name in ("RANK", "WORLD_SIZE"):
                monkeypatch.delenv(name, raising=False)
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            assert lidar(*run)[0] == 0
        lines = [
            json.loads(line)
            for file in (tmp_path / "report").glob("results-*")
            for line in file.open(encoding="utf-8")
        ]
        assert sorted(line["prompt"] for line in lines) == ["a cat", "a dog"]

    @pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "0"}])
    def test_needs_a_rank_that_fits(self, lidar, tiny, prompts, tmp_path, monkeypatch, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        err = failure(lidar("compare", "--prompts", prompts, *tiny, *COMPARE, "--out", tmp_path / "report"))
        assert "RANK" in err
        assert not (tmp_path / "report").exists()


class TestMetadata:
    @pytest.fixture
    def file(self, tmp_path):
        (tmp_path / "mine.jsonl").write_text(json.dumps({**MINE, "note": [1]}) + "\n")
        return tmp_path / "mine.jsonl"

    def test_of_ones_own_is_carried_through(self, lidar, tiny, file, tmp_path):
        out = tmp_path / "out"
        assert lidar("generate", "--prompts", file, *tiny, *FAST, "--out", out)[0] == 0
        assert json.loads((out / "00000/metadata.jsonl").read_text()) == {**MINE, "note": [1]}

    def test_of_ones_own_is_what_is_judged(self, lidar, file, tmp_path):
        """The prompt alone has no verdict, since it follows no template of GenEval."""
        few = ["--steps", "2", "--images", "1", "--device", "cpu", "--quiet"]
        run = ["compare", "--prompts", file, "--tags", "mine", "--methods", "vanilla", *few, "--out", tmp_path / "r"]
        assert lidar(*run)[0] == 0
        (line,) = map(json.loads, (tmp_path / "r/results-0.jsonl").open(encoding="utf-8"))
        assert line["rewards"]["geneval"] in ([0.0], [1.0])
        assert line["asks"] == {"include": MINE["include"], "note": [1]}
        file.write_text(json.dumps({**MINE, "include": [{"class": "cat", "count": 1}]}) + "\n")
        assert "choose another --out" in failure(lidar(*run))

    def test_of_two_kinds_for_one_prompt_is_refused_before_drawing(self, lidar, tmp_path):
        other = {**MINE, "include": [{"class": "cat", "count": 1}]}
        (tmp_path / "two.jsonl").write_text(f"{json.dumps(MINE)}\n{json.dumps(other)}\n")
        run = ["compare", "--prompts", tmp_path / "two.jsonl", "--methods", "vanilla", "--out", tmp_path / "r"]
        assert "comes twice, with two metadata" in failure(lidar(*run))
        assert not list((tmp_path / "r").glob("results-*"))

    def test_that_cannot_be_judged_is_refused_before_drawing(self, lidar, tmp_path):
        wrong = {**MINE, "include": [{"class": "dog", "count": "1"}]}
        (tmp_path / "wrong.jsonl").write_text(json.dumps(wrong) + "\n")
        err = failure(lidar("generate", "--prompts", tmp_path / "wrong.jsonl", "--out", tmp_path / "out"))
        assert "count" in err
        assert not (tmp_path / "out").exists()


class TestAPromptThatARewardCannotRead:
    def test_is_told_before_anything_is_drawn(self, lidar, tiny, tmp_path):
        prompts = ['a sign that says "OPEN"', "a cat"]
        ocr = [*tiny[:3], "ocr", *tiny[4:]]
        err = failure(lidar("generate", *prompts, *ocr, *FAST, "--out", tmp_path / "out"))
        assert "ocr" in err
        assert "'a cat'" in err
        assert not (tmp_path / "out").exists()

    def test_leaves_the_others(self, lidar, tiny, tmp_path, monkeypatch):
        """A user's reward does not refuse prompts beforehand."""
        from lidar_sampling.testing import brightness

        def picky(*, images, prompts):
            if "a cow" in prompts:
                raise ValueError("no cows")
            return brightness(images=images, prompts=prompts)

        monkeypatch.setattr("lidar_sampling.rewards.brightness.brightness", picky)
        monkeypatch.setattr("lidar_sampling.rewards.brightness.load_brightness", lambda *_, **__: picky)
        out = tmp_path / "out"
        code, _, err = lidar("generate", "a cat", "a cow", "a dog", *tiny, *FAST, "--out", out)
        assert code in (1, 2)
        assert "1 of 3 prompts are not in" in err
        assert "no cows" in err
        assert sorted(p.name for p in out.glob("0*")) == ["00000", "00002"]


def test_a_folder_of_one_variant_is_found_by_itself(lidar, tmp_path):
    testing.tiny_stable_diffusion().to(torch.float16).save_pretrained(tmp_path / "m", variant="fp16")
    model = ["--model", tmp_path / "m", "--reward", "brightness", "--device", "cpu"]
    assert lidar("generate", "a cat", *model, *FAST, "--out", tmp_path / "out")[0] == 0


def test_a_preset_and_a_scheduler_are_one_too_many(lidar, tiny, tmp_path):
    both = ["--preset", "paper-sd15", "--scheduler", "DDPMScheduler"]
    assert "--preset brings its scheduler" in failure(
        lidar("generate", "a cat", *tiny, *both, "--out", tmp_path / "o")
    )


def test_a_setting_that_a_method_has_of_its_own_is_named(lidar, tiny, tmp_path, caplog):
    fast = ["--images", "2", "--steps", "3", "--n", "2", "--lookahead", "dpm:2"]
    how = [*tiny, *fast, "--noise", "ddpm", "--reward-scale", "7"]
    assert lidar("generate", "a cat", *how, "--method", "fk+lidar", "--out", tmp_path / "guided")[0] == 0
    assert "of its own" not in caplog.text
    assert lidar("generate", "a cat", *how, "--method", "fk:every=0.5", "--out", tmp_path / "own")[0] == 0
    assert (
        "fk:every=0.5 has a reward_scale of its own, 10.0, and does not read the setting reward_scale=7.0"
        in caplog.text
    )
    assert "give it as fk:reward_scale=7.0,every=0.5" in caplog.text


def test_a_preset_is_said_in_the_settings(lidar, tiny, tmp_path):
    fast = ["--n", "2", "--steps", "2", "--images", "1"]
    assert lidar("generate", "a cat", *tiny, *fast, "--preset", "paper-sd15", "--out", tmp_path / "out")[0] == 0
    settings = json.loads((tmp_path / "out/result.json").read_text())["settings"]
    assert (settings["scheduler"], settings["eta"], settings["scale"]) == ("DDIMScheduler", 1.0, 12.5)


class TestTheCostOfARunToCome:
    """What --dry-run says, and what the time left rests on, is what the run will count."""

    @pytest.fixture
    def told(self, lidar, tiny, tmp_path):
        """Return network evaluations and reward calls of each method, as --dry-run has them, and the drawn result."""

        def tell(**changes):
            job = self.job(tiny, **changes)
            (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
            line = ["run", tmp_path / "job.json", "--out", tmp_path / f"out-{job.task}", "--quiet"]
            code, _, err = lidar(*line, "--dry-run")
            assert code == 0, err
            pattern = r"(\w+): (\d+) network evaluations(?:, (\d+) reward calls)? per prompt"
            costs = re.findall(pattern, " ".join(err.split()))
            code, out, err = lidar(*line, "--json")
            assert code == 0, err
            return {name: (int(network), int(reward or 0)) for name, network, reward in costs}, json.loads(out)

        return tell

    @staticmethod
    def job(tiny, **changes):
        settings = {"n": 4, "steps": 4, "lookahead": "dpm:2", "scale": 1.0, "reward_scale": 5.0}
        base = {"prompts": ["a cat"], "model": tiny[1], "reward": "brightness", "device": "cpu", "settings": settings}
        return Job(**{**base, **changes})

    @staticmethod
    def drawn(result):
        """Return the network evaluations of each method."""
        (entry,) = result["prompts"]
        return {
            name: sum(cost["network_evaluations"] for cost in entry[name]["cost"].values())
            for name in entry["methods"]
        }

    def test_counts_the_images_of_only(self, told):
        costs, result = told(images=4, only=[2], methods=["vanilla", "lidar"])
        assert costs == {"vanilla": (10, 0), "lidar": (26, 4)}
        assert self.drawn(result) == {"vanilla": 10, "lidar": 26}

    def test_counts_a_bank_alone_and_no_bank_that_is_given(self, told, tiny, tmp_path):
        assert told(task="look")[0] == {"bank": (16, 4)}
        found = run(self.job(tiny, task="look"), tmp_path / "banks").cost
        assert (found.network_evaluations, found.reward_calls) == (16, 4)
        costs, result = told(images=2, banks=[str(tmp_path / "banks")])
        assert costs == {"lidar": (20, 0)}
        assert self.drawn(result) == {"lidar": 20}

    def test_is_what_the_time_left_rests_on(self, tiny, tmp_path):
        for changes, evaluations in (({}, 56), ({"only": [2]}, 26), ({"banks": ["banks"]}, 40)):
            job = self.job(tiny, **changes)
            assert task_of(job, tmp_path / "out").evaluations(0, load_sampler(job)) == evaluations


@pytest.mark.parametrize(("task", "what"), [("compare", "a comparison"), ("look", "banks")])
def test_a_profile_is_of_runs_of_pictures(lidar, tiny, tmp_path, task, what):
    (tmp_path / "job.json").write_text(json.dumps({"prompts": ["a cat"], "task": task, "model": tiny[1]}))
    err = failure(lidar("run", tmp_path / "job.json", "--out", tmp_path / "out", "--profile"))
    assert f"--profile is for runs of pictures: leave it out for {what}" in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
