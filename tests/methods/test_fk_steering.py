"""FK steering follows the tilted law on a perfect model, whatever the potential."""

from contextlib import nullcontext

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, sample, shares, smooth_reward, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling import guide, testing
from lidar_sampling._decode import decode
from lidar_sampling._hooks import attached
from lidar_sampling.methods import FKSteering
from lidar_sampling.methods.fk_steering import Particles
from lidar_sampling.rewards import Mixture


class TestFKSteering:
    """Particles over a perfect model of four equally likely members must come to follow softmax(lambda r)."""

    STEPS, LAMBDA = 30, 0.75

    def endpoints(self, k, *, populations=None, guided=0.0, **settings):
        bank = bank_of_four()
        scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)

        count = populations or 2048 // k
        how = FKSteering(reward_scale=self.LAMBDA, floor=-10.0, **settings)
        particles = Particles(how, smooth_reward(bank), self.STEPS, list(range(count)))
        lidar = guide(scheduler, bank, scale=1.0, reward_scale=guided, window=(1.0, 0.0)) if guided else nullcontext()
        with lidar, attached(scheduler, particles):
            ends = sample(scheduler, bank.samples, chains=count * k, steps=self.STEPS)
        return shares(ends, bank.samples), particles

    def target(self):
        return (self.LAMBDA * bank_of_four().reward()).softmax(0)

    @pytest.mark.parametrize(
        ("potential", "settings"),
        [
            ("difference", {}),
            ("max", {}),
            ("rt", {}),
            ("sum", {"start": 0.4, "end": 0.4}),  # weighed by sums of five, 256 particles would die out
        ],
    )
    def test_converges_to_the_tilted_law(self, potential, settings):
        laws = (self.endpoints(k, potential=potential, **settings)[0] for k in (2, 256))
        few, many = (total_variation(law, self.target()) for law in laws)
        assert many < 0.08, many
        assert few > many + 0.05

    def test_one_particle_is_the_model_itself(self):
        law, _ = self.endpoints(1)
        assert total_variation(law, torch.full((4,), 0.25)) < 0.05

    def test_resampling_when_it_pays_converges_too(self):
        law, _ = self.endpoints(256, potential="difference", adaptive=True)
        assert total_variation(law, self.target()) < 0.08

    def test_of_the_guided_sampler_converges_to_the_product_of_both_tilts(self):
        """Of guidance by lambda / 2 and weights by lambda."""
        law, _ = self.endpoints(256, guided=0.375)
        target = (1.5 * self.LAMBDA * bank_of_four().reward()).softmax(0)
        assert total_variation(law, target) < 0.08
        assert total_variation(law, self.target()) > 0.1
        assert self.endpoints(1, guided=0.375)[0][3] > 0.3  # one particle is LiDAR itself

    def test_of_the_guided_sampler_costs_a_bank_too(self):
        lidar = make()
        result = FKSteering(reward_scale=200.0, guided=True).draw(lidar, PROMPTS, images=4, seed=1)
        plain = FKSteering(reward_scale=200.0).draw(lidar, PROMPTS, images=4, seed=1)
        assert result.cost["lookahead"].network_evaluations == 2 * 6 * 3 * 2
        for name in ("network_evaluations", "reward_calls", "decodes"):
            assert getattr(result.cost["sampling"], name) == getattr(plain.cost["sampling"], name)
        assert len(result.banks) == 2
        assert len(result.trace.steps) > 0
        alone = FKSteering(guided=True).draw(lidar, PROMPTS, images=1, seed=1)
        torch.testing.assert_close(alone.images, lidar(PROMPTS, images=1, seed=1).images, rtol=0, atol=1e-5)

    def test_looks_at_the_published_steps(self):
        _, particles = self.endpoints(4, populations=2)
        assert particles._times == {6, 12, 18, 24, 29}
        assert particles.evaluations == 5 * 8

    def test_through_the_sampler(self):
        lidar = make(batch_size=4)
        steered = FKSteering(reward_scale=200.0).draw(lidar, PROMPTS, images=4, seed=1)
        whole = FKSteering(reward_scale=200.0).draw(make(batch_size=64), PROMPTS, images=4, seed=1)
        torch.testing.assert_close(steered.latents, whole.latents, rtol=1e-3, atol=1e-2)
        judged, plain = lidar.judge(steered), lidar.vanilla(PROMPTS, images=4, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert steered.cost["sampling"].reward_calls == 8 * 4  # the fourth of five steps is the last as well
        assert steered.cost["sampling"].decodes == 8 + 8 * 4

    def test_refusals(self):
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            FKSteering().draw(make("PNDMScheduler"), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match="give the mixture a calibration"):
            FKSteering().draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=2, seed=0)
        with pytest.raises(TypeError, match="no plain latents"):
            decode(testing.tiny_flux(), torch.zeros(1, 16, 16))
