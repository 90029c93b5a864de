"""Weights by a coarse look: exact given what was looked at, and nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_guidance import problem, scales, seeds, sigmas

from lidar_sampling import LiDAR, guide, mean_shift, testing
from lidar_sampling._guidance import Members, coarse
from lidar_sampling.methods import load


def matrix(shape, grid):
    """A (K, D) of the cells."""
    unit = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    return coarse(unit, grid).T


@pytest.mark.parametrize(("shape", "grid"), [((4, 8, 8), 2), ((3, 4, 6), 2), ((2, 5, 4, 4), 4), ((1, 6, 3), 1)])
def test_white_noise_stays_white(shape, grid):
    a = matrix(shape, grid)
    assert len(a) == grid**2 * torch.Size(shape[:-2]).numel()
    torch.testing.assert_close(a @ a.T, torch.eye(len(a), dtype=torch.float64))


@given(seeds, sigmas, scales)
def test_is_the_difference_of_the_posterior_means_given_the_cells(seed, sigma, reward_scale):
    x, z, r = problem(seed, shape=(2, 4, 6))
    a, alpha = matrix((2, 4, 6), 2), 0.8
    law = torch.distributions.MultivariateNormal(
        alpha * z.flatten(1) @ a.T, covariance_matrix=sigma**2 * a @ a.T
    )  # of the cells of x_t, given each member
    evidence = law.log_prob((x.flatten(1) @ a.T)[:, None])
    w, w_r = evidence.softmax(1), (evidence + reward_scale * r).softmax(1)
    delta, info = mean_shift(x, z, r, alpha=alpha, sigma=sigma, reward_scale=reward_scale, grid=2)
    torch.testing.assert_close(delta, ((w_r - w) @ z.flatten(1)).view_as(x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(info.ess, 1 / w.square().sum(1), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        info.log_efr, (evidence + reward_scale * r).logsumexp(1) - evidence.logsumexp(1), rtol=1e-8, atol=1e-8
    )


@given(seeds, sigmas, scales, st.integers(1, 12))
def test_blocks_and_prepared_banks_are_alike(seed, sigma, reward_scale, block_size):
    x, z, r = problem(seed, shape=(2, 4, 4))
    level = {"alpha": 0.8, "sigma": sigma}
    whole, _ = mean_shift(x, z, r, **level, reward_scale=reward_scale, grid=2)
    for resident in (False, True):
        members = Members(
            z, r, reward_scale=reward_scale, grid=2, dtype=x.dtype, block_size=block_size, resident=resident
        )
        torch.testing.assert_close(members.shift(x, **level)[0], whole, rtol=1e-9, atol=1e-9)


def test_cells_of_one_number_compare_every_number():
    x, z, r = problem(3, shape=(2, 4, 4))
    level = {"alpha": 0.7, "sigma": 1.3, "reward_scale": 2.0}
    torch.testing.assert_close(mean_shift(x, z, r, **level, grid=4)[0], mean_shift(x, z, r, **level)[0])


def test_more_members_share_the_weight_for_longer():
    bank = testing.tiny_bank(16)
    sizes = {}
    for grid in (None, 2):
        pipe = testing.tiny_stable_diffusion()
        with guide(pipe, bank, scale=1.0, reward_scale=0.1, grid=grid) as trace:
            pipe(bank.prompt, num_inference_steps=8, generator=torch.Generator().manual_seed(0), output_type="pt")
        sizes[grid] = [float(step.info.ess) for step in trace.steps]
    assert sum(sizes[2]) > sum(sizes[None]) + 4


def test_is_a_setting_of_the_sampler_and_of_the_method():
    lidar = LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=6, steps=4, reward_scale="auto")
    coarse_, whole = lidar.with_settings(grid=2)("a cat", images=1), lidar("a cat", images=1)
    assert coarse_.settings.grid == 2
    assert not torch.equal(coarse_.latents, whole.latents)
    by_name = load("lidar:grid=2").draw(lidar, ["a cat"], images=1, seed=0)
    assert torch.equal(by_name.latents, coarse_.latents)


class TestRefusals:
    @pytest.mark.parametrize(
        ("grid", "shape", "message"),
        [
            (3, (2, 4, 4), r"grid must divide the height and width of the latents, \(4, 4\), got 3"),
            (2, (2, 4, 5), r"grid must divide the height and width of the latents, \(4, 5\), got 2"),
            (2, (16, 64), r"grid=2 wants latents with channels, height and width, got \(16, 64\): leave it out"),
        ],
    )
    def test_of_latents(self, grid, shape, message):
        x, z, r = problem(0, shape=shape)
        with pytest.raises(ValueError, match=message):
            mean_shift(x, z, r, alpha=0.5, sigma=1.0, reward_scale=1.0, grid=grid)

    @pytest.mark.parametrize("grid", [0, -1])
    def test_of_no_cells(self, grid):
        with pytest.raises(ValueError, match="grid must be at least 1 cell per side, or None"):
            LiDAR(testing.tiny_stable_diffusion(), reward="brightness", n=4, steps=4, grid=grid)
        with (
            pytest.raises(ValueError, match="grid must be at least 1 cell per side, or None"),
            guide(testing.tiny_stable_diffusion(), testing.tiny_bank(), scale=1.0, reward_scale=1.0, grid=grid),
        ):
            pass
        with pytest.raises(ValueError, match="grid"):
            load(f"lidar:grid={grid}")
