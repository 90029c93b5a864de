"""The costs that methods state, against the counts when they draw."""

import functools
import re
from copy import copy, deepcopy
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from tiny_lidar import make

from lidar_sampling import Cost, LiDAR, methods, testing
from lidar_sampling._call import PerPrompt
from lidar_sampling._forecast import Rates, calls_of, evaluations_of, rows_of
from lidar_sampling._hooks import record
from lidar_sampling.evaluation.budget import with_number, within
from lidar_sampling.methods._names import _TABLE
from lidar_sampling.rewards import Mixture

NAMES = [
    "vanilla",
    "vanilla@3",
    "vanilla@dpm:2",
    "vanilla@own:2-unguided",
    "lidar",
    "lidar:n=3,steps=4,lookahead=dpm:2-unguided",
    "lidar-paper:n=3",
    "best-of-5",
    "best-of-4@2",
    "best-of-4@dpm:2",
    "lidar+best-of-4",
    "fk+best-of-4",
    "fk+lidar+best-of-4",
    "refine-4",
    "refine-4:steps=3,strength=0.7,offspring=2",
    "halving-16",
    "halving-19@7",
    "steered-4",
    "steered-5@9",
    "steered-4:ess=1.0",
    "steered-8:islands=2",
    "steered-4:islands=4",
    "group-8:diverse=0",
    "group-9@7:diverse=0,keep=0.3,start=0.2,every=0.2",
    "threshold-2:parts=1",
    "threshold-3@4:parts=2",
    "threshold-2@6:parts=3,threshold=0.5",
    "fk",
    "fk:start=0.0,every=0.4",
    "fk:adaptive=True,form=paper",
    "fk+lidar",
    "das",
    "das:threshold=1.0",
    "svdd-1",
    "svdd-2",
    "svdd-2:rollout_steps=3,rollouts=2,temperature=0.1",
    "beam-4x2",
    "beam-4x2@3",
    "evo-3@8",
    "evo:population=(3,2,2),schedule=(0,0.5),elites=1",
    "evo:population=(5,),schedule=()",
    "rbf-1",
    "rbf-1:start=1",
    "rbf-3:start=2",
    "rbf-2@1",
    "search-2",
    "search-1:rounds=2",
    "dts-4",
    "dts-5@7",
    "dts-4:sampling=True",
    "dts-9:parts=1,widening=1,power=0.2",
    "dfs-1",
    "dfs-3@10",
    "dfs-2:threshold=0.5,parts=2",
    "ug",
    "ug:recurrence=2",
    "ug:backward_steps=2",
    "ug-backward",
    "fmrg",
    "fmrg:end=1.0,rule=adam",
    "fmrg:end=0.0",
    "reno-1",
    "reno-3",
    "reno-2@2",
    "reno-2@dpm:1",
    "date",
    "date:every=2",
    "safe-denoiser:worst=4",
    "spell:worst=4",
]


def forecast_and_count(method, lidar, images=1):
    """Return the cost that ``method`` states and the counted one, both without seconds and memory."""
    told = method.cost(lidar, images=images)
    parts = method.draw(lidar, ["a cat"], images=images, seed=0).cost.values()
    return told, replace(sum(parts, Cost()), seconds=0.0, peak_memory=0)


@functools.cache
def tiny(guidance_scale=3.0):
    return make(guidance_scale=guidance_scale, steps=4)


def test_every_method_is_here():
    bases = [re.split(r"[:,](?=\w+=)", name)[0] for name in NAMES]
    assert [row for row, pattern, *_ in _TABLE if not any(re.fullmatch(pattern, base) for base in bases)] == []


@pytest.mark.parametrize("name", NAMES)
def test_of_every_method_is_what_is_counted(name):
    for images, guidance_scale in ((1, 3.0), (2, 1.0), (4, 3.0)):
        told, counted = forecast_and_count(methods.load(name), tiny(guidance_scale), images)
        assert told == counted


