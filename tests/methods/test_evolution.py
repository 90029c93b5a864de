"""EvoSearch without later generations is best-of-N; its children have the stated parents and noise."""

import math
from collections import Counter
from itertools import pairwise

import diffusers
import pytest
import torch
from oracle import make_perfect, shares, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._hooks import Segment, attach
from lidar_sampling._levels import noise_level
from lidar_sampling.methods import BestOf, EvoSearch, Vanilla, load
from lidar_sampling.methods.evolution import winners
from lidar_sampling.rewards import Mixture


def watched(monkeypatch, lidar):
    """Record, for each generation, the starting states of ``lidar`` and the brightness of its samples."""
    seen, sample = [], type(lidar).sample

    def spy(self, *args, rows=None, **kwargs):
        result = sample(self, *args, rows=rows, **kwargs)
        seen.append(((rows or {}).get("latents"), result.images.flatten(2).mean(2)))
        return result

    monkeypatch.setattr(type(lidar), "sample", spy)
    return seen


def states(lidar, count, seed, step):
    """Return the states of ``count`` plain samples per prompt before ``step``, from a call that ends there."""
    hook = Segment((step / lidar.settings.steps,), 0, lidar.pipe.scheduler)
    part = lidar.sample(PROMPTS, count, seed, around=lambda batch: attach(lidar.pipe, hook), decoded=False)
    return part.latents


