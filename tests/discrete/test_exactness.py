"""Guidance of tokens against enumeration of all sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidar_sampling.discrete import Absorbing, Joint, SingleSite, TokenFKSteering, TokenMembers, Uniform, sample
from lidar_sampling.testing import Sequences

LAMBDA = 1.5
KERNELS = {"uniform": Uniform(4), "absorbing": Absorbing(5, mask_id=4)}
TIMES = [(1.0, 0.5), (0.5, 0.25), (0.25, 0.1), (0.1, 0.0)]


def total_variation(p, q):
    return float((p - q).abs().sum() / 2)


@pytest.fixture(scope="module", params=KERNELS)
def world(request):
    return Sequences(4, 3, KERNELS[request.param], seed=1)


class TestThePopulationAsABank:
    @pytest.mark.parametrize(("t", "s"), TIMES)
    def test_the_joint_estimate_tilts_the_reverse_process_exactly(self, world, t, s):
        members = world.members(LAMBDA)
        plain = world.reverse(t, s, world.probabilities)
        want = world.reverse(t, s, world.tilt(LAMBDA))
        got = plain * members.expected_future_reward(world.states, world.schedule(s)).exp()
        assert (got / got.sum(1, keepdim=True) - want).abs().max() < 1e-12
        now = members.expected_future_reward(world.states, world.schedule(t))
        assert (got.sum(1).log() - now).abs().max() < 1e-12  # the estimate is a martingale

    def test_a_larger_space(self):
        world = Sequences(3, 5, Uniform(3), seed=2)
        got = world.reverse(0.6, 0.4, world.probabilities)
        got = got * world.members(LAMBDA).expected_future_reward(world.states, world.schedule(0.4)).exp()
        want = world.reverse(0.6, 0.4, world.tilt(LAMBDA))
        assert (got / got.sum(1, keepdim=True) - want).abs().max() < 1e-12

    def test_single_site_converges_and_token_independent_keeps_a_bias(self, world):
        """More steps reduce the first form's total variation from the tilted law, but not the second's."""
        members, target = world.members(LAMBDA), world.tilt(LAMBDA)
        single, alone, plain = [], [], []
        for steps in (8, 32, 128):
            single.append(total_variation(world.guided_law(members.single_site, steps), target))
            alone.append(total_variation(world.guided_law(lambda _, a: members.token_independent(a), steps), target))
            nothing = world.guided_law(lambda x, a: torch.zeros(()), steps)
            plain.append(total_variation(nothing, world.probabilities))
        assert single[0] < 0.15
        assert single[1] < 0.04
        assert single[2] < 0.01
        assert all(abs(s - p) < 0.05 for s, p in zip(single, plain, strict=True))  # this is the model's own error
        assert min(alone) > 0.35

    def test_a_posterior_in_place_of_the_word_of_the_others_leaves_a_bias(self):
        """With uniform noise, a network that has seen the token itself is wrong at any number of steps."""

        class Wrong(Sequences):
            def network(self, x, sigma):
                alpha = float(torch.tensor(-float(sigma[0]), dtype=torch.float64).exp())
                a, b = self.kernel.parts(alpha)
                own = torch.nn.functional.one_hot(x, self.kernel.vocab_size) * a + b
                return super().network(x, sigma) + own.log()

        world = Wrong(4, 3, Uniform(4), seed=1)
        off = [
            total_variation(world.guided_law(lambda x, a: torch.zeros(()), n), world.probabilities) for n in (8, 64)
        ]
        assert min(off) > 0.3

    def test_without_a_tilt_nothing_changes(self, world):
        members = world.members(0.0)
        assert members.single_site(world.states, 0.3).abs().max() < 1e-12
        assert members.token_independent(0.3).abs().max() < 1e-12


class TestFiniteBanks:
    @settings(max_examples=25)
    @given(st.integers(1, 12), st.floats(0.01, 0.99), st.integers(0, 2**31), st.sampled_from(sorted(KERNELS)))
    def test_single_site_is_the_joint_estimate_with_one_token_replaced(self, n, alpha, seed, name):
        generator, kernel = torch.Generator().manual_seed(seed), KERNELS[name]
        members = TokenMembers(
            torch.randint(4, (n, 3), generator=generator),
            torch.randn(n, generator=generator),
            kernel,
            reward_scale=3.0,
        )
        x = torch.randint(kernel.vocab_size, (5, 3), generator=generator)
        g = members.single_site(x, alpha)
        for place in range(3):
            for token in range(kernel.vocab_size):
                replaced = x.clone()
                replaced[:, place] = token
                want = members.expected_future_reward(replaced, alpha)
                torch.testing.assert_close(g[:, place, token], want, atol=1e-9, rtol=1e-9)

    @given(st.integers(1, 8), st.integers(0, 2**31))
    def test_factors_lie_between_the_extreme_rewards(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.randn(n, generator=generator)
        members = TokenMembers(torch.randint(4, (n, 3), generator=generator), rewards, Uniform(4), reward_scale=2.0)
        x = torch.randint(4, (6, 3), generator=generator)
        for g in (members.single_site(x, 0.999), members.token_independent(0.999)):
            assert g.min() >= 2 * rewards.min() - 1e-9
            assert g.max() <= 2 * rewards.max() + 1e-9

    def test_rows_do_not_know_of_each_other(self, monkeypatch):
        """The numbers are the same if rows are streamed one at a time."""
        members = TokenMembers(torch.randint(9, (300, 8)), torch.randn(300), Uniform(9), reward_scale=1.0)
        x = torch.randint(9, (7, 8))
        whole = members.single_site(x, 0.4), members.expected_future_reward(x, 0.4)
        monkeypatch.setattr("lidar_sampling.discrete._guidance._ELEMENTS", 1)
        torch.testing.assert_close(members.single_site(x, 0.4), whole[0])
        torch.testing.assert_close(members.expected_future_reward(x, 0.4), whole[1])

    def test_a_bank_that_excludes_a_sequence_still_has_a_finite_word_on_it(self):
        """With absorbing noise, if no member agrees with the unmasked tokens, those that disagree least count."""
        kernel = Absorbing(5, mask_id=4)
        members = TokenMembers(
            torch.tensor([[0, 0, 0], [1, 1, 1]]), torch.tensor([1.0, 3.0]), kernel, reward_scale=1.0
        )
        x = torch.tensor([[1, 2, 4]])
        assert members.expected_future_reward(x, 0.5).item() == pytest.approx(3.0)
        assert members.single_site(x, 0.5).isfinite().all()

    def test_softness_spreads_the_evidence(self):
        kernel = Absorbing(5, mask_id=4, softness=0.3)
        members = TokenMembers(
            torch.tensor([[0, 0, 0], [1, 1, 1]]), torch.tensor([1.0, 3.0]), kernel, reward_scale=1.0
        )
        assert 1.0 < members.expected_future_reward(torch.tensor([[1, 2, 4]]), 0.5).item() < 3.0

    @pytest.mark.parametrize(
        ("samples", "rewards", "why"),
        [
            (torch.zeros(2, 3), torch.zeros(2), "samples must be integers"),
            (torch.zeros(0, 3, dtype=torch.long), torch.zeros(0), "samples must be integers"),
            (
                torch.zeros(2, 3, dtype=torch.long),
                torch.tensor([0.0, float("nan")]),
                r"rewards must be \(2,\) and finite",
            ),
            (torch.zeros(2, 3, dtype=torch.long), torch.zeros(3), r"rewards must be \(2,\)"),
            (torch.full((2, 3), 4), torch.zeros(2), r"tokens outside of 0 .. 3"),
            ([[0, 0, 0]], torch.zeros(1), "samples must be integers"),
        ],
    )
    def test_what_is_no_bank_is_refused(self, samples, rewards, why):
        with pytest.raises(ValueError, match=why):
            TokenMembers(samples, rewards, Uniform(4), reward_scale=1.0)

    def test_sequences_of_another_length_are_refused(self):
        members = TokenMembers(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2), Uniform(4), reward_scale=1.0)
        with pytest.raises(ValueError, match=r"x must be \(B, 3\)"):
            members.single_site(torch.zeros(1, 4, dtype=torch.long), 0.5)


@pytest.fixture(scope="module")
def small():
    return Sequences(4, 2, Uniform(4), seed=3)


class TestSampling:
    """Laws of 20,000 sequences in a space of 16: equal laws differ by at most .02 in total variation."""

    COUNT = 20_000

    def law(self, world, tokens):
        return (tokens[:, None] == world.population).all(-1).double().mean(0)

    def drawn(self, world, steps, stepper=None):
        table = world.table(steps)
        return sample(table, world.kernel, self.COUNT, 2, steps=steps, stepper=stepper, batch_size=self.COUNT)[0]

    def test_plain_samples_follow_the_followed_law(self, small):
        want = small.guided_law(lambda x, a: torch.zeros(()), 6)
        assert total_variation(self.law(small, self.drawn(small, 6)), want) < 0.02

    def test_guided_samples_follow_the_followed_law(self, small):
        members = small.members(LAMBDA)
        want = small.guided_law(members.single_site, 6)
        got = self.law(small, self.drawn(small, 6, SingleSite(members, floor=0.0)))
        assert total_variation(got, want) < 0.02

    def test_joint_candidates_mend_what_few_steps_break(self, small):
        """In two steps most tokens change at once, and single-site guidance is far off."""
        members, target = small.members(LAMBDA), small.tilt(LAMBDA)
        single = total_variation(self.law(small, self.drawn(small, 2, SingleSite(members, floor=0.0))), target)
        joint = total_variation(
            self.law(small, self.drawn(small, 2, Joint(members, floor=0.0, candidates=16))), target
        )
        model = total_variation(small.guided_law(lambda x, a: torch.zeros(()), 2), small.probabilities)
        assert joint < single
        assert joint < model + 0.03

    def test_fk_steering_follows_the_tilted_law_of_the_model(self, small):
        """100 populations of 200: within the error of a population."""
        model = small.guided_law(lambda x, a: torch.zeros(()), 6)
        target = model * (LAMBDA * small.rewards).exp()
        target = target / target.sum()
        rewards = {tuple(s): r for s, r in zip(small.population.tolist(), small.rewards.tolist(), strict=True)}

        def reward(x):
            return torch.tensor([rewards[tuple(s)] for s in x.tolist()])

        stepper = TokenFKSteering(reward, small.kernel, reward_scale=LAMBDA, particles=200, every=2)
        got = self.law(small, self.drawn(small, 6, stepper))
        assert total_variation(got, target) < 0.06
        assert stepper.evaluations == 3 * self.COUNT