@pytest.mark.parametrize(
    "name", ["dts-6:widening=1,power=0.5", "dts-5:widening=1,power=0.2,sampling=True", "dfs-3:depth=3"]
)
@pytest.mark.parametrize("steps", [4, 5, 10])
def test_of_a_search_is_the_most_that_is_counted(name, steps):
    """The places of branches are not known beforehand, but the number of network evaluations is."""
    told, counted = forecast_and_count(methods.load(name), make(steps=steps))
    assert counted.network_evaluations == told.network_evaluations
    assert counted.decodes <= told.decodes
    assert counted.decodes > told.decodes / 4  # a tree never branches at the last of its levels alone
    assert counted.reward_calls == counted.decodes


@pytest.mark.parametrize("name", ["dts-4:widening=1,power=0.5", "dts-6:widening=1,power=0.5"])
@pytest.mark.parametrize("steps", [11, 19])
def test_of_a_tree_leaves_out_what_no_rollout_fits_into(name, steps):
    """The first part is longer where five do not divide the steps, and what is left is less than the last part."""
    told, counted = forecast_and_count(methods.load(name), make(steps=steps))
    left = (told.network_evaluations - counted.network_evaluations) / 2  # with guidance
    assert 0 <= left < steps // 5


@pytest.mark.parametrize(
    "name",
    [
        "fk",
        "steered-4",
        "svdd-2:rollout_steps=3",
        "halving-8",
        "beam-2x2",
        "vanilla@2",
        "dts-2",
        "dfs-1",
        "evo-3:schedule=(0,.2,.5,.7)",
    ],
)
def test_of_a_call_that_chooses_its_timesteps(name):
    lidar = make("DDPMScheduler", pipe_kwargs={"timesteps": [900, 700, 600, 500, 300, 200, 0]})
    told, counted = forecast_and_count(methods.load(name), lidar)
    assert told == counted


def test_of_timesteps_that_the_scheduler_does_not_take():
    with pytest.raises(ValueError, match="DDIMScheduler takes no timesteps of your own"):
        methods.Vanilla().cost(make(pipe_kwargs={"timesteps": [900, 500]}), images=1)


def test_of_a_mixture_counts_each_of_its_rewards():
    def contrast(*, images, prompts):
        return images.flatten(1).std(1)

    def bright(*, images, prompts):
        return images.flatten(1).mean(1)

    contrast.differentiable = bright.differentiable = True
    weights, rewards = {"bright": 1.0, "contrast": 1.0}, [bright, contrast]
    mixture = Mixture(weights, rewards=rewards)
    loose = Mixture(weights, rewards=rewards, calibration=dict.fromkeys(weights, (0.0, 1.0)))
    for reward, names in (
        (mixture, ["lidar", "best-of-3", "halving-4"]),
        (loose, ["fk", "steered-3", "ug", "das", "fmrg", "reno-2", "dts-3", "dfs-1"]),
    ):
        for name in names:
            told, counted = forecast_and_count(methods.load(name), make(reward=reward))
            assert told == counted
            assert told.reward_calls % 2 == 0


@pytest.mark.parametrize("rescore", [0, 2, 9])
def test_of_a_bank_with_a_preview(rescore):
    lidar = make()
    lidar.preview, lidar.rescore = lidar.pipe.vae, rescore
    for name in ("lidar", "fk+lidar", "spell:worst=4"):
        told, counted = forecast_and_count(methods.load(name), lidar)
        assert told == counted


def test_of_a_bank_ignores_the_store(tmp_path):
    lidar = make(store=tmp_path)
    lidar.look(["a cat"])
    told, counted = forecast_and_count(methods.Guided(), lidar)
    bank = Cost(network_evaluations=6 * 3 * 2, decodes=6, reward_calls=6)
    assert told == counted + bank


def test_is_told_without_a_call_of_the_network():
    lidar = make()

    def refuse(*_):
        raise AssertionError("the network was called")

    lidar.pipe.unet.register_forward_pre_hook(refuse)
    scheduler, before = lidar.pipe.scheduler, dict(vars(lidar.pipe.scheduler))
    with record(lidar.pipe) as recording:
        for name in NAMES:
            methods.load(name).cost(lidar, images=1)
    assert recording.total == 0
    assert lidar.pipe.scheduler is scheduler
    assert vars(scheduler).keys() == before.keys()
    assert scheduler.timesteps is before["timesteps"]


