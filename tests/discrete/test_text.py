"""LLaDA 2 is guided by the formula, exactly where that can be enumerated, and is otherwise unchanged."""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch

from lidar_sampling import LiDAR, LookaheadBank, testing
from lidar_sampling.discrete import TextLiDAR, TextSettings
from lidar_sampling.discrete.text import BlockGuidance
from lidar_sampling.rewards import RewardError


def letters(text):
    return sum(map(str.isalpha, text))


def make(**options):
    return TextLiDAR(testing.tiny_llada_2(), reward=letters, **{"gen_length": 8, "n": 16, "steps": 4, **options})


class TestExactness:
    """Words of four out of three letters and a mask; with blocks of one token the sampler is autoregressive."""

    WORDS = torch.tensor(list(itertools.product(range(3), repeat=4)))

    @pytest.mark.parametrize("seed", range(3))
    def test_a_bank_that_holds_the_population_tilts_every_conditional_exactly(self, seed):
        generator = torch.Generator().manual_seed(seed)
        counts = torch.randint(1, 5, (len(self.WORDS),), generator=generator)
        rewards = torch.randn(len(self.WORDS), generator=generator)
        bank = LookaheadBank(
            self.WORDS.repeat_interleave(counts, 0), {"r": rewards.repeat_interleave(counts)}, "a cat"
        )
        tilted = counts * (1.5 * rewards.double()).exp()
        how = TextSettings(form="single-site", reward_scale=1.5, softness=1e-9)
        for word in ([0, 1, 2, 0], [2, 2, 1, 1]):
            guidance = BlockGuidance(bank, how, block=1, mask_id=3)
            for first in range(4):
                tokens = torch.tensor([[1, 1, *word[:first], 3]])  # after a prompt of two tokens
                alike = (self.WORDS[:, :first] == torch.tensor(word[:first])).all(1)
                model, target = (
                    torch.stack([law[alike & (self.WORDS[:, first] == v)].sum() for v in range(3)])
                    for law in (counts.double(), tilted)
                )
                logits = torch.full((1, tokens.shape[1], 4), -1e4, dtype=torch.float64)
                logits[0, -1, :3] = model.log()
                output = guidance(None, (tokens,), {}, SimpleNamespace(logits=logits))
                torch.testing.assert_close(output.logits[0, -1, :3].softmax(0), target / target.sum())
                assert torch.equal(output.logits[:, :-1], logits[:, :-1])

    def test_the_token_independent_form_is_the_papers(self):
        """It is equation 54: the mean of e^(lambda r) over the members that have the token there."""
        bank = LookaheadBank(torch.tensor([[0, 1], [0, 2], [1, 1]]), {"r": torch.tensor([2.0, 0.0, 1.0])}, "a cat")
        guidance = BlockGuidance(bank, TextSettings(softness=1e-9), block=2, mask_id=3)
        tokens, logits = torch.tensor([[9, 3, 3]]), torch.zeros(1, 3, 4, dtype=torch.float64)
        factors = guidance(None, (), {"input_ids": tokens}, SimpleNamespace(logits=logits)).logits
        e = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64).exp()
        mean = e.mean().log()
        expected = torch.stack([(e[0] + e[1]).log() - torch.tensor(2.0).log(), e[2].log()])
        torch.testing.assert_close(factors[0, 1, :2], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(factors[0, 2, 2], torch.tensor(0.0, dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(factors[0, 1, 2], mean, rtol=0, atol=1e-6)  # no member has it


class TestTextLiDAR:
    def test_raises_the_reward_at_a_stated_cost(self):
        lidar = make(n=64, gen_length=16)
        guided, plain = lidar("a cat", samples=24, seed=1), lidar.vanilla("a cat", samples=24, seed=1)
        assert guided.rewards.mean() > plain.rewards.mean() + 0.5  # measured 1.2, standard error .23 of 96
        assert guided.rewards.tolist() == [[letters(text) for text in guided.texts[0]]]
        assert (guided.cost["lookahead"].reward_calls, guided.cost["scoring"].reward_calls) == (64, 24)
        blocks = 4 + 1  # the prompt ends within the first
        assert plain.cost["sampling"].network_evaluations <= 24 * blocks * (4 + 16)
        assert plain.cost["sampling"].network_evaluations >= 24 * 4

    def test_without_strength_it_is_the_pipeline_bit_by_bit(self):
        lidar = make(scale=0.0)
        guided, plain = lidar("a cat", samples=3, seed=2), lidar.vanilla("a cat", samples=3, seed=2)
        assert torch.equal(guided.tokens, plain.tokens)
        assert guided.texts == plain.texts
        assert not torch.equal(make(reward_scale=8.0)("a cat", samples=3, seed=2).tokens, plain.tokens)

    def test_a_text_depends_on_its_seed_and_prompt_alone(self):
        lidar = make()
        both = lidar(["a cat", "a dog"], samples=2, seed=3)
        lone = lidar("a dog", samples=1, seed=3)
        assert torch.equal(both.tokens[1, 0], lone.tokens[0, 0])
        assert not torch.equal(both.tokens[1, 0], lidar("a dog", seed=4).tokens[0, 0])

    def test_a_bank_is_reused_and_kept(self, tmp_path):
        lidar = make()
        banks = lidar.look("a cat", seed=5)
        banks[0].save(tmp_path / "bank.safetensors")
        again = LookaheadBank.load(tmp_path / "bank.safetensors")
        first, second = lidar("a cat", seed=5), lidar("a cat", seed=5, banks=[again])
        assert torch.equal(first.tokens, second.tokens)
        assert second.cost["lookahead"].network_evaluations == 0
        twice = lidar(["a cat", "a cat"], seed=5)
        assert twice.cost["lookahead"].network_evaluations == first.cost["lookahead"].network_evaluations
        assert not torch.equal(twice.tokens[0], twice.tokens[1])

    def test_leaves_the_pipeline_as_it_was(self):
        lidar = make()
        bars = dict(getattr(lidar.pipe, "_progress_bar_config", {}))
        lidar("a cat")

        def stop(*args):
            raise RuntimeError("stop")

        handle = lidar.pipe.model.register_forward_hook(stop)
        with pytest.raises(RuntimeError, match="stop"):
            lidar("a cat")
        handle.remove()
        assert not lidar.pipe.model._forward_hooks
        assert dict(getattr(lidar.pipe, "_progress_bar_config", {})) == bars

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n": 0}, "n must be at least 1, got 0"),
            ({"n": True}, "n must be int, got True"),
            ({"reward_scale": float("nan")}, "reward_scale must be finite and at least 0, got nan"),
            ({"reward_scale": -3}, "reward_scale must be finite and at least 0, got -3"),
            ({"scale": -1.0}, "scale must be finite and at least 0, got -1.0"),
            ({"form": "joint"}, "form must be 'token-independent' or 'single-site', got 'joint'"),
            ({"softness": 1.0}, r"softness must be in \(0, 1\), got 1.0"),
            ({"temperature": 0.0}, "temperature must be above 0, got 0.0: at 0 every sample is the same"),
            ({"lenght": 4}, "unknown setting 'lenght'; known are n, lookahead_steps"),
            ({"pipe_kwargs": {"gen_length": 4}}, "gen_length is set by lidar itself"),
            ({"pipe_kwargs": {"mask_token_id": 3}}, "mask_token_id is set by lidar itself"),
            ({"pipe_kwargs": {"input_ids": None}}, "input_ids is set by lidar itself"),
            ({"pipe_kwargs": {"sampling_method": "greedy"}}, "sampling_method='greedy' draws every sample alike"),
            ({"pipe_kwargs": {"temperature": 0.2}}, "temperature is an argument of TextLiDAR: give it there"),
        ],
    )
    def test_refuses_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            make(**options)

    def test_refuses_arguments_that_the_pipeline_has_not(self):
        with pytest.raises(TypeError, match="takes no argument 'block_lenght'; did you mean 'block_length'"):
            make(pipe_kwargs={"block_lenght": 4})

    def test_warns_of_a_bank_of_another_reward(self, said):
        def long(text):
            return float(len(text))

        def short(text):
            return -float(len(text))

        lidars = [TextLiDAR(testing.tiny_llada_2(), reward=r, gen_length=4, n=2, steps=2) for r in (long, short)]
        lidars[1]("a cat", banks=lidars[0].look("a cat"))
        assert any("guides by the reward that it was scored by, long, and not by short" in told for told in said())

    def test_warns_of_a_bank_of_equal_rewards(self, caplog):
        def same(text):
            return 3.0

        lidar = TextLiDAR(testing.tiny_llada_2(), reward=same, gen_length=4, n=2, steps=2)
        lidar(["a cat", "a cat"])
        warning = (
            "constant reward: same gives all 2 members of the bank of 'a cat' the same 3, so guidance does nothing"
        )
        assert [warning in message for message in caplog.messages] == [True]

    def test_refuses_other_pipelines_banks_and_rewards(self):
        with pytest.raises(TypeError, match="pipe must be a diffusers LLaDA2Pipeline, got StableDiffusionPipeline"):
            TextLiDAR(testing.tiny_stable_diffusion(), reward=letters)
        with pytest.raises(ValueError, match=re.escape("lidar_sampling.discrete.TextLiDAR guides it")):
            LiDAR(testing.tiny_llada_2(), reward="brightness")("a cat")
        lidar = make()
        (bank,) = lidar.look("a cat")
        with pytest.raises(ValueError, match="the bank is of 'a cat', and the prompt is 'a dog'"):
            lidar("a dog", banks=[bank])
        with pytest.raises(ValueError, match=r"the bank is of other texts: shape \(8,\) against \(12,\)"):
            make(gen_length=12)("a cat", banks=[bank])
        with pytest.raises(ValueError, match="2 prompts need as many banks, got 1"):
            lidar(["a cat", "a dog"], banks=[bank])
        with pytest.raises(ValueError, match="prompts must be texts that are not empty"):
            lidar([])
        with pytest.raises(RewardError, match="reward 'bad' raised ZeroDivisionError"):
            TextLiDAR(testing.tiny_llada_2(), reward=bad, gen_length=4, n=2, steps=2)("a cat")
        with pytest.raises(ValueError, match="must give 2 finite numbers"):
            TextLiDAR(testing.tiny_llada_2(), reward=lambda text: float("nan"), gen_length=4, n=2, steps=2)("a cat")


def bad(text):
    return 1 / 0
