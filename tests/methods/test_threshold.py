"""A walk spends its whole budget, and returns the samples that its rule chooses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import make_perfect
from tiny_lidar import PROMPTS, make

from lidar_sampling import Cost, LiDAR, testing
from lidar_sampling._decode import decode
from lidar_sampling._draw import items_of, seed_of
from lidar_sampling.methods import Threshold, load
from lidar_sampling.methods._segments import predictions, run_part
from lidar_sampling.methods.threshold import Walk


def walked(n, parts, threshold, rewards):
    """Return the parts that a walk proposes, their starting points, and the walk; proposals are numbered."""
    walk, seen = Walk(n, parts, threshold), []
    for number, reward in enumerate(rewards):
        seen.append((walk.part, walk.start))
        walk.take(reward, number)
    return seen, walk


class TestWalk:
    def test_a_threshold_that_all_reach_makes_n_samples(self):
        seen, walk = walked(2, 3, -math.inf, [0.0, 1.0, 2.0, 5.0, 4.0, 1.0])
        assert seen == [(0, None), (1, 0), (2, 1), (0, None), (1, 3), (2, 4)]
        assert (walk.best, walk.left) == (2, 0)

    def test_a_threshold_that_none_reaches_is_spent_on_the_first_part(self):
        seen, walk = walked(3, 3, math.inf, [1.0, 2.0, 9.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0])
        assert seen == [*[(0, None)] * 7, (1, 2), (2, 7)]  # the best of (n - 1) parts + 1
        assert walk.best == 8

    def test_what_falls_short_is_proposed_again_from_where_it_started(self):
        seen, walk = walked(2, 3, 1.0, [1.0, 0.5, 0.6, 1.0, 0.9, 0.8])
        assert seen == [(0, None), (1, 0), (1, 0), (1, 0), (2, 3), (2, 3)]
        assert walk.best == 4

    def test_when_nothing_is_left_to_try_with_the_best_goes_on(self):
        seen, walk = walked(2, 2, 5.0, [6.0, 1.0, 3.0, 2.0])
        assert seen == [(0, None), (1, 0), (1, 0), (1, 0)]
        assert walk.best == 2
        seen, _ = walked(2, 2, 5.0, [1.0, 4.0, 3.0, 2.0])
        assert seen == [(0, None), (0, None), (0, None), (1, 1)]

    def test_a_sample_that_is_begun_can_be_finished(self):
        """After the first sample two proposals are left, too few for three parts, so its last part is tried again."""
        seen, walk = walked(2, 3, 1.0, [1.0, 0.0, 1.0, 1.0, 3.0, 2.0])
        assert seen == [(0, None), (1, 0), (1, 0), (2, 2), (2, 2), (2, 2)]
        assert walk.best == 4

    def test_by_default_the_best_of_the_first_n_is_the_threshold(self):
        seen, walk = walked(3, 2, None, [1.0, 3.0, 2.0, 2.5, 3.5, 0.0])
        assert seen == [*[(0, None)] * 3, *[(1, 1)] * 3]
        assert (walk.threshold, walk.best) == (3.0, 4)
        seen, walk = walked(3, 2, None, [1.0, 3.0, 2.0, 3.0, 4.0, 0.0])
        assert seen == [*[(0, None)] * 3, (1, 1), (0, None), (1, 4)]
        assert walk.best == 3

    @given(
        st.integers(1, 5),
        st.integers(1, 5),
        st.one_of(st.none(), st.floats(-2, 2)),
        st.randoms(use_true_random=False),
    )
    def test_the_whole_budget_is_spent_and_the_best_that_is_finished_is_returned(self, n, parts, threshold, random):
        rewards = [random.choice([-1.0, 0.0, 0.5, 1.0]) for _ in range(n * parts)]
        seen, walk = walked(n, parts, threshold, rewards)
        assert walk.left == 0
        finished = [reward for (part, _), reward in zip(seen, rewards, strict=True) if part == parts - 1]
        assert rewards[walk.best] == max(finished)
        for number, (part, start) in enumerate(seen):
            assert (start is None) == (part == 0)
            if part:  # it continues from an earlier proposal of the previous part
                assert start < number
                assert seen[start][0] == part - 1
                reached = rewards[start] >= (walk.threshold if threshold is None else threshold)
                before = seen[: seen.index((part, start))]
                tried = [rewards[k] for k in range(len(before)) if set(before[k:]) == {seen[start]}]
                assert reached or rewards[start] == max(tried)


def by_hand(lidar, seeds, cuts):
    """Draw one sample per prompt, part by part from these seeds; return all rewards, latents and pictures."""
    latents, rewards = None, []
    for part, seed in enumerate(seeds):
        result, hooks = run_part(lidar, PROMPTS, 1, seed, cuts, part, steps=None, latents=latents)
        items = items_of(PROMPTS, 1, seed, "target")
        shown = predictions(lidar, result, hooks, items)[0] if part < len(cuts) else result
        rewards.append(testing.brightness(images=shown.images[:, 0], prompts=PROMPTS))
        latents = result.latents
    return torch.stack(rewards), result


def of(turn, part, seed=1):
    """Return the seed of a proposal."""
    return seed_of(seed, f"proposal {turn} of part {part}", "", 0) if turn else seed


class TestThreshold:
    def test_one_proposal_of_each_part_is_the_pipelines_own_sample(self):
        lidar = make(steps=6, eta=0.0)
        ours = Threshold(1, parts=3).draw(lidar, PROMPTS, images=2, seed=1)
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        torch.testing.assert_close(ours.images, plain.images, rtol=0, atol=1e-5)

    def test_one_part_is_best_of_n(self):
        lidar = make(eta=0.0)  # proposals start from noise, so the sampler needs none
        ours = Threshold(3, parts=1).draw(lidar, PROMPTS, images=1, seed=1)
        tried = torch.stack([lidar.sample(PROMPTS, 1, of(turn, 0)).images[:, 0] for turn in range(3)])  # (3, P, *)
        best = tried.flatten(2).mean(2).argmax(0)
        torch.testing.assert_close(ours.images[:, 0], tried[best, torch.arange(2)], rtol=0, atol=1e-5)

    def test_where_all_go_on_it_is_the_best_of_n_samples(self):
        lidar = make(steps=6)
        ours = Threshold(3, threshold=-1e9, parts=3).draw(lidar, PROMPTS, images=1, seed=1)
        paths = [by_hand(lidar, [of(3 * k + part, part) for part in range(3)], (1 / 3, 2 / 3)) for k in range(3)]
        best = torch.stack([rewards[-1] for rewards, _ in paths]).argmax(0)
        expected = torch.stack([paths[best[row]][1].images[row] for row in range(2)])
        torch.testing.assert_close(ours.images, expected, rtol=0, atol=1e-4)

    def test_where_none_goes_on_the_best_first_part_does(self):
        lidar = make(steps=6)
        ours = Threshold(2, threshold=1e9, parts=3).draw(lidar, PROMPTS, images=1, seed=1)
        starts = [[of(turn, 0), of(4, 1), of(5, 2)] for turn in range(4)]
        paths = [by_hand(lidar, seeds, (1 / 3, 2 / 3)) for seeds in starts]
        best = torch.stack([rewards[0] for rewards, _ in paths]).argmax(0)
        expected = torch.stack([paths[best[row]][1].images[row] for row in range(2)])
        torch.testing.assert_close(ours.images, expected, rtol=0, atol=1e-4)

    def test_finds_the_best_member_of_a_perfect_model(self):
        """It does so as often as n samples if all go on, and more often if lesser members are dropped early."""
        bank = 1.5 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        lidar = make(guidance_scale=1.0, steps=6, batch_size=100)
        make_perfect(lidar.pipe, bank)
        members = decode(lidar.pipe, bank).flatten(1)
        lidar.reward = lambda *, images, prompts: torch.cdist(images.flatten(1), members).argmin(1).float()

        def share(result):
            scores, _ = lidar.scores(result, [lidar.reward])
            return next(iter(scores.values())).eq(3).float().mean().item()

        one = share(lidar.sample(["a cat"], 600, 0))
        every, some, own = (
            share(Threshold(3, threshold=threshold, parts=3).draw(lidar, ["a cat"], images=100, seed=0))
            for threshold in (-1.0, 3.0, None)
        )
        assert every == pytest.approx(1 - (1 - one) ** 3, abs=0.15)  # three deviations of 100 samples
        assert some > every + 0.15  # .90 after .58
        assert own > every  # .74

    @pytest.mark.parametrize("name", ["threshold-3@6:parts=3", "threshold-2@6:parts=2,threshold=0.5"])
    @pytest.mark.parametrize("key", ["sd3", "flux", "wan"])
    def test_draws_from_flow_models(self, key, name):
        tiny = testing.PIPELINES[key]
        lidar = LiDAR(tiny.make(), reward=testing.brightness, pipe_kwargs=dict(tiny.call))
        told, drawn = load(name).cost(lidar, images=2), load(name).draw(lidar, ["a cat"], images=2, seed=0)
        assert told == replace(sum(drawn.cost.values(), Cost()), seconds=0.0, peak_memory=0)
        assert (
            told.network_evaluations
            == load(f"best-of-{load(name).n}@6").cost(lidar, images=1).network_evaluations * 2
        )
        assert drawn.images.isfinite().all()
        assert not torch.equal(drawn.images[0, 0], drawn.images[0, 1])

    def test_does_not_depend_on_the_batch_or_other_prompts(self):
        method = Threshold(2, parts=2)
        many = method.draw(make(steps=4), PROMPTS, images=2, seed=1)
        lone = method.draw(make(steps=4, batch_size=1), PROMPTS[1:], images=2, seed=1)
        torch.testing.assert_close(lone.latents[0], many.latents[1], rtol=1e-4, atol=1e-4)

    def test_refusals(self):
        assert load("threshold-6@10:threshold=0.5") == Threshold(6, 0.5, steps=10)
        for draw in (True, False):
            for lidar, error, message in (
                (make(steps=7), ValueError, "parts must divide the 7 steps into two or more each, got 5"),
                (make(steps=5), ValueError, "parts must divide the 5 steps into two or more each, got 5"),
                (make(steps=10, eta=0.0), ValueError, "with eta=0 has none: set eta above 0"),
                (make("EulerDiscreteScheduler", steps=10), ValueError, "EulerDiscreteScheduler would not follow"),
            ):
                with pytest.raises(error, match=message):
                    Threshold(2).draw(lidar, PROMPTS, images=1, seed=0) if draw else Threshold(2).cost(
                        lidar, images=1
                    )
