"""Arguments of a pipeline's call: refused by name before drawing, or each matched to its prompt."""

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXVideoToVideoPipeline,
    DDIMScheduler,
    EulerDiscreteScheduler,
    Flux2Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from lidar_sampling import LiDAR, testing
from lidar_sampling._call import TARGET_ONLY, check_call, for_batch, per_prompt, prompts_for

TINY = {"reward": "brightness", "n": 2, "steps": 3, "lookahead": "dpm:2", "scale": 1.0, "reward_scale": 5.0}


def sampler(pipe=None, **call):
    return LiDAR(pipe or testing.tiny_stable_diffusion(), **TINY, pipe_kwargs=call)


@pytest.mark.parametrize(
    "name",
    [
        "prompt",
        "generator",
        "latents",
        "output_type",
        "return_dict",
        "num_images_per_prompt",
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "prompt_attention_mask",
    ],
)
def test_what_the_sampler_sets_is_refused_by_name_with_the_mend(name):
    with pytest.raises(ValueError, match=rf"^{name} is set by the sampler: (give|it)"):
        sampler(**{name: 1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"hight": 3}, r"StableDiffusionPipeline takes no argument 'hight'; did you mean 'height'\?"),
        ({"height": "64"}, "StableDiffusionPipeline: height must be int or None, got '64'"),
        ({"guidance_scale": "high"}, "StableDiffusionPipeline: guidance_scale must be float, got 'high'"),
        ({"guidance_scale": True}, "StableDiffusionPipeline: guidance_scale must be float, got True"),
    ],
)
def test_what_the_pipeline_does_not_take_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sampler(**call)
    with pytest.raises((TypeError, ValueError), match=message):  # by its class alone, before it is loaded
        check_call(type(testing.tiny_stable_diffusion()), call)


def test_sequences_are_not_taken_for_numbers():
    check_call(Flux2Pipeline, {"text_encoder_out_layers": (1, 2), "sigmas": [1.0, 0.5]})
    with pytest.raises(ValueError, match=r"text_encoder_out_layers must be tuple\[int\], got 3"):
        check_call(Flux2Pipeline, {"text_encoder_out_layers": 3})


class TestForBatch:
    PROMPTS = ("a cat", "a cat", "a dog")

    @pytest.mark.parametrize(
        ("one", "count"),
        [
            (torch.ones(1, 3, 4, 4), lambda value: tuple(value.shape) == (3, 3, 4, 4)),
            (torch.ones(3, 4, 4), lambda value: tuple(value.shape) == (3, 3, 4, 4)),
            (torch.ones(4, 4), lambda value: tuple(value.shape) == (3, 1, 4, 4)),
            (np.ones((4, 4, 3)), lambda value: value.shape == (3, 4, 4, 3)),
            (Image.new("RGB", (4, 4)), lambda value: len(value) == 3),
            ([Image.new("RGB", (4, 4))], lambda value: len(value) == 3),
            (None, lambda value: value is None),
            (torch.ones(3, 3, 4, 4), lambda value: tuple(value.shape) == (3, 3, 4, 4)),
        ],
        ids=["one", "picture", "mask", "numpy", "PIL", "list", "none", "three"],
    )
    def test_one_picture_comes_with_each_sample(self, one, count):
        pipe = testing.tiny_stable_diffusion(StableDiffusionImg2ImgPipeline)
        assert count(for_batch({"image": one}, self.PROMPTS, pipe)["image"])

    def test_pictures_that_are_no_samples_stay_as_they_are(self):
        """Wan encodes its one picture per generator; FLUX Kontext takes several pictures per sample."""
        picture = torch.ones(1, 3, 4, 4)
        for key in ("wan-i2v", "flux-kontext"):
            pipe = testing.PIPELINES[key].make()
            assert for_batch({"image": picture}, self.PROMPTS, pipe)["image"] is picture

    def test_one_video_comes_with_each_sample_where_the_pipeline_reads_it_so(self):
        frames = [Image.new("RGB", (4, 4))] * 5
        pipe = object.__new__(CogVideoXVideoToVideoPipeline)
        assert for_batch({"video": frames}, self.PROMPTS, pipe)["video"] == [frames] * 3
        assert for_batch({"video": [frames] * 3}, self.PROMPTS, pipe)["video"] == [frames] * 3
        assert for_batch({"video": torch.ones(1, 5, 3, 4, 4)}, self.PROMPTS, pipe)["video"].shape[0] == 3
        assert for_batch({"video": frames}, self.PROMPTS, object())["video"] is frames

    def test_one_text_comes_with_each_sample(self):
        call = {"prompt_2": "a", "prompt_3": "b", "negative_prompt": "c", "negative_prompt_2": "d", "lyrics": "la"}
        assert all(value == 3 * [call[name]] for name, value in for_batch(call, self.PROMPTS).items())

    def test_prompts_are_a_copy(self):
        prompts = ["a cat"]
        assert prompts_for(object(), prompts) == prompts
        assert prompts_for(object(), prompts) is not prompts


