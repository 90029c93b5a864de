"""Noise search starts from the pipeline's own noise and climbs from round to round."""

import pytest
import torch
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling.methods import NoiseSearch
from lidar_sampling.methods.noise_search import neighbours
from lidar_sampling.rewards import Mixture


class TestNoiseSearch:
    @pytest.mark.parametrize("cosine", [0.95, 0.0, 1.0, -1.0])
    def test_neighbours_keep_the_norm_and_the_cosine(self, cosine):
        pivots = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        around = neighbours(pivots, 5, cosine, [1, 2, 3]).flatten(2)
        x = pivots.flatten(1)[:, None].expand_as(around)
        torch.testing.assert_close(around.norm(dim=2), x.norm(dim=2))
        cosines = torch.cosine_similarity(around, x, dim=2)
        torch.testing.assert_close(cosines, torch.full((3, 5), cosine), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
    def test_starts_from_the_noise_of_the_pipeline(self, make_pipe, scheduler):
        """Neighbours at cosine 1 are the pivots themselves, so their samples are the plain ones."""
        lidar = make(scheduler, make_pipe=make_pipe, **({"eta": 0.0} if scheduler == "DDIMScheduler" else {}))
        plain = lidar.sample(PROMPTS, 2, 1)
        same = NoiseSearch(rounds=1, neighbours=1, cosine=1.0).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(same.images, plain.images, rtol=0, atol=1e-5)

    def test_starts_from_the_noise_of_a_pipeline_that_scales_it_by_the_data(self, monkeypatch):
        """SANA-Sprint multiplies its noise by sigma_data; the neighbour at cosine 1 must end like the pivot."""
        tiny = testing.PIPELINES["sana-sprint"]
        lidar = LiDAR(tiny.make(), reward="brightness", steps=2, noise="ddpm:0", pipe_kwargs=dict(tiny.call), n=2)
        drawn, sample = [], lidar.sample
        monkeypatch.setattr(lidar, "sample", lambda *a, **k: drawn.append(sample(*a, **k)) or drawn[-1])
        NoiseSearch(rounds=1, neighbours=1, cosine=1.0).draw(lidar, ["a cat"], images=1, seed=1)
        torch.testing.assert_close(drawn[1].images, drawn[0].images, rtol=0, atol=1e-5)

    def test_has_its_own_eta_whatever_the_settings_say_of_theirs(self):
        for eta in (0.0, 0.5):
            for settings in ({}, {"eta": None}):
                found = NoiseSearch(rounds=0, eta=eta).draw(make(**settings), PROMPTS, images=1, seed=1)
                plain = make(eta=eta).sample(PROMPTS, 1, 1)
                torch.testing.assert_close(found.images, plain.images, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("options", [{"scheduler": "EulerDiscreteScheduler"}, {"noise": "ddpm"}])
    def test_refuses_an_eta_that_no_step_takes(self, options):
        with pytest.raises(ValueError, match=r"eta=0\.5 of noise search has no effect: the steps of the sampler"):
            NoiseSearch(eta=0.5).draw(make(**options), PROMPTS, images=1, seed=1)

    def test_climbs_from_round_to_round(self):
        lidar = make()
        runs = [
            NoiseSearch(rounds=k, neighbours=3, cosine=0.9).draw(lidar, PROMPTS, images=2, seed=1) for k in range(4)
        ]
        rewards = torch.stack([lidar.judge(run).rewards["brightness"] for run in runs])
        assert (rewards.diff(dim=0) >= 0).all()
        assert (rewards[-1] > rewards[0]).all()
        plain = make(eta=0.0).vanilla(PROMPTS, images=2, seed=1)
        assert torch.equal(rewards[0], plain.rewards["brightness"])
        cost = runs[3].cost["sampling"]
        assert cost.network_evaluations == 4 * (1 + 3 * 3) * 5 * 2
        assert cost.reward_calls == cost.decodes == 4 * (1 + 3 * 3)

    def test_searches_do_not_see_each_other(self):
        lidar = make()
        search = NoiseSearch(rounds=2, neighbours=2)
        both = search.draw(lidar, PROMPTS, images=2, seed=1)
        one = search.draw(lidar, PROMPTS[1:], images=1, seed=1)
        torch.testing.assert_close(one.images[0, 0], both.images[1, 0], rtol=0, atol=1e-5)

    def test_of_packed_latents_and_refusals(self):
        flux = LiDAR(testing.tiny_flux(), reward="brightness", steps=2, pipe_kwargs={"height": 16, "width": 16})
        result = NoiseSearch(rounds=1, neighbours=2).draw(flux, ["a cat"], images=1, seed=0)
        assert result.images.shape == (1, 1, 3, 16, 16)
        with pytest.raises(ValueError, match="give the mixture a calibration"):
            NoiseSearch().draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match=r"cosine must be in \[-1, 1\], got 1\.5"):
            NoiseSearch(cosine=1.5)
