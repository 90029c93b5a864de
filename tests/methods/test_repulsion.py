"""Safe-Denoiser and SPELL shift predictions as worked by hand, away from the worst members."""

import math
from dataclasses import replace

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, before, sample, shares
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._hooks import attach
from lidar_sampling._levels import NoiseLevel, clean_prediction, noise_level
from lidar_sampling.methods import SafeDenoiser, Spell
from lidar_sampling.methods.repulsion import Repulsion
from lidar_sampling.rewards import Mixture


class TestRepulsion:
    def test_safe_denoiser_by_hand(self):
        """Weights 3/4 and 1/4: the members' distances to x_t differ by 2 log 3."""
        level = NoiseLevel(alpha=1.0, sigma=1.0, slope=-1.0, tilt=1.0, time=0.5)
        members = torch.tensor([[0.0, 0.0], [(2 * math.log(3)) ** 0.5, 0.0]])
        shift = SafeDenoiser(2.0, 2, 0.25).shift(torch.zeros(2), torch.tensor([1.0, 4.0]), members, level)
        torch.testing.assert_close(shift, 0.5 * torch.tensor([1 - members[1, 0].item() / 4, 4.0]))

    def test_spell_by_hand(self):
        level = NoiseLevel(alpha=1.0, sigma=1.0, slope=-1.0, tilt=1.0, time=0.5)
        x0, members = torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 0.0], [3.0, 0.0], [100.0, 0.0]])
        shift = Spell(1.0, 3, 10.0).shift(x0, x0, members, level)
        torch.testing.assert_close(shift, 1.0 * torch.tensor([3.0, 4.0]) + 1.5 * torch.tensor([0.0, 4.0]))
        alone = Spell(1.0, 1, 10.0).shift(x0, x0, members[:1], level)
        torch.testing.assert_close((x0 + alone).norm(), torch.tensor(10.0))  # to the rim
        assert torch.equal(Spell(1.0, 1, 5.0).shift(x0, x0, members[:1], level), torch.zeros(2))
        assert torch.equal(Spell().shift(x0, x0, x0[None], level), torch.zeros(2))  # no direction leads away

    @pytest.mark.parametrize("method", [SafeDenoiser(5.0, 2, 0.1), Spell(0.3, 2, 8.0)])
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
    def test_a_perfect_model_leaves_the_worst_members(self, method, prediction_type):
        bank = bank_of_four()
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type=prediction_type)
        hook = Repulsion([bank.samples[:2]] * 512, method.shift)
        with attach(scheduler, hook):
            ends = sample(scheduler, bank.samples, chains=512, steps=30, eta=1.0)
        free = sample(scheduler, bank.samples, chains=512, steps=30, eta=1.0)
        worst, before = (shares(x, bank.samples)[:2].sum() for x in (ends, free))
        assert worst < before - 0.1

    def test_the_prediction_moves_by_the_shift(self):
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        output, x = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
        level = noise_level(scheduler, scheduler.timesteps[3])
        hook = Repulsion([x, x], lambda x_t, x0, members, level: x0 + members[0])
        _, moved = before(hook, scheduler, output, x, scheduler.timesteps[3])
        x0 = clean_prediction(level, output, x)
        torch.testing.assert_close(clean_prediction(level, moved, x), 2 * x0 + x[0])

    @pytest.mark.parametrize("method", [SafeDenoiser(0.0, 3), Spell(0.0, 3, 1e4)])
    def test_through_the_sampler(self, method):
        lidar = make()
        result = method.draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(result.images, lidar.vanilla(PROMPTS, images=2, seed=1).images, rtol=0, atol=1e-5)
        assert result.cost["lookahead"].network_evaluations == 2 * 6 * 3 * 2
        assert result.cost["sampling"].network_evaluations == 4 * 5 * 2
        strong = replace(method, scale=1.0)
        assert not torch.equal(strong.draw(lidar, PROMPTS, images=2, seed=1).images, result.images)
        mixed = strong.draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=2, seed=1)
        torch.testing.assert_close(mixed.images, strong.draw(lidar, PROMPTS, images=2, seed=1).images)
        with pytest.raises(ValueError, match="at most n = 6, the size of the bank, got 7"):
            replace(method, worst=7).draw(lidar, PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="worst must be at least 1, got 0"):
            replace(method, worst=0)

    def test_of_a_bank_of_equal_rewards_says_so(self, said):
        def same(*, images, prompts):
            return torch.ones(len(images))

        Spell(worst=2).draw(make(reward=same), ["a cat"], images=1, seed=0)
        (told,) = said()
        assert told.startswith("constant reward: same gives all 6 members of the bank of 'a cat' the same 1")

    @pytest.mark.parametrize("method", [SafeDenoiser(), Spell()])
    def test_from_the_whole_bank_says_so(self, method, said):
        lidar = make()
        replace(method, worst=5).draw(lidar, PROMPTS, images=1, seed=0)
        assert not said()
        replace(method, worst=6).draw(lidar, PROMPTS, images=1, seed=0)
        assert said() == ["worst=6 is the whole bank: samples keep away from its best members, too"]

    def test_of_packed_latents(self):
        flux = LiDAR(testing.tiny_flux(), reward="brightness", n=3, steps=2, pipe_kwargs={"height": 16, "width": 16})
        result = SafeDenoiser(worst=2).draw(flux, ["a cat"], images=1, seed=0)
        assert result.images.shape == (1, 1, 3, 16, 16)
