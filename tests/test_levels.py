"""The table of noise levels against what each scheduler itself does."""

import math

import diffusers
import numpy as np
import pytest
import torch
from oracle import STARTS, bank_of_four, output_for
from test_oracle import CASES, label

from lidar_sampling import LookaheadBank, guide, noise_level
from lidar_sampling._levels import _FAMILIES, clean_prediction

# Where add_noise is no witness: second stages at other levels than add_noise looks up, and SASolver in flow mode,
# which noises by alphas_cumprod even there (diffusers 0.42).
SECOND_STAGES = {"KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"}
NO_WITNESS = {*SECOND_STAGES, "SCMScheduler", "LTXEulerAncestralRFScheduler"}  # the last two have no add_noise


def started(case, steps=6):
    name, config = case
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps, **STARTS.get(name, {}))
    return scheduler


def test_every_family_has_an_oracle_case():
    assert {name for name, _ in CASES} == set(_FAMILIES)


def has_witness(case):
    name, config = case
    return name not in NO_WITNESS and not (name == "SASolverScheduler" and config.get("use_flow_sigmas"))


@pytest.mark.parametrize("case", [c for c in CASES if has_witness(c)], ids=label)
def test_first_level_is_the_one_that_add_noise_uses(case):
    name, _ = case
    scheduler = started(case)
    noise = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    t = scheduler.timesteps[:1]
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    if name.startswith("FlowMatch"):
        alpha, sigma = noise(one, t, zero), noise(zero, t, one)
    else:
        alpha, sigma = noise(one, zero, t), noise(zero, one, t)
    level = noise_level(scheduler, t[0])
    assert level.alpha == pytest.approx(alpha.item(), abs=1e-6)
    assert level.sigma == pytest.approx(sigma.item(), rel=1e-5)
    assert 0.8 < level.time <= 1


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
    with pytest.raises(ValueError, match="says nothing of the clean sample"):
        clean_prediction(level, torch.zeros(1, 2), torch.zeros(1, 2))


def keeps_clean_prediction(case):
    name, config = case
    without = ("FlowMatch", "LTX", "DEIS", "PNDM", "TCD", "LCM", "CogVideoXDPM")
    return not name.startswith(without) and config.get("algorithm_type") != "dpmsolver"


@pytest.mark.parametrize("case", [c for c in CASES if keeps_clean_prediction(c)], ids=label)
def test_the_clean_prediction_moves_by_exactly_scale_times_delta(case):
    """One step with and without guidance; the scheduler's own x0 is read where it keeps one."""
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
