"""Refinement starts from the best members of a bank and keeps the best of its results."""

import pytest
from tiny_lidar import PROMPTS, make

from lidar_sampling import testing
from lidar_sampling.methods import BestOf, Refine, Vanilla
from lidar_sampling.solvers import Solver, load


class TestRefine:
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_starts_from_the_best_members(self, make_pipe):
        lidar = make(make_pipe=make_pipe)
        refined = Refine(n=6, steps=4, strength=0.5).draw(lidar, PROMPTS, images=2, seed=1)
        starts = BestOf(Vanilla(solver=load("dpm:3")), 6).draw(lidar, PROMPTS, images=2, seed=1)
        barely = Refine(n=6, steps=1, strength=0.01).draw(lidar, PROMPTS, images=2, seed=1)
        near, far = ((r.latents - starts.latents).norm() for r in (barely, refined))
        assert near < 0.5 * far
        assert refined.cost["sampling"].network_evaluations == 4 * 4 * 2
        assert refined.cost["lookahead"].network_evaluations == 12 * 3 * 2
        assert refined.cost["selection"].reward_calls == 12
        assert refined.images.shape == (2, 2, 3, 16, 16)

    def test_starts_from_a_lookahead_of_ones_own(self):
        lidar = make(lookahead=Solver("mine:2", steps=2, scheduler="EulerDiscreteScheduler"))
        assert Refine(n=3, steps=2).draw(lidar, PROMPTS, images=1, seed=1).cost["lookahead"].network_evaluations == 24

    def test_keeps_the_best_of_its_offspring(self):
        lidar = make()
        kept = lidar.judge(Refine(n=4, steps=2, offspring=3).draw(lidar, PROMPTS, images=2, seed=1))
        assert kept.cost["selection"].reward_calls == 8 + 12
        assert kept.cost["sampling"].network_evaluations == 12 * 2 * 2
        lone = lidar.judge(Refine(n=4, steps=2).draw(lidar, PROMPTS, images=2, seed=1))
        assert kept.rewards["brightness"].mean() > lone.rewards["brightness"].mean()
        with pytest.raises(ValueError, match=r"strength must be in \(0, 1\], got 0.0"):
            Refine(strength=0.0)
