"""Plain sampling is the pipeline, in any number of steps."""

import torch
from tiny_lidar import PROMPTS, make

from lidar_sampling import testing
from lidar_sampling.methods import Vanilla
from lidar_sampling.solvers import load


class TestVanilla:
    def test_is_the_pipeline_in_any_number_of_steps(self):
        lidar = make()
        assert torch.equal(
            Vanilla().draw(lidar, PROMPTS, images=2, seed=1).images, lidar.vanilla(PROMPTS, images=2, seed=1).images
        )
        few = Vanilla(steps=2).draw(lidar, PROMPTS, images=2, seed=1)
        assert few.cost["sampling"].network_evaluations == 2 * 2 * 2 * 2

    def test_with_a_solver_takes_the_solvers_steps_whatever_noise_the_sampler_has(self):
        pipe = testing.tiny_stable_diffusion()
        drawn = [
            Vanilla(solver=load("dpm:3")).draw(make(make_pipe=lambda: pipe, noise=noise), PROMPTS, images=2, seed=1)
            for noise in (None, "ddpm")
        ]
        assert torch.equal(drawn[0].latents, drawn[1].latents)

    def test_with_a_solver_draws_what_a_bank_holds(self):
        lidar = make()
        scheduler = lidar.pipe.scheduler
        drawn = Vanilla(solver=load("dpm:3")).draw(lidar, PROMPTS, images=2, seed=1)
        assert drawn.cost["sampling"].network_evaluations == 4 * 3 * 2
        assert lidar.pipe.scheduler is scheduler
