"""Stretches of a schedule join to the whole, wherever they start, and noising back reaches the stated level."""

import pytest
import torch
from oracle import make_perfect, shares, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._draw import items_of
from lidar_sampling.methods import load
from lidar_sampling.methods._checks import with_noise
from lidar_sampling.methods._stretches import Stretch, Stretches, back


def mean(*, images, prompts):
    return images.flatten(1).mean(1)


def of(key, **options):
    tiny = testing.PIPELINES[key]
    return LiDAR(tiny.make(), reward=mean, pipe_kwargs=dict(tiny.call), n=2, **{"steps": 4, **options})


class TestStretches:
    @pytest.mark.parametrize(
        "lidar",
        [
            lambda: make(steps=4, eta=0.0),
            lambda: make("EulerDiscreteScheduler", steps=4, noise="ddpm:0"),  # which scales its noise and its input
            lambda: make("LMSDiscreteScheduler", steps=4, noise="ddpm:0"),
            lambda: make("DPMSolverMultistepScheduler", steps=4, noise="ddpm:0"),
            lambda: make("UniPCMultistepScheduler", steps=4, noise="ddpm:0"),
            lambda: of("sdxl", noise="ddpm:0"),
            lambda: of("sd3"),
            lambda: of("flux"),
            lambda: of("wan"),
            lambda: of("stable-audio", noise="ddpm:0"),
            lambda: of("mochi"),  # whose sigma counts the signal
        ],
    )
    def test_from_any_state_lead_where_the_whole_leads(self, lidar):
        """The sampler is deterministic; the predictions on the way get a reward each."""
        lidar = with_noise(lidar(), copies=False)
        whole = lidar.sample(PROMPTS, 2, 1)
        items = items_of(PROMPTS, 2, 1, "target")
        stretches = Stretches(lidar, PROMPTS, None, {1, 2, 3})
        drawn = stretches.draw([Stretch(item, 0, 4) for item in items])
        expected = whole.latents.flatten(0, 1)
        torch.testing.assert_close(torch.stack([each.latents for each in drawn]), expected, rtol=0, atol=1e-4)
        later = [
            Stretch(item._replace(seed=step), step, 4, each.states[step])
            for step, (item, each) in enumerate(zip(items[:3], drawn[:3], strict=True), 1)
        ]
        for row, reached in enumerate(stretches.draw(later)):
            torch.testing.assert_close(reached.latents, expected[row], rtol=0, atol=1e-4)
            assert reached.image is not None
        (part,) = stretches.draw([Stretch(items[0], 0, 2)])
        torch.testing.assert_close(part.latents, drawn[0].states[2], rtol=1e-4, atol=1e-4)
        assert part.image is None
        assert stretches.levels[4] == (1.0, 0.0)
        assert stretches.cost.reward_calls == stretches.cost.decodes == 4 + 3 + 1

    def test_with_a_value_per_prompt(self):
        lidar = make(steps=4, eta=0.0, pipe_kwargs={"negative_prompt": ["dark", "light"]})
        items = items_of(PROMPTS, 1, 1, "target")
        stretches = Stretches(lidar, PROMPTS, None, ())
        whole = lidar.sample(PROMPTS, 1, 1)
        (second,) = stretches.draw([Stretch(items[1], 0, 4)])
        torch.testing.assert_close(second.latents, whole.latents[1, 0], rtol=0, atol=1e-5)

    def test_a_pipeline_that_changes_what_it_is_given_is_refused(self, monkeypatch):
        lidar = make(steps=4)
        monkeypatch.setattr(type(lidar.pipe.scheduler), "init_noise_sigma", 1.0, raising=False)
        prepare = lidar.pipe.prepare_latents
        monkeypatch.setattr(lidar.pipe, "prepare_latents", lambda *args, **kwargs: 3 * prepare(*args, **kwargs))
        stretches = Stretches(lidar, PROMPTS, None, {2})
        (whole,) = stretches.draw([Stretch(items_of(["a cat"], 1, 0, "target")[0], 0, 4)])
        again = Stretch(items_of(["a cat"], 1, 1, "target")[0], 2, 4, whole.states[2])
        with pytest.raises(TypeError, match="changes those that it is given before DDIMScheduler steps them"):
            stretches.draw([again])

    def test_a_schedule_of_other_steps_is_refused(self, monkeypatch):
        lidar = make(steps=4)
        stretches = Stretches(lidar, PROMPTS, None, ())
        stretches.total = 5
        with pytest.raises(ValueError, match="planned for the 5 steps that the pipeline promised, and it takes 4"):
            stretches.draw([Stretch(items_of(["a cat"], 1, 0, "target")[0], 0, 5)])

    @pytest.mark.parametrize("name", ["dts-2", "dfs-1", "halving-4"])
    def test_a_pipeline_that_leaves_out_the_last_step_of_a_part_is_refused(self, name):
        with pytest.raises(
            TypeError, match="SanaSprintPipeline leaves out the last step of each and returns a predict"
        ):
            load(name).cost(of("sana-sprint", noise="ddpm"), images=1)


class TestBack:
    def test_is_the_forward_process(self):
        x0 = torch.full((20_000,), 2.0)
        here, there = (0.9, 0.3), (0.5, 0.8)
        x = here[0] * x0 + here[1] * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
        moved = back(x, here, there, seed=1)
        assert abs(moved.mean() - there[0] * 2.0) < 4 * 0.8 / 20_000**0.5
        assert abs(moved.std() - there[1]) < 4 * 0.8 / 40_000**0.5

    @pytest.mark.parametrize("options", [{"eta": 1.0}, {"noise": "ddpm:0", "eta": None}])
    def test_a_perfect_model_draws_its_own_law_again(self, options):
        """Its samples, noised back and denoised, are again samples of the model, some of them different."""
        samples = 0.3 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        lidar = make(steps=20, guidance_scale=1.0, batch_size=400, **options)
        make_perfect(lidar.pipe, samples)
        stretches = Stretches(lidar, ["a cat"], None, {4, 10})
        items = items_of(["a cat"], 400, 0, "target")
        first = stretches.draw([Stretch(item, 0, 20) for item in items])
        for turn, moves in ((4, 0.3), (10, 0.0)):
            levels = stretches.levels
            again = [
                Stretch(item, turn, 20, back(each.latents, levels[20], levels[turn], item.seed + 1))
                for item, each in zip(items_of(["a cat"], 400, turn, "target"), first, strict=True)
            ]
            ends = torch.stack([each.latents for each in stretches.draw(again)]).flatten(1)
            starts = torch.stack([each.latents for each in first]).flatten(1)
            assert torch.cdist(ends, samples.flatten(1)).amin(1).max() < 0.1  # they are members
            law = shares(ends, samples.flatten(1))
            assert total_variation(law, shares(starts, samples.flatten(1))) < 0.09
            moved = (torch.cdist(ends, starts).diagonal() > 1).float().mean()
            assert (moved > moves) if moves else (moved < 0.5)
