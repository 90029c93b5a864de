"""DATE moves the text embedding along the gradient of finite differences, by rho."""

import pytest
import torch
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._levels import clean_prediction, noise_level
from lidar_sampling.methods import DATE
from lidar_sampling.methods.date import Embedding


class TestDATE:
    def embedding(self, rho=0.1, **how):
        """Return an adapted network in float64, and its arguments: two samples, with classifier-free guidance."""
        pipe = make(steps=4).pipe.to(torch.float64)
        pipe.scheduler.set_timesteps(4)
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64)
        c = torch.randn(4, 5, pipe.unet.config.cross_attention_dim, generator=g, dtype=torch.float64)

        def rewards(x0):
            return pipe.vae.decode(x0, return_dict=False)[0].square().flatten(1).sum(1)

        adapted = Embedding(DATE(rho, **how), pipe.unet, pipe.scheduler, rewards, 2, 3.0)
        return adapted, pipe, x, c, rewards

    def test_its_direction_is_that_of_finite_differences_and_its_length_rho(self):
        adapted, pipe, x, c, rewards = self.embedding(rho=0.3)
        t = pipe.scheduler.timesteps[0]
        level = noise_level(pipe.scheduler, t)

        @torch.no_grad()
        def total(bound):
            free, cond = pipe.unet(
                x.repeat(2, 1, 1, 1), t, encoder_hidden_states=torch.cat([c[:2], bound]), return_dict=False
            )[0].chunk(2)
            return rewards(clean_prediction(level, free + 3.0 * (cond - free), x))

        def along(v, h=1e-4):
            return (total(c[2:] + h * v) - total(c[2:] - h * v)) / (2 * h)

        with adapted, torch.no_grad():
            output = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=c, return_dict=False)[0]
        torch.testing.assert_close(adapted.shift.flatten(1).norm(dim=1), torch.full((2,), 0.3, dtype=torch.float64))
        unit = adapted.shift / 0.3
        steepest = along(unit)  # the norm of the gradient of each sample
        for seed in range(3):
            v = torch.randn(c[2:].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            expected = steepest * (v * unit).flatten(1).sum(1)
            torch.testing.assert_close(along(v), expected, rtol=1e-5, atol=1e-8)
        with torch.no_grad():
            new = torch.cat([c[:2], c[2:] + adapted.shift])
            plain = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=new, return_dict=False)[0]
        torch.testing.assert_close(output, plain)
        assert "forward" not in vars(pipe.unet)

    def test_updates_add_up_and_last(self):
        adapted, pipe, x, c, _ = self.embedding(every=2)
        shifts = []
        with adapted, torch.no_grad():
            for t in pipe.scheduler.timesteps:
                output = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=c, return_dict=False)[0]
                shifts.append(adapted.shift)
        assert torch.equal(shifts[0], shifts[1])
        assert torch.equal(shifts[2], shifts[3])
        step = (shifts[2] - shifts[0]).flatten(1).norm(dim=1)
        torch.testing.assert_close(step, torch.full((2,), 0.1, dtype=torch.float64))
        with torch.no_grad():
            new = torch.cat([c[:2], c[2:] + shifts[3]])
            plain = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=new, return_dict=False)[0]
        torch.testing.assert_close(output, plain)

    @pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_without_strength_is_the_pipeline(self, make_pipe, scheduler, guidance_scale):
        lidar = make(scheduler, make_pipe=make_pipe, guidance_scale=guidance_scale)
        free = DATE(0.0).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla(PROMPTS, images=2, seed=1).images, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("key", ["sd3", "pixart-sigma", "sana"])
    def test_without_strength_is_the_pipeline_of_a_transformer(self, key):
        tiny = testing.PIPELINES[key]
        lidar = LiDAR(tiny.make(), reward="brightness", steps=3, pipe_kwargs=tiny.call)
        free = DATE(0.0).draw(lidar, ["a cat"], images=2, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla("a cat", images=2, seed=1).images, rtol=0, atol=1e-5)
        assert free.cost["sampling"].backward_passes > 0

    @pytest.mark.parametrize(("guidance_scale", "branches"), [(3.0, 2), (1.0, 1)])
    def test_raises_the_reward_at_its_cost_and_leaves_the_pipeline_as_it_was(self, guidance_scale, branches):
        lidar = make(guidance_scale=guidance_scale, batch_size=3)
        lidar.pipe.unet.requires_grad_(True)
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        result = lidar.judge(DATE(5.0, every=2).draw(lidar, PROMPTS, images=2, seed=1))
        assert result.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert not result.images.requires_grad
        assert all(p.requires_grad for p in lidar.pipe.unet.parameters())
        assert "forward" not in vars(lidar.pipe.unet)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 4 * (5 * branches + 3)  # updates at steps 0, 2 and 4
        assert cost.backward_passes == cost.reward_calls == 4 * 3
        assert cost.decodes == 4 * 3 + 4

    def test_draws_from_packed_latents_too(self):
        flux = LiDAR(testing.tiny_flux(), reward="brightness", steps=2, pipe_kwargs={"height": 16, "width": 16})
        assert DATE().draw(flux, ["a cat"], images=1, seed=0).images.isfinite().all()
        assert "forward" not in vars(flux.pipe.transformer)

    def test_refusals(self):
        with pytest.raises(ValueError, match="DATE needs the gradient of the reward"):
            DATE().draw(make(reward="jpeg-compressibility"), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="every must be at least 1, got 0"):
            DATE(every=0)
        modular = LiDAR(testing.tiny_modular_stable_diffusion_xl(), reward="brightness", steps=2)
        with pytest.raises(TypeError, match="DATE needs a classic pipeline"):
            DATE().draw(modular, ["a cat"], images=1, seed=0)
