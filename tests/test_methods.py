"""Every method is right on a case with a known answer, and counts what it costs."""

import math
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import make_perfect, sample, shares, total_variation
from test_oracle import SD, bank_of_four

from lidar_sampling import LiDAR, expected_future_reward, guide, testing
from lidar_sampling._attach import Hook, Segment, attached
from lidar_sampling._cost import metered
from lidar_sampling._decode import decode
from lidar_sampling._draw import Item, _call, _call_with_graph
from lidar_sampling._levels import NoiseLevel, clean_prediction, noise_level
from lidar_sampling.methods import (
    DAS,
    DATE,
    SVDD,
    BeamSearch,
    BestOf,
    FKSteering,
    Guided,
    Halving,
    NoiseSearch,
    Refine,
    SafeDenoiser,
    Spell,
    Steered,
    UniversalGuidance,
    Vanilla,
)
from lidar_sampling.methods._resampling import resampling_steps, ssp
from lidar_sampling.methods._rollout import Rollout
from lidar_sampling.methods.beam_search import Beams
from lidar_sampling.methods.das import Tempered
from lidar_sampling.methods.date import Embedding
from lidar_sampling.methods.fk_steering import Particles
from lidar_sampling.methods.noise_search import neighbours
from lidar_sampling.methods.repulsion import Repulsion
from lidar_sampling.methods.steered import Resampled, tempered
from lidar_sampling.methods.svdd import Proposals
from lidar_sampling.methods.universal_guidance import Gradient
from lidar_sampling.rewards import Mixture
from lidar_sampling.solvers import load

PROMPTS = ["a cat", "a dog"]


def make(scheduler="DDIMScheduler", reward=testing.brightness, make_pipe=testing.tiny_stable_diffusion, **options):
    pipe = make_pipe()
    config = {**pipe.scheduler.config, "clip_sample": False}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(config)
    settings = {"n": 6, "steps": 5, "lookahead": "dpm:3", "scale": 2.0, "reward_scale": 1e6, "guidance_scale": 3.0}
    return LiDAR(pipe, reward=reward, **{**settings, **options})


class TestVanilla:
    def test_is_the_pipeline_in_any_number_of_steps(self):
        lidar = make()
        assert torch.equal(
            Vanilla().draw(lidar, PROMPTS, images=2, seed=1).images, lidar.vanilla(PROMPTS, images=2, seed=1).images
        )
        few = Vanilla(steps=2).draw(lidar, PROMPTS, images=2, seed=1)
        assert few.cost["sampling"].network_evaluations == 2 * 2 * 2 * 2

    def test_with_a_solver_draws_what_a_bank_holds(self):
        lidar = make()
        scheduler = lidar.pipe.scheduler
        drawn = Vanilla(solver=load("dpm:3")).draw(lidar, PROMPTS, images=2, seed=1)
        assert drawn.cost["sampling"].network_evaluations == 4 * 3 * 2
        assert lidar.pipe.scheduler is scheduler


class TestBestOf:
    def test_keeps_the_best_of_the_same_samples(self):
        lidar = make()
        kept = lidar.judge(BestOf(Vanilla(), 5).draw(lidar, PROMPTS, images=2, seed=1))
        scores = lidar.vanilla(PROMPTS, images=5, seed=1).rewards["brightness"]
        torch.testing.assert_close(kept.rewards["brightness"], scores.sort(1, descending=True).values[:, :2])
        assert kept.cost["selection"].reward_calls == 10

    def test_has_the_law_of_a_maximum(self):
        """P(the best of 3 uniform ranks is the k-th of m) = C(k - 1, 2) / C(m, 3), over all triples of a pool."""
        ranks = torch.combinations(torch.arange(7), 3).amax(1)
        law = torch.bincount(ranks, minlength=7) / len(ranks)
        expected = torch.tensor([k * (k - 1) / 2 for k in range(7)]) / 35
        torch.testing.assert_close(law, expected)
        lidar = make()
        pool = lidar.vanilla("a cat", images=7, seed=1).rewards["brightness"][0]
        for n in range(1, 8):
            best = lidar.judge(BestOf(Vanilla(), n).draw(lidar, ["a cat"], images=1, seed=1))
            torch.testing.assert_close(best.rewards["brightness"].item(), pool[:n].max().item())

    def test_of_guided_samples_and_of_a_mixture(self):
        lidar = make(reward=Mixture({"brightness": 1.0}))
        kept = lidar.judge(BestOf(Guided(), 4).draw(lidar, PROMPTS, images=2, seed=1))
        assert set(kept.cost) == {"lookahead", "sampling", "selection", "scoring"}
        guided = lidar(PROMPTS, images=4, seed=1).rewards["brightness"]
        torch.testing.assert_close(kept.rewards["brightness"], guided.sort(1, descending=True).values[:, :2])

    def test_refuses_to_keep_more_than_it_draws(self):
        with pytest.raises(ValueError, match="images must be 1 to n = 2, got 3"):
            BestOf(Vanilla(), 2).draw(make(), PROMPTS, images=3, seed=0)


class TestRefine:
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_starts_from_the_best_members(self, make_pipe):
        lidar = make(make_pipe=make_pipe)
        refined = Refine(n=6, steps=4, strength=0.5).draw(lidar, PROMPTS, images=2, seed=1)
        starts = BestOf(Vanilla(solver=load("dpm:3")), 6).draw(lidar, PROMPTS, images=2, seed=1)
        barely = Refine(n=6, steps=1, strength=0.01).draw(lidar, PROMPTS, images=2, seed=1)
        near, far = ((r.latents - starts.latents).norm() for r in (barely, refined))
        assert near < 0.5 * far
        assert refined.cost["sampling"].network_evaluations == 4 * 4 * 2
        assert refined.cost["lookahead"].network_evaluations == 12 * 3 * 2
        assert refined.cost["selection"].reward_calls == 12
        assert refined.images.shape == (2, 2, 3, 16, 16)

    def test_keeps_the_best_of_its_offspring(self):
        lidar = make()
        kept = lidar.judge(Refine(n=4, steps=2, offspring=3).draw(lidar, PROMPTS, images=2, seed=1))
        assert kept.cost["selection"].reward_calls == 8 + 12
        assert kept.cost["sampling"].network_evaluations == 12 * 2 * 2
        lone = lidar.judge(Refine(n=4, steps=2).draw(lidar, PROMPTS, images=2, seed=1))
        assert kept.rewards["brightness"].mean() > lone.rewards["brightness"].mean()
        with pytest.raises(ValueError, match=r"strength in \(0, 1\], got 20, 10, 1 and 0.0"):
            Refine(strength=0.0)


