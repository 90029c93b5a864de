"""Settings that come with a model: complete, by name, and without anything that a scheduler silently ignores."""

import inspect
import re
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FluxControlPipeline

from lidar_sampling import LiDAR, _precision, _settings, methods, testing
from lidar_sampling._settings import DEFAULTS, PRESETS, settings_for


def ddim(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


class TestEta:
    def test_that_was_asked_for_and_has_no_effect_is_refused(self):
        for options in ({"eta": 1.0}, {"pipe_kwargs": {"eta": 1.0}}):
            with pytest.raises(ValueError, match=r"eta=1\.0 has no effect: a step of PNDMScheduler takes none"):
                LiDAR(testing.tiny_stable_diffusion(), reward="brightness", **options)
        lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness")
        with pytest.raises(ValueError, match=r"eta=0\.5 has no effect"):
            lidar.with_settings(eta=0.5)

    def test_of_settings_is_left_out_with_a_warning(self, caplog):
        lidar = LiDAR.from_pretrained(
            "glyph", scheduler=lambda own: EulerDiscreteScheduler.from_config(own.config), metrics=[]
        )
        assert lidar.settings.eta is None
        assert "eta=1.0 of the settings is left out: a step of EulerDiscreteScheduler takes none" in caplog.text

    def test_that_has_an_effect_is_kept(self, caplog):
        lidar = LiDAR(ddim(testing.tiny_stable_diffusion()), reward="brightness", eta=1.0, reward_scale=1.0)
        assert lidar.settings.eta == 1.0
        assert not caplog.records


class TestWhatNothingReads:
    @pytest.mark.parametrize(
        ("make", "options", "line"),
        [
            (testing.tiny_stable_diffusion, {"steps": 5, "pipe_kwargs": {"num_inference_steps": 3}}, "steps=5 .*=3"),
            (
                testing.tiny_stable_diffusion,
                {"steps": 5, "pipe_kwargs": {"timesteps": [9, 5]}},
                "steps=5 .* 2 timeste",
            ),
            (
                testing.tiny_stable_diffusion,
                {"guidance_scale": 3.0, "pipe_kwargs": {"guidance_scale": 7.5}},
                "guidance_scale=3.0 does nothing: the call has guidance_scale=7.5",
            ),
            (
                testing.tiny_stable_diffusion,
                {"guidance_scale": 1.0, "pipe_kwargs": {"negative_prompt": "grey"}},
                "negative_prompt does nothing: it is read where guidance_scale is above 1",
            ),
            (
                partial(testing.tiny_flux, schnell=True),
                {"guidance_scale": 3.5},
                "guidance_scale=3.5 does nothing: this FluxPipeline .* but true_cfg_scale with a negative_prompt",
            ),
            (partial(testing.tiny_flux, FluxControlPipeline, schnell=True), {"guidance_scale": 3.5}, "not read it$"),
            (testing.tiny_flux, {"pipe_kwargs": {"negative_prompt": "grey"}}, "where true_cfg_scale is above 1"),
            (testing.tiny_qwen_image, {"pipe_kwargs": {"guidance_scale": 2.0}}, "guidance_scale=2.0 does nothing"),
        ],
    )
    def test_is_named_once(self, said, make, options, line):
        lidar = LiDAR(make(), reward="brightness", reward_scale=1.0, **options)
        lidar.with_settings(n=2)
        (told,) = said()
        assert re.search(line, told)

    def test_is_eta_of_steps_that_noise_replaces(self, said):
        lidar = LiDAR(ddim(testing.tiny_stable_diffusion()), reward="brightness", eta=1.0, reward_scale=1.0)
        assert not said()
        LiDAR(lidar.pipe, reward="brightness", eta=1.0, noise="ddpm", reward_scale=1.0)
        assert said() == ["eta=1.0 does nothing: noise=ddpm replaces the steps of the scheduler"]

    @pytest.mark.parametrize(
        ("make", "options"),
        [
            (testing.tiny_stable_diffusion, {"steps": 3, "pipe_kwargs": {"num_inference_steps": 3}}),
            (testing.tiny_stable_diffusion, {"pipe_kwargs": {"negative_prompt": "grey"}}),
            (partial(testing.tiny_flux, schnell=True), {"guidance_scale": 0.0}),  # as its model card has it
            (testing.tiny_flux, {"guidance_scale": 3.5}),
            (testing.tiny_flux, {"pipe_kwargs": {"negative_prompt": "grey", "true_cfg_scale": 4.0}}),
            (testing.tiny_qwen_image, {"pipe_kwargs": {"negative_prompt": " "}}),
            (testing.tiny_pixart_sigma, {"guidance_scale": 4.5, "pipe_kwargs": {"negative_prompt": "grey"}}),
        ],
    )
    def test_is_nothing_of_a_usual_call(self, said, make, options):
        LiDAR(make(), reward="brightness", reward_scale=1.0, **options)
        assert not said()


class TestPresets:
    def test_bring_their_scheduler_and_leave_the_pipeline_as_it_is(self):
        pipe = testing.tiny_stable_diffusion()
        lidar = LiDAR(pipe, reward="brightness", settings="paper-sd15", n=2, steps=4)
        assert type(lidar.pipe.scheduler).__name__ == "DDIMScheduler"
        assert type(pipe.scheduler).__name__ == "PNDMScheduler"
        assert (lidar.settings.eta, lidar.settings.scale, lidar.settings.reward_scale) == (1.0, 12.5, 5000.0)
        # The paper's sampler adds noise on the way, so the same start ends elsewhere than without it.
        noisy, plain = (
            lidar.with_settings(eta=eta, scale=0.0, window=(1.0, 0.0)).vanilla("a cat", images=1).images
            for eta in (1.0, 0.0)
        )
        assert not torch.allclose(noisy, plain, atol=1e-3)

    def test_equal_the_same_settings_by_hand(self):
        by_name = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", settings="paper-sd15", n=2, steps=4)
        by_hand = LiDAR(
            ddim(testing.tiny_stable_diffusion()),
            reward="brightness",
            **{"n": 2, "steps": 4, "guidance_scale": 7.5, "eta": 1.0, "lookahead": "dpm:5"},
            **{"scale": 12.5, "reward_scale": 5000.0, "window": (1.0, 0.2)},
        )
        assert torch.equal(by_name("a cat", images=2).images, by_hand("a cat", images=2).images)

    def test_of_another_kind_of_model_are_refused(self):
        with pytest.raises(
            ValueError, match="sample with DDIMScheduler, which cannot follow the schedule of FluxPip"
        ):
            LiDAR(testing.tiny_flux(), reward="brightness", settings="paper-sd15")

    def test_that_are_not_there_are_refused(self):
        with pytest.raises(ValueError, match="no preset 'paper'; there are paper-sd15, paper-sdxl"):
            LiDAR(testing.tiny_stable_diffusion(), reward="brightness", settings="paper")

    def test_are_not_what_a_family_is_sampled_with_by_default(self):
        for name, make in (
            ("StableDiffusionPipeline", testing.tiny_stable_diffusion),
            ("StableDiffusionXLPipeline", testing.tiny_stable_diffusion_xl),
        ):
            assert settings_for(make()) == DEFAULTS[name]
            assert (DEFAULTS[name].eta, DEFAULTS[name].steps, DEFAULTS[name].scheduler) == (None, 50, None)
        assert all(preset.scheduler for preset in PRESETS.values())


@pytest.mark.parametrize("name", [name for name, row in DEFAULTS.items() if row.source == _settings._UNTUNED])
def test_defaults_are_those_of_the_pipeline_where_they_say_so(name):
    call = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert call["num_inference_steps"].default == DEFAULTS[name].steps
    guidance = call.get("guidance_scale")
    assert (guidance.default if guidance else None) == DEFAULTS[name].guidance_scale


def test_every_default_is_honoured_by_the_scheduler_that_it_meets(caplog):
    for tiny in testing.PIPELINES.values():
        LiDAR(tiny.make(), reward="brightness", pipe_kwargs=tiny.call)
    assert not [record for record in caplog.records if "left out" in record.message]


class TestPrecision:
    @pytest.fixture(autouse=True)
    def anew(self):
        _precision._warn.cache_clear()
        yield
        _precision._warn.cache_clear()

    def test_that_is_emulated_is_told_once_with_the_factor(self, monkeypatch, caplog):
        monkeypatch.setattr(_precision, "seconds", lambda dtype: 14.0 if dtype == torch.bfloat16 else 1.0)
        for _ in range(2):
            LiDAR(testing.tiny_stable_diffusion().to(torch.bfloat16), reward="brightness")
        assert caplog.text.count("bfloat16 takes 14.0 times as long as float32 on this CPU") == 1

    def test_that_is_fast_is_not_a_word_worth(self, monkeypatch, caplog):
        monkeypatch.setattr(_precision, "seconds", lambda dtype: 0.6 if dtype == torch.bfloat16 else 1.0)
        LiDAR(testing.tiny_stable_diffusion().to(torch.bfloat16), reward="brightness")
        LiDAR(testing.tiny_stable_diffusion(), reward="brightness")
        assert "as long as" not in caplog.text

    def test_is_measured(self):
        assert 0 < _precision.seconds(torch.float32) < 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n": 4.5}, r"n must be int, got 4\.5"),
        ({"n": True}, "n must be int, got True"),
        ({"steps": "5"}, "steps must be int, got '5'"),
        ({"scale": "big"}, "scale must be float, got 'big'"),
        ({"reward_scale": -5.0}, r"reward_scale must be finite and at least 0, got -5\.0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite, got nan"),
        ({"window": (0.2, 1.0)}, r"window must be \(start, end\)"),
        ({"batch_size": 2.0}, r"batch_size must be a whole number, got 2\.0"),
    ],
)
def test_settings_of_another_type_or_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        LiDAR(testing.tiny_stable_diffusion(), reward="brightness", **setting)


