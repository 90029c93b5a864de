"""Best-of-N keeps the best of its samples unchanged, and has the law of a maximum."""

import pytest
import torch
from tiny_lidar import PROMPTS, make

from lidar_sampling.methods import BestOf, Guided, Vanilla
from lidar_sampling.rewards import Mixture


class TestBestOf:
    def test_keeps_the_best_of_the_same_samples(self):
        lidar = make()
        kept = lidar.judge(BestOf(Vanilla(), 5).draw(lidar, PROMPTS, images=2, seed=1))
        scores = lidar.vanilla(PROMPTS, images=5, seed=1).rewards["brightness"]
        torch.testing.assert_close(kept.rewards["brightness"], scores.sort(1, descending=True).values[:, :2])
        assert kept.cost["selection"].reward_calls == 10

    def test_has_the_law_of_a_maximum(self):
        """P(the best of 3 uniform ranks is the k-th of m) = C(k - 1, 2) / C(m, 3), over all triples of a pool."""
        ranks = torch.combinations(torch.arange(7), 3).amax(1)
        law = torch.bincount(ranks, minlength=7) / len(ranks)
        expected = torch.tensor([k * (k - 1) / 2 for k in range(7)]) / 35
        torch.testing.assert_close(law, expected)
        lidar = make()
        pool = lidar.vanilla("a cat", images=7, seed=1).rewards["brightness"][0]
        for n in range(1, 8):
            best = lidar.judge(BestOf(Vanilla(), n).draw(lidar, ["a cat"], images=1, seed=1))
            torch.testing.assert_close(best.rewards["brightness"].item(), pool[:n].max().item())

    def test_of_guided_samples_and_of_a_mixture(self):
        lidar = make(reward=Mixture({"brightness": 1.0}))
        kept = lidar.judge(BestOf(Guided(), 4).draw(lidar, PROMPTS, images=2, seed=1))
        assert set(kept.cost) == {"lookahead", "sampling", "selection", "scoring"}
        guided = lidar(PROMPTS, images=4, seed=1).rewards["brightness"]
        torch.testing.assert_close(kept.rewards["brightness"], guided.sort(1, descending=True).values[:, :2])

    def test_of_guided_samples_keeps_their_trace(self):
        lidar = make(reward_scale="auto")
        kept = BestOf(Guided(), 4).draw(lidar, PROMPTS, images=1, seed=1)
        alone = [lidar(prompt, images=1, seed=1).trace.reward_scales for prompt in PROMPTS]
        assert [each.trace.reward_scales for each in kept.split()] == [
            pytest.approx(each, rel=1e-3) for each in alone
        ]
        assert alone[0] != pytest.approx(alone[1], rel=1e-2)
        every = lidar(PROMPTS, images=4, seed=1)
        best = every.rewards["brightness"].argmax(1)
        found, whole = (r.trace.steps[0].info.ess for r in (kept, every))
        assert torch.equal(found, whole.view(2, 4)[torch.arange(2), best])

    def test_refuses_to_keep_more_than_it_draws(self):
        with pytest.raises(ValueError, match="images must be 1 to n = 2, got 3"):
            BestOf(Vanilla(), 2).draw(make(), PROMPTS, images=3, seed=0)