class TestHalving:
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_segments_join_to_the_whole(self, make_pipe):
        """Of a deterministic sampler three segments one after another are the run itself."""
        lidar = make(make_pipe=make_pipe, steps=6, eta=0.0)
        whole = lidar.sample(PROMPTS, 2, 1)
        latents = None
        for start, stop in ((0, 2), (2, 5), (5, None)):
            rows = {} if latents is None else {"latents": latents}
            with attached(lidar.pipe.scheduler, Segment(start, stop)):
                part = lidar.sample(PROMPTS, 2, 1, rows=rows, decoded=stop is None)
            latents = part.latents.flatten(0, 1)
        torch.testing.assert_close(part.images, whole.images, rtol=0, atol=1e-5)

    def test_keeps_the_seeds_that_look_best(self):
        """Of a deterministic sampler the survivors are whole samples: those whose predictions scored best."""
        lidar = make(steps=4, eta=0.0)
        halved = Halving(n=8, keep_at=(0.5,)).draw(lidar, PROMPTS, images=4, seed=1)
        whole = lidar.sample(PROMPTS, 8, 1)
        hook = Segment(0, 2)
        with attached(lidar.pipe.scheduler, hook):
            lidar.sample(PROMPTS, 8, 1, decoded=False)
        looks = testing.brightness(images=decode(lidar.pipe, hook.x0), prompts=[]).view(2, 8)
        kept = looks.argsort(1, descending=True)[:, :4]
        for row in range(2):
            survivors = whole.images[row, kept[row]]
            order = survivors.flatten(1).mean(1).argsort(descending=True)
            torch.testing.assert_close(halved.images[row], survivors[order], rtol=0, atol=1e-4)

    def test_costs_what_is_left_of_the_seeds(self):
        lidar = make(steps=8)
        result = Halving(n=8, keep_at=(0.25, 0.5)).draw(lidar, PROMPTS, images=2, seed=1)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 2 * (8 * 2 + 4 * 2 + 2 * 4) * 2
        assert cost.reward_calls == 2 * (8 + 4 + 2)
        assert cost.decodes == 2 * (8 + 4 + 2)
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=8, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert type(lidar.pipe.scheduler) is diffusers.DDIMScheduler

    def test_refusals(self):
        with pytest.raises(ValueError, match="1 to the 2 that reach the end, got 3"):
            Halving(n=8).draw(make(), PROMPTS, images=3, seed=0)
        with pytest.raises(ValueError, match="rising fractions that differ in 5 steps"):
            Halving(n=8, keep_at=(0.5, 1.0)).draw(make(), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="EulerDiscreteScheduler would not follow"):
            Halving(n=8).draw(make("EulerDiscreteScheduler"), PROMPTS, images=1, seed=0)


class TestSteered:
    @given(
        st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True),
        st.floats(0.05, 1.0),
    )
    def test_weights_have_the_effective_sample_size(self, rewards, ess):
        r = torch.tensor([rewards], dtype=torch.float64)
        weights = tempered(r, ess)
        size = float(1 / weights.square().sum())
        assert size == pytest.approx(max(ess * len(rewards), 1.0), rel=1e-4)
        assert (weights[0, r[0].argsort()].diff() >= 0).all()  # rising with the reward

    def test_equal_rewards_weigh_alike(self):
        torch.testing.assert_close(tempered(torch.zeros(1, 4), 0.25), torch.full((1, 4), 0.25).double())

    def test_without_resampling_is_best_of_n(self):
        lidar = make()
        plain = BestOf(Vanilla(), 4).draw(lidar, PROMPTS, images=2, seed=1)
        gentle = Steered(4, ess=1.0).draw(lidar, PROMPTS, images=2, seed=1)
        assert torch.equal(gentle.images, plain.images)
        assert gentle.cost["sampling"].reward_calls == 0

    def test_beats_best_of_n_on_what_it_is_steered_by(self):
        lidar = make(steps=10)
        plain = lidar.judge(BestOf(Vanilla(), 8).draw(lidar, PROMPTS, images=2, seed=1))
        steered = lidar.judge(Steered(8).draw(lidar, PROMPTS, images=2, seed=1))
        assert steered.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert steered.cost["sampling"].network_evaluations == plain.cost["sampling"].network_evaluations
        assert steered.cost["sampling"].reward_calls == 3 * 16  # at steps 2, 4 and 6

    def test_does_not_depend_on_the_batch_or_other_prompts(self):
        many = Steered(4).draw(make(), PROMPTS, images=2, seed=1)
        lone = Steered(4).draw(make(batch_size=4), PROMPTS[1:], images=2, seed=1)
        torch.testing.assert_close(lone.latents[0], many.latents[1], rtol=1e-4, atol=1e-4)

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"ess in \(0, 1\]"):
            Steered(ess=0.0)
        with pytest.raises(ValueError, match="images must be 1 to n = 2, got 3"):
            Steered(2).draw(make(), PROMPTS, images=3, seed=0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            Steered(2).draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)