@pytest.mark.parametrize("name", ["ug", "fmrg", "date", "das", "reno-2"])
def test_gradients_of_a_mixture_over_a_bank_are_refused(name):
    lidar = make(reward=Mixture({"brightness": 1.0}))
    with pytest.raises(ValueError, match="give the mixture a calibration"):
        methods.load(name).cost(lidar, images=1)


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("vanilla", 0, "images must be at least 1, got 0"),
        ("best-of-3", 4, "images must be 1 to n = 3, got 4"),
        ("halving-8", 3, "images must be 1 to the 2 that reach the end"),
        ("halving-8@2", 1, "keep_at must be rising fractions"),
        ("steered-2", 3, "images must be 1 to n = 2"),
        ("group-2", 3, "images must be 1 to n = 2"),
        ("group-99:diverse=0", 1, "in 7 looks, and 5 steps have places for 4"),
        ("threshold-2:parts=2", 1, "parts must divide the 5 steps"),
        ("beam-2x2", 3, "images must be 1 to the 2 beams"),
        ("dts-2", 3, "images must be 1 to n = 2, got 3"),
        ("dfs-2:parts=8,depth=8", 1, "depth must be at most the 5 steps that the pipeline takes, got 8"),
        ("spell", 1, "worst must be at most n = 6"),
        ("evo-3@8", 12, "images must be 1 to the 11 samples of all generations"),
        ("evo-3", 1, "schedule must be rising fractions that differ in 5 steps and leave out the last"),
        ("rbf", 0, "images must be at least 1, got 0"),
    ],
)
def test_what_drawing_refuses_is_refused(name, images, message):
    method = methods.load(name)
    with pytest.raises(ValueError, match=message):
        method.cost(make(), images=images)
    if images:
        with pytest.raises(ValueError, match=message):
            method.draw(make(), ["a cat"], images=images, seed=0)


@pytest.mark.parametrize(
    "name",
    [
        "fk",
        "steered-4",
        "svdd-2",
        "beam-2x2",
        "halving-8",
        "das",
        "group-2:diverse=0",
        "threshold-2",
        "dts-2",
        "dfs-1",
        "evo-3@8",
        "rbf-2",
    ],
)
def test_samplers_that_a_method_cannot_follow_are_refused(name):
    with pytest.raises(ValueError, match="HeunDiscreteScheduler"):
        methods.load(name).cost(make("HeunDiscreteScheduler"), images=1)


SCHEDULERS = [
    "DDIM",
    "DDPM",
    "PNDM",
    "HeunDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "LMSDiscrete",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "LCM",
    "TCD",
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_of_every_scheduler(scheduler):
    lidar = make(f"{scheduler}Scheduler", steps=4)
    for name in ("vanilla", "lidar:n=2,lookahead=own:2", "best-of-2@2", "ug", "date", "fmrg", "reno-2@2"):
        told, counted = forecast_and_count(methods.load(name), lidar)
        assert told == counted


def mean(*, images, prompts):
    return images.flatten(1).mean(1)


@functools.cache
def family(key):
    options = {"n": 2, "steps": 3, "lookahead": "own:2", "scale": 1.0, "reward_scale": 1.0}
    tiny = testing.PIPELINES[key]
    return LiDAR(tiny.make(), reward=mean, pipe_kwargs=tiny.call, **options)


def test_of_flux_pipelines_that_do_not_read_the_scale_of_guidance():
    pipe = testing.tiny_flux(diffusers.FluxControlPipeline, schnell=True)
    config, channels = (
        pipe.transformer.config,
        {"in_channels": 32, "out_channels": 16},
    )  # latents beside the picture's
    pipe.register_modules(transformer=diffusers.FluxTransformer2DModel.from_config(config, **channels))
    picture = {"control_image": torch.zeros(1, 3, 16, 16), "height": 16, "width": 16, "guidance_scale": 3.5}
    lidar = LiDAR(pipe, reward=mean, steps=2, pipe_kwargs=picture)
    told, counted = forecast_and_count(methods.load("vanilla"), lidar)
    assert told == counted


@pytest.mark.parametrize("key", testing.PIPELINES)
@pytest.mark.parametrize("guidance_scale", [None, 1.0])
def test_of_every_family(key, guidance_scale):
    lidar = copy(family(key))
    if guidance_scale is not None:
        lidar.pipe_kwargs = {**lidar.pipe_kwargs, "guidance_scale": guidance_scale}
    for name in ("vanilla", "lidar", "best-of-2@2"):
        told, counted = forecast_and_count(methods.load(name), lidar)
        assert told == counted


@pytest.mark.parametrize(("stg_scale", "modality_scale", "branches"), [(1.0, 3.0, 4), (1.0, 1.0, 3), (0.0, 3.0, 3)])
def test_of_the_further_guidance_of_ltx_2(stg_scale, modality_scale, branches):
    lidar = copy(family("ltx-2"))
    more = {"stg_scale": stg_scale, "modality_scale": modality_scale, "spatio_temporal_guidance_blocks": [0]}
    lidar.pipe_kwargs = {**lidar.pipe_kwargs, **more, "audio_stg_scale": None, "audio_modality_scale": None}
    told, counted = forecast_and_count(methods.load("vanilla"), lidar)
    assert told == counted
    assert told.network_evaluations % (3 * branches) == 0


@pytest.mark.parametrize(("name", "looks", "backward"), [("ug", 2, 2 * 2), ("date", 3, 3)])
def test_of_flow_models_whose_first_step_knows_nothing(name, looks, backward):
    """At alpha = 0 the velocity still gives x_0, which DATE needs; universal guidance divides by alpha."""
    told, counted = forecast_and_count(methods.load(name), family("sd3"))
    assert told == counted
    assert (told.reward_calls, told.backward_passes) == (looks, backward)
    assert calls_of(family("sd3").pipe, family("sd3").arguments()) == 3


PICTURE = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)


