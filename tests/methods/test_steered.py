"""Steered best-of-N resamples to the effective sample size asked for, and so beats best-of-N."""

from dataclasses import replace

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import SD, bank_of_four, sample, smooth_reward
from tiny_lidar import PROMPTS, make

from lidar_sampling import Cost, LiDAR, testing
from lidar_sampling._guidance import tempering
from lidar_sampling._hooks import attach
from lidar_sampling.methods import BestOf, Steered, Vanilla, load
from lidar_sampling.methods._face import hook_batches, rewards_of_predictions, spread
from lidar_sampling.methods.steered import Resampled
from lidar_sampling.rewards import features_of, select_diverse


def tempered(rewards, ess):
    return (tempering(rewards, ess)[..., None] * rewards).softmax(-1)


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
        with pytest.raises(ValueError, match=r"ess must be in \(0, 1\], got 0.0"):
            Steered(ess=0.0)
        with pytest.raises(ValueError, match="images must be 1 to n = 2, got 3"):
            Steered(2).draw(make(), PROMPTS, images=3, seed=0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            Steered(2).draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)


def populations(lidar, n, size, seed, *, places=()):
    """Return samples of ``PROMPTS`` in separately resampled populations of ``size``, and their rewards."""

    def resampled(batch):
        return Resampled(Steered(n), rewards_of_predictions(lidar, batch), [item.seed for item in batch[::size]])

    around, _ = hook_batches(lidar, resampled)
    result = lidar.with_only(places).sample(PROMPTS, n, seed, around=around, together=size)
    return result, lidar.scores(result, lidar.parts)[0]["brightness"]


