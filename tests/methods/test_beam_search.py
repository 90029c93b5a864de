"""Beam search is the model for one beam of one candidate, SVDD for one beam, and climbs with more."""

from dataclasses import replace

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, sample, shares, smooth_reward, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling._hooks import attach
from lidar_sampling.methods import SVDD, BeamSearch
from lidar_sampling.methods.beam_search import Beams


class TestBeamSearch:
    def law(self, beams, candidates, *, count=512):
        bank = bank_of_four()
        scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)

        with attach(scheduler, Beams(BeamSearch(beams, candidates), smooth_reward(bank), list(range(count)))):
            ends = sample(scheduler, bank.samples, chains=count * beams * candidates, steps=30)
        return shares(ends[:: beams * candidates], bank.samples), shares(ends[::candidates], bank.samples)

    def test_climbs_to_the_best_member_and_one_beam_of_one_is_the_model(self):
        assert total_variation(self.law(1, 1)[0], torch.full((4,), 0.25)) < 0.07
        best = [self.law(*size)[0][3] for size in ((1, 2), (2, 2), (4, 2))]
        assert best[0] < best[1] < best[2]
        assert best[2] > 0.75

    def test_beams_without_rivals_keep_the_law_of_the_model(self):
        """With one candidate per beam all beams go on, the best first."""
        best, every = self.law(4, 1)
        assert total_variation(every, torch.full((4,), 0.25)) < 0.05
        assert best[3] > every[3] + 0.2

    @pytest.mark.parametrize("lookahead", [1, 3])
    def test_one_beam_is_greedy_svdd(self, lookahead):
        lidar = make(eta=1.0)
        beam = BeamSearch(1, 3, lookahead).draw(lidar, PROMPTS, images=1, seed=1)
        svdd = SVDD(3, rollout_steps=lookahead).draw(lidar, PROMPTS, images=1, seed=1)
        assert torch.equal(beam.images, svdd.images)
        measured = {"seconds": 0.0, "peak_memory": 0}  # the rest is counted
        assert replace(beam.cost["sampling"], **measured) == replace(svdd.cost["sampling"], **measured)

    def test_through_the_sampler(self):
        lidar = make(eta=1.0)
        result = BeamSearch(3, 2).draw(lidar, PROMPTS, images=2, seed=1)
        assert result.images.shape == (2, 2, 3, 16, 16)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 2 * 6 * 5 * 2
        assert (cost.reward_calls, cost.decodes) == (2 * 6 * 4, 2 * 6 * 4 + 12)
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=2, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert (judged.rewards["brightness"][:, 0] >= judged.rewards["brightness"][:, 1]).all()
        with pytest.raises(ValueError, match="images must be 1 to the 3 beams, got 4"):
            BeamSearch(3, 2).draw(lidar, PROMPTS, images=4, seed=1)
        with pytest.raises(ValueError, match="beams must be at least 1, got 0"):
            BeamSearch(0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            BeamSearch().draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)