class TestCalls:
    @pytest.mark.parametrize("scheduler", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
    def test_of_flow_schedulers(self, scheduler):
        lidar = copy(family("sd3"))
        lidar.pipe = copy(lidar.pipe)
        lidar.pipe.scheduler = getattr(diffusers, f"{scheduler}Scheduler")()
        for steps in (1, 4):
            told, counted = forecast_and_count(methods.Vanilla(steps), lidar)
            assert told == counted

    @pytest.mark.parametrize(
        ("key", "call", "evaluations"),
        [
            ("sd", {"timesteps": [900, 500, 100], "guidance_scale": 3.0}, 6),
            ("sdxl", {"sigmas": [10.0, 2.0, 0.0], "guidance_scale": 3.0}, 4),
            ("sdxl", {"denoising_end": 0.5, "num_inference_steps": 8, "guidance_scale": 3.0}, 8),
            ("flux", {"true_cfg_scale": 2.0}, 3),
            ("flux", {"true_cfg_scale": 2.0, "negative_prompt": "ugly"}, 6),
            ("flux", {"true_cfg_scale": 1.0, "negative_prompt": "ugly"}, 3),
            ("sd3", {"guidance_scale": 2.0, "skip_guidance_layers": [0], "num_inference_steps": 10}, 21),
            ("wan", {"guidance_scale": 2.0, "guidance_scale_2": 1.0}, 6),
            ("sana-sprint", {"intermediate_timesteps": 1.3, "num_inference_steps": 2}, 2),
        ],
    )
    def test_of_arguments(self, key, call, evaluations):
        lidar = copy(family(key))
        if "timesteps" in call:
            lidar.pipe = make("DDPMScheduler").pipe
        lidar.pipe_kwargs = {**lidar.pipe_kwargs, **call}
        if "guidance_scale_2" in call:
            both = {**lidar.pipe.components, "transformer_2": deepcopy(lidar.pipe.transformer)}
            lidar.pipe = type(lidar.pipe)(**both, boundary_ratio=0.9)
        told, counted = forecast_and_count(methods.Vanilla(), lidar)
        assert told == counted
        assert told.network_evaluations == evaluations

    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "LCMScheduler"])
    @pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
    def test_from_a_picture(self, scheduler, strength):
        make_pipe = functools.partial(testing.tiny_stable_diffusion, diffusers.StableDiffusionImg2ImgPipeline)
        call = {"image": PICTURE, "strength": strength}
        lidar = make(scheduler, make_pipe=make_pipe, pipe_kwargs=call, steps=7)
        told, counted = forecast_and_count(methods.Vanilla(), lidar)
        assert told == counted

    def test_from_a_picture_by_default(self):
        make_pipe = functools.partial(testing.tiny_stable_diffusion_xl, diffusers.StableDiffusionXLInpaintPipeline)
        call = {"image": PICTURE, "mask_image": torch.ones(1, 1, 16, 16)}
        told, counted = forecast_and_count(methods.Vanilla(), make(make_pipe=make_pipe, pipe_kwargs=call))
        assert told == counted
        assert told.network_evaluations == 4 * 2  # the default strength of .9999 leaves out one step

    def test_of_modular_pipelines(self):
        for stop, evaluations in ((1.0, 8), (0.5, 6)):
            guider = diffusers.ClassifierFreeGuidance(guidance_scale=5.0, stop=stop)
            pipe = testing.tiny_modular_stable_diffusion_xl(guider)
            lidar = LiDAR(pipe, reward=mean, pipe_kwargs={"height": 16, "width": 16}, n=2, steps=4, lookahead="own:2")
            # A guider of diffusers 0.42 keeps its last step, so one that stops early serves one call.
            told, counted = forecast_and_count(methods.Guided() if stop == 1 else methods.Vanilla(), lidar)
            assert told == counted
            assert evaluations_of(pipe, lidar.arguments()) == evaluations
            assert rows_of(pipe, lidar.arguments()) == 2

    def test_of_perturbed_attention(self):
        pipe = diffusers.AutoPipelineForText2Image.from_pipe(
            testing.tiny_stable_diffusion(), enable_pag=True, pag_applied_layers=["mid"]
        )
        for scale, pag_scale, rows in ((3.0, 2.0, 3), (1.0, 2.0, 2), (3.0, 0.0, 2)):
            assert rows_of(pipe, {"guidance_scale": scale, "pag_scale": pag_scale}) == rows
            lidar = LiDAR(pipe, reward=mean, pipe_kwargs={"guidance_scale": scale, "pag_scale": pag_scale}, steps=2)
            told, counted = forecast_and_count(methods.Vanilla(), lidar)
            assert told == counted

    def test_a_value_per_prompt_counts_as_one(self):
        lidar = family("flux")
        for negative in (["ugly", "blurred"], PerPrompt({"a cat": "ugly", "a dog": "blurred"})):
            assert rows_of(lidar.pipe, {"true_cfg_scale": 2.0, "negative_prompt": negative}) == 2


