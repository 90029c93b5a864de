"""In a batch each sample gets its own prompt, noise and picture; otherwise the batch is refused with a reason."""

import copy
import functools

import diffusers
import pytest
import torch

from lidar_sampling import LiDAR, _draw, testing

OPTIONS = {"n": 2, "steps": 3, "lookahead": "own:2", "scale": 1.0, "reward_scale": 1.0, "eta": None}


def mean(*, images, prompts):
    return images.flatten(1).mean(1)


def double(name, call):
    """Return a tiny Stable Diffusion of a class named ``name``, whose call is ``call(plain, self, **arguments)``."""
    plain = diffusers.StableDiffusionPipeline.__call__

    @functools.wraps(plain)
    def wrapped(self, **arguments):
        return call(plain, self, **arguments)

    pipe = testing.tiny_stable_diffusion(type(name, (diffusers.StableDiffusionPipeline,), {"__call__": wrapped}))
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def test_sections_with_schedules_of_their_own_are_refused():
    def twice(plain, pipe, **arguments):
        plain(pipe, **arguments)
        return plain(pipe, **arguments)

    lidar = LiDAR(double("FramesInSections", twice), reward=mean, **OPTIONS)
    for draw in (lidar, lidar.vanilla, lidar.look):
        with pytest.raises(ValueError, match="FramesInSections draws in sections, each with a schedule of its own"):
            draw("a cat")


def test_two_pipelines_behind_one_are_refused():
    pipe = testing.tiny_stable_diffusion()
    pipe.prior_pipe = pipe.decoder_pipe = object()
    with pytest.raises(TypeError, match="runs two pipelines, each with a scheduler of its own"):
        LiDAR(pipe, reward=mean, **OPTIONS).vanilla("a cat")


def test_more_rows_than_samples_are_refused():
    def doubled(plain, pipe, **arguments):
        output = plain(pipe, **arguments)
        x = torch.zeros(2 * len(arguments["prompt"]), 4, 8, 8)
        pipe.scheduler.step(x, 1, x)
        return output

    with pytest.raises(TypeError, match="Doubled made 2 samples of 4 latents for 2 prompts; draw one at a time"):
        LiDAR(double("Doubled", doubled), reward=mean, **OPTIONS).vanilla(["a cat", "a dog"], images=1)


def test_dropped_prompts_are_refused():
    def first(plain, pipe, **arguments):
        arguments["prompt"], arguments["generator"] = arguments["prompt"][:1], arguments["generator"][:1]
        return plain(pipe, **arguments)

    lidar = LiDAR(double("First", first), reward=mean, **OPTIONS)
    with pytest.raises(TypeError, match="First made 1 samples of 1 latents for 2 prompts; draw one at a time"):
        lidar.vanilla(["a cat", "a dog"], images=1)
    lidar.batch_size = 1
    assert lidar.vanilla(["a cat", "a dog"], images=1).images.shape[:2] == (2, 1)


def test_a_pipeline_that_writes_into_its_prompts_leaves_ours_alone():
    seen = []

    def write(plain, pipe, **arguments):
        output = plain(pipe, **arguments)
        arguments["prompt"][:] = ["<user>" + prompt for prompt in arguments["prompt"]]
        return output

    def reward(*, images, prompts):
        seen.extend(prompts)
        return images.flatten(1).mean(1)

    LiDAR(double("Writes", write), reward=reward, **OPTIONS)("a cat", images=1)
    assert set(seen) == {"a cat"}


def test_audio_without_channels_gets_one(tmp_path):
    def sound(plain, pipe, **arguments):
        plain(pipe, **arguments)
        return (torch.linspace(-2, 2, 50).expand(len(arguments["prompt"]), 50),)

    result = LiDAR(double("Sound", sound), reward=mean, **OPTIONS).vanilla("a bell", images=2)
    assert result.images.shape == (1, 2, 1, 50)
    assert result.images.abs().max() == 1
    assert len(result.save(tmp_path)) == 2


def test_a_copy_of_the_scheduler_is_no_place_for_guidance():
    def copied(plain, pipe, **arguments):
        own, pipe.scheduler = pipe.scheduler, copy.deepcopy(pipe.scheduler)
        try:
            return plain(pipe, **arguments)
        finally:
            pipe.scheduler = own

    with pytest.raises(TypeError, match="Copies never stepped its scheduler: it steps copies, which nothing guides"):
        LiDAR(double("Copies", copied), reward=mean, **OPTIONS).vanilla("a cat")


class TestOneAtATime:
    def test_whatever_the_batch_size(self):
        batches = []

        def count(plain, pipe, **arguments):
            batches.append(arguments["prompt"])
            return plain(pipe, **arguments)

        LiDAR(double("QwenImageEditPlusPipeline", count), reward=mean, batch_size=16, **OPTIONS)("a cat", images=2)
        assert batches == [["a cat"]] * 4

    def test_with_texts_instead_of_lists_where_the_pipeline_wants_them(self):
        texts = []

        def keep(plain, pipe, **arguments):
            assert isinstance(arguments["generator"], torch.Generator)
            texts.append((arguments["prompt"], arguments["negative_prompt"]))
            return plain(pipe, **arguments)

        call = {"negative_prompt": "ugly"}
        LiDAR(double("WanVACEPipeline", keep), reward=mean, pipe_kwargs=call, **OPTIONS).vanilla("a cat", images=2)
        assert texts == [("a cat", "ugly")] * 2

    def test_hunyuan_video_draws_guided(self):
        call = {"height": 16, "width": 16, "num_frames": 5}
        lidar = LiDAR(testing.tiny_hunyuan_video_15(), reward=mean, pipe_kwargs=call, **OPTIONS)
        result, vanilla = lidar("a cat", images=2), lidar.vanilla("a cat", images=2)
        assert result.images.shape == (1, 2, 5, 3, 16, 16)
        assert not torch.equal(result.latents, vanilla.latents)


def test_a_sample_does_not_depend_on_the_longest_prompt_of_its_batch():
    """CogView 4 pads prompts, and its language model sees the padding."""
    tiny = testing.PIPELINES["cogview-4"]
    pipe, call = tiny.make(), {**tiny.call, "num_inference_steps": 2}
    items = [
        _draw.Item("a cat", 0),
        _draw.Item("a cat", 1),
        _draw.Item("a photo of a dog on the grass beside a red house", 2),
    ]
    together = list(_draw.draw(pipe, items, call=call, batch_size=4))
    assert [len(part.items) for part in together] == [2, 1]
    (alone,) = _draw.draw(pipe, items[:1], call=call, batch_size=4)
    torch.testing.assert_close(together[0].latents[:1], alone.latents, rtol=0, atol=1e-4)
