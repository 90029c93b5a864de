"""Group inference continues with the best set, and pays only for that."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from oracle import make_perfect
from tiny_lidar import PROMPTS, make

from lidar_sampling import Cost, LiDAR, testing
from lidar_sampling._decode import decode
from lidar_sampling._hooks import Segment, attach
from lidar_sampling.methods import Group, Halving, load


def glyph(**options):
    """Return a sampler without noise, with a reward that has features."""
    return make(reward="glyph", eta=0.0, **options)


def looked_at(lidar, n, seed, cut):
    """Return rewards and distances (P, n) of the clean predictions after a share of the steps."""
    hook = Segment((cut,), 0)
    with attach(lidar.pipe.scheduler, hook):
        lidar.sample(PROMPTS, n, seed, decoded=False)
    pictures = decode(lidar.pipe, hook.x0)
    rewards = lidar.reward(images=pictures, prompts=[prompt for prompt in PROMPTS for _ in range(n)])
    features = lidar.reward.features(pictures).view(len(PROMPTS), n, -1)
    return rewards.view(len(PROMPTS), n), 1 - features @ features.mT


def total(rewards, apart, some, weight):
    """Return the published objective of a set, in plain Python."""
    return sum(rewards[i].item() for i in some) + weight * sum(apart[i, j].item() for i, j in combinations(some, 2))


class TestGroup:
    @pytest.mark.parametrize("weight", [0.0, 1.5, 40.0])
    def test_of_all_groups_the_one_with_the_largest_sum_goes_on(self, weight):
        """Without noise, the samples that go on are whole samples, so they are known."""
        lidar = glyph(steps=4)
        drawn = Group(7, keep=0.4, start=0.5, weight=weight).draw(lidar, PROMPTS, images=3, seed=1)
        whole = lidar.sample(PROMPTS, 7, 1)
        rewards, apart = looked_at(lidar, 7, 1, 0.5)
        for row in range(2):
            best = max(combinations(range(7), 3), key=lambda some: total(rewards[row], apart[row], some, weight))
            order = sorted(best, key=lambda i: -rewards[row, i].item())
            torch.testing.assert_close(drawn.images[row], whole.images[row, order], rtol=0, atol=1e-4)

    def test_weights_choose_other_groups(self):
        """This makes sure that the test above distinguishes the weights."""
        lidar = glyph(steps=4)
        rewards, apart = looked_at(lidar, 7, 1, 0.5)
        best = {
            max(combinations(range(7), 3), key=lambda some: total(rewards[0], apart[0], some, weight))
            for weight in (0.0, 1.5, 40.0)
        }
        assert len(best) > 1

    def test_by_rewards_alone_it_goes_on_with_what_halving_does(self):
        lidar = make(steps=8, eta=0.0)
        ours = Group(16, start=0.25, every=0.25, diverse=0.0).draw(lidar, PROMPTS, images=4, seed=1)
        theirs = Halving(16).draw(lidar, PROMPTS, images=4, seed=1)
        brightness = [result.images.flatten(2).mean(2).sort(1) for result in (ours, theirs)]
        for row in range(2):
            mine, other = (r.images[row, b.indices[row]] for r, b in zip((ours, theirs), brightness, strict=True))
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)

    def test_as_many_candidates_as_images_are_plain_samples(self):
        lidar = make()
        ours = Group(3).draw(lidar, PROMPTS, images=3, seed=1)
        assert torch.equal(ours.images, lidar.vanilla(PROMPTS, images=3, seed=1).images)
        assert Group(3).cost(lidar, images=3).reward_calls == 0

    def test_equally_good_candidates_leave_a_group_of_all_members(self):
        """With a perfect model of four members and equal rewards, the most different four are known."""
        bank = 1.5 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))

        class Alike:
            name = "alike"

            def __call__(self, *, images, prompts):
                return torch.zeros(len(images))

            def features(self, images):
                return F.normalize(images.flatten(1) - 0.5, dim=1)

        lidar = make(reward=Alike(), guidance_scale=1.0, steps=10)
        make_perfect(lidar.pipe, bank)
        ours = Group(24, start=0.6).draw(lidar, ["a cat"] * 6, images=4, seed=0)
        plain = lidar.vanilla(["a cat"] * 6, images=4, seed=0)
        members = [torch.cdist(r.latents.flatten(2), bank.flatten(1)[None]).argmin(2) for r in (ours, plain)]
        found = [[len(set(row.tolist())) for row in rows] for rows in members]
        assert found[0] == [4] * 6
        assert sum(found[1]) < 20

    @pytest.mark.parametrize(("images", "alive"), [(1, [9, 5, 3, 2, 1]), (4, [9, 5, 4]), (9, [9])])
    def test_costs_the_steps_of_those_that_go_on(self, images, alive):
        lidar, method = make(reward="glyph", steps=6), Group(9)
        assert method.alive(images) == alive
        told, drawn = method.cost(lidar, images=images), method.draw(lidar, ["a cat"], images=images, seed=0)
        counted = replace(sum(drawn.cost.values(), Cost()), seconds=0.0, peak_memory=0)
        assert told == counted
        steps = sum(alive[:-1]) + alive[-1] * (6 - len(alive) + 1)  # a step each, and the rest
        looks = sum(alive[:-1])
        assert (told.network_evaluations, told.decodes, told.reward_calls) == (2 * steps, looks + images, 2 * looks)
        assert drawn.images.shape == (1, images, 3, 16, 16)

    def test_comes_down_as_the_published_code_does(self):
        assert Group(128, keep=0.5).alive(4) == [128, 64, 32, 16, 8, 4]  # FLUX.1-dev
        assert Group(64, keep=0.1).alive(4) == [64, 7, 4]  # FLUX.1-schnell
        assert Group(3, keep=0.99).alive(1) == [3, 2, 1]
        assert Group(128).looks(20, 4) == [1, 2, 3, 4, 5]

    def test_does_not_depend_on_the_batch_or_other_prompts(self):
        method = Group(6, start=0.2, every=0.2)
        many = method.draw(make(reward="glyph"), PROMPTS, images=2, seed=1)
        lone = method.draw(make(reward="glyph", batch_size=4), PROMPTS[1:], images=2, seed=1)
        torch.testing.assert_close(lone.latents[0], many.latents[1], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("key", ["sd3", "flux"])
    def test_draws_from_flow_models(self, key):
        tiny = testing.PIPELINES[key]
        lidar = LiDAR(tiny.make(), reward="glyph", pipe_kwargs=dict(tiny.call), steps=4)
        told, drawn = Group(6).cost(lidar, images=2), Group(6).draw(lidar, ["a cat"], images=2, seed=0)
        assert told == replace(sum(drawn.cost.values(), Cost()), seconds=0.0, peak_memory=0)
        assert drawn.images.isfinite().all()

    def test_refusals(self):
        assert load("group-16@10:weight=1.5") == Group(16, weight=1.5, steps=10)
        for draw in (True, False):
            for method, images, message in (
                (Group(4, diverse=0.0), 5, "images must be 1 to n = 4, got 5"),
                (Group(4), 2, "diverse needs features that tell samples apart"),
                (Group(4, diverse=0.0, weight=1.5), 2, "diverse needs features that tell samples apart"),
                (Group(64, diverse=0.0), 2, "from n=64 to 2 images in 5 looks, and 5 steps have places for 4"),
            ):
                with pytest.raises(ValueError, match=message):
                    method.draw(make(), PROMPTS, images=images, seed=0) if draw else method.cost(
                        make(), images=images
                    )
        with pytest.raises(ValueError, match="EulerDiscreteScheduler would not follow"):
            Group(4, diverse=0.0).draw(make("EulerDiscreteScheduler"), PROMPTS, images=1, seed=0)