class TestFKSteering:
    """Particles over a perfect model of four equally likely members must come to follow softmax(lambda r)."""

    STEPS, LAMBDA = 30, 0.75

    def endpoints(self, k, *, populations=None, guided=0.0, **settings):
        bank = bank_of_four()
        scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)

        def rewards(x0):
            # Smooth in x0, and the member's own at the members.
            return (-torch.cdist(x0, bank.samples).square() / 8).softmax(1) @ bank.reward()

        count = populations or 2048 // k
        how = FKSteering(reward_scale=self.LAMBDA, floor=-10.0, **settings)
        particles = Particles(how, rewards, self.STEPS, list(range(count)))
        lidar = guide(scheduler, bank, scale=1.0, reward_scale=guided, window=(1.0, 0.0)) if guided else nullcontext()
        with lidar, attached(scheduler, particles):
            ends = sample(scheduler, bank.samples, chains=count * k, steps=self.STEPS)
        return shares(ends, bank.samples), particles

    def target(self):
        return (self.LAMBDA * bank_of_four().reward()).softmax(0)

    @pytest.mark.parametrize(
        ("potential", "settings"),
        [
            ("difference", {}),
            ("max", {}),
            ("rt", {}),
            ("sum", {"start": 0.4, "end": 0.4}),  # weighed by sums of five, 256 particles would die out
        ],
    )
    def test_converges_to_the_tilted_law(self, potential, settings):
        laws = (self.endpoints(k, potential=potential, **settings)[0] for k in (2, 256))
        few, many = (total_variation(law, self.target()) for law in laws)
        assert many < 0.08, many
        assert few > many + 0.05

    def test_one_particle_is_the_model_itself(self):
        law, _ = self.endpoints(1)
        assert total_variation(law, torch.full((4,), 0.25)) < 0.05

    def test_resampling_when_it_pays_converges_too(self):
        law, _ = self.endpoints(256, potential="difference", adaptive=True)
        assert total_variation(law, self.target()) < 0.08

    def test_of_the_guided_sampler_converges_to_the_product_of_both_tilts(self):
        """Of guidance by lambda / 2 and weights by lambda."""
        law, _ = self.endpoints(256, guided=0.375)
        target = (1.5 * self.LAMBDA * bank_of_four().reward()).softmax(0)
        assert total_variation(law, target) < 0.08
        assert total_variation(law, self.target()) > 0.1
        assert self.endpoints(1, guided=0.375)[0][3] > 0.3  # one particle is LiDAR itself

    def test_of_the_guided_sampler_costs_a_bank_too(self):
        lidar = make()
        result = FKSteering(reward_scale=200.0, guided=True).draw(lidar, PROMPTS, images=4, seed=1)
        plain = FKSteering(reward_scale=200.0).draw(lidar, PROMPTS, images=4, seed=1)
        assert result.cost["lookahead"].network_evaluations == 2 * 6 * 3 * 2
        for name in ("network_evaluations", "reward_calls", "decodes"):
            assert getattr(result.cost["sampling"], name) == getattr(plain.cost["sampling"], name)
        assert len(result.banks) == 2
        assert len(result.trace.steps) > 0
        alone = FKSteering(guided=True).draw(lidar, PROMPTS, images=1, seed=1)
        torch.testing.assert_close(alone.images, lidar(PROMPTS, images=1, seed=1).images, rtol=0, atol=1e-5)

    def test_looks_at_the_published_steps(self):
        _, particles = self.endpoints(4, populations=2)
        assert particles._times == {6, 12, 18, 24, 29}
        assert particles.evaluations == 5 * 8

    def test_through_the_sampler(self):
        lidar = make(batch_size=4)
        steered = FKSteering(reward_scale=200.0).draw(lidar, PROMPTS, images=4, seed=1)
        whole = FKSteering(reward_scale=200.0).draw(make(batch_size=64), PROMPTS, images=4, seed=1)
        torch.testing.assert_close(steered.latents, whole.latents, rtol=1e-3, atol=1e-2)
        judged, plain = lidar.judge(steered), lidar.vanilla(PROMPTS, images=4, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert steered.cost["sampling"].reward_calls == 8 * 4  # the fourth of five steps is the last as well
        assert steered.cost["sampling"].decodes == 8 + 8 * 4

    def test_refusals(self):
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            FKSteering().draw(make("PNDMScheduler"), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match="give the mixture a calibration"):
            FKSteering().draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=2, seed=0)
        with pytest.raises(TypeError, match="no plain latents"):
            decode(testing.tiny_flux(), torch.zeros(1, 16, 16))