class TestAValuePerPrompt:
    @pytest.mark.parametrize("batch_size", [1, 2, 16])
    def test_goes_with_its_prompt(self, batch_size):
        both = sampler(negative_prompt=["ugly", "blurry"])
        both.batch_size = batch_size
        both = both(["a cat", "a dog"], images=2)
        for prompt, negative, images, bank in zip(
            both.prompts, ("ugly", "blurry"), both.images, both.banks, strict=True
        ):
            alone = sampler(negative_prompt=negative)(prompt, images=2)
            assert torch.allclose(alone.images[0], images, atol=1e-5)
            assert torch.allclose(alone.banks[0].samples, bank.samples, rtol=1e-3, atol=1e-3)

    def test_reaches_prompts_that_are_drawn_apart(self):
        lidar = sampler(negative_prompt=["ugly", "blurry"]).with_prompts(["a cat", "a dog"])
        assert torch.allclose(
            lidar("a dog", images=1).images, sampler(negative_prompt="blurry")("a dog", images=1).images, atol=1e-5
        )

    def test_has_a_bank_of_its_own_in_a_store(self, tmp_path):
        def look(*negative):
            lidar = sampler(negative_prompt=list(negative))
            lidar.store = LiDAR(testing.tiny_stable_diffusion(), **TINY, store=tmp_path).store
            return lidar.draw_banks(["a cat", "a dog"], 0)[1].network_evaluations

        whole = look("ugly", "blurry")
        assert look("ugly", "blurry") == 0
        assert look("ugly", "dull") == whole // 2

    def test_is_one_for_each(self):
        with pytest.raises(ValueError, match="negative_prompt holds 3 values for 2 prompts: give one, or one per"):
            sampler(negative_prompt=["a", "b", "c"])(["a cat", "a dog"], images=1)
        with pytest.raises(ValueError, match="'a cat' comes twice, with two values of negative_prompt"):
            sampler(negative_prompt=["a", "b"])(["a cat", "a cat"], images=1)

    @pytest.mark.parametrize("cls", [StableDiffusionImg2ImgPipeline, StableDiffusionControlNetPipeline])
    def test_may_be_a_picture(self, cls):
        red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
        both = sampler(testing.tiny_stable_diffusion(cls), image=[red, blue])(["a cat", "a dog"], images=1)
        alone = sampler(testing.tiny_stable_diffusion(cls), image=[blue])(["a dog"], images=1)
        if cls is StableDiffusionControlNetPipeline:  # the other encodes a picture with the noise of its sample
            assert torch.allclose(both.images[1], alone.images[0], atol=1e-5)
        assert not torch.allclose(both.images[0], both.images[1], atol=1e-3)

    @pytest.mark.parametrize("batch_size", [1, 2, 16])
    def test_is_never_paired_with_what_happens_to_share_a_batch(self, batch_size):
        two = torch.rand(2, 3, 16, 16)
        lidar = sampler(testing.tiny_stable_diffusion(StableDiffusionImg2ImgPipeline), image=two)
        lidar.batch_size = batch_size
        with pytest.raises(ValueError, match="image holds 2 values for 1 prompts"):
            lidar("a cat", images=2)


