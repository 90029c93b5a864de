"""Settings of a wrong type or range and samplers without noise are refused before anything is loaded or drawn."""

import functools
import math

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_lidar import make

from lidar_sampling import RewardError, testing
from lidar_sampling.methods import (
    DAS,
    DATE,
    DTS,
    FMRG,
    RBF,
    SVDD,
    Backtracking,
    BeamSearch,
    BestOf,
    EvoSearch,
    FKSteering,
    Group,
    Guided,
    Halving,
    NoiseSearch,
    Refine,
    ReNO,
    SafeDenoiser,
    Spell,
    Steered,
    Threshold,
    UniversalGuidance,
    Vanilla,
    load,
)
from lidar_sampling.methods._checks import step_eta
from lidar_sampling.solvers import load as load_solver

NAMES = {
    FKSteering: "fk",
    DAS: "das",
    DATE: "date",
    FMRG: "fmrg",
    DTS: "dts-8",
    Backtracking: "dfs-4",
    SVDD: "svdd",
    BeamSearch: "beam-4x2",
    Group: "group-8",
    EvoSearch: "evo-8",
    Guided: "lidar",
    Halving: "halving-8",
    NoiseSearch: "search-2",
    RBF: "rbf",
    Refine: "refine",
    ReNO: "reno-8",
    SafeDenoiser: "safe-denoiser",
    Spell: "spell",
    Steered: "steered-8",
    Threshold: "threshold-4",
    UniversalGuidance: "ug",
    Vanilla: "vanilla",
}
WRONG = [
    (FKSteering, "potential", "diff", "'difference' or 'max' or 'sum' or 'rt', got 'diff'"),
    (FKSteering, "form", "published", "'code' or 'cut' or 'paper', got 'published'"),
    (FKSteering, "reward_scale", -5.0, "at least 0, got -5.0"),
    (FKSteering, "reward_scale", float("inf"), "finite and at least 0, got inf"),
    (FKSteering, "floor", float("nan"), "finite, got nan"),
    (FKSteering, "adaptive", 1, "bool, got 1"),
    (FKSteering, "guided", "yes", "bool, got 'yes'"),
    (FKSteering, "every", float("nan"), "every above 0 are needed"),
    (DAS, "reward_scale", float("nan"), "finite and at least 0, got nan"),
    (DAS, "gamma", 0.0, "above 0, got 0.0"),
    (DAS, "threshold", 2.0, r"in \[0, 1\], got 2.0"),
    (DATE, "every", 0, "at least 1, got 0"),
    (DATE, "every", 1.5, "int, got 1.5"),
    (DATE, "rho", float("inf"), "finite and at least 0, got inf"),
    (FMRG, "step_size", -1.0, "at least 0, got -1.0"),
    (FMRG, "end", 1.5, r"in \[0, 1\], got 1.5"),
    (FMRG, "rule", "adamw", "'velocity' or 'adam', got 'adamw'"),
    (DTS, "n", 0, "at least 1, got 0"),
    (DTS, "reward_scale", 0.0, "above 0, got 0.0"),
    (DTS, "sampling", 1, "bool, got 1"),
    (DTS, "exploration", float("nan"), "finite and at least 0, got nan"),
    (DTS, "widening", 0.5, "at least 1, got 0.5"),
    (DTS, "power", 0.1, r"in \[0.2, 1\], got 0.1"),
    (DTS, "parts", 0, "at least 1, got 0"),
    (Backtracking, "n", -1, "at least 0, got -1"),
    (Backtracking, "threshold", float("nan"), "threshold must be .* got nan"),
    (Backtracking, "threshold", "high", "float or None, got 'high'"),
    (Backtracking, "depth", 5, "depth must be at most the 4 parts of the schedule, got 5"),
    (SVDD, "m", True, "int, got True"),
    (SVDD, "temperature", -0.1, "at least 0, got -0.1"),
    (BeamSearch, "lookahead", 0, "at least 1, got 0"),
    (Group, "keep", 1.0, r"in \(0, 1\), got 1.0"),
    (Group, "diverse", -1.0, "at least 0, got -1.0"),
    (Group, "weight", float("inf"), "finite and at least 0, got inf"),
    (Group, "every", 1.0, r"in \[0, 1\), got 1.0"),
    (EvoSearch, "elites", 27, "at most every size of population"),
    (EvoSearch, "mutation", 1.5, r"in \[0, 1\], got 1.5"),
    (EvoSearch, "schedule", (0.5, 0.4), "rising fractions from 0 to below 1"),
    (EvoSearch, "population", 5, "tuple"),
    (Guided, "n", 0, "at least 1, got 0"),
    (Guided, "scale", -1.0, "at least 0, got -1.0"),
    (Guided, "reward_scale", "high", "float or 'auto' or None, got 'high'"),
    (Guided, "steps", 2.5, "int or None, got 2.5"),
    (Guided, "lookahead", "dmp:5", "unknown solver 'dmp:5'; did you mean 'dpm:5'"),
    (Halving, "keep_at", (0.5, 0.25), "rising fractions between 0 and 1"),
    (Halving, "keep_at", (), "rising fractions between 0 and 1"),
    (Halving, "keep_at", (0.5, 1.0), "rising fractions between 0 and 1"),
    (Halving, "steps", 0, "at least 1, got 0"),
    (NoiseSearch, "rounds", -1, "at least 0, got -1"),
    (NoiseSearch, "cosine", 1.5, r"in \[-1, 1\], got 1.5"),
    (NoiseSearch, "eta", 2.0, r"in \[0, 1\], got 2.0"),
    (RBF, "m", 0, "at least 1, got 0"),
    (RBF, "start", 2.5, "int, got 2.5"),
    (Refine, "strength", 0.0, r"in \(0, 1\], got 0.0"),
    (Refine, "solver", "dmp:5", "did you mean 'dpm:5'"),
    (Refine, "offspring", "3", "int, got '3'"),
    (ReNO, "n", 0, "at least 1, got 0"),
    (ReNO, "steps", 0, "at least 1, got 0"),
    (ReNO, "rate", float("inf"), "finite and at least 0, got inf"),
    (ReNO, "momentum", 1.0, r"in \[0, 1\), got 1.0"),
    (ReNO, "clip", 0.0, "above 0, got 0.0"),
    (ReNO, "penalty", -0.1, "at least 0, got -0.1"),
    (SafeDenoiser, "beta", 0.0, "above 0, got 0.0"),
    (Spell, "radius", float("inf"), "finite and above 0, got inf"),
    (Spell, "worst", 0, "at least 1, got 0"),
    (Steered, "ess", 0.0, r"in \(0, 1\], got 0.0"),
    (Steered, "steps", 0, "at least 1, got 0"),
    (Steered, "islands", 0, "at least 1, got 0"),
    (Steered, "islands", 5, "n must be a multiple of islands, got n="),
    (Steered, "diverse", -1.0, "at least 0, got -1.0"),
    (Threshold, "parts", 0, "at least 1, got 0"),
    (Threshold, "threshold", float("nan"), "threshold must be finite, got nan"),
    (UniversalGuidance, "recurrence", 0, "at least 1, got 0"),
    (UniversalGuidance, "backward_rate", 0.0, "above 0, got 0.0"),
    (Vanilla, "steps", 0, "at least 1, got 0"),
]


