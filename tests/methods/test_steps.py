"""Methods count the steps that the pipeline takes, which may differ from the number in the settings."""

import diffusers
import pytest
import torch
from PIL import Image
from tiny_lidar import PROMPTS, make

from lidar_sampling import testing
from lidar_sampling._hooks import Hook, attach
from lidar_sampling.methods import (
    DAS,
    DATE,
    FMRG,
    FKSteering,
    Halving,
    NoiseSearch,
    Refine,
    ReNO,
    Steered,
    UniversalGuidance,
    Vanilla,
    date,
    fk_steering,
    load,
)

PICTURE = {"image": Image.new("RGB", (16, 16), "red"), "strength": 0.5}
TIMES = [950, 820, 690, 560, 430, 300, 170, 40]
MODULAR = {"steps": 7, "eta": None, "guidance_scale": None}


def from_picture(cls=diffusers.StableDiffusionImg2ImgPipeline, **options):
    tiny = testing.tiny_stable_diffusion_xl if "XL" in cls.__name__ else testing.tiny_stable_diffusion
    return make(make_pipe=lambda: tiny(cls), eta=1.0, pipe_kwargs=PICTURE, **options)


@pytest.fixture
def looks(monkeypatch):
    """Return the steps at which FK steering weighed each population, and the one that it takes for the last."""
    seen, choose = [], fk_steering.Weighed.choose
    monkeypatch.setattr(
        fk_steering.Weighed,
        "choose",
        lambda self, r: seen.append((self._step, self._last)) or choose(self, r),
    )
    return seen


class TestThePipelineSaysHowMany:
    @pytest.mark.parametrize(
        ("lidar", "taken"),
        [
            (lambda: from_picture(steps=10), 5),
            (lambda: from_picture(diffusers.StableDiffusionXLImg2ImgPipeline, steps=10), 5),
            (lambda: make(eta=1.0, steps=10, pipe_kwargs={"num_inference_steps": 20}), 20),
            (lambda: make("DDPMScheduler", eta=None, steps=10, pipe_kwargs={"timesteps": TIMES}), 8),
            (lambda: make("TCDScheduler", eta=0.3, steps=10, pipe_kwargs={"timesteps": TIMES}), 8),
            (lambda: make("DDPMScheduler", make_pipe=testing.tiny_modular_stable_diffusion_xl, **MODULAR), 7),
        ],
        ids=["img2img", "img2img of SDXL", "a number in the call", "timesteps", "timesteps of TCD", "modular"],
    )
    def test_fk_steering_looks_at_its_fifths_and_reaches_the_last(self, looks, lidar, taken):
        FKSteering().draw(lidar(), ["a cat"], images=2, seed=0)
        assert [step for step, _ in looks] == sorted({round(taken * k / 5) for k in range(1, 5)} | {taken - 1})
        assert {last for _, last in looks} == {taken - 1}

    def test_steered_looks_at_the_fifths_of_what_is_taken(self):
        for lidar, looks in (
            (from_picture(steps=30), 3),  # 15 steps: 3, 6 and 9
            (make(eta=1.0, steps=3, pipe_kwargs={"num_inference_steps": 10}), 3),  # 2, 4 and 6
        ):
            result = Steered(4).draw(lidar, ["a cat"], images=2, seed=0)
            assert result.cost["sampling"].reward_calls == looks * 4

    @pytest.mark.parametrize("method", [Vanilla(), Steered(2), Halving(4, keep_at=(0.5,))])
    def test_a_method_without_steps_of_its_own_takes_those_of_the_call(self, method):
        given = make(eta=1.0, steps=3, pipe_kwargs={"num_inference_steps": 6})
        usual = make(eta=1.0, steps=6)
        ours, theirs = (method.draw(lidar, PROMPTS, images=2, seed=0) for lidar in (given, usual))
        assert torch.equal(ours.images, theirs.images)

    @pytest.mark.parametrize(
        "name",
        [
            "vanilla@4",
            "best-of-2@4",
            "steered-2@4",
            "halving-4@4",
            "group-4@4:diverse=0",
            "threshold-2@4:parts=2",
            "dts-2@4",
            "dfs-1@4",
        ],
    )
    def test_a_method_with_steps_of_its_own_takes_them_whatever_the_timesteps(self, name):
        given = make("TCDScheduler", eta=0.3, pipe_kwargs={"timesteps": TIMES})
        usual = make("TCDScheduler", eta=0.3)
        ours, theirs = (load(name).draw(lidar, ["a cat"], images=1, seed=0) for lidar in (given, usual))
        assert torch.equal(ours.images, theirs.images)

    @pytest.mark.parametrize(
        "cls", [diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionXLImg2ImgPipeline]
    )
    def test_fmrg_guides_its_share_of_what_is_taken(self, cls):
        cost = FMRG(end=0.4).draw(from_picture(cls, steps=10), ["a cat"], images=2, seed=0).cost["sampling"]
        assert (cost.network_evaluations, cost.backward_passes) == (2 * 5 * 2, 2 * 2 * 2)

    def test_refinement_takes_the_steps_that_it_names(self):
        """Strength .3 rarely gives a whole number of steps: 10 steps need a schedule of 34, not 33."""
        result = Refine(n=2, steps=10, strength=0.3).draw(make(), ["a cat"], images=1, seed=0)
        assert result.cost["sampling"].network_evaluations == 10 * 2