def test_texts_for_other_encoders_serve_every_prompt():
    for pipe, call in (
        (testing.tiny_stable_diffusion_xl(), {"prompt_2": "oil", "negative_prompt_2": "ugly"}),
        (testing.tiny_stable_diffusion_3(), {"prompt_2": "oil", "prompt_3": "oil", "negative_prompt_3": "ugly"}),
    ):
        assert sampler(pipe, **call)(["a cat", "a dog"], images=2).images.shape[:2] == (2, 2)


@pytest.mark.parametrize("name", TARGET_ONLY)
def test_what_is_the_targets_does_not_reach_the_lookahead(name):
    from lidar_sampling.solvers import load

    assert load("dpm:5").arguments({name: [3, 2, 1], "height": 8}) == {"height": 8, "num_inference_steps": 5}


def test_a_lookahead_takes_its_own_steps_whatever_the_target_takes():
    pipe = testing.tiny_stable_diffusion()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    result = sampler(pipe, timesteps=[999, 700, 400, 100])("a cat", images=1)
    assert result.cost["lookahead"].network_evaluations == 2 * 2 * 2  # images, steps, guidance
    assert result.trace.seen == 4


def test_progress_reaches_its_end_when_a_picture_takes_part_of_the_steps():
    pipe, seen = testing.tiny_stable_diffusion(StableDiffusionImg2ImgPipeline), []
    lidar = sampler(pipe, image=Image.new("RGB", (16, 16)), strength=0.5)
    lidar("a cat", images=2, progress=lambda phase, done, total: seen.append((phase, done / total)))
    assert [done for phase, done in seen if phase == "lookahead"][-1] == 1
    assert [done for phase, done in seen if phase == "sampling"][-1] == 1


def test_a_result_says_how_it_was_sampled():
    pipe = testing.tiny_stable_diffusion()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    result = sampler(pipe, num_inference_steps=4, guidance_scale=2.0, eta=0.5)("a cat", images=1)
    taken = result.settings
    assert (taken.steps, taken.guidance_scale, taken.eta) == (result.trace.seen, 2.0, 0.5) == (4, 2.0, 0.5)


def test_lists_of_references_are_one_value():
    class Edit:
        def __call__(self, prompt, image): ...

    assert per_prompt(Edit(), {"image": [1, 2]}, ["a"]) == {"image": [1, 2]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"height": [16]}, "height must be int or None, got"),
        ({"height": 0}, "height must be at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"negative_prompt": [1, 2]}, "negative_prompt must be list"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite, got nan"),
    ],
)
def test_values_that_no_run_can_use_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        sampler(**call)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, float("nan")])
def test_a_strength_is_above_0_and_at_most_1(strength):
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
        sampler(
            testing.tiny_stable_diffusion(StableDiffusionImg2ImgPipeline),
            image=torch.rand(1, 3, 16, 16),
            strength=strength,
        )


def test_one_prompt_with_two_pictures_is_refused():
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    lidar = sampler(testing.tiny_stable_diffusion(StableDiffusionImg2ImgPipeline), image=[red, blue])
    with pytest.raises(ValueError, match="'a' comes twice, with two values of image"):
        lidar.vanilla(["a", "a"], images=1)


@pytest.mark.parametrize("settings", [{"clip_sampel": False}, {"clip_sample": "no"}])
def test_settings_that_a_solvers_scheduler_has_not_are_refused(settings):
    from lidar_sampling.solvers import Solver

    lidar = LiDAR(
        testing.tiny_stable_diffusion(),
        **{**TINY, "lookahead": Solver("mine", 2, scheduler="DDIMScheduler", settings=settings)},
    )
    with pytest.raises(ValueError, match=r"mine: DDIMScheduler(: clip_sample must be bool| has no 'clip_sampel')"):
        lidar.look("a cat")


def test_metadata_belongs_to_its_prompts():
    lidar = sampler()
    result = lidar.sample(["a cat"], 1, 0)
    with pytest.raises(ValueError, match="metadata must be of the prompts, in their order"):
        lidar.judge(result, [{"prompt": "a dog"}])
