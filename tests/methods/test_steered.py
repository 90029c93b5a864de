"""Steered best-of-N resamples to the effective sample size asked for, and beats best-of-N by it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_lidar import PROMPTS, make

from lidar_sampling._guidance import tempering
from lidar_sampling.methods import BestOf, Steered, Vanilla


def tempered(rewards, ess):
    return (tempering(rewards, ess)[..., None] * rewards).softmax(-1)


class TestSteered:
    @given(
        st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True),
        st.floats(0.05, 1.0),
    )
    def test_weights_have_the_effective_sample_size(self, rewards, ess):
        r = torch.tensor([rewards], dtype=torch.float64)
        weights = tempered(r, ess)
        size = float(1 / weights.square().sum())
        assert size == pytest.approx(max(ess * len(rewards), 1.0), rel=1e-4)
        assert (weights[0, r[0].argsort()].diff() >= 0).all()  # rising with the reward

    def test_equal_rewards_weigh_alike(self):
        torch.testing.assert_close(tempered(torch.zeros(1, 4), 0.25), torch.full((1, 4), 0.25).double())

    def test_without_resampling_is_best_of_n(self):
        lidar = make()
        plain = BestOf(Vanilla(), 4).draw(lidar, PROMPTS, images=2, seed=1)
        gentle = Steered(4, ess=1.0).draw(lidar, PROMPTS, images=2, seed=1)
        assert torch.equal(gentle.images, plain.images)
        assert gentle.cost["sampling"].reward_calls == 0

    def test_beats_best_of_n_on_what_it_is_steered_by(self):
        lidar = make(steps=10)
        plain = lidar.judge(BestOf(Vanilla(), 8).draw(lidar, PROMPTS, images=2, seed=1))
        steered = lidar.judge(Steered(8).draw(lidar, PROMPTS, images=2, seed=1))
        assert steered.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert steered.cost["sampling"].network_evaluations == plain.cost["sampling"].network_evaluations
        assert steered.cost["sampling"].reward_calls == 3 * 16  # at steps 2, 4 and 6

    def test_does_not_depend_on_the_batch_or_other_prompts(self):
        many = Steered(4).draw(make(), PROMPTS, images=2, seed=1)
        lone = Steered(4).draw(make(batch_size=4), PROMPTS[1:], images=2, seed=1)
        torch.testing.assert_close(lone.latents[0], many.latents[1], rtol=1e-4, atol=1e-4)

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"ess must be in \(0, 1\], got 0.0"):
            Steered(ess=0.0)
        with pytest.raises(ValueError, match="images must be 1 to n = 2, got 3"):
            Steered(2).draw(make(), PROMPTS, images=3, seed=0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            Steered(2).draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)
