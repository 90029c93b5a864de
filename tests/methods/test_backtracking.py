"""Backtracking follows its threshold within its budget, and is vanilla without a budget."""

import pytest
import torch
from oracle import make_perfect, shares
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._decode import decode
from lidar_sampling._draw import Item
from lidar_sampling.methods import Backtracking, load
from lidar_sampling.methods._stretches import Reached
from lidar_sampling.methods.backtracking import Search
from lidar_sampling.rewards import Mixture

NEVER, ALWAYS = -1e9, float("inf")
LEVELS = {step: (1 - step / 20, step / 20) for step in range(17)}


def walked(settings, rewards, steps=8):
    """Return the stretches that a search takes with these rewards, and the one that it keeps."""
    search, taken = Search(settings, steps, Item("a cat", 0)), []
    seeds = set()
    for number, reward in enumerate(rewards):
        if search.found is not None:
            break
        stretch = search.next
        assert stretch.item.seed not in seeds
        assert (stretch.latents is None) == (stretch.first == 0)
        seeds.add(stretch.item.seed)
        taken.append((stretch.first, stretch.last))
        search.arrive(Reached(torch.tensor([float(number)]), None, reward, {}), LEVELS)
    assert search.found is not None
    assert search.left == 0
    return taken, float(search.found.latents)


class TestSearch:
    def test_goes_on_where_nothing_fails(self):
        on = [(0, 2), (2, 4), (4, 6), (6, 8)]
        assert walked(Backtracking(0, NEVER), [1.0, 2.0, 3.0, 4.0]) == (on, 3)
        taken, kept = walked(Backtracking(2, NEVER), [1.0, 2.0, 3.0, 4.0, 6.0, 5.0])
        assert taken == [*on, (6, 8), (6, 8)]  # the rest of the budget is spent at the end
        assert kept == 4  # and the best kept

    def test_goes_back_a_part_where_the_reward_is_below_the_threshold(self):
        taken, kept = walked(Backtracking(2, 5.0), [6.0, 4.0, 7.0, 6.0, 5.0, 3.0])
        assert taken == [(0, 2), (2, 4), (2, 4), (4, 6), (6, 8), (6, 8)]
        assert kept == 4

    def test_starts_anew_where_that_leads_to_the_start(self):
        taken, _ = walked(Backtracking(1, 5.0), [4.0, 6.0, 6.0, 6.0, 6.0])
        assert taken[:3] == [(0, 2), (0, 2), (2, 4)]

    def test_the_best_that_was_seen_goes_on_where_the_budget_is_spent(self):
        search = Search(Backtracking(2, ALWAYS), 8, Item("a cat", 0))
        for number, reward in enumerate([2.0, 3.0, 1.0]):
            search.arrive(Reached(torch.tensor([float(number)]), None, reward, {}), LEVELS)
        assert (search.next.first, search.next.last, float(search.next.latents)) == (2, 4, 1.0)

    def test_asks_the_looks_on_its_way_again(self):
        taken, _ = walked(Backtracking(2, 5.0, depth=2), [6.0, 6.0, 4.0, 4.0, 6.0, 6.0, 6.0, 6.0])
        # 6 fails and goes back to 2, where 4 fails and goes back to the start
        assert taken == [(0, 4), (4, 6), (6, 8), (4, 6), (2, 4), (4, 6), (6, 8)]

    def test_by_default_goes_on_with_the_better_half_of_what_a_look_has_seen(self):
        taken, _ = walked(Backtracking(4), [5.0, 4.0, 4.6, 1.0, 2.0, 3.0, 6.0, 6.0])
        # the first goes back; 4 is below the median of 5 and 4; 4.6 is that of 5, 4 and 4.6
        assert taken == [(0, 2), (0, 2), (0, 2), (2, 4), (2, 4), (4, 6), (4, 6), (6, 8)]

    @pytest.mark.parametrize("steps", [1, 3, 4, 10, 16, 50])
    @pytest.mark.parametrize("depth", [1, 2, 4])
    @pytest.mark.parametrize("threshold", [NEVER, 0.5, ALWAYS, None])
    def test_its_steps_are_known_beforehand(self, steps, depth, threshold):
        settings = Backtracking(5, threshold, depth=depth)
        if depth * settings.part(steps) > steps:
            return
        rewards = torch.rand(200, generator=torch.Generator().manual_seed(steps)).tolist()
        levels = {step: (1 - step / 100, step / 100) for step in range(steps + 1)}
        search, taken, looks = Search(settings, steps, Item("a cat", 0)), 0, 0
        for reward in rewards:
            if search.found is not None:
                break
            taken, looks = taken + search.next.last - search.next.first, looks + 1
            search.arrive(Reached(torch.zeros(1), None, reward, {}), levels)
        assert taken == steps + 5 * depth * settings.part(steps)
        most = len(settings.looks(steps)) + 5 * depth
        assert looks == most if depth == 1 else looks <= most