class TestDAS:
    @pytest.mark.parametrize(
        ("lidar", "taken"),
        [
            (lambda **how: from_picture(**how), 5),
            (lambda **how: make(eta=1.0, pipe_kwargs={"num_inference_steps": 20}, **how), 20),
        ],
    )
    def test_refuses_other_steps_before_the_first_reward(self, lidar, taken):
        def reward(images, prompts):
            raise AssertionError("a reward was spent")

        with pytest.raises(ValueError, match=f"in the 10 steps of the settings, and the pipeline takes {taken}"):
            DAS().draw(lidar(steps=10, reward=reward), ["a cat"], images=2, seed=0)


class TestDATE:
    @pytest.mark.parametrize(
        "lidar",
        [
            lambda: from_picture(steps=6),
            lambda: from_picture(diffusers.StableDiffusionXLImg2ImgPipeline, steps=6),
            lambda: make(make_pipe=testing.tiny_stable_diffusion_xl, steps=6, pipe_kwargs={"denoising_end": 0.5}),
            lambda: make(steps=3),
        ],
    )
    def test_reads_its_predictions_at_the_steps_that_are_taken(self, lidar, monkeypatch):
        read, taken = [], []
        level = date.noise_level
        monkeypatch.setattr(date, "noise_level", lambda scheduler, t: read.append(int(t)) or level(scheduler, t))

        class Watch(Hook):
            def before(self, step):
                taken.append(int(step.timestep))
                return step

        lidar = lidar()
        with attach(lidar.pipe, Watch()):
            DATE().draw(lidar, ["a cat"], images=1, seed=0)
        assert read == taken
        assert len(taken) in (2, 3)

    def test_refuses_a_schedule_that_is_cut_at_both_ends(self):
        lidar = from_picture(diffusers.StableDiffusionXLImg2ImgPipeline, steps=12)
        lidar.pipe_kwargs["denoising_end"] = 0.75
        with pytest.raises(TypeError, match="at one end of its schedule, not at both"):
            DATE().draw(lidar, ["a cat"], images=1, seed=0)


class TestPartsOfTheSchedule:
    @pytest.mark.parametrize(
        "name",
        [
            "fk",
            "fk+best-of-2",
            "steered-2",
            "svdd-2",
            "beam-2x2",
            "halving-4",
            "group-4:diverse=0",
            "threshold-2",
            "das",
            "reno-2",
            "dts-2",
            "dfs-1",
            "rbf-2",
            "evo-3@8",
        ],
    )
    def test_that_end_early_are_refused_by_name_before_drawing(self, name):
        lidar = make(make_pipe=testing.tiny_stable_diffusion_xl, eta=1.0, pipe_kwargs={"denoising_end": 0.6})
        lidar.pipe.unet.forward = None  # drawing is an error
        with pytest.raises(ValueError, match=r"denoising_end=0\.6 stops before: leave it out"):
            load(name).draw(lidar, ["a cat"], images=1, seed=0)

    @pytest.mark.parametrize("method", [FKSteering(), Steered(2), ReNO(n=2, steps=5)])
    def test_that_end_early_in_other_ways_are_refused_at_the_end(self, method, monkeypatch):
        """The pipeline takes one step less than promised."""
        lidar = make(eta=1.0, steps=5)
        monkeypatch.setattr(type(lidar.pipe), "num_timesteps", property(lambda pipe: pipe._num_timesteps + 1))
        with pytest.raises(ValueError, match="the 6 steps that the pipeline promised, and it took 5"):
            method.draw(lidar, ["a cat"], images=2, seed=0)

    def test_recurrence_repeats_a_whole_schedule_or_refuses(self):
        with pytest.raises(ValueError, match="whole schedule of 20 steps, and the pipeline takes 15 of them"):
            UniversalGuidance(recurrence=2).draw(from_picture(steps=10), ["a cat"], images=1, seed=0)
        once = UniversalGuidance(0.0).draw(from_picture(steps=10), ["a cat"], images=1, seed=0)
        assert once.cost["sampling"].network_evaluations == 5 * 2

    @pytest.mark.parametrize(
        "method",
        [
            Halving(4),
            load("group-4:diverse=0"),
            load("threshold-2"),
            NoiseSearch(),
            load("svdd-2:rollout_steps=3"),
            load("beam-2x2@3"),
            ReNO(),
            load("dts-2"),
            load("dfs-1"),
        ],
    )
    def test_methods_that_give_latents_refuse_pipelines_that_start_from_a_picture(self, method):
        with pytest.raises(TypeError, match="StableDiffusionXLImg2ImgPipeline starts from a picture"):
            method.draw(from_picture(diffusers.StableDiffusionXLImg2ImgPipeline), ["a cat"], images=1, seed=0)
        with pytest.raises(TypeError, match="StableDiffusionImg2ImgPipeline takes no latents"):
            method.draw(from_picture(), ["a cat"], images=1, seed=0)


def test_rollouts_take_their_own_timesteps_whatever_the_call():
    given = make("TCDScheduler", eta=0.3, pipe_kwargs={"timesteps": TIMES})
    result = load("svdd-2:rollout_steps=2").draw(given, ["a cat"], images=1, seed=0)
    assert result.cost["sampling"].network_evaluations == 2 * (
        8 * 2 + 7 * 2
    )  # of two proposals, rollouts but at first
