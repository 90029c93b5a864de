"""Forward processes, against Bayes' rule on one token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling.discrete import SCHEDULES, Absorbing, Uniform, kernel_of

KERNELS = {"uniform": Uniform(4), "absorbing": Absorbing(5, mask_id=4)}
levels = st.floats(0.01, 0.99)


def matrix(kernel, alpha):
    """Return ``q(x_t | x0)``, one row per x0."""
    a, b = kernel.parts(alpha)
    return torch.diag(a) + b


@pytest.mark.parametrize("name", KERNELS)
class TestKernel:
    @given(levels)
    def test_is_a_law(self, name, alpha):
        rows = matrix(KERNELS[name], alpha)[:4]  # no clean token is a mask
        torch.testing.assert_close(rows.sum(1), torch.ones(4, dtype=torch.float64))

    @given(levels, levels, st.integers(0, 2**31))
    def test_the_step_back_is_bayes_rule(self, name, one, other, seed):
        """The posterior of one token is checked by enumeration over the clean and the less noisy token."""
        kernel, (alpha_t, alpha_s) = KERNELS[name], sorted((one, other))
        vocab = kernel.vocab_size
        prior = torch.rand(vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
        prior[4:] = 0
        prior /= prior.sum()
        q_s, q_ts = matrix(kernel, alpha_s), matrix(kernel, alpha_t / alpha_s)
        if name == "absorbing":
            q_ts[4] = torch.nn.functional.one_hot(torch.tensor(4), 5)  # a mask stays one
        joint = (prior @ q_s)[:, None] * q_ts  # x_s, x_t
        reached = joint.sum(0) > 1e-12
        want = (joint / joint.sum(0)).t()[reached]
        x_t = torch.arange(vocab)[reached]
        predicted = prior.expand(len(x_t), 1, -1).clone()
        if name == "absorbing":  # the network's prediction of a visible token does not count
            predicted[x_t != 4] = predicted.flip(-1)[x_t != 4]
        got = kernel.posterior(predicted, x_t[:, None], alpha_s=alpha_s, alpha_t=alpha_t)[:, 0]
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)

    @given(levels, st.integers(0, 2**31))
    def test_noise_has_the_law_of_the_kernel(self, name, alpha, seed):
        """Each share of 4,000 draws is within five deviations, which fails by chance once in 300,000."""
        kernel = KERNELS[name]
        x = kernel.add_noise(torch.full((4000, 1), 2), alpha, torch.Generator().manual_seed(seed))
        shares = torch.bincount(x.flatten(), minlength=kernel.vocab_size) / 4000
        want = matrix(kernel, alpha)[2]
        assert ((shares - want).abs() <= 5 * (want * (1 - want) / 4000).sqrt() + 1e-3).all()


class TestArguments:
    def test_a_network_that_is_sure_of_the_mask_is_not_believed(self):
        p = Absorbing(3, mask_id=2).posterior(
            torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[2]]), alpha_s=0.5, alpha_t=0.2
        )
        assert p.isfinite().all()

    @pytest.mark.parametrize("make", [lambda: Uniform(1), lambda: Absorbing(1, mask_id=0)])
    def test_one_token_is_no_vocabulary(self, make):
        with pytest.raises(ValueError, match="must be"):
            make()

    def test_a_level_for_each_sequence(self):
        x = torch.zeros(2, 50, dtype=torch.long)
        noisy = Absorbing(3, mask_id=2).add_noise(x, torch.tensor([1.0, 0.0]))
        assert noisy[0].eq(0).all()
        assert noisy[1].eq(2).all()

    @pytest.mark.parametrize("arguments", [(3, 3, 0.0), (3, -1, 0.0), (3, 2, 1.0)])
    def test_a_mask_must_be_a_token_and_softness_a_share(self, arguments):
        with pytest.raises(ValueError, match="mask_id must be a token of 3 and softness in"):
            Absorbing(*arguments)

    @pytest.mark.parametrize("noise", ["gaussian", "absorbing"])
    def test_noise_has_a_name_and_absorbing_a_mask(self, noise):
        with pytest.raises(ValueError, match=f"got '{noise}' with None"):
            kernel_of(noise, 4, None)

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_schedules_fall_from_one_to_nearly_none(self, name):
        alphas = torch.tensor([SCHEDULES[name](t / 100) for t in range(101)])
        assert alphas[0] == 1
        assert alphas[-1] == pytest.approx(1e-3)
        assert (alphas.diff() < 0).all()
