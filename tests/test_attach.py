"""Attaching to a scheduler: harmless, exact, and refused where it would be wrong."""

import copy
import inspect
import math
import pickle
from functools import partial

import diffusers
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from oracle import bank_of_four
from PIL import Image
from test_guidance import naive
from torch.utils._python_dispatch import TorchDispatchMode

from lidar_sampling import BankError, GuidanceError, LookaheadBank, Space, Trace, guide, record, testing
from lidar_sampling._hooks import Hook, attach, steps_of

PIPELINES = [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl]
SCHEDULERS = [
    "PNDMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "HeunDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
]


def run(pipe, prompts=("a cat", "a dog"), images=2, **kwargs):
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts) * images)]
    return pipe(
        list(prompts),
        num_images_per_prompt=images,
        num_inference_steps=5,
        generator=generators,
        output_type="pt",
        **kwargs,
    ).images


def with_scheduler(make, name):
    pipe = make()
    config = {**pipe.scheduler.config, "clip_sample": False}
    pipe.scheduler = getattr(diffusers, name).from_config(config)
    return pipe


@pytest.mark.parametrize("make", PIPELINES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_attaching_without_effect_is_bit_identical(make, name):
    pipe, bank = with_scheduler(make, name), testing.tiny_bank()
    plain = run(pipe)
    with guide(pipe, bank, scale=0.0, reward_scale=3.0, window=(1.0, 0.0)):
        assert torch.equal(run(pipe), plain)
    with guide(pipe, bank, scale=5.0, reward_scale=0.0, window=(1.0, 0.0)):
        assert torch.equal(run(pipe), plain)
    with record(pipe) as recording:
        assert torch.equal(run(pipe), plain)
    assert recording.samples.shape == (4, 4, 8, 8)
    assert torch.equal(run(pipe), plain)
    with guide(pipe, bank, scale=1.0, reward_scale=3.0, window=(1.0, 0.0)):
        assert not torch.equal(run(pipe), plain)


def test_attaching_without_effect_is_bit_identical_on_glyph(glyph_lidar):
    pipe = glyph_lidar.pipe
    bank = testing.tiny_bank(prompt="a photo of a cat", shape=(4, 16, 16))
    plain = run(pipe, ["a photo of a cat"], eta=1.0)
    with guide(pipe, bank, scale=0.0, reward_scale=3.0):
        assert torch.equal(run(pipe, ["a photo of a cat"], eta=1.0), plain)


def test_the_epsilon_update_equals_equations_16_to_18():
    """Tested in float64 against the naive form: eps' = eps - sigma s (alpha / sigma^2) sum (w^r - w) x."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(3, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    bank = LookaheadBank(
        torch.randn(7, 4, 8, 8, generator=g, dtype=torch.float64),
        {"r": torch.randn(7, generator=g, dtype=torch.float64)},
        "p",
    )
    for t in scheduler.timesteps:
        signal = scheduler.alphas_cumprod[t].item()
        alpha, sigma = math.sqrt(signal), math.sqrt(1 - signal)
        score, *_ = naive(x, bank.samples, bank.reward(), alpha, sigma, 4.0)
        expected = scheduler.step(eps - sigma * 2.5 * score, t, x).pred_original_sample
        with guide(scheduler, bank, scale=2.5, reward_scale=4.0, window=(1.0, 0.0)):
            achieved = scheduler.step(eps, t, x).pred_original_sample
        torch.testing.assert_close(achieved, expected, rtol=1e-10, atol=1e-10)


def test_each_prompt_is_guided_by_its_own_bank():
    pipe = testing.tiny_stable_diffusion()
    cat, dog = testing.tiny_bank(prompt="a cat"), testing.tiny_bank(7, prompt="a dog")
    settings = {"scale": 1.0, "reward_scale": 5.0}
    with guide(pipe, [cat, dog], **settings) as together:
        both = run(pipe)
    with guide(pipe, [cat, cat, dog, dog], **settings):
        assert torch.equal(run(pipe), both)  # one bank per row; neighbouring rows are shifted together
    assert together.steps[0].info.ess.shape == (4,)
    with guide(pipe, cat, **settings):
        alone = run(pipe)
    torch.testing.assert_close(alone[:2], both[:2])
    assert not torch.allclose(alone[2:], both[2:])


def test_the_window_is_in_diffusion_time():
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 16)
    with guide(scheduler, bank_of_four(), scale=1.0, reward_scale=1.0, window=(0.7, 0.2)) as trace:
        for t in scheduler.timesteps:
            scheduler.step(x, t, x)
    times = [step.level.time for step in trace.steps]
    assert trace.seen == 10
    assert times == [t / 1000 for t in range(700, 200, -100)]


def test_learned_variance_is_left_alone():
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type="learned_range")
    scheduler.set_timesteps(10)
    output, x = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
    seen = []

    class Spy(type(scheduler)):
        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            seen.append(model_output)
            return super().step(model_output, timestep, sample, generator, return_dict)

    scheduler.__class__ = Spy
    bank = LookaheadBank(torch.randn(4, 3, 4, 4), {"r": torch.arange(4.0)}, "p")
    with guide(scheduler, bank, scale=1.0, reward_scale=1.0):
        scheduler.step(output, scheduler.timesteps[0], x)
    assert torch.equal(seen[0][:, 3:], output[:, 3:])
    assert not torch.equal(seen[0][:, :3], output[:, :3])


def test_half_precision_stays_half_precision():
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    bank = bank_of_four()
    x = torch.randn(2, 16).bfloat16()
    with guide(scheduler, bank, scale=1.0, reward_scale=1.0) as trace:
        out = scheduler.step(x, scheduler.timesteps[0], x)[0]
    assert out.dtype == torch.bfloat16
    assert trace.steps[0].info.ess.dtype == torch.float32


class TestTheClassSwap:
    def test_looks_like_the_scheduler_it_is(self):
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        with record(scheduler):
            assert isinstance(scheduler, diffusers.DDIMScheduler)
            assert type(scheduler).__name__ == "DDIMScheduler"
            assert inspect.signature(scheduler.step) == inspect.signature(diffusers.DDIMScheduler().step)

    def test_saves_as_the_scheduler_it_is(self, tmp_path):
        pipe = testing.tiny_stable_diffusion()
        with record(pipe):
            pipe.save_pretrained(tmp_path)
        again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
        assert type(again.scheduler) is diffusers.PNDMScheduler

    @pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
    def test_copies_are_plain(self, copier):
        scheduler = diffusers.EulerDiscreteScheduler()
        scheduler.set_timesteps(4)
        x = torch.randn(1, 16)
        with guide(scheduler, bank_of_four(), scale=1.0, reward_scale=1.0) as trace:
            twin = copier(scheduler)
            assert type(twin) is diffusers.EulerDiscreteScheduler
            twin.step(x, twin.timesteps[0], x)
            assert (trace.seen, twin.step_index, scheduler.step_index) == (0, 1, None)
            scheduler.step(x, scheduler.timesteps[0], x)
        assert trace.seen == 1

    def test_is_undone_whatever_happens(self):
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        before = dict(scheduler.__dict__)
        with pytest.raises(KeyboardInterrupt), guide(scheduler, bank_of_four(), scale=1.0, reward_scale=1.0):
            raise KeyboardInterrupt
        assert type(scheduler) is diffusers.DDIMScheduler
        assert scheduler.__dict__ == before

    def test_nests(self):
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(4)
        x, t = torch.randn(1, 16), scheduler.timesteps[0]
        with record(scheduler) as outer:
            with guide(scheduler, bank_of_four(), scale=1.0, reward_scale=1.0):
                guided = scheduler.step(x, t, x)[0]
            plain = scheduler.step(x, t, x)[0]
        assert outer.steps == 2
        assert torch.equal(outer.samples, plain)
        assert not torch.equal(guided, plain)


class Counting(Hook):
    """A hook that records its arguments, and the steps that it saw."""

    def __init__(self):
        self.told, self.seen, self.finished = [], 0, 0

    def start(self, steps):
        self.told.append(steps)

    def before(self, step):
        self.seen += 1
        return step

    def finish(self):
        self.finished += 1


SMALL = testing.PIPELINES["pixart-sigma"].call
PICTURE = {"image": Image.new("RGB", (16, 16)), "strength": 0.6, "num_inference_steps": 10}


class TestHowManySteps:
    @pytest.mark.parametrize(
        ("make", "call", "steps"),
        [
            (testing.tiny_stable_diffusion, {"num_inference_steps": 4}, 5),  # PNDM takes its second step twice
            (testing.tiny_stable_diffusion_xl, {"num_inference_steps": 10, "denoising_end": 0.7}, 7),
            (testing.tiny_stable_diffusion_xl, {"timesteps": [900, 600, 300]}, 3),
            (testing.tiny_flux, {"num_inference_steps": 3, "height": 16, "width": 16}, 3),
            (testing.PIPELINES["pixart-sigma"].make, {"num_inference_steps": 3, **SMALL}, 3),  # it does not say
            (testing.tiny_modular_stable_diffusion_xl, {"num_inference_steps": 4}, 4),  # nor does it
            (partial(testing.tiny_stable_diffusion, StableDiffusionImg2ImgPipeline), PICTURE, 7),
            (partial(testing.tiny_stable_diffusion_xl, StableDiffusionXLImg2ImgPipeline), PICTURE, 6),
        ],
    )
    def test_hooks_learn_at_the_first_step_how_many_the_call_takes(self, make, call, steps):
        pipe, hook = make(), Counting()
        with attach(pipe, hook):
            pipe(prompt="a cat", **call)
        assert hook.told == [steps] == [hook.seen]
        assert hook.finished == 1

    def test_of_every_call_in_the_block_and_with_hooks_around(self):
        pipe, outer, inner = with_scheduler(testing.tiny_stable_diffusion, "DDIMScheduler"), Counting(), Counting()
        with attach(pipe, outer):
            pipe("a cat", num_inference_steps=2)
            with attach(pipe.scheduler, inner):
                pipe("a cat", num_inference_steps=3)
            pipe("a cat", num_inference_steps=4)
        assert outer.told == [2, 3, 4]
        assert inner.told == [3]

    def test_of_a_scheduler_alone_it_is_the_rest_of_its_timesteps(self):
        scheduler, x = diffusers.DDIMScheduler(clip_sample=False), torch.zeros(1, 16)
        scheduler.set_timesteps(10)
        hook = Counting()
        with attach(scheduler, hook):
            for t in scheduler.timesteps[4:]:
                scheduler.step(x, t, x)
        assert hook.told == [6]

    def test_a_timestep_that_the_scheduler_does_not_know_is_the_first(self):
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(10)
        assert steps_of(None, scheduler, 7) == 10
        assert steps_of(None, scheduler, int(scheduler.timesteps[3])) == 7

    def test_nothing_is_finished_after_an_error(self):
        pipe, hook = testing.tiny_stable_diffusion(), Counting()
        with pytest.raises(KeyboardInterrupt), attach(pipe, hook):
            raise KeyboardInterrupt
        assert hook.finished == 0
        assert type(pipe.scheduler) is diffusers.PNDMScheduler


def with_other_scheduler(pipe):
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


class TestRefusals:
    def test_nothing_guided(self):
        pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank()
        with (
            pytest.raises(GuidanceError, match="never stepped"),
            guide(pipe, bank, scale=1.0, reward_scale=1.0),
        ):
            run(with_other_scheduler(pipe))
        with (
            pytest.raises(GuidanceError, match="none of the 6 steps"),
            guide(
                testing_pipe := testing.tiny_stable_diffusion(),
                bank,
                scale=1.0,
                reward_scale=1.0,
                window=(1.0, 0.99),
            ),
        ):
            run(testing_pipe)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scale": -1.0}, "scale must be"),
            ({"scale": math.nan}, "scale must be"),
            ({"reward_scale": -1.0}, "reward_scale must be"),
            ({"window": (0.2, 1.0)}, "window must be"),
            ({"window": (1.5, 0.2)}, "window must be"),
            ({"banks": []}, "at least one bank"),
            ({"reward": "clip"}, "no reward 'clip'; it has 'ramp'"),
        ],
    )
    def test_arguments(self, change, message):
        arguments = {"banks": testing.tiny_bank(), "scale": 1.0, "reward_scale": 1.0, **change}
        with (
            pytest.raises(ValueError, match=message),
            guide(testing.tiny_stable_diffusion(), **arguments),
        ):
            pass

    def test_not_a_pipeline(self):
        with pytest.raises(TypeError, match="got int"), record(3):
            pass

    def test_a_bank_of_another_shape(self):
        pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank(shape=(4, 16, 16))
        with (
            pytest.raises(BankError, match="same size"),
            guide(pipe, bank, scale=1.0, reward_scale=1.0),
        ):
            run(pipe)

    def test_a_bank_of_another_space(self):
        pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank()
        elsewhere = LookaheadBank(bank.samples, bank.rewards, bank.prompt, Space("X", (4, 8, 8), (1.0, 2.0, 3.0)))
        with (
            pytest.raises(BankError, match="another latent space"),
            guide(pipe, elsewhere, scale=1.0, reward_scale=1.0),
        ):
            pass

    def test_a_batch_that_cannot_be_shared(self):
        pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank()
        with (
            pytest.raises(ValueError, match="batch of 4 cannot be shared among 3"),
            guide(pipe, [bank, bank, bank], scale=1.0, reward_scale=1.0),
        ):
            run(pipe)

    def test_churn(self):
        scheduler = diffusers.EulerDiscreteScheduler()
        scheduler.set_timesteps(4)
        x = torch.zeros(1, 16)
        with guide(scheduler, bank_of_four(), scale=1.0, reward_scale=1.0):
            with pytest.raises(ValueError, match="s_churn"):
                scheduler.step(x, scheduler.timesteps[0], x, s_churn=1.0)
            scheduler.step(x, scheduler.timesteps[0], x, s_churn=0.0)


def test_traces_join_by_rows():
    pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank()
    traces = []
    for prompt in ("a cat", "a dog"):
        with guide(pipe, bank, scale=1.0, reward_scale=1.0) as trace:
            run(pipe, [prompt], images=1)
        traces.append(trace)
    rows = Trace.join(traces).rows()
    assert [len(row["ess"]) for row in rows] == [2] * len(traces[0].steps)
    assert rows[0]["ess"][0] == traces[0].rows()[0]["ess"][0]
    assert Trace.join([]).rows() == []


# DDPM and LCM themselves look up the next timestep on the pipeline's device.
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("DDPMScheduler", "LCMScheduler")])
def test_steps_read_their_timestep_on_the_host(name):
    """Reading a number from a GPU means waiting for it, so sampling must read nothing from there."""
    pipe, bank = with_scheduler(testing.tiny_stable_diffusion, name), testing.tiny_bank()
    pipe.scheduler.set_timesteps(5)
    read = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:
                read.append(args[0].untyped_storage().data_ptr())
            return func(*args, **(kwargs or {}))

    with guide(pipe, bank, scale=1.0, reward_scale=3.0, window=(1.0, 0.0)) as trace:
        pipe.scheduler.set_timesteps(5)
        times = pipe.scheduler.timesteps
        sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in times:
            before = len(read)
            with Watch():
                sample = pipe.scheduler.step(0.1 * sample, t, sample).prev_sample
            if t is not times[0]:  # the first step looks its index up
                assert times.untyped_storage().data_ptr() not in read[before:]
                assert sample.untyped_storage().data_ptr() not in read[before:]
    assert read  # the host's copies
    assert [step.timestep for step in trace.steps] == [float(t) for t in times][: len(trace.steps)]


def test_banks_may_be_kept_in_half_the_memory():
    pipe, bank = testing.tiny_stable_diffusion(), testing.tiny_bank()
    runs = []
    for dtype in (None, torch.bfloat16):
        with guide(pipe, bank, scale=3.0, reward_scale=3.0, bank_dtype=dtype) as trace:
            runs.append(run(pipe))
        assert trace.steps
    assert not torch.equal(runs[0], runs[1])
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0.02)