class TestBacktracking:
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_without_a_budget_is_vanilla(self, make_pipe):
        lidar = make(make_pipe=make_pipe, steps=6, eta=0.0)
        ours = Backtracking(0).draw(lidar, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(ours.images, lidar.sample(PROMPTS, 2, 1).images, rtol=0, atol=1e-5)

    def test_in_one_part_is_best_of_n(self):
        """Each backtrack is a new sample, so the best of n + 1 is as likely the best member as in best-of-N."""
        samples = 0.3 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        pictures = decode(testing.tiny_stable_diffusion(), samples).flatten(1)

        def nearest(*, images, prompts):
            return (torch.cdist(images.flatten(1), pictures).argmin(1) == 0).float()

        lidar = make(steps=8, guidance_scale=1.0, eta=1.0, batch_size=256, reward=nearest)
        make_perfect(lidar.pipe, samples)
        plain = shares(lidar.sample(["a cat"], 256, 0).latents[0].flatten(1), samples.flatten(1))[0].item()
        for n in (1, 3):
            settings = Backtracking(n, parts=1)
            result = settings.draw(lidar, ["a cat"], images=256, seed=0)
            share = shares(result.latents[0].flatten(1), samples.flatten(1))[0].item()
            assert abs(share - (1 - (1 - plain) ** (n + 1))) < 0.1  # standard error .03
            assert result.cost["sampling"].network_evaluations == 256 * 8 * (n + 1)

    def test_finds_the_best_member_more_often_with_a_larger_budget(self):
        """If predictions are informative, a threshold finds it at a part of the cost of whole samples."""
        samples = 0.3 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        pictures = decode(testing.tiny_stable_diffusion(), samples).flatten(1)

        def nearness(*, images, prompts):
            return torch.cdist(images.flatten(1), pictures).square().mul(-4).softmax(1)[:, 0]

        lidar = make(steps=8, guidance_scale=1.0, eta=1.0, batch_size=128, reward=nearness)
        make_perfect(lidar.pipe, samples)
        found = []
        for n in (0, 2, 8):
            result = Backtracking(n, 0.5, depth=2).draw(lidar, ["a cat"], images=128, seed=0)
            found.append(shares(result.latents[0].flatten(1), samples.flatten(1))[0].item())
        assert found[0] < 0.4
        assert found[0] + 0.1 < found[1] < found[2]
        assert found[2] > 0.75

    def test_climbs_where_all_of_the_budget_is_spent_at_the_end(self):
        """Each chain continues where the shorter one ended, so its best is at least as good."""
        lidar = make(steps=8)
        runs = [Backtracking(n, NEVER).draw(lidar, PROMPTS, images=2, seed=1) for n in range(4)]
        rewards = torch.stack([lidar.judge(run).rewards["brightness"] for run in runs])
        assert (rewards.diff(dim=0) >= 0).all()
        assert (rewards[-1] > rewards[0]).any()
        cost = runs[3].cost["sampling"]
        assert cost.network_evaluations == 4 * (8 + 3 * 2) * 2
        assert cost.reward_calls == cost.decodes == 4 * (4 + 3)

    def test_searches_do_not_see_each_other(self):
        lidar, search = make(steps=8), Backtracking(3)
        both = search.draw(lidar, PROMPTS, images=2, seed=1)
        one = search.draw(lidar, PROMPTS[1:], images=1, seed=1)
        torch.testing.assert_close(one.images[0, 0], both.images[1, 0], rtol=0, atol=1e-5)
        again = search.draw(lidar, ["a cat", "a cat"], images=1, seed=1)
        assert not torch.equal(again.images[0], again.images[1])

    def test_on_schedulers_that_scale_their_samples(self):
        """Noise is added in the scheduler's own coordinates, so the pictures do not depend on those."""
        images = [
            Backtracking(2, 0.45)
            .draw(make(name, steps=8, noise="ddpm:0", eta=None), ["a cat"], images=2, seed=1)
            .images
            for name in ("EulerDiscreteScheduler", "LMSDiscreteScheduler")
        ]
        torch.testing.assert_close(*images, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion_3, testing.tiny_flux])
    @pytest.mark.parametrize("threshold", [None, 0.5])
    def test_of_flow_models(self, make_pipe, threshold):
        lidar = LiDAR(make_pipe(), reward="brightness", steps=4, pipe_kwargs={"height": 16, "width": 16})
        plain = lidar.sample(["a cat"], 2, 0)
        result = Backtracking(3, threshold).draw(lidar, ["a cat"], images=2, seed=0)
        assert result.images.shape == (1, 2, 3, 16, 16)
        assert not torch.equal(result.images, plain.images)
        still = Backtracking(0).draw(lidar, ["a cat"], images=2, seed=0)
        torch.testing.assert_close(still.latents, plain.latents, rtol=0, atol=1e-4)

    def test_refusals(self):
        with pytest.raises(ValueError, match="give the mixture a calibration"):
            Backtracking().draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="PNDMScheduler would not follow"):
            load("dfs-2").draw(make("PNDMScheduler"), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="images must be at least 1, got 0"):
            load("dfs-2").cost(make(), images=0)
