"""Guidance in ComfyUI is exact where exactness can be tested: samplers driven by the exact denoiser of four samples.

Guided endpoints must follow ``softmax(strength r)``; the bounds, and each sampler's own error, are those of
``tests/test_oracle.py``. Without ComfyUI the stand-in has only Euler.
"""

import logging

import pytest
import torch
from ideal import COMFYUI

from comfyui.guide import Guide, noise_level
from lidar_sampling import BankError, mean_shift
from lidar_sampling._space import Space

REAL = [
    "euler_ancestral",
    "dpmpp_2m",
    "dpmpp_sde",
    "uni_pc",
    "lcm",
    "heun",
    "dpmpp_3m_sde",
    "er_sde",
    "res_multistep",
]
FLOW = ["euler", "dpmpp_2m", "res_multistep"]
BOUND = 0.11


def shares(x, samples):
    return torch.bincount(torch.cdist(x.flatten(1), samples.flatten(1)).argmin(1), minlength=len(samples)) / len(x)


def total_variation(p, q):
    return 0.5 * (p - q).abs().sum().item()


def guide(bank, *, scale=1.0, strength=0.75, start=0.0, end=1.0):
    return Guide(bank, bank.reward(), scale=scale, strength=strength, start=start, end=end)


@pytest.mark.parametrize(
    ("sampler", "flow"),
    [("euler", False), ("euler", True)]
    + [(name, False) for name in REAL if COMFYUI]
    + [(name, True) for name in FLOW[1:] if COMFYUI],
)
def test_endpoints_follow_the_tilted_law(bank, ideal, drawn, sampler, flow):
    model = ideal(flow)
    target = (0.75 * bank.reward()).softmax(0)
    free = shares(drawn(model, sampler=sampler), bank.samples)
    ends = drawn(guide(bank).patch(model), sampler=sampler)
    guided = shares(ends, bank.samples)
    assert total_variation(free, torch.full((4,), 0.25)) < BOUND
    assert total_variation(free, target) > 0.2
    assert total_variation(guided, target) < BOUND, guided
    nearest = torch.cdist(ends.flatten(1), bank.samples.flatten(1)).amin(1)
    assert nearest.median() < 1.0  # endpoints are samples of the bank, not their means


@pytest.mark.parametrize("flow", [False, True])
def test_the_shift_is_that_of_the_formula(bank, ideal, flow):
    model = ideal(flow).model
    sigma = torch.tensor([0.3, 0.6])
    alpha = 1 - sigma if flow else torch.ones(2)
    signal, noise = noise_level(model.model_sampling, sigma)
    torch.testing.assert_close(signal, alpha)
    torch.testing.assert_close(noise, sigma)
    x, denoised = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    clean = model.process_latent_in(bank.samples)
    expected, _ = mean_shift(x, clean, bank.reward(), alpha=alpha, sigma=sigma, reward_scale=0.75)
    args = {"input": x, "denoised": denoised, "sigma": sigma, "model": model}
    torch.testing.assert_close(guide(bank, scale=2.0).shift(args), denoised + 2 * expected)


@pytest.mark.parametrize("off", [{"scale": 0.0}, {"strength": 0.0}])
def test_without_effect_it_is_bit_identical(bank, ideal, drawn, off):
    model = ideal()
    plain = drawn(model, 3)
    assert torch.equal(drawn(guide(bank, **off).patch(model), 3), plain)
    guided = drawn(guide(bank).patch(model), 3)
    assert not torch.equal(guided, plain)
    assert torch.equal(drawn(model, 3), plain)  # the original model is unchanged


def test_the_window_is_that_of_percent_to_sigma(bank, ideal, drawn, caplog):
    model = ideal(flow=True)
    caplog.set_level(logging.INFO)
    plain, window = drawn(model, 8), drawn(guide(bank, end=0.5).patch(model), 8)
    assert not torch.equal(window, plain)
    assert "LiDAR: Guidance followed" in caplog.text
    late = guide(bank, start=0.97, end=0.98)
    assert torch.equal(drawn(late.patch(model), 8), plain)
    assert "no step was guided: none of 30 fell between start_percent 0.97 and end_percent 0.98" in caplog.text


def test_two_guides_add(bank, ideal, drawn):
    model = ideal()
    once = guide(bank, strength=0.75, scale=2.0).patch(model)
    twice = guide(bank, strength=0.75).patch(guide(bank, strength=0.75).patch(model))
    torch.testing.assert_close(drawn(twice, 16), drawn(once, 16), atol=1e-4, rtol=1e-4)


def test_members_are_beside_the_samples_only_while_they_are_needed(bank, ideal, drawn):
    found = guide(bank)
    drawn(found.patch(ideal()), 2)
    assert found._members is None


def test_what_cannot_be_guided_is_refused_before_it_is_drawn(bank, ideal, drawn):
    model = guide(bank).patch(ideal())
    with pytest.raises(ValueError, match="does not guide masked latents"):
        drawn(model, 2, noise_mask=torch.ones(1, 1, 2, 2))
    small = guide(bank.subset([0, 1]))
    small.bank = type(bank)(torch.zeros(2, 4, 2, 1), {"r": torch.arange(2.0)}, "small")
    with pytest.raises(BankError, match=r"holds latents \(4, 2, 1\) and these are \(4, 2, 2\)"):
        drawn(small.patch(ideal()), 2)
    other = type(bank)(bank.samples, bank.rewards, "four", Space("ComfyUI Flux", (4, 2, 2)))
    with pytest.raises(
        BankError, match="another latent space than the model's, ComfyUI Flux against ComfyUI LatentF"
    ):
        guide(other).patch(ideal())