class TestRates:
    def test_are_measured_once(self):
        lidar, sizes = make(batch_size=3), []
        handle = lidar.pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        rates = Rates.measure(lidar, "a cat", images=4)
        handle.remove()
        assert sizes == [6] * 4  # three samples with both branches, two steps, twice
        assert min(rates.network, rates.decode, rates.reward) > 0
        assert rates.seconds(Cost()) == 0

    @pytest.mark.parametrize(("strength", "steps"), [(0.3, 9), (0.4, 3), (1.0, 1)])
    def test_are_measured_from_a_picture_and_in_few_steps(self, strength, steps):
        make_pipe = functools.partial(testing.tiny_stable_diffusion, diffusers.StableDiffusionImg2ImgPipeline)
        call = {"image": PICTURE, "strength": strength}
        assert Rates.measure(make(make_pipe=make_pipe, pipe_kwargs=call, steps=steps), "a cat").network > 0

    def test_tell_how_long_a_method_takes(self):
        """The bound is a factor, since the machine is shared."""
        lidar = make(steps=20)
        method = methods.load("best-of-8")
        told = Rates.measure(lidar, "a cat", images=8).seconds(method.cost(lidar, images=1))
        taken = sum(part.seconds for part in method.draw(lidar, ["a cat"], images=1, seed=0).cost.values())
        assert taken / 5 < told < 5 * taken


