"""Each fault of a reward is found by the question about it."""

import json

import pytest
import torch

from lidar_sampling import rewards
from lidar_sampling.cli import main
from lidar_sampling.rewards import examine


def mean(*, images, prompts):
    return images.float().mean((1, 2, 3)) + torch.tensor([0.1 * len(prompt) for prompt in prompts])


def failed(reward):
    return [finding.question for finding in examine(reward) if finding.verdict == "FAIL"]


@pytest.mark.parametrize("name", ["glyph", "brightness", "jpeg-compressibility", "glyph-heldout"])
def test_the_embedded_rewards_pass(name):
    assert failed(rewards.load(name)) == []


def against_the_batch(*, images, prompts):
    return mean(images=images, prompts=prompts) - images.mean()


def in_rising_order(*, images, prompts):
    return mean(images=images, prompts=prompts).sort().values


def in_one_precision(*, images, prompts):
    if images.dtype != torch.float32:
        raise TypeError("float32 alone")
    return mean(images=images, prompts=prompts)


def of_squares(*, images, prompts):
    if images.shape[2] != images.shape[3]:
        raise ValueError("square pictures alone")
    return mean(images=images, prompts=prompts)


def at_random(*, images, prompts):
    return torch.rand(len(images))


def flat(*, images, prompts):
    return torch.zeros(len(images)) + 0.0 * len(prompts)


def liar(*, images, prompts):
    return mean(images=images, prompts=prompts)


liar.reads_prompt = False


@pytest.mark.parametrize(
    ("reward", "question"),
    [
        (mean, None),
        (against_the_batch, "gives each alone what it gives in a batch"),
        (in_rising_order, "keeps the order"),
        (in_one_precision, "takes bfloat16"),
        (of_squares, "takes pictures of 96 x 48"),
        (at_random, "gives the same again"),
        (flat, "tells them apart"),
        (liar, "reads the prompt"),
        (lambda *, images, prompts: images.mean(), "scores six pictures of 64 x 64"),
        (lambda *, images, prompts: 1 / 0, "scores six pictures of 64 x 64"),
    ],
)
def test_each_fault_is_found(reward, question):
    assert (failed(reward) == []) if question is None else (question in failed(reward))


def test_what_a_reward_may_do_is_a_note():
    def in_place(*, images, prompts):
        return images.nan_to_num_().mul_(2).mean((1, 2, 3))

    found = {finding.question: finding.verdict for finding in examine(in_place)}
    assert found["leaves what it is given as it was"] == "note"
    assert found["reads the prompt"] == "note"
    assert found["has no score for a picture of NaN"] == "note"
    assert "FAIL" not in found.values()


def test_the_command(tmp_path, monkeypatch, capfd):
    (tmp_path / "rewards_of_mine.py").write_text(
        "def good(*, images, prompts):\n    return images.mean((1, 2, 3))\n\n"
        "def bad(*, images, prompts):\n    return images.mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, status in (("good", 0), ("bad", 1)):
        with pytest.raises(SystemExit) as ended:
            main(["check-reward", f"rewards_of_mine:{name}", "--json"])
        assert ended.value.code == status
        findings = json.loads(capfd.readouterr().out)
        assert ("FAIL" in {finding["verdict"] for finding in findings}) is bool(status)
    with pytest.raises(SystemExit) as ended:
        main(["check-reward", "rewards_of_mine:none"])
    assert ended.value.code == 2