def test_numbers_of_numpy_are_numbers():
    lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=np.int64(2), scale=np.float32(1.5))
    assert (lidar.settings.n, lidar.settings.scale) == (2, 1.5)


@pytest.mark.parametrize("call", [{"images": 2.5}, {"images": "2"}, {"seed": "a"}, {"seed": 0.5}])
def test_counts_and_seeds_are_whole_numbers(call):
    with pytest.raises(ValueError, match="must be a whole number"):
        LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=2)("a cat", **call)


def test_two_judges_of_one_name_are_refused():
    class Model:
        def __call__(self, *, images, prompts):
            return images.mean((1, 2, 3))

    for reward, metrics in ((Model(), [Model()]), ("brightness", ["brightness"])):
        with pytest.raises(ValueError, match=r"two judges are called '\w+', and results go by name"):
            LiDAR(testing.tiny_stable_diffusion(), reward=reward, metrics=metrics)


def test_the_held_out_judge_of_glyph_may_guide():
    lidar = LiDAR.from_pretrained("glyph", reward="glyph-heldout")
    assert [getattr(judge, "name", None) for judge in (lidar.reward, *lidar.metrics)] == ["glyph-heldout", "geneval"]


def test_prompts_that_a_judge_cannot_read_are_refused_before_anything_is_drawn():
    class Picky:
        name = "picky"

        def check(self, prompts):
            if "a cow" in prompts:
                raise ValueError("no cows")

        def __call__(self, *, images, prompts):
            raise AssertionError

    lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", metrics=[Picky()])
    for draw in (lidar, lidar.vanilla, lidar.look):
        with pytest.raises(ValueError, match=r"picky.*no cows"):
            draw(["a cat", "a cow"])


def test_the_papers_method_is_by_name():
    assert methods.load("lidar-paper").scale == PRESETS["paper-sd15"].scale
