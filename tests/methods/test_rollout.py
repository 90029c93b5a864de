"""One rollout is DDIM by hand; several are samples of the posterior."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from oracle import make_perfect, shares, total_variation
from tiny_lidar import make

from lidar_sampling import LiDAR, expected_future_reward, testing
from lidar_sampling._cost import meter
from lidar_sampling._decode import decode
from lidar_sampling._draw import Item
from lidar_sampling._hooks import Step
from lidar_sampling._levels import NoiseLevel, clean_prediction, noise_level
from lidar_sampling.methods import SVDD, load
from lidar_sampling.methods._rollout import Rollout
from lidar_sampling.methods.svdd import Proposals


class TestRollout:
    def start(self, lidar, count, **how):
        """Return a rollout and its arguments: ``count`` samples at the second of the sampler's steps."""
        scheduler = lidar.pipe.scheduler
        scheduler.set_timesteps(lidar.settings.steps)
        t = scheduler.timesteps[1]
        level = noise_level(scheduler, t)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(count, 1, 1, 1)
        x = level.sigma * x
        rollout = Rollout(lidar, [Item("a cat", k) for k in range(count)], **how)
        return rollout, (scheduler, t, x), level

    def test_one_is_ddim_by_hand(self):
        lidar = make(steps=4)
        pipe = lidar.pipe
        rollout, (scheduler, t, x), _ = self.start(lidar, 2, steps=3)
        words, nothing = pipe.encode_prompt(["a cat", "a cat"], "cpu", 1, True)

        def predict(x, t):
            with torch.no_grad():
                free, bound = (
                    pipe.unet(x, t, encoder_hidden_states=e, return_dict=False)[0] for e in (nothing, words)
                )
            return free + 3.0 * (bound - free)

        abar = scheduler.alphas_cumprod
        times = [int(t), int(t) * 2 // 3, int(t) // 3]
        by_hand = x
        for here, there in zip(times, [*times[1:], None], strict=True):
            eps = predict(by_hand, here)
            x0 = (by_hand - (1 - abar[here]).sqrt() * eps) / abar[here].sqrt()
            to = abar[there] if there else torch.tensor(1.0)
            by_hand = to.sqrt() * x0 + (1 - to).sqrt() * eps
        x0 = clean_prediction(noise_level(scheduler, t), predict(x, t), x)
        with meter(pipe, "sampling") as cost:
            at = Step.of(x, x0, noise_level(scheduler, t), timestep=t, scheduler=scheduler)
            ends = rollout(at)
        torch.testing.assert_close(ends, by_hand, rtol=1e-4, atol=1e-4)
        assert cost.network_evaluations == 2 * 2 * 2  # two steps of two samples, with classifier-free guidance
        assert lidar.pipe.scheduler is scheduler
        assert len(scheduler.timesteps) == 4
        assert torch.equal(Rollout(lidar, [Item("a cat", 0)] * 2, steps=1)(at), x0)

    def test_several_are_samples_of_the_posterior(self):
        """For a perfect model, shares are the posterior's, and the soft value is the expected future reward."""
        lidar = make(steps=4, guidance_scale=1.0, batch_size=1000)
        samples = 0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        make_perfect(lidar.pipe, samples)
        rollout, (scheduler, t, x), level = self.start(lidar, 1, steps=12, samples=1000)
        distance = torch.cdist(x.flatten(1), level.alpha * samples.flatten(1)).square()
        posterior = (-distance / (2 * level.sigma**2)).softmax(1)[0]
        x0 = (posterior @ samples.flatten(1)).view(1, 4, 8, 8)
        ends = rollout(Step.of(x, x0, noise_level(scheduler, t), timestep=t, scheduler=scheduler))
        law = shares(ends.flatten(1), samples.flatten(1))
        assert posterior.max() < 0.8
        assert total_variation(law, posterior) < 0.06

        rewards = torch.arange(4.0)
        exact = expected_future_reward(x, samples, rewards, alpha=level.alpha, sigma=level.sigma, reward_scale=1.5)
        seen = rewards[torch.cdist(ends.flatten(1), samples.flatten(1)).argmin(1)]
        hook = Proposals(SVDD(1, 1 / 1.5, rollout_steps=12, rollouts=1000), None, [0])
        value = 1.5 * hook.values(seen.double()[None])
        torch.testing.assert_close(value.float(), exact, rtol=0, atol=0.1)

    def test_one_of_a_flow_model_is_its_own_pipeline_from_there_on(self):
        pipe = testing.tiny_stable_diffusion_3()
        lidar = LiDAR(pipe, reward="brightness", steps=4, n=2, lookahead="own:2", reward_scale=1.0)
        x, x0 = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        at = Step.of(x, x0, NoiseLevel(0.1, 0.9, -1.0, 1.0, 0.9), timestep=900.0, scheduler=pipe.scheduler)
        ends = Rollout(lidar, [Item("a cat", k) for k in range(2)], steps=3)(at)
        after = x + (0.6 - 0.9) * (x - x0) / 0.9  # Euler's step
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        call = {**lidar.arguments(), "sigmas": [0.6, 0.3], "num_inference_steps": 2, "output_type": "latent"}
        expected = pipe(["a cat"] * 2, latents=after, **call).images
        torch.testing.assert_close(ends, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
    def test_does_not_depend_on_the_coordinates_of_the_sampler(self, scheduler):
        """It does not depend on the spacing either: a rollout starts from the level of the sample."""
        lidar = make(scheduler, steps=4, eta=None, noise="ddpm")
        steps = lidar.pipe.scheduler
        steps.set_timesteps(timesteps=[900, 600]) if scheduler.startswith("Euler") else steps.set_timesteps(4)
        t = 900
        level = noise_level(steps, torch.tensor(float(t)))
        z, x0 = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        at = Step.of(level.alpha * x0 + level.sigma * z, x0, level, timestep=t, scheduler=steps)
        ends = Rollout(lidar, [Item("a cat", k) for k in range(2)], steps=3)(at)
        plain = make(steps=4).pipe.scheduler
        level = noise_level(plain, t)
        at = Step.of(level.alpha * x0 + level.sigma * z, x0, level, timestep=t, scheduler=plain)
        expected = Rollout(make(steps=4), [Item("a cat", k) for k in range(2)], steps=3)(at)
        torch.testing.assert_close(ends, expected, rtol=0, atol=1e-3)

    def test_values_of_rollouts_find_the_best_member_at_their_cost(self):
        """Tested through the sampler with a perfect model."""

        def share(**how):
            lidar = make(steps=6, guidance_scale=1.0, eta=1.0, batch_size=64, reward=nearest)
            make_perfect(lidar.pipe, samples)
            result = SVDD(4, **how).draw(lidar, ["a cat"], images=24, seed=0)
            return shares(result.latents[0].flatten(1), samples.flatten(1))[0].item(), result.cost["sampling"]

        samples = 0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        pictures = decode(testing.tiny_stable_diffusion(), samples).flatten(1)

        def nearest(*, images, prompts):
            return (torch.cdist(images.flatten(1), pictures).argmin(1) == 0).float()

        plain, cost = share()
        rolled, rolled_cost = share(rollout_steps=3)
        efr, efr_cost = share(temperature=0.1, rollout_steps=3, rollouts=4)
        assert min(plain, rolled, efr) > 0.5  # measured .75, .88 and .75, of 24 samples
        assert rolled_cost.reward_calls == cost.reward_calls == 24 * 4 * 5
        assert efr_cost.reward_calls == 4 * cost.reward_calls
        assert cost.network_evaluations == 24 * 4 * 6
        assert rolled_cost.network_evaluations <= cost.network_evaluations + 24 * 4 * 5 * 2
        assert efr_cost.network_evaluations <= cost.network_evaluations + 24 * 4 * 5 * 2 * 4

    def test_refusals(self):
        with pytest.raises(ValueError, match="several rollouts need several rollout_steps, got 2 rollouts of 1 step"):
            SVDD(4, rollouts=2)
        inverted = LiDAR(testing.PIPELINES["mochi"].make(), reward="brightness", n=2, steps=3, lookahead="own:2")
        with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler do not say how noisy a sample is"):
            SVDD(2, rollout_steps=2).draw(inverted, ["a cat"], images=1, seed=0)


@pytest.mark.parametrize("name", ["svdd-2:rollout_steps=2", "beam-1x2@2"])
def test_arguments_of_each_prompt_reach_the_rollouts(name):
    both = make(steps=3, pipe_kwargs={"negative_prompt": ["ugly", "blurred"]})
    one = make(steps=3, pipe_kwargs={"negative_prompt": "blurred"})
    ours = load(name).draw(both, ["a cat", "a dog"], images=1, seed=0)
    alone = load(name).draw(one, ["a dog"], images=1, seed=0)
    torch.testing.assert_close(ours.images[1], alone.images[0], rtol=0, atol=1e-5)
