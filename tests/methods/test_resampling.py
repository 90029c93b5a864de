"""Populations are resampled at the steps asked for, with as little noise as possible."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lidar_sampling.methods import FKSteering, Steered, load
from lidar_sampling.methods._particles import resampling_steps, ssp
from lidar_sampling.methods.fk_steering import Weighed
from lidar_sampling.methods.steered import Resampled


def looks(hook, settings, steps):
    """Return the steps at which a hook looks, out of all steps."""
    hook = hook(settings, None, [0])
    hook.start(steps)
    return hook.times


class TestResamplingSteps:
    @pytest.mark.parametrize("steps", [10, 20, 25, 50, 100])
    def test_a_fifth_divides_the_windows_of_the_defaults(self, steps):
        fifths = [steps // 5 * i for i in range(1, 5)]
        assert looks(Weighed, FKSteering(), steps) == {*fifths, steps - 1}
        assert looks(Resampled, Steered(), steps) == set(fifths[:3])

    def test_none_is_past_the_end_where_the_window_does_not_divide(self):
        settings = {"start": 0.2, "end": 0.8, "every": 0.35}  # 0.2, 0.55, and 0.9 is past it
        assert looks(Weighed, FKSteering(**settings), 20) == {4, 11, 19}
        assert looks(Resampled, Steered(**settings), 20) == {4, 11}

    @given(st.integers(1, 100), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
    def test_are_the_nearest_to_their_fractions(self, steps, start, end, every):
        """Fractions are exact twentieths; half-way between two steps, either is right."""
        fractions = [Fraction(at, 20) * steps for at in range(start, end + 1, every)]
        chosen = resampling_steps(steps, start=start / 20, end=end / 20, every=every / 20)
        assert all(any(abs(step - f) <= 0.5 for f in fractions) for step in chosen)
        assert all(any(abs(step - f) <= 0.5 for step in chosen) for f in fractions if f < steps - 1.5)
        assert steps - 1 not in chosen


class TestSSP:
    def test_leaves_the_whole_part_or_one_more_and_the_mean(self):
        weights = torch.tensor([0.31, 0.02, 0.17, 0.4, 0.1])
        counts = torch.stack(
            [torch.bincount(ssp(weights, torch.Generator().manual_seed(s)), minlength=5) for s in range(4000)]
        )
        expected = 5 * weights
        assert (counts.sum(1) == 5).all()
        assert ((counts == expected.floor()) | (counts == expected.floor() + 1)).all()
        torch.testing.assert_close(counts.float().mean(0), expected, rtol=0, atol=0.03)

    def test_keeps_equal_weights_and_a_single_winner(self):
        g = torch.Generator()
        for k in (1, 2, 7, 64):
            assert torch.equal(ssp(torch.full((k,), 1 / k), g), torch.arange(k))
            assert torch.equal(ssp(torch.eye(k)[k // 2], g), torch.full((k,), k // 2))
        for seed in range(200):
            weights = torch.randn(33, generator=g.manual_seed(seed), dtype=torch.float64).mul(4).softmax(0)
            assert len(ssp(weights, g)) == 33


@pytest.mark.parametrize("name", ["fk:every=0", "fk:start=0.5,end=0.4", "steered-4:end=1", "steered-4:start=-0.1"])
def test_a_window_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="0 <= start <= end < 1 and every above 0 are needed"):
        load(name)