class TestDAS:
    """As of FK steering: particles over a perfect model must come to follow softmax(lambda r)."""

    STEPS, LAMBDA = 30, 0.75

    def endpoints(self, k, **settings):
        bank = bank_of_four()
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)

        def rewards(x0):
            return (-torch.cdist(x0, bank.samples).square() / 8).softmax(1) @ bank.reward()

        hook = Tempered(DAS(self.LAMBDA, **settings), rewards, self.STEPS, list(range(2048 // k)))
        with attached(scheduler, hook):
            ends = sample(
                scheduler, bank.samples, chains=2048, steps=self.STEPS, eta=1.0, differentiable=True
            ).detach()
        return shares(ends, bank.samples), hook

    @pytest.mark.parametrize("settings", [{}, {"threshold": 1.0}, {"gamma": 0.03, "threshold": 1.0}])
    def test_converges_to_the_tilted_law(self, settings):
        target = (self.LAMBDA * bank_of_four().reward()).softmax(0)
        few, many = (total_variation(self.endpoints(k, **settings)[0], target) for k in (1, 256))
        assert many < 0.06, many  # measured .020 to .026, of 2,048 particles
        assert few > many + 0.08

    def test_without_strength_is_the_model_itself(self, monkeypatch):
        monkeypatch.setattr(self.__class__, "LAMBDA", 0.0)
        assert total_variation(self.endpoints(256)[0], torch.full((4,), 0.25)) < 0.05

    def test_the_temper_is_the_published_one(self):
        das = DAS()
        assert das.temper(0, 100) == 0
        assert das.temper(50, 100) == pytest.approx(1.008**50 - 1)
        assert das.temper(86, 100) < das.temper(87, 100) == das.temper(99, 100) == 1
        assert das.temper(25, 50) == das.temper(50, 100)

    def test_through_the_sampler(self):
        def brightness(*, images, prompts):
            return images.flatten(1).mean(1)

        lidar = make(reward=brightness, batch_size=4, eta=1.0)
        result = DAS(500.0).draw(lidar, PROMPTS, images=4, seed=1)
        whole = DAS(500.0).draw(make(reward=brightness, batch_size=64, eta=1.0), PROMPTS, images=4, seed=1)
        torch.testing.assert_close(result.latents, whole.latents, rtol=1e-3, atol=1e-2)
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=4, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 8 * 5 * 2
        assert cost.backward_passes == 8 * 4 * 2
        assert (cost.reward_calls, cost.decodes) == (8 * 5, 8 * 5 + 8)
        free = DAS(0.0).draw(lidar, PROMPTS, images=1, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla(PROMPTS, images=1, seed=1).images, rtol=0, atol=1e-5)

    def test_refusals(self):
        with pytest.raises(ValueError, match="proposes steps with DDIMScheduler alone, got DDPMScheduler"):
            DAS().draw(make("DDPMScheduler"), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match="which has none: set eta above 0"):
            DAS().draw(make(eta=0.0), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match="DAS needs the gradient"):
            DAS().draw(make(reward="jpeg-compressibility"), PROMPTS, images=2, seed=0)
        with pytest.raises(ValueError, match=r"threshold 0 to 1, got 200.0, 0.008 and 2"):
            DAS(threshold=2)


class TestResamplingSteps:
    @pytest.mark.parametrize("steps", [10, 20, 25, 50, 100])
    def test_a_fifth_divides_the_windows_of_the_defaults(self, steps):
        fifths = [steps // 5 * i for i in range(1, 5)]
        assert Particles(FKSteering(), None, steps, [0])._times == {*fifths, steps - 1}
        assert Resampled(Steered(), None, steps, [0])._times == set(fifths[:3])

    def test_none_is_past_the_end_where_the_window_does_not_divide(self):
        settings = {"start": 0.2, "end": 0.8, "every": 0.35}  # 0.2, 0.55, and 0.9 is past it
        assert Particles(FKSteering(**settings), None, 20, [0])._times == {4, 11, 19}
        assert Resampled(Steered(**settings), None, 20, [0])._times == {4, 11}

    @given(st.integers(1, 100), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
    def test_are_the_nearest_to_their_fractions(self, steps, start, end, every):
        """In exact twentieths; half way between two steps, either."""
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


class TestSVDD:
    STEPS = 30

    def law(self, m, temperature, *, count=512):
        bank = bank_of_four()
        scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)

        def rewards(x0):
            return (-torch.cdist(x0, bank.samples).square() / 8).softmax(1) @ bank.reward()

        hook = Proposals(SVDD(m, temperature), rewards, list(range(count)))
        with attached(scheduler, hook):
            ends = sample(scheduler, bank.samples, chains=count * m, steps=self.STEPS)
        firsts = ends[::m]
        assert (ends.view(count, m, -1) - firsts[:, None]).abs().max() == 0  # proposals end alike
        return shares(firsts, bank.samples)

    def test_one_proposal_or_a_blind_choice_is_the_model_itself(self):
        uniform = torch.full((4,), 0.25)
        assert total_variation(self.law(1, 0.0), uniform) < 0.07
        assert total_variation(self.law(8, 1e6), uniform) < 0.07

    def test_the_best_of_many_proposals_climbs_to_the_best_member(self):
        shares_of_best = [self.law(m, 0.0)[3] for m in (1, 2, 8)]
        assert shares_of_best[0] < shares_of_best[1] < shares_of_best[2]
        assert shares_of_best[2] > 0.75  # measured .82, of 512 samples

    def test_a_warm_choice_lies_between(self):
        assert self.law(8, 1e6)[3] < self.law(8, 0.5)[3] < self.law(8, 0.0)[3]

    def test_through_the_sampler(self):
        lidar = make(steps=4)
        result = SVDD(3).draw(lidar, PROMPTS, images=2, seed=1)
        assert result.images.shape == (2, 2, 3, 16, 16)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 2 * 2 * 3 * 4 * 2
        assert cost.reward_calls == 2 * 2 * 3 * 3  # not at the first step
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=2, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        with pytest.raises(ValueError, match="m must be at least 1"):
            SVDD(0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            SVDD(2).draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)


class TestRollout:
    def start(self, lidar, count, **how):
        """A rollout, and what it is called with: count samples at the second of the sampler's steps."""
        scheduler = lidar.pipe.scheduler
        scheduler.set_timesteps(lidar.settings.steps)
        t = scheduler.timesteps[1]
        level = noise_level(scheduler, t)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(count, 1, 1, 1)
        x = level.sigma * x
        rollout = Rollout(lidar, [Item("a cat", k) for k in range(count)], **how)
        return rollout, (scheduler, t, x), level

    def test_one_is_ddim_by_hand(self):
        lidar = make(steps=4)
        pipe = lidar.pipe
        rollout, (scheduler, t, x), _ = self.start(lidar, 2, steps=3)
        words, nothing = pipe.encode_prompt(["a cat", "a cat"], "cpu", 1, True)

        def predict(x, t):
            with torch.no_grad():
                free, bound = (
                    pipe.unet(x, t, encoder_hidden_states=e, return_dict=False)[0] for e in (nothing, words)
                )
            return free + 3.0 * (bound - free)

        abar = scheduler.alphas_cumprod
        times = [int(t), int(t) * 2 // 3, int(t) // 3]
        by_hand = x
        for here, there in zip(times, [*times[1:], None], strict=True):
            eps = predict(by_hand, here)
            x0 = (by_hand - (1 - abar[here]).sqrt() * eps) / abar[here].sqrt()
            to = abar[there] if there else torch.tensor(1.0)
            by_hand = to.sqrt() * x0 + (1 - to).sqrt() * eps
        x0 = clean_prediction(noise_level(scheduler, t), predict(x, t), x)
        with metered(pipe) as cost:
            ends = rollout(scheduler, t, x, x0)
        torch.testing.assert_close(ends, by_hand, rtol=1e-4, atol=1e-4)
        assert cost.network_evaluations == 2 * 2 * 2  # two steps of two samples, with classifier-free guidance
        assert lidar.pipe.scheduler is scheduler
        assert len(scheduler.timesteps) == 4
        assert torch.equal(Rollout(lidar, [Item("a cat", 0)] * 2, steps=1)(scheduler, t, x, x0), x0)

    def test_several_are_samples_of_the_posterior(self):
        """Of a perfect model their shares are the posterior's, and their soft value the expected future reward."""
        lidar = make(steps=4, guidance_scale=1.0, batch_size=1000)
        samples = 0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        make_perfect(lidar.pipe, samples)
        rollout, (scheduler, t, x), level = self.start(lidar, 1, steps=12, samples=1000)
        distance = torch.cdist(x.flatten(1), level.alpha * samples.flatten(1)).square()
        posterior = (-distance / (2 * level.sigma**2)).softmax(1)[0]
        x0 = (posterior @ samples.flatten(1)).view(1, 4, 8, 8)
        ends = rollout(scheduler, t, x, x0)
        law = shares(ends.flatten(1), samples.flatten(1))
        assert posterior.max() < 0.8
        assert total_variation(law, posterior) < 0.06

        rewards = torch.arange(4.0)
        exact = expected_future_reward(x, samples, rewards, alpha=level.alpha, sigma=level.sigma, reward_scale=1.5)
        seen = rewards[torch.cdist(ends.flatten(1), samples.flatten(1)).argmin(1)]
        hook = Proposals(SVDD(1, 1 / 1.5, rollout_steps=12, rollouts=1000), None, [0])
        value = 1.5 * hook._values(seen.double())
        torch.testing.assert_close(value.float(), exact, rtol=0, atol=0.1)

    def test_values_of_rollouts_find_the_best_member_at_their_cost(self):
        """Through the sampler, where the model is perfect."""

        def share(**how):
            lidar = make(steps=6, guidance_scale=1.0, eta=1.0, batch_size=64, reward=nearest)
            make_perfect(lidar.pipe, samples)
            result = SVDD(4, **how).draw(lidar, ["a cat"], images=24, seed=0)
            return shares(result.latents[0].flatten(1), samples.flatten(1))[0].item(), result.cost["sampling"]

        samples = 0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        pictures = decode(testing.tiny_stable_diffusion(), samples).flatten(1)

        def nearest(*, images, prompts):
            return (torch.cdist(images.flatten(1), pictures).argmin(1) == 0).float()

        plain, cost = share()
        rolled, rolled_cost = share(rollout_steps=3)
        efr, efr_cost = share(temperature=0.1, rollout_steps=3, rollouts=4)
        assert min(plain, rolled, efr) > 0.5  # measured .75, .88 and .75, of 24 samples
        assert rolled_cost.reward_calls == cost.reward_calls == 24 * 4 * 5
        assert efr_cost.reward_calls == 4 * cost.reward_calls
        assert cost.network_evaluations == 24 * 4 * 6
        assert rolled_cost.network_evaluations <= cost.network_evaluations + 24 * 4 * 5 * 2
        assert efr_cost.network_evaluations <= cost.network_evaluations + 24 * 4 * 5 * 2 * 4

    def test_refusals(self):
        with pytest.raises(ValueError, match="several rollouts need several steps, got 2 of 1"):
            SVDD(4, rollouts=2)


class TestBeamSearch:
    def law(self, beams, candidates, *, count=512):
        bank = bank_of_four()
        scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)

        def rewards(x0):
            return (-torch.cdist(x0, bank.samples).square() / 8).softmax(1) @ bank.reward()

        with attached(scheduler, Beams(BeamSearch(beams, candidates), rewards)):
            ends = sample(scheduler, bank.samples, chains=count * beams * candidates, steps=30)
        return shares(ends[:: beams * candidates], bank.samples), shares(ends[::candidates], bank.samples)

    def test_climbs_to_the_best_member_and_one_beam_of_one_is_the_model(self):
        assert total_variation(self.law(1, 1)[0], torch.full((4,), 0.25)) < 0.07
        best = [self.law(*size)[0][3] for size in ((1, 2), (2, 2), (4, 2))]
        assert best[0] < best[1] < best[2]
        assert best[2] > 0.75

    def test_beams_without_rivals_keep_the_law_of_the_model(self):
        """Of one candidate a beam all go on, the best of them first."""
        best, every = self.law(4, 1)
        assert total_variation(every, torch.full((4,), 0.25)) < 0.05
        assert best[3] > every[3] + 0.2

    @pytest.mark.parametrize("lookahead", [1, 3])
    def test_one_beam_is_greedy_svdd(self, lookahead):
        lidar = make(eta=1.0)
        beam = BeamSearch(1, 3, lookahead).draw(lidar, PROMPTS, images=1, seed=1)
        svdd = SVDD(3, rollout_steps=lookahead).draw(lidar, PROMPTS, images=1, seed=1)
        assert torch.equal(beam.images, svdd.images)
        measured = {"seconds": 0.0, "peak_memory": 0}  # the rest is counted
        assert replace(beam.cost["sampling"], **measured) == replace(svdd.cost["sampling"], **measured)

    def test_through_the_sampler(self):
        lidar = make(eta=1.0)
        result = BeamSearch(3, 2).draw(lidar, PROMPTS, images=2, seed=1)
        assert result.images.shape == (2, 2, 3, 16, 16)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 2 * 6 * 5 * 2
        assert (cost.reward_calls, cost.decodes) == (2 * 6 * 4, 2 * 6 * 4 + 12)
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=2, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert (judged.rewards["brightness"][:, 0] >= judged.rewards["brightness"][:, 1]).all()
        with pytest.raises(ValueError, match="images must be 1 to the 3 beams, got 4"):
            BeamSearch(3, 2).draw(lidar, PROMPTS, images=4, seed=1)
        with pytest.raises(ValueError, match="at least 1, got 0, 2 and 1"):
            BeamSearch(0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            BeamSearch().draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)


class TestNoiseSearch:
    @pytest.mark.parametrize("cosine", [0.95, 0.0, 1.0, -1.0])
    def test_neighbours_keep_the_norm_and_the_cosine(self, cosine):
        pivots = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        around = neighbours(pivots, 5, cosine, [1, 2, 3]).flatten(2)
        x = pivots.flatten(1)[:, None].expand_as(around)
        torch.testing.assert_close(around.norm(dim=2), x.norm(dim=2))
        cosines = torch.cosine_similarity(around, x, dim=2)
        torch.testing.assert_close(cosines, torch.full((3, 5), cosine), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
    def test_starts_from_the_noise_of_the_pipeline(self, make_pipe, scheduler):
        """Neighbours at cosine 1 are the pivots themselves, so their samples are the plain ones."""
        lidar = make(scheduler, make_pipe=make_pipe, eta=0.0)
        plain = lidar.sample(PROMPTS, 2, 1)
        same = NoiseSearch(rounds=1, neighbours=1, cosine=1.0).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(same.images, plain.images, rtol=0, atol=1e-5)

    def test_climbs_from_round_to_round(self):
        lidar = make()
        runs = [
            NoiseSearch(rounds=k, neighbours=3, cosine=0.9).draw(lidar, PROMPTS, images=2, seed=1) for k in range(4)
        ]
        rewards = torch.stack([lidar.judge(run).rewards["brightness"] for run in runs])
        assert (rewards.diff(dim=0) >= 0).all()
        assert (rewards[-1] > rewards[0]).all()
        plain = make(eta=0.0).vanilla(PROMPTS, images=2, seed=1)
        assert torch.equal(rewards[0], plain.rewards["brightness"])
        cost = runs[3].cost["sampling"]
        assert cost.network_evaluations == 4 * (1 + 3 * 3) * 5 * 2
        assert cost.reward_calls == cost.decodes == 4 * (1 + 3 * 3)

    def test_searches_do_not_see_each_other(self):
        lidar = make()
        search = NoiseSearch(rounds=2, neighbours=2)
        both = search.draw(lidar, PROMPTS, images=2, seed=1)
        one = search.draw(lidar, PROMPTS[1:], images=1, seed=1)
        torch.testing.assert_close(one.images[0, 0], both.images[1, 0], rtol=0, atol=1e-5)

    def test_of_packed_latents_and_refusals(self):
        flux = LiDAR(testing.tiny_flux(), reward="brightness", steps=2, pipe_kwargs={"height": 16, "width": 16})
        result = NoiseSearch(rounds=1, neighbours=2).draw(flux, ["a cat"], images=1, seed=0)
        assert result.images.shape == (1, 1, 3, 16, 16)
        with pytest.raises(ValueError, match="give the mixture a calibration"):
            NoiseSearch().draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match=r"cosine -1 to 1, got 4, 4 and 1\.5"):
            NoiseSearch(cosine=1.5)


class TestDATE:
    def embedding(self, rho=0.1, **how):
        """An adapted network in float64, and what to call it with: two samples, with classifier-free guidance."""
        pipe = make(steps=4).pipe.to(torch.float64)
        pipe.scheduler.set_timesteps(4)
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64)
        c = torch.randn(4, 5, pipe.unet.config.cross_attention_dim, generator=g, dtype=torch.float64)

        def rewards(x0):
            return pipe.vae.decode(x0, return_dict=False)[0].square().flatten(1).sum(1)

        adapted = Embedding(DATE(rho, **how), pipe.unet, pipe.scheduler, rewards, 2, 3.0)
        return adapted, pipe, x, c, rewards

    def test_its_direction_is_that_of_finite_differences_and_its_length_rho(self):
        adapted, pipe, x, c, rewards = self.embedding(rho=0.3)
        t = pipe.scheduler.timesteps[0]
        level = noise_level(pipe.scheduler, t)

        @torch.no_grad()
        def total(bound):
            free, cond = pipe.unet(
                x.repeat(2, 1, 1, 1), t, encoder_hidden_states=torch.cat([c[:2], bound]), return_dict=False
            )[0].chunk(2)
            return rewards(clean_prediction(level, free + 3.0 * (cond - free), x))

        def along(v, h=1e-4):
            return (total(c[2:] + h * v) - total(c[2:] - h * v)) / (2 * h)

        with adapted, torch.no_grad():
            output = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=c, return_dict=False)[0]
        torch.testing.assert_close(adapted.shift.flatten(1).norm(dim=1), torch.full((2,), 0.3, dtype=torch.float64))
        unit = adapted.shift / 0.3
        steepest = along(unit)  # the norm of the gradient of each sample
        for seed in range(3):
            v = torch.randn(c[2:].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            expected = steepest * (v * unit).flatten(1).sum(1)
            torch.testing.assert_close(along(v), expected, rtol=1e-5, atol=1e-8)
        with torch.no_grad():
            new = torch.cat([c[:2], c[2:] + adapted.shift])
            plain = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=new, return_dict=False)[0]
        torch.testing.assert_close(output, plain)
        assert "forward" not in vars(pipe.unet)

    def test_updates_add_up_and_last(self):
        adapted, pipe, x, c, _ = self.embedding(every=2)
        shifts = []
        with adapted, torch.no_grad():
            for t in pipe.scheduler.timesteps:
                output = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=c, return_dict=False)[0]
                shifts.append(adapted.shift)
        assert torch.equal(shifts[0], shifts[1])
        assert torch.equal(shifts[2], shifts[3])
        step = (shifts[2] - shifts[0]).flatten(1).norm(dim=1)
        torch.testing.assert_close(step, torch.full((2,), 0.1, dtype=torch.float64))
        with torch.no_grad():
            new = torch.cat([c[:2], c[2:] + shifts[3]])
            plain = pipe.unet(x.repeat(2, 1, 1, 1), t, encoder_hidden_states=new, return_dict=False)[0]
        torch.testing.assert_close(output, plain)

    @pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_without_strength_is_the_pipeline(self, make_pipe, scheduler, guidance_scale):
        lidar = make(scheduler, make_pipe=make_pipe, guidance_scale=guidance_scale)
        free = DATE(0.0).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla(PROMPTS, images=2, seed=1).images, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("key", ["sd3", "pixart-sigma", "sana"])
    def test_without_strength_is_the_pipeline_of_a_transformer(self, key):
        tiny = testing.PIPELINES[key]
        lidar = LiDAR(tiny.make(), reward="brightness", steps=3, pipe_kwargs=tiny.call)
        free = DATE(0.0).draw(lidar, ["a cat"], images=2, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla("a cat", images=2, seed=1).images, rtol=0, atol=1e-5)
        assert free.cost["sampling"].backward_passes > 0

    @pytest.mark.parametrize(("guidance_scale", "branches"), [(3.0, 2), (1.0, 1)])
    def test_raises_the_reward_at_its_cost_and_leaves_the_pipeline_as_it_was(self, guidance_scale, branches):
        lidar = make(guidance_scale=guidance_scale, batch_size=3)
        lidar.pipe.unet.requires_grad_(True)
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        result = lidar.judge(DATE(5.0, every=2).draw(lidar, PROMPTS, images=2, seed=1))
        assert result.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert not result.images.requires_grad
        assert all(p.requires_grad for p in lidar.pipe.unet.parameters())
        assert "forward" not in vars(lidar.pipe.unet)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 4 * (5 * branches + 3)  # updates at steps 0, 2 and 4
        assert cost.backward_passes == cost.reward_calls == 4 * 3
        assert cost.decodes == 4 * 3 + 4

    def test_refusals(self):
        with pytest.raises(ValueError, match="DATE needs the gradient of the reward"):
            DATE().draw(make(reward="jpeg-compressibility"), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match=r"every at least 1, got 0\.1 and 0"):
            DATE(every=0)
        flux = LiDAR(testing.tiny_flux(), reward="brightness", steps=2, pipe_kwargs={"height": 16, "width": 16})
        with pytest.raises(TypeError, match="FluxPipeline has no plain latents"):
            DATE().draw(flux, ["a cat"], images=1, seed=0)
        assert "forward" not in vars(flux.pipe.transformer)
        modular = LiDAR(testing.tiny_modular_stable_diffusion_xl(), reward="brightness", steps=2)
        with pytest.raises(TypeError, match="DATE needs a classic pipeline"):
            DATE().draw(modular, ["a cat"], images=1, seed=0)


class TestRepulsion:
    def test_safe_denoiser_by_hand(self):
        """Weights 3/4 and 1/4: the members' distances to x_t differ by 2 log 3."""
        level = NoiseLevel(alpha=1.0, sigma=1.0, slope=-1.0, tilt=1.0, time=0.5)
        members = torch.tensor([[0.0, 0.0], [(2 * math.log(3)) ** 0.5, 0.0]])
        shift = SafeDenoiser(2.0, 2, 0.25).shift(torch.zeros(2), torch.tensor([1.0, 4.0]), members, level)
        torch.testing.assert_close(shift, 0.5 * torch.tensor([1 - members[1, 0].item() / 4, 4.0]))

    def test_spell_by_hand(self):
        level = NoiseLevel(alpha=1.0, sigma=1.0, slope=-1.0, tilt=1.0, time=0.5)
        x0, members = torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 0.0], [3.0, 0.0], [100.0, 0.0]])
        shift = Spell(1.0, 3, 10.0).shift(x0, x0, members, level)
        torch.testing.assert_close(shift, 1.0 * torch.tensor([3.0, 4.0]) + 1.5 * torch.tensor([0.0, 4.0]))
        alone = Spell(1.0, 1, 10.0).shift(x0, x0, members[:1], level)
        torch.testing.assert_close((x0 + alone).norm(), torch.tensor(10.0))  # to the rim
        assert torch.equal(Spell(1.0, 1, 5.0).shift(x0, x0, members[:1], level), torch.zeros(2))
        assert torch.equal(Spell().shift(x0, x0, x0[None], level), torch.zeros(2))  # no way is away

    @pytest.mark.parametrize("method", [SafeDenoiser(5.0, 2, 0.1), Spell(0.3, 2, 8.0)])
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
    def test_a_perfect_model_leaves_the_worst_members(self, method, prediction_type):
        bank = bank_of_four()
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type=prediction_type)
        hook = Repulsion([bank.samples[:2]] * 512, method.shift)
        with attached(scheduler, hook):
            ends = sample(scheduler, bank.samples, chains=512, steps=30, eta=1.0)
        free = sample(scheduler, bank.samples, chains=512, steps=30, eta=1.0)
        worst, before = (shares(x, bank.samples)[:2].sum() for x in (ends, free))
        assert worst < before - 0.1

    def test_the_prediction_moves_by_the_shift(self):
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        output, x = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
        level = noise_level(scheduler, scheduler.timesteps[3])
        arguments = {"model_output": output, "sample": x, "timestep": scheduler.timesteps[3]}
        moved = Repulsion([x, x], lambda x_t, x0, members, level: x0 + members[0]).before(scheduler, arguments)
        x0 = clean_prediction(level, output, x)
        torch.testing.assert_close(clean_prediction(level, moved, x), 2 * x0 + x[0])

    @pytest.mark.parametrize("method", [SafeDenoiser(0.0, 3), Spell(0.0, 3, 1e4)])
    def test_through_the_sampler(self, method):
        lidar = make()
        result = method.draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(result.images, lidar.vanilla(PROMPTS, images=2, seed=1).images, rtol=0, atol=1e-5)
        assert result.cost["lookahead"].network_evaluations == 2 * 6 * 3 * 2
        assert result.cost["sampling"].network_evaluations == 4 * 5 * 2
        strong = replace(method, scale=1.0)
        assert not torch.equal(strong.draw(lidar, PROMPTS, images=2, seed=1).images, result.images)
        mixed = strong.draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=2, seed=1)
        torch.testing.assert_close(mixed.images, strong.draw(lidar, PROMPTS, images=2, seed=1).images)
        with pytest.raises(ValueError, match="at most n = 6, the size of the bank, got 7"):
            replace(method, worst=7).draw(lidar, PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="worst at least 1"):
            replace(method, worst=0)

    def test_of_packed_latents(self):
        flux = LiDAR(testing.tiny_flux(), reward="brightness", n=3, steps=2, pipe_kwargs={"height": 16, "width": 16})
        result = SafeDenoiser(worst=2).draw(flux, ["a cat"], images=1, seed=0)
        assert result.images.shape == (1, 1, 3, 16, 16)