class TestGenerations:
    def test_one_alone_is_best_of_n_bit_for_bit(self):
        lidar = make()
        alone = EvoSearch((5,), ()).draw(lidar, PROMPTS, images=2, seed=1)
        best = BestOf(Vanilla(), 5).draw(lidar, PROMPTS, images=2, seed=1)
        assert torch.equal(alone.images, best.images)
        assert torch.equal(alone.latents, best.latents)
        assert alone.cost["sampling"].reward_calls == best.cost["selection"].reward_calls == 2 * 5

    @pytest.mark.parametrize("share", [0.25, 1.0])
    def test_without_mutation_the_initial_noise_comes_to_the_same_end(self, share, monkeypatch):
        """With a deterministic sampler, the second generation consists of the best of the first, or of winners."""
        lidar = make(eta=0.0)
        seen = watched(monkeypatch, lidar)
        EvoSearch((4, 5), (0.0,), elites=2, mutation=0.0, tournament=share).draw(lidar, PROMPTS, images=1, seed=1)
        (_, first), (_, second) = seen
        order = first.sort(1, descending=True).values
        torch.testing.assert_close(second[:, :2], order[:, :2], rtol=0, atol=1e-5)
        children = second[:, 2:, None] - first[:, None]
        assert children.abs().amin(2).max() < 1e-5  # each is one of the first
        if share == 1:
            torch.testing.assert_close(second[:, 2:], order[:, :1].expand(-1, 3), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("renoised", [False, True])
    @pytest.mark.parametrize("kind", ["ddim", "ddpm", "euler", "flow"])
    def test_elites_are_states_of_the_best_and_children_their_mutations(self, kind, renoised, monkeypatch):
        """Checked at the third of five steps, against calls cut before and after it, and their noise levels."""
        name, eta, noise = {
            "ddim": ("DDIMScheduler", 0.6, None),
            "ddpm": ("DDPMScheduler", None, None),
            "euler": ("EulerDiscreteScheduler", None, "ddpm:0.5"),
            "flow": (None, None, "ddpm"),
        }[kind]
        if name is None:
            lidar = LiDAR(testing.tiny_stable_diffusion_3(), reward="brightness", steps=5, n=2, noise=noise)
        else:
            lidar = make(name, eta=eta, noise=noise)
        scheduler = lidar.pipe.scheduler
        scheduler.set_timesteps(5)
        here, there = levels = [LEVELS[kind](scheduler, step) for step in (2, 3)]
        scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
        cut, after = (states(lidar, 6, 1, step) / scale for step in (2, 3))
        seen = watched(monkeypatch, lidar)
        search = EvoSearch((6, 40), (0.4,), elites=3, tournament=1.0, renoised=renoised)
        search.draw(lidar, PROMPTS, images=1, seed=1)
        (nothing, rewards), (given, _) = seen
        assert nothing is None
        given = given.unflatten(0, (2, 40))
        keep = here[0] / there[0] if renoised else 1.0
        spread = {"ddim": 0.6, "euler": 0.5}.get(kind, 1.0) * own_noise(*levels)
        if renoised:
            spread = (here[1] ** 2 - (keep * there[1]) ** 2) ** 0.5
        for row in range(2):
            order = rewards[row].argsort(descending=True)
            torch.testing.assert_close(given[row, :3], cut[row, order[:3]], rtol=0, atol=1e-4)
            source = (after if renoised else cut)[row, order[0]]  # of the best, which wins every tournament of all
            noise = (given[row, 3:] - keep * source) * scale
            assert noise.std().item() == pytest.approx(float(spread), rel=0.03)
            assert abs(noise.mean().item()) < 0.03 * float(spread) + 1e-6
        assert not torch.equal(given[0, 3:] - cut[0, rewards[0].argmax()], given[1, 3:] - cut[1, rewards[1].argmax()])

    def test_a_mutated_initial_noise_keeps_its_law(self, monkeypatch):
        lidar = make()
        noise = states(make(), 6, 1, 1)  # only its shape
        seen = watched(monkeypatch, lidar)
        EvoSearch((6, 60), (0.0,), elites=1, mutation=0.6, tournament=1.0).draw(lidar, PROMPTS, images=1, seed=1)
        given = seen[1][0].unflatten(0, (2, 60))
        assert given.shape[2:] == noise.shape[2:]
        for row in range(2):
            parent, children = given[row, 0].flatten(), given[row, 1:].flatten(1)
            fresh = (children - 0.8 * parent) / 0.6  # sqrt(1 - m^2) is .8
            assert fresh.std().item() == pytest.approx(1, abs=0.03)
            assert abs(fresh.mean().item()) < 0.03
            assert abs((fresh @ parent / parent.norm()).std().item() - 1) < 0.3
            assert children.std().item() == pytest.approx(math.sqrt(0.64 * parent.var() + 0.36), abs=0.03)

    def test_parents_are_of_all_generations_before(self, monkeypatch):
        """The third generation's elites are the states of the first two with the best final samples."""
        lidar = make(steps=6)
        seen = watched(monkeypatch, lidar)
        EvoSearch((4, 4, 4), (0.0, 0.5), elites=3).draw(lidar, PROMPTS, images=1, seed=1)
        given = seen[2][0].unflatten(0, (2, 4))
        first = states(lidar, 4, 1, 3)
        for row in range(2):
            rewards = torch.cat([seen[0][1][row], seen[1][1][row]])
            old = [place for place, at in enumerate(rewards.argsort(descending=True)[:3].tolist()) if at < 4]
            for place in range(3):
                gap = (given[row, place] - first[row]).flatten(1).abs().amax(1).min()
                assert (gap < 1e-4) == (place in old)

    def test_keeps_the_best_of_all_ends(self, monkeypatch):
        lidar = make(steps=6)
        seen = watched(monkeypatch, lidar)
        result = EvoSearch((4, 3, 2), (0.0, 0.5), elites=1).draw(lidar, PROMPTS, images=3, seed=1)
        every = torch.cat([rewards for _, rewards in seen], 1).sort(1, descending=True).values
        torch.testing.assert_close(result.images.flatten(2).mean(2), every[:, :3], rtol=0, atol=1e-6)


def own_noise(here, there):
    """Return the standard deviation of an ancestral step between two levels (alpha, sigma), by their ratios."""
    before, after = here[1] / here[0], there[1] / there[0]
    return there[0] * after * (1 - (after / before) ** 2) ** 0.5


def variance_preserving(scheduler, step):
    signal = scheduler.alphas_cumprod[int(scheduler.timesteps[step])]
    return signal**0.5, (1 - signal) ** 0.5


LEVELS = {
    "ddim": variance_preserving,
    "ddpm": variance_preserving,
    "euler": lambda scheduler, step: (1.0, scheduler.sigmas[step]),
    "flow": lambda scheduler, step: (1 - scheduler.sigmas[step], scheduler.sigmas[step]),
}


class TestWinners:
    @pytest.mark.parametrize(("count", "share"), [(5, 0.4), (10, 0.9), (7, 1.0), (4, 0.1)])
    def test_follow_the_law_of_the_best_of_a_draw(self, count, share):
        """The best of r of n without replacement is the k-th best with probability C(n - k, r - 1) / C(n, r)."""
        rivals = max(1, math.floor(share * count + 1e-9))
        rewards = torch.randperm(count, generator=torch.Generator().manual_seed(0)).double()
        law = [math.comb(count - k, rivals - 1) / math.comb(count, rivals) for k in range(1, count + 1)]
        assert sum(law) == pytest.approx(1)
        draws = 4000
        found = Counter(winners(rewards, draws, share, torch.Generator().manual_seed(1)).tolist())
        order = rewards.argsort(descending=True).tolist()
        for place, probability in zip(order, law, strict=True):
            assert (
                abs(found[place] / draws - probability)
                < 4 * math.sqrt(probability * (1 - probability) / draws) + 1e-9
            )

    def test_of_none_are_none(self):
        assert winners(torch.ones(3), 0, 0.9, torch.Generator()).shape == (0,)


class TestSettings:
    def test_the_released_ones_cost_a_hundred_samples(self):
        told = EvoSearch().cost(make(steps=50, guidance_scale=1.0), images=1)
        assert told.network_evaluations == 100 * 50
        assert told.reward_calls == told.decodes == 42 + 3 * 26 + 30
        flux = EvoSearch((14, 7, 7, 7, 10), (0.1, 0.4, 0.6, 0.8), elites=3)
        steps = 14 * 50 + 7 * 45 + 7 * 30 + 7 * 20 + 10 * 10
        assert flux.cost(make(steps=50, guidance_scale=1.0), images=1).network_evaluations == steps

    def test_sizes_follow_their_number(self):
        assert load("evo") == load("evo-42") == EvoSearch()
        assert load("evo-8@25") == EvoSearch((8, 5, 5, 5, 6), elites=1, steps=25)
        lidar = make()
        costs = [load(f"evo-{n}@25").cost(lidar, images=1).network_evaluations for n in range(1, 60)]
        assert all(a < b for a, b in pairwise(costs))

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"population": ()}, "population must hold whole numbers of at least 1"),
            ({"population": (4, 0), "schedule": (0.5,)}, "population must hold whole numbers of at least 1"),
            ({"schedule": (0.5, 0.4)}, "rising fractions from 0 to below 1"),
            ({"schedule": (-0.1, 0.4)}, "rising fractions from 0 to below 1"),
            ({"schedule": (0.1, 1.0)}, "rising fractions from 0 to below 1"),
            ({"schedule": (0.5,)}, "one size more than schedule has steps"),
            ({"elites": 27}, "elites must be at most every size of population"),
            ({"elites": -1}, "elites must be at least 0"),
            ({"mutation": 1.5}, r"mutation must be in \[0, 1\], got 1.5"),
            ({"tournament": 0.0}, r"tournament must be in \(0, 1\], got 0.0"),
        ],
    )
    def test_that_are_none_are_refused(self, how, message):
        with pytest.raises(ValueError, match=message):
            EvoSearch(**how)

    def test_what_cannot_be_drawn_is_refused_before_drawing(self):
        small = EvoSearch((2, 2), (0.4,), elites=1)
        lidar = make()
        lidar.pipe.unet.forward = None  # drawing is an error
        for method, where, images, message in (
            (EvoSearch(), make(steps=5), 1, "fractions that differ in 5 steps and leave out the last"),
            (EvoSearch(), make(steps=2), 1, "fractions that differ in 2 steps and leave out the last"),
            (small, lidar, 5, "images must be 1 to the 4 samples of all generations, got 5"),
            (small, make(eta=0.0), 1, "EvoSearch needs a sampler with noise"),
            (small, make("PNDMScheduler"), 1, "PNDMScheduler would not follow"),
            (small, make(reward=Mixture({"brightness": 1.0})), 1, "give the mixture a calibration"),
        ):
            with pytest.raises(ValueError, match=message):
                method.draw(where, PROMPTS, images=images, seed=0)
            with pytest.raises(ValueError, match=message):
                method.cost(where, images=images)
        picture = {"image": torch.zeros(1, 3, 16, 16), "strength": 0.5}
        start = make(
            make_pipe=lambda: testing.tiny_stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline),
            pipe_kwargs=picture,
            steps=10,
        )
        with pytest.raises(TypeError, match="takes no latents"):
            small.draw(start, PROMPTS, images=1, seed=0)