class TestBudgets:
    @pytest.mark.parametrize(
        ("name", "images", "budget", "unit"),
        [
            ("best-of-N@3", 2, 100, "network_evaluations"),
            ("vanilla@N", 2, 61, "network_evaluations"),
            ("lidar:n=N", 3, 500, "network_evaluations"),
            ("halving-N", 2, 300, "network_evaluations"),
            ("halving-16@N", 1, 200, "network_evaluations"),
            ("steered-N", 4, 123, "reward_calls"),
            ("group-N@9:diverse=0", 2, 300, "network_evaluations"),
            ("threshold-N@4:parts=2", 2, 300, "network_evaluations"),
            ("svdd-N", 1, 99, "decodes"),
            ("beam-2x2:candidates=N", 2, 500, "network_evaluations"),
            ("search-N", 1, 700, "network_evaluations"),
            ("dts-N", 2, 300, "network_evaluations"),
            ("dts-N:widening=1,power=0.5", 1, 90, "reward_calls"),
            ("dfs-N", 2, 200, "decodes"),
            ("evo-N@8", 1, 400, "network_evaluations"),
            ("rbf-N", 2, 300, "network_evaluations"),
            ("refine-N", 1, 150, "reward_calls"),
            ("ug:recurrence=N", 1, 77, "backward_passes"),
        ],
    )
    def test_are_filled_by_the_largest_number_and_nothing_is_drawn(self, name, images, budget, unit):
        def cost(n):
            return getattr(methods.load(with_number(name, n)).cost(lidar, images=images), unit)

        lidar = make()
        lidar.pipe.unet.register_forward_pre_hook(lambda *_: pytest.fail("the network was called"))
        found = within(lidar, name, budget, prompt="a cat", images=images, unit=unit)
        (n,) = (n for n in range(1, 1000) if with_number(name, n) == found)
        assert cost(n) <= budget < cost(n + 1)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("best-of-N", r"a budget of 30 network_evaluations per prompt is too small for best-of-N: 40 for N = 4,"),
            ("halving-N", r"too small for halving-N: 72 for N = 16, the smallest that gives images=4"),
            ("date:every=N", "does not cost more network_evaluations with a larger N"),
            ("safe-denoiser:worst=N", "worst must be at most n = 6"),
            ("bestof-N", "unknown method"),
        ],
    )
    def test_that_buy_nothing_say_so(self, name, message):
        with pytest.raises(ValueError, match=message):
            within(make(), name, 30, prompt="a cat", images=4, unit="network_evaluations")

    def test_without_end_are_refused_and_schedules_end(self):
        with pytest.raises(ValueError, match="a budget must be finite, got inf"):
            within(make(), "best-of-N", float("inf"), prompt="a cat", images=1, unit="network_evaluations")
        found = within(make(), "vanilla@N", 1e6, prompt="a cat", images=1, unit="network_evaluations")
        assert found == "vanilla@1000"

    @pytest.mark.parametrize(("islands", "images"), [(4, 1), (3, 4), (12, 1)])
    def test_go_by_the_multiples_that_a_method_takes(self, islands, images):
        lidar, name = make(), f"steered-N@3:islands={islands}"
        found = methods.load(within(lidar, name, 700, prompt="a cat", images=images, unit="network_evaluations"))
        assert found.n % islands == 0
        more = replace(found, n=found.n + islands)
        told = [method.cost(lidar, images=images).network_evaluations for method in (found, more)]
        assert told[0] <= 700 < told[1]

    def test_of_seconds_measure_one_batch(self, monkeypatch):
        lidar, rows = make(), []
        lidar.pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        found = within(lidar, "best-of-N", 3600, prompt="a cat", images=2, unit="seconds")
        assert rows == [4] * 4
        assert int(found.rpartition("-")[2]) > 100
        monkeypatch.setattr(Rates, "measure", lambda *_, **__: Rates(network=0.1, decode=0.0, reward=1.0))
        assert within(lidar, "best-of-N", 20.5, prompt="a cat", images=2, unit="seconds") == "best-of-10"


def test_pipelines_without_a_property_say_it_by_their_arguments():
    class Plain:
        transformer = torch.nn.Linear(1, 1)

        def __call__(self, prompt, guidance_scale=4.0):
            pass

    pipe = Plain()
    pipe.transformer.config = SimpleNamespace(guidance_embeds=False)
    assert [rows_of(pipe, call) for call in ({}, {"guidance_scale": 1.0})] == [2, 1]
    pipe.transformer.config.guidance_embeds = True
    assert rows_of(pipe, {}) == 1
