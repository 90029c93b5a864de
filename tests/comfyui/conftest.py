"""Fixtures that the tests of the pack share."""

import pytest
import torch
from ideal import SCALE, ideal_model

from lidar_sampling import LookaheadBank

collect_ignore = ["standin", "glyph_nodes"]


@pytest.fixture
def bank():
    """Return a bank of four samples far from each other, with rewards 0 to 3."""
    samples = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(3)) * 1.5 / SCALE
    return LookaheadBank(samples, {"r": torch.arange(4.0)}, "four")


@pytest.fixture
def ideal(bank):
    """Return the exact denoiser of the bank, as an epsilon or a flow model."""
    return lambda flow=False: ideal_model(flow, bank.samples)


@pytest.fixture
def drawn():
    """Draw as KSampler does: samples (count, 4, 2, 2) of a MODEL, by default in 30 steps."""
    import comfy.sample

    conditioning = [[torch.zeros(1, 1, 8), {}]]

    def draw(model, count=1024, *, sampler="euler", steps=30, seed=0, scheduler="normal", **more):
        empty = torch.zeros(count, 4, 2, 2)
        noise = comfy.sample.prepare_noise(empty, seed)
        return comfy.sample.sample(
            model,
            noise,
            steps,
            1.0,
            sampler,
            scheduler,
            conditioning,
            conditioning,
            empty,
            disable_pbar=True,
            seed=seed,
            **more,
        )

    return draw
