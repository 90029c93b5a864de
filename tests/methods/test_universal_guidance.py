"""Universal guidance has the gradient of finite differences; recurrence keeps the law."""

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, before, sample, shares, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._draw import _call, _call_with_graph
from lidar_sampling._hooks import Hook, attach
from lidar_sampling._levels import clean_prediction, noise_level
from lidar_sampling.methods import UniversalGuidance
from lidar_sampling.methods.universal_guidance import Gradient


class TestUniversalGuidance:
    def test_without_strength_is_the_pipeline(self):
        lidar = make()
        free = UniversalGuidance(0.0).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla(PROMPTS, images=2, seed=1).images, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_its_gradient_is_that_of_finite_differences(self, make_pipe):
        """d r(decode(x0(x_t))) / d x_t at the first step, along random directions, in float64."""
        lidar = make(make_pipe=make_pipe, steps=2)
        lidar.pipe.to(torch.float64)
        pipe = lidar.pipe
        seen = {}

        class Spy(Hook):
            def before(self, step):
                if "total" not in seen:
                    seen["level"], seen["total"] = step.level, decode64(pipe, step.x0).square().sum()
                    if step.x0.requires_grad:
                        (seen["gradient"],) = torch.autograd.grad(seen["total"], step.x_t, retain_graph=True)
                return step.without_graph()

            def after(self, step, x):
                return x.detach().requires_grad_()

        def decode64(pipe, x0):
            decoded = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor, return_dict=False)[0]
            return decoded / 2 + 0.5

        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def first(call, latents):
            seen.clear()
            with attach(pipe.scheduler, Spy()):
                call(pipe, prompt=["a cat"], latents=latents, **lidar.arguments(output_type="pt"))
            return dict(seen)

        # Pipelines multiply the latents they are given by init_noise_sigma, which is 1 here.
        analytic = first(_call_with_graph, x.clone())["gradient"]
        for seed in range(3):
            v = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            v /= v.norm()
            h = 1e-5
            up, down = (first(_call, x + s * h * v)["total"] for s in (1, -1))
            torch.testing.assert_close((up - down) / (2 * h), (analytic * v).sum(), rtol=1e-5, atol=1e-8)

    def test_moves_the_score_by_lambda_times_the_gradient(self):
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        output = (0.3 * x).sin()
        t = scheduler.timesteps[3]
        level = noise_level(scheduler, t)
        gradient = torch.autograd.grad(clean_prediction(level, output, x).square().sum(), x, retain_graph=True)[0]
        hook = Gradient(UniversalGuidance(3.0), lambda x0: x0.square().sum())
        _, moved = before(hook, scheduler, output, x, t)
        torch.testing.assert_close(moved - output.detach(), -level.sigma * 3.0 * gradient)  # eps' = eps - sigma s

    def test_raises_the_reward_and_leaves_the_pipeline_as_it_was(self):
        lidar = make()
        lidar.pipe.unet.requires_grad_(True)
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        guided = lidar.judge(UniversalGuidance(300.0).draw(lidar, PROMPTS, images=2, seed=1))
        assert guided.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert not guided.images.requires_grad
        assert not guided.latents.requires_grad
        assert all(p.requires_grad for p in lidar.pipe.unet.parameters())
        assert "prepare_latents" not in vars(lidar.pipe)
        cost = guided.cost["sampling"]
        assert cost.backward_passes == cost.network_evaluations == 4 * 5 * 2
        assert cost.reward_calls == 4 * 5

    def test_backward_moves_the_prediction_by_the_rate_and_costs_no_backward_pass(self):
        """A first step of Adam has the length of the rate in every coordinate, and the sign of the gradient."""
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        output, x = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        t = scheduler.timesteps[3]
        level = noise_level(scheduler, t)
        unmoved = clean_prediction(level, output, x)
        for steps, bound in ((1, 1e-6), (4, 0.01)):
            hook = Gradient(UniversalGuidance(0.0, steps, backward_rate=0.05), lambda x0: x0.square().sum())
            with torch.no_grad():
                _, moved = before(hook, scheduler, output, x, t)
            step = clean_prediction(level, moved, x) - unmoved
            torch.testing.assert_close(step, 0.05 * steps * unmoved.sign(), rtol=0, atol=bound)
            eps = output - level.alpha / level.sigma * step  # the paper's form: sqrt(abar / (1 - abar)) Delta
            torch.testing.assert_close(moved, eps)
            assert hook.evaluations == 2 * steps

        lidar = make()
        guided = lidar.judge(UniversalGuidance(0.0, 3, backward_rate=0.1).draw(lidar, PROMPTS, images=2, seed=1))
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        assert guided.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        cost = guided.cost["sampling"]
        assert (cost.network_evaluations, cost.backward_passes) == (4 * 5 * 2, 0)
        assert (cost.reward_calls, cost.decodes) == (4 * 5 * 3, 4 * 5 * 3 + 4)

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_recurrence_leaves_the_law_of_a_perfect_model(self, eta):
        bank = bank_of_four()
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)

        hook = Gradient(UniversalGuidance(0.0, recurrence=3), torch.sum)
        with attach(scheduler, hook):
            ends = sample(scheduler, bank.samples, chains=1024, steps=30, eta=eta)
        assert hook.taken == 90 * 1024
        assert total_variation(shares(ends, bank.samples), torch.full((4,), 0.25)) < 0.05
        assert torch.cdist(ends, bank.samples).amin(1).max() < 0.5

    def test_recurrence_noises_back_to_the_level_before(self):
        """Any exact samples of x_s get the mean and variance of x_t."""
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        t, s = scheduler.timesteps[4:6]
        abar_t, abar_s = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[s]
        g = torch.Generator().manual_seed(0)
        x_s = abar_s.sqrt() * 3.0 + (1 - abar_s).sqrt() * torch.randn(100_000, 1, generator=g)
        hook = Gradient(UniversalGuidance(0.0, recurrence=2), torch.sum)
        step, _ = before(hook, scheduler, x_s, x_s, t, generator=g)
        x_t = hook.after(step, x_s)
        torch.testing.assert_close(x_t.mean(), abar_t.sqrt() * 3.0, rtol=0, atol=0.02)
        torch.testing.assert_close(x_t.var(), 1 - abar_t, rtol=0.02, atol=0)
        step, _ = before(hook, scheduler, x_s, x_s, t, index=1, generator=g)
        assert torch.equal(hook.after(step, x_s), x_s)

    def test_recurrence_through_the_sampler(self):
        lidar = make()
        result = UniversalGuidance(300.0, 1, recurrence=2).draw(lidar, PROMPTS, images=2, seed=1)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == cost.backward_passes == 4 * 5 * 2 * 2
        assert cost.reward_calls == 4 * 5 * 2 * 2
        assert len(lidar.pipe.scheduler.timesteps) == 10  # of the last run; the next one chooses its own
        with pytest.raises(ValueError, match="takes steps again with DDIMScheduler alone, got PNDMScheduler"):
            UniversalGuidance(recurrence=2).draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)

    def test_recurrence_refuses_a_scheduler_that_takes_a_step_twice_by_itself(self):
        lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", steps=5, noise="ddpm")
        with pytest.raises(ValueError, match="PNDMScheduler takes one twice by itself: use another scheduler"):
            UniversalGuidance(recurrence=2).cost(lidar, images=1)

    def test_refusals(self):
        with pytest.raises(ValueError, match="'jpeg-compressibility' has none"):
            UniversalGuidance().draw(make(reward="jpeg-compressibility"), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="recurrence must be at least 1, got 0"):
            UniversalGuidance(recurrence=0)
        with pytest.raises(ValueError, match="backward_rate must be above 0, got 0"):
            UniversalGuidance(backward_steps=1, backward_rate=0)