class TestUniversalGuidance:
    def test_without_strength_is_the_pipeline(self):
        lidar = make()
        free = UniversalGuidance(0.0).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(free.images, lidar.vanilla(PROMPTS, images=2, seed=1).images, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_its_gradient_is_that_of_finite_differences(self, make_pipe):
        """d r(decode(x0(x_t))) / d x_t at the first step, along random directions, in float64."""
        lidar = make(make_pipe=make_pipe, steps=2)
        lidar.pipe.to(torch.float64)
        pipe = lidar.pipe
        seen = {}

        class Spy(Hook):
            def before(self, scheduler, arguments):
                from lidar_sampling._levels import clean_prediction, noise_level

                if "total" not in seen:
                    level = noise_level(scheduler, arguments["timestep"])
                    x0 = clean_prediction(level, arguments["model_output"], arguments["sample"])
                    seen["level"], seen["total"] = level, decode64(pipe, x0).square().sum()
                    if x0.requires_grad:
                        (seen["gradient"],) = torch.autograd.grad(
                            seen["total"], arguments["sample"], retain_graph=True
                        )
                return arguments["model_output"].detach()

            def after(self, scheduler, previous):
                return previous.detach().requires_grad_()

        def decode64(pipe, x0):
            decoded = pipe.vae.decode(x0 / pipe.vae.config.scaling_factor, return_dict=False)[0]
            return decoded / 2 + 0.5

        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def first(call, latents):
            seen.clear()
            with attached(pipe.scheduler, Spy()):
                call(pipe, prompt=["a cat"], latents=latents, **lidar.arguments(output_type="pt"))
            return dict(seen)

        # Pipelines multiply the latents they are given by init_noise_sigma, which is 1 here.
        analytic = first(_call_with_graph, x.clone())["gradient"]
        for seed in range(3):
            v = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            v /= v.norm()
            h = 1e-5
            up, down = (first(_call, x + s * h * v)["total"] for s in (1, -1))
            torch.testing.assert_close((up - down) / (2 * h), (analytic * v).sum(), rtol=1e-5, atol=1e-8)

    def test_moves_the_score_by_lambda_times_the_gradient(self):
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        output = (0.3 * x).sin()
        t = scheduler.timesteps[3]
        level = noise_level(scheduler, t)
        gradient = torch.autograd.grad(clean_prediction(level, output, x).square().sum(), x, retain_graph=True)[0]
        moved = Gradient(UniversalGuidance(3.0), lambda x0: x0.square().sum()).before(
            scheduler, {"model_output": output, "sample": x, "timestep": t}
        )
        torch.testing.assert_close(moved - output.detach(), -level.sigma * 3.0 * gradient)  # eps' = eps - sigma s

    def test_raises_the_reward_and_leaves_the_pipeline_as_it_was(self):
        def brightness(*, images, prompts):
            return images.flatten(1).mean(1)

        lidar = make(reward=brightness)
        lidar.pipe.unet.requires_grad_(True)
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        guided = lidar.judge(UniversalGuidance(300.0).draw(lidar, PROMPTS, images=2, seed=1))
        assert guided.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert not guided.images.requires_grad
        assert not guided.latents.requires_grad
        assert all(p.requires_grad for p in lidar.pipe.unet.parameters())
        assert "prepare_latents" not in vars(lidar.pipe)
        cost = guided.cost["sampling"]
        assert cost.backward_passes == cost.network_evaluations == 4 * 5 * 2
        assert cost.reward_calls == 4 * 5

    def test_backward_moves_the_prediction_by_the_rate_and_costs_no_backward_pass(self):
        """A first step of Adam has the length of the rate in every coordinate, and the sign of the gradient."""
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        output, x = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        t = scheduler.timesteps[3]
        level = noise_level(scheduler, t)
        before = clean_prediction(level, output, x)
        for steps, bound in ((1, 1e-6), (4, 0.01)):
            hook = Gradient(UniversalGuidance(0.0, steps, backward_rate=0.05), lambda x0: x0.square().sum())
            with torch.no_grad():
                moved = hook.before(scheduler, {"model_output": output, "sample": x, "timestep": t})
            step = clean_prediction(level, moved, x) - before
            torch.testing.assert_close(step, 0.05 * steps * before.sign(), rtol=0, atol=bound)
            eps = output - level.alpha / level.sigma * step  # the paper's form: sqrt(abar / (1 - abar)) Delta
            torch.testing.assert_close(moved, eps)
            assert hook.evaluations == 2 * steps

        lidar = make()
        guided = lidar.judge(UniversalGuidance(0.0, 3, backward_rate=0.1).draw(lidar, PROMPTS, images=2, seed=1))
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        assert guided.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        cost = guided.cost["sampling"]
        assert (cost.network_evaluations, cost.backward_passes) == (4 * 5 * 2, 0)
        assert (cost.reward_calls, cost.decodes) == (4 * 5 * 3, 4 * 5 * 3 + 4)

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_recurrence_leaves_the_law_of_a_perfect_model(self, eta):
        bank = bank_of_four()
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)

        hook = Gradient(UniversalGuidance(0.0, recurrence=3), torch.sum)
        with attached(scheduler, hook):
            ends = sample(scheduler, bank.samples, chains=1024, steps=30, eta=eta)
        assert hook._steps == 90
        assert total_variation(shares(ends, bank.samples), torch.full((4,), 0.25)) < 0.05
        assert torch.cdist(ends, bank.samples).amin(1).max() < 0.5

    def test_recurrence_noises_back_to_the_level_before(self):
        """From exact samples of x_s, whatever they are, to the mean and variance that x_t has."""
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        t, s = scheduler.timesteps[4:6]
        abar_t, abar_s = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[s]
        g = torch.Generator().manual_seed(0)
        x_s = abar_s.sqrt() * 3.0 + (1 - abar_s).sqrt() * torch.randn(100_000, 1, generator=g)
        hook = Gradient(UniversalGuidance(0.0, recurrence=2), torch.sum)
        hook.before(scheduler, {"model_output": x_s, "sample": x_s, "timestep": t, "generator": g})
        x_t = hook.after(scheduler, x_s)
        torch.testing.assert_close(x_t.mean(), abar_t.sqrt() * 3.0, rtol=0, atol=0.02)
        torch.testing.assert_close(x_t.var(), 1 - abar_t, rtol=0.02, atol=0)
        hook.before(scheduler, {"model_output": x_s, "sample": x_s, "timestep": t, "generator": g})
        assert torch.equal(hook.after(scheduler, x_s), x_s)

    def test_recurrence_through_the_sampler(self):
        lidar = make(reward=lambda *, images, prompts: images.flatten(1).mean(1))
        result = UniversalGuidance(300.0, 1, recurrence=2).draw(lidar, PROMPTS, images=2, seed=1)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == cost.backward_passes == 4 * 5 * 2 * 2
        assert cost.reward_calls == 4 * 5 * 2 * 2
        assert len(lidar.pipe.scheduler.timesteps) == 10  # of the last run; the next one chooses its own
        with pytest.raises(ValueError, match="takes steps again with DDIMScheduler alone, got PNDMScheduler"):
            UniversalGuidance(recurrence=2).draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)

    def test_refusals(self):
        with pytest.raises(ValueError, match="'jpeg-compressibility' has none"):
            UniversalGuidance().draw(make(reward="jpeg-compressibility"), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="recurrence must be at least 1, got 0"):
            UniversalGuidance(recurrence=0)
        with pytest.raises(ValueError, match=r"backward_rate above it, got 15.0, 1 and 0"):
            UniversalGuidance(backward_steps=1, backward_rate=0)