@pytest.mark.parametrize(("cls", "field", "value", "message"), WRONG, ids=lambda x: getattr(x, "__name__", repr(x)))
def test_a_wrong_value_is_refused_in_python_and_in_a_name(cls, field, value, message):
    with pytest.raises(ValueError, match=f"{message}"):
        cls(**{field: value})
    if value != "3":  # in a name it reads as the number that it should be
        text = repr(value) if isinstance(value, tuple) else value
        with pytest.raises(ValueError, match=f"{NAMES[cls]}:{field}="):
            load(f"{NAMES[cls]}:{field}={text}")


@pytest.mark.parametrize("name", [*NAMES.values(), "best-of-4", "lidar+best-of-4", "fk+lidar", "fk+best-of-4"])
@pytest.mark.parametrize(
    ("prompts", "images", "seed", "message"),
    [
        ("cat", 1, 0, r"prompts must be a list of texts, got 'cat': give \['cat'\]"),
        ([], 1, 0, "prompts must hold at least one prompt"),
        ([3], 1, 0, "a prompt must be a string, got int"),
        (["a cat"], 1.5, 0, r"images must be a whole number, got \d+\.\d"),
        (["a cat"], 0, 0, "images must be (at least 1|1 to .*), got 0"),
        (["a cat"], 1, 0.5, "seed must be a whole number, got 0.5"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_every_method(name, prompts, images, seed, message):
    lidar = make(steps=20, n=40, metrics=["glyph"])

    @functools.wraps(lidar.pipe.unet.forward)
    def forward(*args, **kwargs):
        raise AssertionError("it drew")

    lidar.pipe.unet.forward = forward
    with pytest.raises((TypeError, ValueError), match=message):
        load(name).draw(lidar, prompts, images=images, seed=seed)


@pytest.mark.parametrize("name", ["lidar", "fmrg", "ug", "safe-denoiser", "spell"])
def test_a_scheduler_that_cuts_the_shift_away_is_refused(name):
    lidar = make(n=20)
    lidar.pipe.scheduler = DDIMScheduler.from_config(lidar.pipe.scheduler.config, clip_sample=True)
    for ask in (load(name).cost, lambda lidar, images: load(name).draw(lidar, ["a cat"], images=images, seed=0)):
        with pytest.raises(ValueError, match="clip_sample=True, which cuts the guided prediction back"):
            ask(lidar, images=1)


@pytest.mark.parametrize("name", ["das", "date", "fmrg", "reno-2", "ug"])
def test_a_reward_that_gives_nan_is_named(name):
    def hollow(*, images, prompts):
        return images.flatten(1).mean(1) * torch.nan

    with pytest.raises(RewardError, match="reward 'hollow' returned nan, from which no gradient leads on"):
        load(name).draw(make(reward=hollow), ["a cat"], images=2, seed=0)


def test_every_method_can_be_made_of_its_defaults_and_refuses_a_field_it_has_not():
    for cls, name in NAMES.items():
        assert type(load(name)) is cls
        with pytest.raises(ValueError, match=f"{name}:wrong=1: {cls.__name__} has no 'wrong'"):
            load(f"{name}:wrong=1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fk:reward_scal=2", "did you mean 'reward_scale'"),
        ("svdd-M", "svdd-M stands for many methods: give numbers in the place of its capital letters"),
        ("fk:form=paper,form=code", "gives form twice"),
        ("best-of-4@10:steps=0", "steps must be at least 1, got 0"),
        ("vanilla@dpm:5:steps=3", "dpm:5 brings steps of its own: leave out steps=3"),
        ("svdd-4:rollouts=2", "several rollouts need several rollout_steps, got 2 rollouts of 1 step"),
    ],
)
def test_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_names_read_values_in_json_and_in_python():
    for text in (
        "fk:adaptive=true,potential='sum',reward_scale=.5",
        "fk:adaptive=True,potential=sum,reward_scale=0.5",
    ):
        assert load(text) == FKSteering("sum", 0.5, adaptive=True)
    assert load("search-2:eta=null") == load("search-2:eta=None") == NoiseSearch(neighbours=2, eta=None)
    assert load("halving-8:keep_at=[.25,.5]").keep_at == [0.25, 0.5]


def test_best_of_takes_methods_alone_and_vanilla_solvers():
    with pytest.raises(TypeError, match=r"such as Vanilla\(\), got 'vanilla'"):
        BestOf("vanilla", 2)
    with pytest.raises(TypeError, match=r"such as solvers.load\('dpm:5'\), got 'dpm:5'"):
        Vanilla(solver="dpm:5")
    with pytest.raises(ValueError, match="brings steps of its own"):
        Vanilla(3, load_solver("dpm:5"))


EVO = "evo:population=(2,2),schedule=(0,),elites=1"


class TestNoise:
    @pytest.mark.parametrize("name", ["fk", "steered-8", "svdd-3", "beam-4x2", "das", "dts-8", "evo-3@8", "rbf-2"])
    @pytest.mark.parametrize(
        ("scheduler", "options"),
        [
            ("DDIMScheduler", {"eta": 0.0}),
            ("DDIMScheduler", {"pipe_kwargs": {"eta": 0.0}}),  # overrides the settings
            ("DDIMScheduler", {"eta": None}),  # the pipeline's default is 0
            ("TCDScheduler", {"eta": 0.0}),
            ("TCDScheduler", {"eta": None}),  # the pipeline's default, and not the scheduler's .3, reaches the step
        ],
    )
    def test_a_sampler_without_it_is_refused_before_drawing(self, name, scheduler, options):
        lidar = make(scheduler, **options)
        lidar.pipe.unet.forward = None  # drawing is an error
        message = f"{scheduler} with eta=0 has none: set eta above 0"
        if name in ("das", "rbf-2") and scheduler == "TCDScheduler":
            message = "DDIMScheduler alone"
        with pytest.raises(ValueError, match=message):
            load(name).draw(lidar, ["a cat"], images=4, seed=0)

    @pytest.mark.parametrize("name", ["fk", "steered-4", "svdd-3", "beam-4x2"])
    @pytest.mark.parametrize(
        ("scheduler", "options"),
        [
            ("DDIMScheduler", {"eta": 0.5}),
            ("DDIMScheduler", {"eta": 0.0, "pipe_kwargs": {"eta": 1.0}}),
            ("DDPMScheduler", {"eta": None}),  # takes none, and has noise of its own
            ("LCMScheduler", {"eta": None}),
            ("TCDScheduler", {"eta": 0.3}),
        ],
    )
    def test_a_sampler_with_it_parts_the_copies(self, name, scheduler, options):
        images = load(name).draw(make(scheduler, steps=4, **options), ["a cat"], images=4, seed=0).images[0]
        if scheduler in ("DDIMScheduler", "TCDScheduler") and name != "fk":
            assert len({tuple(image.flatten().tolist()) for image in images}) == 4

    @pytest.mark.parametrize(
        "name", ["fk", "steered-4:ess=1.0", "svdd-1", "beam-4x1", "dts-1", "dfs-1", "rbf-1", EVO]
    )
    def test_methods_that_copy_nothing_need_none(self, name):
        result = load(name).draw(make(eta=0.0), ["a cat"], images=1, seed=0)
        assert result.images.shape == (1, 1, 3, 16, 16)

    def test_eta_is_the_one_that_reaches_the_step(self):
        assert step_eta(make(eta=0.5)) == 0.5
        assert step_eta(make("TCDScheduler", eta=None)) == 0.0
        assert math.isnan(step_eta(make("DDPMScheduler", eta=None)))  # it takes none
        flow = make("TCDScheduler", eta=None)
        flow.pipe.__class__ = type("WithoutEta", (type(flow.pipe),), {"__call__": lambda self, prompt: None})
        assert step_eta(flow) == 0.3  # the scheduler's own

        modular = make("DDIMScheduler", make_pipe=testing.tiny_modular_stable_diffusion_xl, eta=None)
        assert step_eta(modular) == 0.0


def test_a_scheduler_of_a_pipeline_is_as_it_was_after_a_refusal():
    lidar = make(eta=0.0)
    with pytest.raises(ValueError, match="eta"):
        FKSteering().draw(lidar, ["a cat"], images=2, seed=0)
    assert type(lidar.pipe.scheduler) is diffusers.DDIMScheduler
    assert torch.isfinite(lidar.vanilla("a cat", images=1).images).all()
