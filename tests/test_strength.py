"""A strength without units: the same for shifted or stretched rewards, and reported wherever it is used."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling import LiDAR, guide, mean_shift, testing
from lidar_sampling._guidance import auto_strength, tempering
from lidar_sampling._settings import DEFAULTS, GLYPH, for_reward
from lidar_sampling.cli import main
from lidar_sampling.methods import load
from lidar_sampling.runs import Job, run

REWARDS = st.lists(st.integers(-1000, 1000), min_size=3, max_size=20, unique=True)


class TestTempering:
    @given(REWARDS, st.floats(0.1, 1.0), st.floats(1e-3, 1e3), st.floats(-100, 100))
    def test_weighs_alike_whatever_the_unit_and_the_zero_of_the_reward(self, rewards, ess, unit, zero):
        r = torch.tensor(rewards, dtype=torch.float64)
        weights, others = ((tempering(x, ess) * x).softmax(0) for x in (r, unit * r + zero))
        torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-5)

    @given(REWARDS, st.floats(0.1, 1.0))
    def test_is_the_size_of_a_bank_at_pure_noise(self, rewards, ess):
        r = torch.tensor(rewards, dtype=torch.float64)
        samples = torch.randn(len(r), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        _, info = mean_shift(
            torch.zeros(1, 3), samples, r, alpha=0.0, sigma=1.0, reward_scale=float(tempering(r, ess))
        )
        assert info.ess.item() == pytest.approx(len(r))
        assert info.ess_tilted.item() == pytest.approx(max(ess * len(r), 1.0), rel=1e-3)

    def test_of_equal_rewards_is_0(self):
        assert tempering(torch.full((2, 5), 0.3), 0.5).tolist() == [0.0, 0.0]
        assert tempering(torch.zeros(1), 0.5).item() == 0.0


def sampler(reward=testing.brightness, **options):
    how = {"n": 8, "steps": 4, "lookahead": "own:2", "scale": 1.0, "reward_scale": "auto"}
    return LiDAR(testing.tiny_stable_diffusion(), reward=reward, **{**how, **options})


class TestSampler:
    @pytest.mark.parametrize(("unit", "zero"), [(1000.0, 0.0), (1e-3, -5.0)])
    def test_draws_the_same_whatever_the_unit(self, unit, zero):
        def stretched(*, images, prompts):
            return (unit * images.double().flatten(1).mean(1) + zero).double()

        plain = sampler(lambda *, images, prompts: images.double().flatten(1).mean(1))("a cat", images=2)
        other = sampler(stretched)("a cat", images=2)
        torch.testing.assert_close(other.latents, plain.latents, rtol=0, atol=1e-2)
        fixed = sampler(stretched, reward_scale=50.0)("a cat", images=2)
        assert not torch.allclose(fixed.latents, plain.latents, rtol=0, atol=1e-2)

    def test_says_what_it_chose_for_each_prompt(self):
        result = sampler()(["a cat", "a dog"], images=2)
        expected = [auto_strength(bank.reward(), 0.25) for bank in result.banks]
        assert result.trace.reward_scales == [expected[0]] * 2 + [expected[1]] * 2
        assert result.split()[1].trace.reward_scales == [expected[1]] * 2
        other = sampler(ess=0.5)(["a cat"], images=1)
        assert other.trace.reward_scales == [auto_strength(other.banks[0].reward(), 0.5)]
        assert other.trace.reward_scales[0] < expected[0]

    def test_of_a_bank_of_two_guides(self):
        lidar = sampler(n=2)
        result = lidar("a cat", images=2)
        assert not torch.allclose(result.latents, lidar.vanilla("a cat", images=2).latents, atol=1e-3)
        assert result.trace.reward_scales[0] * result.banks[0].reward().std() > 0.1

    def test_guide_takes_it_too(self):
        pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank()
        with guide(pipe, bank, scale=1.0, reward_scale="auto", ess=0.6) as trace:
            pipe("a cat", num_inference_steps=3, output_type="pt")
        assert trace.reward_scales == [auto_strength(bank.reward(), 0.6)]

    def test_as_a_method(self):
        result = load("lidar:reward_scale=auto,ess=0.5").draw(sampler(reward_scale=1.0), ["a cat"], images=1, seed=0)
        assert result.trace.reward_scales == [auto_strength(result.banks[0].reward(), 0.5)]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"reward_scale": "strong"}, "reward_scale must be "),
            ({"reward_scale": float("nan")}, "reward_scale must be finite and at least 0, got nan"),
            ({"ess": 0.0}, r"ess must be in \(0, 1\], got 0.0"),
            ({"ess": 1.5}, r"ess must be in \(0, 1\], got 1.5"),
        ],
    )
    def test_refusals(self, changes, message):
        with pytest.raises(ValueError, match=message):
            sampler(**changes)


class TestDefaults:
    def test_are_automatic_where_nothing_is_published(self):
        assert {row.reward_scale for row in DEFAULTS.values() if row.tuned_for is None} == {"auto"}
        assert {row.tuned_for for row in DEFAULTS.values() if row.reward_scale != "auto"} == {"image-reward"}

    def test_published_strengths_belong_to_their_reward(self, caplog):
        assert for_reward(GLYPH, "glyph") == GLYPH
        pipe = testing.tiny_stable_diffusion()
        assert LiDAR(pipe, reward="brightness").settings.reward_scale == "auto"
        assert "reward_scale 5000 was chosen with image-reward: with brightness each bank gets its own" in caplog.text
        caplog.clear()
        assert LiDAR(pipe, reward="brightness", reward_scale=3.0).settings.reward_scale == 3.0
        assert not caplog.text

    def test_a_target_without_an_automatic_strength_is_named(self, caplog):
        lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", reward_scale=3.0, ess=0.5)
        assert "ess=0.5 does nothing: it is the target of reward_scale='auto', and reward_scale is 3.0" in caplog.text
        caplog.clear()
        lidar.with_settings(reward_scale="auto", ess=0.5)
        assert not caplog.text

    def test_a_preset_keeps_its_strength_and_says_that_it_belongs_to_another_reward(self, caplog):
        pipe = testing.tiny_stable_diffusion()
        lidar = LiDAR(pipe, reward="brightness", settings="paper-sd15")
        assert lidar.settings.reward_scale == 5000.0
        assert lidar.settings.tuned_for is None  # so a collapse is warned of, too
        assert "reward_scale 5000 was chosen with image-reward: with brightness set reward_scale" in caplog.text
        caplog.clear()
        LiDAR(pipe, reward="brightness", settings="paper-sd15", reward_scale=3.0)
        assert not caplog.text


class TestWarnings:
    def test_of_a_reward_that_is_constant_over_a_bank(self, caplog):
        def flat(*, images, prompts):
            return torch.zeros(len(images))

        sampler(flat)(["a cat", "a dog"], images=2)
        assert caplog.text.count("constant reward: flat gives all 8 members of the bank of 'a cat' the same 0") == 1
        assert caplog.text.count("constant reward") == 2
        assert "collapsed" not in caplog.text

    def test_of_weights_that_rest_on_one_member(self, caplog):
        sampler(reward_scale=1e9)("a cat", images=2)
        assert caplog.text.count("collapsed: the weights of the bank of 'a cat' rest on one member") == 1
        caplog.clear()
        sampler(reward_scale=1e-3)("a cat", images=2)
        assert not caplog.text

    def test_of_a_reward_that_reads_no_prompt_where_prompts_are_judged(self, caplog):
        line = {"prompt": "a photo of a cat", "tag": "single_object", "include": [{"class": "cat", "count": 1}]}
        sampler().check_prompts([line, line])
        assert caplog.text.count("a reward without prompts: brightness looks at images alone") == 1
        caplog.clear()
        sampler().check_prompts(["a photo of a cat"])
        sampler(lambda *, images, prompts: images.flatten(1).mean(1)).check_prompts([line])
        assert not caplog.text

    def test_of_a_lookahead_that_is_worse_than_vanilla(self, caplog, tmp_path):
        pipe = tmp_path / "pipe"
        testing.tiny_stable_diffusion().save_pretrained(pipe)
        how = {"n": 1, "steps": 4, "lookahead": "own:1", "reward_scale": 0.0}
        job = Job(prompts=[f"{k}" for k in range(6)], model=str(pipe), reward="brightness", settings=how, images=2)
        run(replace(job, methods=("vanilla", "lidar")), tmp_path / "out")
        entries = json.loads((tmp_path / "out" / "result.json").read_text())["prompts"]
        coarse = [
            entry["prompt"]
            for entry in entries
            if max(entry["bank"]["brightness"]) < sum(entry["vanilla"]["rewards"]["brightness"]) / 2
        ]
        assert 0 < len(coarse) < 6
        for entry in entries:
            told = f"coarse lookahead: the best of the bank of {entry['prompt']!r}" in caplog.text
            assert told is (entry["prompt"] in coarse)


def test_the_command_keeps_what_it_chose(tmp_path, capfd):
    arguments = ["generate", "a photo of a cat", "--steps", "3", "--n", "4", "--images", "1", "--quiet", "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--reward-scale", "auto", "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    entry = json.loads((tmp_path / "out" / "result.json").read_text())["prompts"][0]
    assert entry["reward_scale"] == pytest.approx(auto_strength(torch.tensor(entry["bank"]["glyph"]), 0.25))
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--reward-scale", "strong", "--out", str(tmp_path / "other")])
    assert ended.value.code == 2
    assert "must be a number or auto, got 'strong'" in capfd.readouterr().err
