"""DAS follows the tilted law on a perfect model, with the published temper."""

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, sample, shares, smooth_reward, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling._hooks import attach
from lidar_sampling.methods import DAS
from lidar_sampling.methods.das import Tempered


class TestDAS:
    """As for FK steering, particles of a perfect model must follow softmax(lambda r)."""

    STEPS, LAMBDA = 30, 0.75

    def endpoints(self, k, **settings):
        bank = bank_of_four()
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)

        hook = Tempered(DAS(self.LAMBDA, **settings), smooth_reward(bank), list(range(2048 // k)), steps=self.STEPS)
        with attach(scheduler, hook):
            ends = sample(
                scheduler, bank.samples, chains=2048, steps=self.STEPS, eta=1.0, differentiable=True
            ).detach()
        return shares(ends, bank.samples), hook

    @pytest.mark.parametrize("settings", [{}, {"threshold": 1.0}, {"gamma": 0.03, "threshold": 1.0}])
    def test_converges_to_the_tilted_law(self, settings):
        target = (self.LAMBDA * bank_of_four().reward()).softmax(0)
        few, many = (total_variation(self.endpoints(k, **settings)[0], target) for k in (1, 256))
        assert many < 0.06, many  # measured .020 to .026, of 2,048 particles
        assert few > many + 0.08

    def test_without_strength_is_the_model_itself(self, monkeypatch):
        monkeypatch.setattr(self.__class__, "LAMBDA", 0.0)
        assert total_variation(self.endpoints(256)[0], torch.full((4,), 0.25)) < 0.05

    def test_the_temper_is_the_published_one(self):
        das = DAS()
        assert das.temper(0, 100) == 0
        assert das.temper(50, 100) == pytest.approx(1.008**50 - 1)
        assert das.temper(86, 100) < das.temper(87, 100) == das.temper(99, 100) == 1
        assert das.temper(25, 50) == das.temper(50, 100)

    def test_through_the_sampler(self):
        lidar = make(batch_size=4, eta=1.0)
        result = DAS(500.0).draw(lidar, PROMPTS, images=4, seed=1)
        whole = DAS(500.0).draw(make(batch_size=64, eta=1.0), PROMPTS, images=4, seed=1)
        torch.testing.assert_close(result.latents, whole.latents, rtol=1e-3, atol=1e-2)
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=4, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 8 * 5 * 2
        assert cost.backward_passes == 8 * 4 * 2
        assert (cost.reward_calls, cost.decodes) == (8 * 5, 8 * 5 + 8)
        free = DAS(0.0).draw(lidar, PROMPTS, images=1, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla(PROMPTS, images=1, seed=1).images, rtol=0, atol=1e-5)

    def test_refusals(self):
        with pytest.raises(ValueError, match="proposes steps with DDIMScheduler alone, got DDPMScheduler"):
            DAS().draw(make("DDPMScheduler"), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match="eta=0 has none: set eta above 0"):
            DAS().draw(make(eta=0.0), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match="DAS needs the gradient"):
            DAS().draw(make(reward="jpeg-compressibility"), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 2"):
            DAS(threshold=2)
