"""The mathematics: equality with the published formula, its invariances, its limits."""

import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.guidance import tight
from lidar_sampling import expected_future_reward, mean_shift
from lidar_sampling._guidance import Members, reading


def naive(x_t, samples, rewards, alpha, sigma, reward_scale):
    """Compute equations 16-18 of arXiv 2602.03211 literally, in float64, by direct differences."""
    x, z, r = x_t.double().flatten(1), samples.double().flatten(1), rewards.double()
    log_kernel = -(x[:, None] - alpha * z[None]).square().sum(-1) / (2 * sigma**2)
    w = log_kernel.softmax(1)
    w_r = (log_kernel + reward_scale * r).softmax(1)
    score = alpha / sigma**2 * (w_r - w) @ z
    log_efr = torch.logsumexp(log_kernel + reward_scale * r, 1) - torch.logsumexp(log_kernel, 1)
    return score.reshape(x_t.shape), w_r, w, log_efr


def problem(seed, *, n=12, batch=3, shape=(4, 3, 2), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *shape, generator=g, dtype=torch.float64)
    z = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    r = torch.randn(n, generator=g, dtype=torch.float64)
    return x.to(dtype), z.to(dtype), r.to(dtype)


seeds = st.integers(0, 2**20)
sigmas = st.floats(0.05, 20.0)
scales = st.floats(0.0, 50.0)