def too_large(module, args):
    """Simulate memory that holds three samples with both branches of guidance, and runs out late in a call."""
    module.seen = getattr(module, "seen", 0) + 1
    if len(args[0]) > 6 and module.seen % 3 == 0:
        raise torch.OutOfMemoryError("too large")


class TestThroughTheSampler:
    def test_does_not_depend_on_the_batch_and_counts_what_it_tells(self):
        search, results = EvoSearch((4, 3, 3), (0.0, 0.5), elites=1), []
        for batch_size in (3, 64):
            lidar = make(steps=6, batch_size=batch_size)
            results.append(search.draw(lidar, PROMPTS, images=2, seed=1))
            cost = results[-1].cost["sampling"]
            assert cost.network_evaluations == 2 * (4 * 6 + 3 * 6 + 3 * 3) * 2
            assert cost.reward_calls == cost.decodes == 2 * 10
        torch.testing.assert_close(results[0].images, results[1].images, rtol=0, atol=1e-4)

    def test_batches_that_are_too_large_leave_no_trace(self):
        search = EvoSearch((4, 3), (0.4,), elites=1)
        plain = search.draw(make(batch_size=64), PROMPTS, images=1, seed=1)
        tight = make(batch_size=64)
        tight.pipe.unet.register_forward_pre_hook(too_large)
        torch.testing.assert_close(
            search.draw(tight, PROMPTS, images=1, seed=1).images, plain.images, rtol=0, atol=1e-4
        )

    def test_a_prompt_alone_and_one_that_comes_twice(self):
        search, lidar = EvoSearch((3, 3), (0.4,), elites=1), make()
        both = search.draw(lidar, PROMPTS, images=1, seed=1)
        alone = search.draw(lidar, PROMPTS[1:], images=1, seed=1)
        torch.testing.assert_close(both.images[1], alone.images[0], rtol=0, atol=1e-5)
        twice = search.draw(lidar, [PROMPTS[0]] * 2, images=1, seed=1)
        assert not torch.equal(twice.images[0], twice.images[1])

    @pytest.mark.parametrize(
        ("birth", "how"),
        [
            (0.0, {"mutation": 1.0}),
            (0.4, {}),
            (0.5, {}),
            (0.8, {}),
            (0.5, {"renoised": True}),
            (0.6, {"renoised": True}),
        ],
    )
    def test_children_of_a_perfect_model_end_by_the_posterior_of_where_they_start(self, birth, how, monkeypatch):
        """Tested on 400 children of one parent; without their own initial noise, this is the model's law."""
        posterior, ends = self.born(birth, monkeypatch, first=8, tournament=1.0, **how)
        if "mutation" in how:
            assert total_variation(posterior.mean(0), torch.full((4,), 0.25)) < 0.03
        assert total_variation(ends, posterior.mean(0)) < 0.07

    def test_renoised_children_of_random_parents_follow_the_law_of_the_model(self, monkeypatch):
        """They are also as far from their members as the level says; with added noise they would be farther."""
        _, ends = self.born(0.6, monkeypatch, first=112, tournament=1e-3, renoised=True)
        uniform = torch.full((4,), 0.25)
        assert total_variation(ends, uniform) < 0.1  # of 112 parents, whose shares have a standard error of .04
        dimension = 4 * 8 * 8
        assert self.residual.mean().item() == pytest.approx(dimension, rel=0.02)
        self.born(0.6, monkeypatch, first=112, tournament=1e-3)
        assert self.residual.mean().item() > 1.05 * dimension

    def born(self, birth, monkeypatch, *, first, **how):
        """Return the posteriors (400, 4) at the starts of a perfect model's children, and the law of their ends.

        ``residual`` is the squared distance of each from its nearest member, in units of the level's noise.
        """
        members = 0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        lidar = make(steps=30, guidance_scale=1.0, batch_size=512)
        make_perfect(lidar.pipe, members)
        drawn, sample = [], lidar.sample
        monkeypatch.setattr(lidar, "sample", lambda *a, **k: drawn.append((sample(*a, **k), k)) or drawn[-1][0])
        EvoSearch((first, 400), (birth,), elites=0, **how).draw(lidar, ["a cat"], images=1, seed=0)
        result, asked = drawn[1]
        lidar.pipe.scheduler.set_timesteps(30)
        level = noise_level(lidar.pipe.scheduler, lidar.pipe.scheduler.timesteps[round(birth * 30)])
        distance = torch.cdist(asked["rows"]["latents"].flatten(1), level.alpha * members.flatten(1)).square()
        self.residual = distance.amin(1) / level.sigma**2
        ends = shares(result.latents[0].flatten(1), members.flatten(1))
        return (-distance / (2 * level.sigma**2)).softmax(1), ends