class TestIslands:
    """Populations of a prompt do not influence one another."""

    def test_one_island_is_one_population_of_all(self):
        """It is bit-identical to the method before it had islands: resampled together, the best by their rewards."""
        lidar = make()
        many, scores = populations(lidar, 6, 6, 1)
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, :3]
        drawn = Steered(6, islands=1).draw(lidar, PROMPTS, images=3, seed=1)
        assert torch.equal(drawn.images, many.images[torch.arange(2)[:, None], chosen])
        assert load("steered-6") == Steered(6, islands=1)

    def test_every_image_is_the_best_of_a_population_that_is_drawn_alone(self):
        """There are as many islands as images. In float32 the batch size changes the last digits."""
        lidar = make(steps=6)
        alone = [populations(lidar, 12, 3, 1, places=range(k, k + 3)) for k in (0, 3, 6, 9)]
        best = torch.stack([scores.amax(1) for _, scores in alone], 1)  # (P, islands)
        pictures = torch.stack([result.images[torch.arange(2), scores.argmax(1)] for result, scores in alone], 1)
        order = best.argsort(dim=1, descending=True)
        drawn = Steered(12, islands=4).draw(lidar, PROMPTS, images=4, seed=1)
        expected = pictures[torch.arange(2)[:, None], order]
        torch.testing.assert_close(drawn.images, expected, rtol=0, atol=1e-4)
        fewer = Steered(12, islands=4).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(fewer.images, expected[:, :2], rtol=0, atol=1e-4)

    def test_populations_that_collapse_leave_one_ancestor_each(self):
        """With a perfect model and no noise, copies stay equal, and such a small effective size leaves one member."""
        bank = bank_of_four()
        whole = sample(diffusers.DDIMScheduler(**SD, clip_sample=False), bank.samples, chains=12, steps=10)
        for islands in (1, 3, 4, 12):
            how, seen = Steered(12, ess=1e-6, start=0.5, end=0.5, islands=islands), []

            def rewards(x0, seen=seen):
                seen.append(smooth_reward(bank)(x0))
                return seen[-1]

            scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
            with attach(scheduler, Resampled(how, rewards, list(range(islands)))):
                ends = sample(scheduler, bank.samples, chains=12, steps=10)
            if islands == 12:
                assert seen == []  # nothing can be resampled, so nothing is looked at
                torch.testing.assert_close(ends, whole)
                continue
            size = 12 // islands
            ancestors = seen[0].view(islands, size).argmax(1) + size * torch.arange(islands)
            torch.testing.assert_close(ends, whole[ancestors.repeat_interleave(size)])

    def test_as_many_as_samples_are_best_of_n(self):
        lidar = make(eta=0.0)  # copies nothing, so it needs no noise
        ours = Steered(4, islands=4).draw(lidar, PROMPTS, images=2, seed=1)
        theirs = BestOf(Vanilla(), 4).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-5)
        assert ours.cost["sampling"].reward_calls == 0

    def test_more_images_than_islands_are_spread_evenly(self):
        scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 6.0, 5.0, 4.0]])
        assert spread(scores, 2, 2).tolist() == [[0, 5], [3, 2]]
        assert spread(scores, 3, 2).tolist() == [[0, 1, 5], [3, 4, 2]]
        assert spread(scores, 4, 2).tolist() == [[0, 1, 5, 4], [3, 4, 2, 1]]
        assert spread(scores, 6, 2).tolist() == spread(scores, 6, 1).tolist()

    @given(st.integers(1, 4), st.integers(1, 4), st.data())
    def test_are_left_out_only_where_images_are_fewer(self, islands, size, data):
        count = data.draw(st.integers(1, islands * size))
        scores = torch.tensor(
            [data.draw(st.lists(st.integers(0, 5), min_size=islands * size, max_size=islands * size))]
        )
        (chosen,) = spread(scores, count, islands)
        assert len(set(chosen.tolist())) == count
        assert scores[0, chosen].diff().le(0).all()
        taken = torch.bincount(chosen // size, minlength=islands)
        assert taken.max() - taken.min() <= 1
        for island in range(islands):  # of each its best
            inside = scores[0, island * size : (island + 1) * size].sort(descending=True).values
            kept = scores[0, chosen[chosen // size == island]]
            assert torch.equal(kept.sort(descending=True).values, inside[: len(kept)])

    def test_cost_what_one_population_does_and_draw_flow_models(self):
        for lidar in (make(), flow()):
            ours = Steered(6, islands=3)
            told = ours.cost(lidar, images=3)
            drawn = ours.draw(lidar, ["a cat"], images=3, seed=0)
            counted = sum(drawn.cost.values(), Cost())
            assert replace(counted, seconds=0.0, peak_memory=0) == told == Steered(6).cost(lidar, images=3)
            assert len({tuple(image.flatten().tolist()) for image in drawn.images[0]}) == 3

    def test_refusals(self):
        with pytest.raises(ValueError, match="a multiple of islands, got n=12 and islands=5: take n=15"):
            load("steered-12@10:islands=5")
        assert load("steered-12@10:islands=4") == Steered(12, steps=10, islands=4)


def flow():
    return LiDAR(testing.PIPELINES["sd3"].make(), reward="brightness", steps=4)


class TestDiverse:
    @pytest.fixture
    def lidar(self):
        return LiDAR(testing.tiny_stable_diffusion(), reward="glyph", steps=4, noise="ddpm")

    def test_the_best_set_is_chosen_at_the_end(self, lidar):
        every = Steered(6).draw(lidar, PROMPTS, images=6, seed=0)
        ours = load("steered-6:diverse=2").draw(lidar, PROMPTS, images=3, seed=0)
        scores = lidar.scores(every, lidar.parts)[0]["glyph"]
        for row in range(2):
            chosen = select_diverse(scores[row], features_of(lidar.parts, every.images[row]), 3, 2.0)
            assert torch.equal(ours.images[row], every.images[row, chosen])
        assert ours.cost["selection"].reward_calls == 2 * 12
        told = load("steered-6:diverse=2").cost(lidar, images=3)
        assert 2 * told.reward_calls == ours.cost["sampling"].reward_calls + 24

    def test_needs_features(self):
        with pytest.raises(ValueError, match="diverse needs features"):
            Steered(4, diverse=1.0).cost(make(), images=2)