@given(seeds, sigmas, scales)
def test_equals_the_published_score(seed, sigma, reward_scale):
    x, z, r = problem(seed)
    alpha = 0.8
    score, w_r, w, log_efr = naive(x, z, r, alpha, sigma, reward_scale)
    delta, info = mean_shift(x, z, r, alpha=alpha, sigma=sigma, reward_scale=reward_scale)
    torch.testing.assert_close(alpha / sigma**2 * delta, score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(info.log_efr, log_efr, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(info.ess, 1 / w.square().sum(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(info.ess_tilted, 1 / w_r.square().sum(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(info.shift_norm, delta.flatten(1).norm(dim=1))


def test_is_the_gradient_of_the_expected_future_reward():
    x, z, r = problem(0)
    alpha, sigma, step = 0.7, 0.9, 1e-6
    settings = {"alpha": alpha, "sigma": sigma, "reward_scale": 2.0}
    delta, _ = mean_shift(x, z, r, **settings)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    rise = expected_future_reward(x + step * direction, z, r, **settings)
    fall = expected_future_reward(x - step * direction, z, r, **settings)
    slope = alpha / sigma**2 * (delta * direction).flatten(1).sum(1)
    torch.testing.assert_close((rise - fall) / (2 * step), slope, rtol=1e-6, atol=1e-6)


@given(seeds, sigmas, scales, st.integers(1, 13))
def test_streaming_equals_one_block(seed, sigma, reward_scale, block_size):
    x, z, r = problem(seed)
    levels = {"alpha": 0.6, "sigma": sigma, "reward_scale": reward_scale}
    whole, info = mean_shift(x, z, r, **levels)
    streamed, info_streamed = mean_shift(x, z, r, **levels, block_size=block_size)
    torch.testing.assert_close(streamed, whole, rtol=1e-9, atol=1e-9)
    for a, b in zip(info, info_streamed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@given(seeds, sigmas, scales)
def test_invariances(seed, sigma, reward_scale):
    x, z, r = problem(seed)
    levels = {"alpha": 0.6, "sigma": sigma, "reward_scale": reward_scale}
    delta, info = mean_shift(x, z, r, **levels)
    g = torch.Generator().manual_seed(seed)

    order = torch.randperm(len(z), generator=g)
    torch.testing.assert_close(mean_shift(x, z[order], r[order], **levels)[0], delta)
    torch.testing.assert_close(mean_shift(x, z, r + 3.0, **levels)[0], delta)
    torch.testing.assert_close(mean_shift(x, z, r + 3.0, **levels)[1].log_efr, info.log_efr + 3.0 * reward_scale)
    twice, info_twice = mean_shift(x, torch.cat([z, z]), torch.cat([r, r]), **levels)
    torch.testing.assert_close(twice, delta)
    torch.testing.assert_close(info_twice.ess, 2 * info.ess)

    rotation = torch.linalg.qr(torch.randn(24, 24, generator=g, dtype=torch.float64)).Q
    turned, _ = mean_shift(x.flatten(1) @ rotation, z.flatten(1) @ rotation, r, **levels)
    torch.testing.assert_close(turned, delta.flatten(1) @ rotation, rtol=1e-8, atol=1e-8)
    packed, _ = mean_shift(x.permute(0, 3, 1, 2), z.permute(0, 3, 1, 2), r, **levels)
    torch.testing.assert_close(packed, delta.permute(0, 3, 1, 2))


@given(seeds, sigmas, scales)
def test_variance_preserving_and_exploding_coordinates_agree(seed, sigma, reward_scale):
    x, z, r = problem(seed)
    alpha = 0.4
    vp, _ = mean_shift(x, z, r, alpha=alpha, sigma=sigma, reward_scale=reward_scale)
    ve, _ = mean_shift(x / alpha, z, r, alpha=1.0, sigma=sigma / alpha, reward_scale=reward_scale)
    torch.testing.assert_close(vp, ve, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.99, 0.5, 0.1, 0.04])
def test_float32_is_close_to_float64_where_weights_are_shared(sigma):
    """Members differ by about the noise, at SD's latent size: centring is made for this case."""
    g = torch.Generator().manual_seed(0)
    alpha, dim = math.sqrt(1 - sigma**2), 16384
    common = torch.randn(dim, generator=g, dtype=torch.float64)
    z = common + 2 * sigma / alpha / math.sqrt(dim) * torch.randn(50, dim, generator=g, dtype=torch.float64)
    r = torch.randn(50, generator=g, dtype=torch.float64)
    x = alpha * z[:4] + sigma * torch.randn(4, dim, generator=g, dtype=torch.float64)
    levels = {"alpha": alpha, "sigma": sigma, "reward_scale": 1.0}
    exact, info = mean_shift(x, z, r, **levels)
    assert info.ess.mean() > 1.5  # a collapsed bank would hide any error
    rough, _ = mean_shift(x.float(), z.float(), r.float(), **levels)
    assert rough.dtype == torch.float32

    logits = alpha * (x.float() @ z.float().T) - alpha**2 * z.float().square().sum(1) / 2
    plain = (logits / sigma**2).softmax(1)
    tilted = (logits / sigma**2 + r.float()).softmax(1)
    uncentred = (tilted - plain) @ z.float()

    def error(delta):
        return ((delta - exact).norm() / exact.norm()).item()

    # Measured: 1.3e-6 at sigma = 0.99 to 5.7e-5 at 0.04; without centring 2e-5 to 1.7.
    assert error(rough) < 1e-5 / sigma
    if sigma < 0.2:
        assert error(uncentred) > 10 * error(rough)


# Measured: at most 1.4e-6, 4e-3 and 5e-4, whatever the noise; 65,536 dimensions and n = 400 do not change that.
@pytest.mark.parametrize(("storage", "most"), [(None, 5e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("variance", [0.99, 0.25, 0.02, 0.0017])
def test_a_prepared_bank_is_as_near_to_float64_as_its_storage_allows(variance, storage, most):
    x, z, r, levels = tight(variance)
    exact, info = Members(z.double(), r.double(), reward_scale=1.0).shift(x.double(), **levels)
    assert info.ess.mean() > 3
    prepared = Members(z, r, reward_scale=1.0, resident=True, storage=storage)
    delta, _ = prepared.shift(x, **levels)
    assert (delta - exact).norm() < most * exact.norm()


def test_a_bank_that_is_not_resident_is_read_a_block_at_a_time(monkeypatch):
    """Nothing beside the bank is larger than a block: the one before is let go of."""
    alive, blocks = [], Members._blocks

    def watch(self):
        for part, y in blocks(self):
            alive.append(weakref.ref(y))
            assert sum(block() is not None for block in alive) <= 2
            yield part, y

    monkeypatch.setattr(Members, "_blocks", watch)
    _, z, r = problem(0)
    Members(z, r, reward_scale=1.0, block_size=2)
    assert len(alive) == 6


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_a_prepared_bank_is_held_once(storage):
    _, z, r, _ = tight(0.25)
    prepared = Members(z, r, reward_scale=1.0, resident=True, storage=storage)
    large = [value for value in vars(prepared).values() if isinstance(value, torch.Tensor) and value.dim() == 2]
    assert [(value.dtype, value.shape) for value in large] == [(storage, z.shape)]
    assert large[0].untyped_storage().data_ptr() != z.untyped_storage().data_ptr()


@given(seeds, sigmas, scales)
def test_a_prepared_bank_is_the_bank(seed, sigma, reward_scale):
    x, z, r = problem(seed)
    levels = {"alpha": 0.6, "sigma": sigma}
    delta, info = mean_shift(x, z, r, **levels, reward_scale=reward_scale)
    prepared = Members(z, r, reward_scale=reward_scale, resident=True)
    for _ in range(2):
        again, told = prepared.shift(x, **levels)
        torch.testing.assert_close(again, delta, rtol=1e-9, atol=1e-9)
        for a, b in zip(info, told, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype):
    x, z, r = problem(0, dtype=dtype)
    levels = {"alpha": 0.6, "sigma": 0.5, "reward_scale": 3.0}
    delta, _ = mean_shift(x, z, r, **levels)
    assert delta.dtype == torch.float32
    torch.testing.assert_close(delta, mean_shift(x.float(), z.float(), r.float(), **levels)[0])


@pytest.mark.parametrize("block_size", [None, 5])
def test_no_shift_is_exactly_no_shift(block_size):
    x, z, r = problem(3, dtype=torch.float32)
    levels = {"alpha": 0.7, "sigma": 0.3, "block_size": block_size}
    assert not mean_shift(x, z, r, **levels, reward_scale=0.0)[0].any()
    assert not mean_shift(x, z, torch.full_like(r, 0.1), **levels, reward_scale=9.0)[0].any()
    assert not mean_shift(x, z[:1], r[:1], **levels, reward_scale=9.0)[0].any()


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_of_the_noise_level(dtype, block_size):
    x, z, r = problem(4, dtype=dtype)
    kwargs = {"reward_scale": 2.0, "block_size": block_size}
    tilted_mean = (2.0 * r).softmax(0) @ z.flatten(1) - z.flatten(1).mean(0)

    for levels in ({"alpha": 0.0, "sigma": 1.0}, {"alpha": 1.0, "sigma": math.inf}):
        delta, info = mean_shift(x, z, r, **levels, **kwargs)
        torch.testing.assert_close(delta.flatten(1), tilted_mean.expand(3, -1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(info.ess, torch.full((3,), 12.0, dtype=dtype))

    delta, info = mean_shift(x, z, r, alpha=1.0, sigma=0.0, **kwargs)
    nearest = torch.cdist(x.flatten(1), z.flatten(1)).argmin(1)
    torch.testing.assert_close(info.log_efr, 2.0 * r[nearest])
    torch.testing.assert_close(delta, torch.zeros_like(delta))
    assert (info.ess == 1).all()


def test_a_large_reward_scale_picks_the_best_sample():
    x, z, r = problem(5)
    delta, info = mean_shift(x, z, r, alpha=0.1, sigma=1.0, reward_scale=1e6)
    plain = naive(x, z, r, 0.1, 1.0, 0.0)[2] @ z.flatten(1)
    torch.testing.assert_close(delta.flatten(1), z.flatten(1)[r.argmax()] - plain)
    torch.testing.assert_close(info.ess_tilted, torch.ones(3, dtype=torch.float64))


def test_levels_may_differ_by_row():
    x, z, r = problem(6)
    alpha, sigma = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.9, 0.8, 0.1])
    together, _ = mean_shift(x, z, r, alpha=alpha, sigma=sigma, reward_scale=2.0)
    for i in range(3):
        alone, _ = mean_shift(x[i : i + 1], z, r, alpha=float(alpha[i]), sigma=float(sigma[i]), reward_scale=2.0)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)


def test_builds_no_graph_and_compiles_whole():
    x, z, r = problem(7, dtype=torch.float32)
    x.requires_grad_()
    delta, _ = mean_shift(x, z, r, alpha=0.6, sigma=0.5, reward_scale=2.0)
    assert not delta.requires_grad
    compiled = torch.compile(mean_shift, fullgraph=True, backend="eager")
    again, _ = compiled(x, z, r, alpha=0.6, sigma=0.5, reward_scale=2.0)
    torch.testing.assert_close(again, delta)


@pytest.mark.parametrize("name", ["x_t", "samples", "rewards"])
def test_what_is_not_a_tensor_is_named(name):
    tensors = {"x_t": torch.zeros(2, 2), "samples": torch.zeros(3, 2), "rewards": torch.zeros(3)}
    with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
        mean_shift(**{**tensors, name: [0.0]}, alpha=0.5, sigma=0.5, reward_scale=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": torch.zeros(3, 5)}, "must agree"),
        ({"rewards": torch.zeros(4)}, r"\(3,\)"),
        ({"samples": torch.zeros(0, 2), "rewards": torch.zeros(0)}, "at least one"),
        ({"rewards": torch.tensor([0.0, math.nan, 1.0])}, "finite"),
        ({"rewards": torch.tensor([0.0, math.inf, 1.0])}, "finite"),
        ({"alpha": -0.1}, "alpha must be at least 0"),
        ({"sigma": math.nan}, "sigma must be at least 0"),
        ({"sigma": torch.ones(5)}, r"sigma must be a number or \(2,\)"),
        ({"reward_scale": -1.0}, "reward_scale"),
        ({"reward_scale": math.inf}, "reward_scale"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "x_t": torch.zeros(2, 2),
        "samples": torch.zeros(3, 2),
        "rewards": torch.zeros(3),
        "alpha": 0.5,
        "sigma": 0.5,
        "reward_scale": 1.0,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        mean_shift(**arguments)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([1.0, 1.0], "rests on one of 9 members from its first step"),
        ([4.0, 2.0], "followed 4.0 of 9 members at its first step, and 2.0 at its last"),
        ([4.0, 1.0, 1.0], "and one alone from step 2 on"),
    ],
)
def test_the_sentence_reads_effective_sizes(sizes, said):
    assert said in reading(sizes, 9)
