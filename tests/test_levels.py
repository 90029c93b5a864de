"""The table of noise levels against each scheduler's own behaviour."""

import inspect
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import register_to_config
from oracle import bank_of_four, output_for, sample, shares, start, total_variation
from test_oracle import CASES, COSMOS_2, SD, UNCLIPPED, build, label

from lidar_sampling import LookaheadBank, guide, noise_level
from lidar_sampling._flags import KNOWN
from lidar_sampling._hooks import Hook, attach
from lidar_sampling._levels import _FAMILIES, check, clean_prediction

# Cases in which add_noise cannot be compared. Second stages have other levels, SASolver noises by alphas_cumprod
# even in flow mode and between training timesteps, two classes have none, and a flow's noises as if sigma fell to 0
# from 1, whatever the schedule (diffusers 0.42).
SECOND_STAGES = {"KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"}
NO_WITNESS = {"SCMScheduler", "LTXEulerAncestralRFScheduler"}
BETWEEN = {"use_flow_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
# Cases in which the step between two levels cannot be compared: it draws noise, or goes to a timestep 1/steps down
# whatever the next one is.
DRAWS = ("DDPM", "LCM", "TCD", "EulerAncestral", "KDPM2Ancestral", "DPMSolverSDE", "SASolver", "Cosine", "SCM")
DRAWS += ("FlowMatchLCM", "CogVideoXDPM")
EVENLY = ("DDIM", "CogVideoXDDIM", "PNDM")

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
V_AT_ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
# Each flag that may change a level or the meaning of the model output, with a value that tests it.
SETTINGS = {
    "num_train_timesteps": [{"num_train_timesteps": 200}],
    "beta_start": [{"beta_start": 0.001}],
    "beta_end": [{"beta_end": 0.015}],
    "beta_schedule": [{"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "linear"}],
    "trained_betas": [
        {
            "trained_betas": np.linspace(0.002, 0.2, 100).tolist(),
            "num_train_timesteps": 100,
            "original_inference_steps": 20,
        }
    ],
    "rescale_betas_zero_snr": [V_AT_ZERO_SNR],
    "snr_shift_scale": [{"snr_shift_scale": 1.0}],
    "sigma_data": [{"sigma_data": 0.8}],
    "timestep_spacing": [{"timestep_spacing": s} for s in ("linspace", "leading", "trailing")],
    "timestep_type": [{"timestep_type": "continuous", "prediction_type": "v_prediction"}],
    "steps_offset": [{"timestep_spacing": "leading", "steps_offset": 1}],
    "original_inference_steps": [{"original_inference_steps": 100}],
    "skip_prk_steps": [{"skip_prk_steps": True}, {"skip_prk_steps": False}],
    "interpolation_type": [{"interpolation_type": "log_linear"}],
    "lambda_min_clipped": [{"lambda_min_clipped": -2.0}],
    "use_karras_sigmas": [{"use_karras_sigmas": True}],
    "use_exponential_sigmas": [{"use_exponential_sigmas": True}],
    "use_beta_sigmas": [{"use_beta_sigmas": True}],
    "use_lu_lambdas": [{"use_lu_lambdas": True}],
    "sigma_min": [{"sigma_min": 0.01, "use_karras_sigmas": True}],
    "sigma_max": [
        {"sigma_max": 40.0, "use_karras_sigmas": True},
        {
            "sigma_max": 40.0,
            "use_karras_sigmas": True,
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
        },
        {"sigma_max": 200.0, "sigma_min": 0.01, "use_karras_sigmas": True, **FLOW},  # Cosmos 2.5
    ],
    "sigma_schedule": [{"sigma_schedule": "exponential"}, {"sigma_schedule": "karras"}],
    "rho": [{"rho": 5.0}],
    "final_sigmas_type": [{"final_sigmas_type": "sigma_min"}, {"final_sigmas_type": "sigma_min", **FLOW}],
    "set_alpha_to_one": [{"set_alpha_to_one": False}],
    "use_flow_sigmas": [FLOW, *({**FLOW, "prediction_type": p} for p in ("epsilon", "sample"))],
    "flow_shift": [{"flow_shift": 3.0, **FLOW}],
    "shift": [{"shift": 3.0}, {"shift": 3.3, "use_karras_sigmas": True}],
    "shift_terminal": [{"shift_terminal": 0.1, **FLOW}],
    "scaler": [{"scaler": 2.0}, {"scaler": 0.5}],
    "s": [{"s": 0.02}],
    "invert_sigmas": [{"invert_sigmas": True}, {"invert_sigmas": True, "shift": 3.0}],
    "use_dynamic_shifting": [{"use_dynamic_shifting": True, **FLOW}],
    "time_shift_type": [{"use_dynamic_shifting": True, "time_shift_type": "linear", **FLOW}],
    "algorithm_type": [
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "noise_prediction"},
    ],
    "solver_order": [{"solver_order": 3}, {"solver_order": 1}],
    "solver_type": [{"solver_type": "heun"}, {"solver_type": "bh1"}],
    "predictor_order": [{"predictor_order": 3}],
    "corrector_order": [{"corrector_order": 1}],
    "disable_corrector": [{"disable_corrector": [0, 1]}],
    "predict_x0": [{"predict_x0": False}],
    "lower_order_final": [{"lower_order_final": False, "final_sigmas_type": "sigma_min"}],
    "euler_at_final": [{"euler_at_final": True}],
    "stochastic_sampling": [{"stochastic_sampling": True}],
    "eta": [{"eta": 0.0}, {"eta": 0.5}],
}
# Known flags that move neither: read by pipelines, read only while clipping (refused), or matters of the noise.
STILL = {
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    *("scale_factors", "upscale_mode", "timestep_scaling", "solver_p"),
    *("variance_type", "tau_func", "s_noise", "noise_sampler_seed"),
}


def started(case, steps=6):
    scheduler = build(case)
    start(scheduler, steps)
    return scheduler


# What we refuse, and what diffusers cannot step: noise over an empty interval, and an order without a rule.
OUT = [
    ("FlowMatchLCMScheduler", {"invert_sigmas": True}),
    ("CosineDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("CosineDPMSolverMultistepScheduler", {"solver_order": 3}),
]


def parameters(name):
    return inspect.signature(getattr(diffusers, name)).parameters


def flag_cases():
    for name in _FAMILIES:
        taken = set(parameters(name))
        base = {**SD, **UNCLIPPED, "original_inference_steps": 60}
        if name in SECOND_STAGES:  # their constructors are slow, and faster with fewer timesteps
            base |= {"num_train_timesteps": 100, "beta_start": 0.0085, "beta_end": 0.12}
        for flag in taken & set(SETTINGS):
            for setting in SETTINGS[flag]:
                if FLOW.items() <= setting.items() and "use_flow_sigmas" not in taken:
                    setting = {key: value for key, value in setting.items() if key not in FLOW}
                config = {key: value for key, value in {**base, **setting}.items() if key in taken}
                if not any(name == other and keys.items() <= setting.items() for other, keys in OUT):
                    yield name, config
    yield "FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True, **COSMOS_2}


def takes(case):
    """Return whether diffusers takes the setting; only some classes take some algorithms and a linear time shift."""
    if not {"algorithm_type", "time_shift_type"} & set(case[1]):
        return True
    try:
        return bool(started(case))
    except (NotImplementedError, AssertionError):
        return False


FLAG_CASES = sorted({repr(case): case for case in flag_cases() if takes(case)}.values(), key=repr)


def flag_label(case):
    name, config = case
    return "-".join(
        [name.removesuffix("Scheduler"), *(f"{k}={str(v)[:12]}" for k, v in config.items() if SD.get(k) != v)]
    )


def test_every_family_has_an_oracle_case():
    assert {name for name, _ in CASES} == set(_FAMILIES)


def has_witness(scheduler):
    name, config = type(scheduler).__name__, scheduler.config
    if name in SECOND_STAGES and not scheduler.state_in_first_order:
        return False
    between = name == "SASolverScheduler" and any(config.get(flag) for flag in BETWEEN)
    other_levels = name.startswith("FlowMatch") and (config.get("invert_sigmas") or "sigma_max" in config)
    return name not in NO_WITNESS and not between and not other_levels


def is_deterministic(name, config):
    noisy = config.get("stochastic_sampling") or "sde" in config.get("algorithm_type", "")
    if config.get("timestep_spacing") == "linspace" and name.startswith(EVENLY):
        return False
    if name == "HeunDiscreteScheduler" and config.get("beta_schedule") == "squaredcos_cap_v2":
        return False  # from sigma 20,291 its second stages turn a rounding of float32 into an error of 6
    return not name.startswith(DRAWS) and not noisy and (not name.startswith("LTX") or config.get("eta") == 0)


class Walk(Hook):
    """Levels of every step by the library, and by the scheduler's own noising."""

    def __init__(self, scheduler):
        self.scheduler, self.levels, self.samples, self.witnessed = scheduler, [], [], []

    def timesteps(self, timesteps):
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # then noising looks up the step, not the timestep
        return timesteps

    def before(self, step):
        scheduler, t = step.scheduler, torch.as_tensor(step.timestep).reshape(1)
        self.levels.append(step.level)
        self.samples.append(step.x_t)
        self.witnessed.append(None)
        if has_witness(scheduler):
            one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
            if hasattr(scheduler, "scale_noise"):
                self.witnessed[-1] = [scheduler.scale_noise(*x).item() for x in ((one, t, zero), (zero, t, one))]
            else:
                self.witnessed[-1] = [scheduler.add_noise(*x, t).item() for x in ((one, zero), (zero, one))]
        return step


@pytest.mark.parametrize("case", FLAG_CASES, ids=flag_label)
def test_levels_are_the_schedulers_own_at_every_step_whatever_flag_is_set(case):
    """Two checks: the scheduler's own noising, and its steps with a constant clean prediction."""
    scheduler, x0 = build(case), torch.randn(1, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check(scheduler)
    walk = Walk(scheduler)
    with attach(scheduler, walk):
        sample(scheduler, x0, chains=2, steps=5, dtype=torch.float64)
    assert len(walk.levels) >= 5
    for level, witness in zip(walk.levels, walk.witnessed, strict=True):
        if witness is not None:
            assert level[:2] == pytest.approx(witness, rel=1e-5, abs=1e-6)
    times = [level.time for level in walk.levels]
    assert times == pytest.approx(sorted(times, reverse=True), abs=0.011)  # diffusers rounds some timesteps
    assert times[0] > 0.75
    assert times[-1] < 0.5
    if is_deterministic(*case):
        first = walk.levels[0]
        noise = (walk.samples[0] - first.alpha * x0) / first.sigma
        for level, x in zip(walk.levels, walk.samples, strict=True):
            torch.testing.assert_close(x, level.alpha * x0 + level.sigma * noise, rtol=1e-3, atol=1e-3)
    else:
        assert any(walk.witnessed) or case[0] in NO_WITNESS or BETWEEN & set(case[1])


# Flags that change how a level or an output is read, not only which levels are visited.
READING = {"rescale_betas_zero_snr", "timestep_type", "interpolation_type", "use_flow_sigmas", "invert_sigmas"}
READING |= {"scaler", "s", "sigma_data", "snr_shift_scale", "shift_terminal", "use_dynamic_shifting"}


@pytest.mark.parametrize("case", [c for c in FLAG_CASES if READING & set(c[1])], ids=flag_label)
def test_guided_samples_follow_the_tilted_law_whatever_flag_is_set(case):
    """As in test_oracle.py, with half as many chains. Measured: 0.009 to 0.103, median 0.024."""
    scheduler, bank = build(case), bank_of_four()
    with guide(scheduler, bank, scale=1.0, reward_scale=0.75, window=(1.0, 0.0)):
        ends = sample(scheduler, bank.samples, chains=512, steps=30)
    target = (0.75 * bank.reward()).softmax(0)
    assert total_variation(shares(ends, bank.samples), target) < 0.12


def test_every_flag_of_every_family_is_known():
    """A release of diffusers with a new flag fails here: find out what it does, then add it to a table."""
    flags = {flag for name in _FAMILIES for flag in parameters(name)}
    assert flags == KNOWN
    assert flags == set(SETTINGS) | STILL | {"prediction_type"}  # that one in CASES


class Inventive(diffusers.DDIMScheduler):
    """A scheduler with an unknown flag."""

    @register_to_config
    def __init__(self, num_train_timesteps=1000, clip_sample=False, reverse_time=False, weights=(1.0, 2.0)):
        super().__init__(num_train_timesteps=num_train_timesteps, clip_sample=clip_sample)


def test_an_unknown_flag_is_refused_where_it_is_set():
    check(Inventive())
    check(Inventive.from_config({"weights": [1.0, 2.0], "reverse_time": False}))  # JSON knows no tuples
    with pytest.raises(
        ValueError, match=r"Inventive has reverse_time=True, a flag .* load it with reverse_time=False"
    ):
        check(Inventive(reverse_time=True))
    with pytest.raises(ValueError, match="has weights="):
        check(Inventive(weights=np.ones(2)))


def test_what_another_class_left_in_the_configuration_is_ignored_as_diffusers_does():
    left = {"reverse_time": True, "clip_sample": True, "thresholding": True, "use_flow_sigmas": True, "_private": 1}
    euler = diffusers.EulerDiscreteScheduler.from_config({**diffusers.EulerDiscreteScheduler().config, **left})
    assert euler.config.clip_sample  # it is there, and step does not read it
    check(euler)
    check(diffusers.TCDScheduler(clip_sample=True))  # takes the flag, and ignores it
    check(diffusers.UniPCMultistepScheduler.from_config(dict(FLOW, stochastic_sampling=True, scale_factors=[2.0])))


REFUSED = [
    ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "says nothing about the clean sample at zero terminal SNR"),
    ("LCMScheduler", {"rescale_betas_zero_snr": True}, "says nothing about the clean sample at zero terminal SNR"),
    ("DPMSolverMultistepScheduler", {**FLOW, "use_karras_sigmas": True}, "leaves the flow's 0 to 1"),
    ("UniPCMultistepScheduler", {**FLOW, "use_exponential_sigmas": True}, "leaves the flow's 0 to 1"),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "load it with use_flow_sigmas=True"),
    ("DEISMultistepScheduler", {**FLOW, "prediction_type": "v_prediction"}, "v belongs to variance preserving"),
    ("FlowMatchLCMScheduler", {"invert_sigmas": True}, "whose noise levels count up"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True, "stochastic_sampling": True}, "levels count up"),
    ("FlowMatchHeunDiscreteScheduler", {"invert_sigmas": True}, "levels count up"),  # left over, but the model's
    ("FlowMatchLCMScheduler", {"use_karras_sigmas": True, **COSMOS_2}, "has a sigma_max above 1"),
    ("FlowMatchLCMScheduler", {"scale_factors": [2.0], "upscale_mode": "bicubic"}, "a bank has one size"),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_flags_that_do_not_go_together_are_refused(name, config, message):
    scheduler = build((name, {**config, **{k: v for k, v in UNCLIPPED.items() if k in parameters(name)}}))
    with pytest.raises(ValueError, match=message) as error:
        check(scheduler)
    assert "\n" not in str(error.value)
    assert "load " in str(error.value)


def test_zero_terminal_snr_is_fine_where_diffusers_keeps_a_little_signal():
    check(diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True))
    check(diffusers.DDIMScheduler(clip_sample=False, **V_AT_ZERO_SNR))


@pytest.mark.parametrize(
    ("scheduler", "mend"),
    [
        (diffusers.UnCLIPScheduler(), r"DDIMScheduler\.from_config"),
        (diffusers.PiflowScheduler(), r"FlowMatchEulerDiscreteScheduler\.from_config"),
        (diffusers.AmusedScheduler(mask_token_id=5), r"such models are in lidar_sampling\.discrete"),
        (diffusers.KarrasVeScheduler(), "load a pipeline that has one"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_the_refusal_of_an_unknown_family_says_what_fits_its_kind(scheduler, mend):
    with pytest.raises(ValueError, match=mend):
        check(scheduler)


def test_time_follows_the_level_where_timesteps_do_not():
    """Euler's continuous timesteps are a quarter of log sigma; its log-linear levels lag behind its timesteps."""
    for setting in (
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {"interpolation_type": "log_linear"},
    ):
        scheduler = started(("EulerDiscreteScheduler", {**SD, **setting}))
        signal = scheduler.alphas_cumprod
        trained = ((1 - signal) / signal).sqrt()
        for i, t in enumerate(scheduler.timesteps):
            scheduler.set_begin_index(i)
            scheduler._step_index = None
            level = noise_level(scheduler, t)
            assert level.time == pytest.approx((trained < level.sigma).sum().item() / 1000, abs=1.1e-3)


def test_a_model_output_with_a_learned_variance_is_read_without_it():
    scheduler = started(("DDPMScheduler", {**UNCLIPPED, "variance_type": "learned_range"}))
    level = noise_level(scheduler, scheduler.timesteps[1])
    x, output = (torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    with_variance = torch.cat([output, torch.ones_like(output)], 1)
    assert torch.equal(clean_prediction(level, with_variance, x), clean_prediction(level, output, x))


@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_model_output_is_turned_back_into_the_clean_prediction(case):
    scheduler = started(case)
    t = scheduler.timesteps[1]
    level = noise_level(scheduler, t)
    x, x0 = (torch.randn(3, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))
    output = output_for(scheduler, x, x0, level.alpha, level.sigma)
    torch.testing.assert_close(clean_prediction(level, output, x), x0, rtol=1e-9, atol=1e-9)


def test_a_noise_prediction_of_pure_noise_says_nothing():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    level = noise_level(scheduler, scheduler.timesteps[0])._replace(slope=0.0)
    with pytest.raises(ValueError, match="says nothing about the clean sample"):
        clean_prediction(level, torch.zeros(1, 2), torch.zeros(1, 2))


def keeps_clean_prediction(case):
    name, config = case
    without = ("FlowMa", "MiniMax", "DDPMWuerstchen", "LTX", "DEIS", "PNDM", "TCD", "LCM", "CogVideoXDPM")
    return not name.startswith(without) and config.get("algorithm_type") != "dpmsolver"


@pytest.mark.parametrize("case", [c for c in CASES if keeps_clean_prediction(c)], ids=label)
def test_the_clean_prediction_moves_by_exactly_scale_times_delta(case):
    """Compare one step with and without guidance, by the scheduler's own x0 if it keeps one."""
    _, config = case
    bank = bank_of_four()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    output = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))

    def clean_prediction(scheduler):
        t = scheduler.timesteps[0]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        result = scheduler.step(output, t, x)
        if getattr(result, "pred_original_sample", None) is not None:
            return result.pred_original_sample / (0.5 if case[0] == "SCMScheduler" else 1)
        return [kept for kept in scheduler.model_outputs if kept is not None][-1]

    plain = clean_prediction(started(case))
    guided = started(case)
    with guide(guided, bank, scale=0.7, reward_scale=0.75, window=(1.0, 0.0)) as trace:
        moved = clean_prediction(guided)
    shift = (moved - plain).norm(dim=1)
    starts_at_noise = config.get("rescale_betas_zero_snr") or case[0] == "SCMScheduler"
    assert trace.steps[0].level.alpha > 0 or starts_at_noise
    torch.testing.assert_close(shift, 0.7 * trace.steps[0].info.shift_norm, rtol=2e-3, atol=1e-5)


def test_second_stages_have_levels_of_their_own():
    for name in sorted(SECOND_STAGES):
        scheduler = started((name, {}))
        bank = LookaheadBank(torch.zeros(2, 16) + 1, {"r": torch.arange(2.0)}, "p")
        with guide(scheduler, bank, scale=0.0, reward_scale=1.0, window=(1.0, 0.0)) as trace:
            x = torch.randn(2, 16)
            for t in scheduler.timesteps[:4]:
                x = scheduler.step(torch.zeros_like(x), t, x)[0]
        first, middle = trace.steps[0].level.sigma, trace.steps[1].level.sigma
        assert middle < first
        # The timestep that goes with a second stage was interpolated from its noise level: turn that back.
        signal = scheduler.alphas_cumprod.numpy()
        log_sigmas = np.log(((1 - signal) / signal) ** 0.5)
        t = scheduler._sigma_to_t(np.array([middle]), log_sigmas).item()
        assert t == pytest.approx(trace.steps[1].timestep, rel=1e-3)


def test_known_levels():
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(4)
    level = noise_level(scheduler, scheduler.timesteps[0])
    assert level.alpha == 1
    assert level.slope == pytest.approx(-math.hypot(1, level.sigma) / level.sigma)


def test_unknown_families_and_predictions_are_refused():
    with pytest.raises(ValueError, match="IPNDMScheduler is not a scheduler whose noise levels are known"):
        noise_level(diffusers.IPNDMScheduler(), 0)
    bank = bank_of_four()
    for scheduler in (
        diffusers.IPNDMScheduler(),
        diffusers.UnCLIPScheduler(),
        diffusers.ConsistencyDecoderScheduler()
        if hasattr(diffusers, "ConsistencyDecoderScheduler")
        else diffusers.VQDiffusionScheduler(num_vec_classes=4),
        diffusers.EulerAncestralDiscreteScheduler(prediction_type="sample"),
        diffusers.DDIMScheduler(clip_sample=False, prediction_type="flow_prediction"),
    ):
        with (
            pytest.raises(ValueError, match=r"not a scheduler whose|is not supported"),
            guide(scheduler, bank, scale=1.0, reward_scale=1.0),
        ):
            pass


@pytest.mark.parametrize("switch", ["clip_sample", "thresholding"])
def test_clipping_is_detected(switch):
    scheduler = diffusers.DDIMScheduler(**{"clip_sample": False, switch: True})
    with (
        pytest.raises(ValueError, match=f"{switch}=True"),
        guide(scheduler, bank_of_four(), scale=1.0, reward_scale=1.0),
    ):
        pass
