"""SVDD with one proposal is the model; with many it climbs to the best member."""

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, sample, shares, smooth_reward, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling._hooks import attach
from lidar_sampling.methods import SVDD
from lidar_sampling.methods.svdd import Proposals


class TestSVDD:
    STEPS = 30

    def law(self, m, temperature, *, count=512):
        bank = bank_of_four()
        scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)

        hook = Proposals(SVDD(m, temperature), smooth_reward(bank), list(range(count)))
        with attach(scheduler, hook):
            ends = sample(scheduler, bank.samples, chains=count * m, steps=self.STEPS)
        firsts = ends[::m]
        assert (ends.view(count, m, -1) - firsts[:, None]).abs().max() == 0  # proposals end alike
        return shares(firsts, bank.samples)

    def test_one_proposal_or_a_blind_choice_is_the_model_itself(self):
        uniform = torch.full((4,), 0.25)
        assert total_variation(self.law(1, 0.0), uniform) < 0.07
        assert total_variation(self.law(8, 1e6), uniform) < 0.07

    def test_the_best_of_many_proposals_climbs_to_the_best_member(self):
        shares_of_best = [self.law(m, 0.0)[3] for m in (1, 2, 8)]
        assert shares_of_best[0] < shares_of_best[1] < shares_of_best[2]
        assert shares_of_best[2] > 0.75  # measured .82, of 512 samples

    def test_a_warm_choice_lies_between(self):
        assert self.law(8, 1e6)[3] < self.law(8, 0.5)[3] < self.law(8, 0.0)[3]

    def test_through_the_sampler(self):
        lidar = make(steps=4)
        result = SVDD(3).draw(lidar, PROMPTS, images=2, seed=1)
        assert result.images.shape == (2, 2, 3, 16, 16)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 2 * 2 * 3 * 4 * 2
        assert cost.reward_calls == 2 * 2 * 3 * 3  # not at the first step
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=2, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        with pytest.raises(ValueError, match="m must be at least 1"):
            SVDD(0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            SVDD(2).draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)
