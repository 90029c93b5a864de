"""RBF with a quota of one is the model; it follows its rule on given rewards, and climbs with a larger quota."""

import math

import diffusers
import pytest
import torch
from oracle import (
    SD,
    bank_of_four,
    before,
    make_perfect,
    posterior_mean,
    sample,
    shares,
    smooth_reward,
    total_variation,
)
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._draw import Item
from lidar_sampling._hooks import Hook, attach
from lidar_sampling._kernel import stochastic
from lidar_sampling._levels import clean_prediction, noise_level
from lidar_sampling.methods import RBF, SVDD
from lidar_sampling.methods._predict import Predictor
from lidar_sampling.methods.rollover import Proposing
from lidar_sampling.rewards import Mixture


def by_hand(rewards, m, start):
    """Return what one sample spends at each level, and the proposal that it takes, given the proposals' rewards."""
    best, quota, spent, taken = -math.inf, start, [], []
    for level, row in enumerate(rewards):
        search = level in (0, len(rewards) - 1)
        seen = []
        while len(seen) < quota:
            seen.append(row[len(seen)])
            if seen[-1] > best and not search:
                break
        best, quota = max(best, *seen), m + quota - len(seen)
        spent.append(len(seen))
        taken.append(seen.index(max(seen)))
    return spent, taken


class TestRule:
    def run(self, rewards, m, start):
        """Return what the hook spends and takes at each level; a clean prediction identifies its proposal."""
        levels, rows = rewards.shape[:2]
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type="sample")
        scheduler.set_timesteps(levels)
        asked = torch.zeros(levels, rows, dtype=torch.long)
        taken = []

        def reward(x0, which):
            asked[hook._step, which] += 1
            return rewards[hook._step, which, x0[:, 0].long()]

        def predict(step, x, which):
            return asked[step.index, which].float()[:, None].expand(-1, 2)

        hook = Proposing(RBF(m, start), reward, predict, list(range(rows)))
        hook.start(levels)
        for level, t in enumerate(scheduler.timesteps):
            x = torch.randn(rows, 2)
            first = torch.zeros(rows, 2)
            step, output = before(hook, scheduler, first, x, t, index=level, total=levels, eta=1.0)
            taken.append(step.x0[:, 0].long())
            torch.testing.assert_close(output, step.x0)  # the scheduler gets it, too
        hook.finish()
        return torch.stack(hook.spent), torch.stack(taken), asked

    @pytest.mark.parametrize(("m", "start"), [(1, 3), (2, 1), (3, 4), (5, 2)])
    @pytest.mark.parametrize("slope", [-0.5, 0.0, 0.5, 3.0])
    def test_is_that_of_the_sequential_search(self, m, start, slope):
        levels, rows = 6, 40
        g = torch.Generator().manual_seed(0)
        drawn = torch.randn(levels, rows, start + m * levels, generator=g, dtype=torch.float64)
        rewards = drawn + slope * torch.arange(levels)[:, None, None]
        if m == 1:
            spent, taken, _ = self.run(rewards, m, start)
            expected = [by_hand(rewards[:1, row].tolist(), m, start) for row in range(rows)]
            assert spent.T.tolist() == [one[0] for one in expected]
            assert taken[0].tolist() == [one[1][0] for one in expected]
            assert (taken[1:] == 0).all()
            return
        spent, taken, asked = self.run(rewards, m, start)
        expected = [by_hand(rewards[:, row].tolist(), m, start) for row in range(rows)]
        assert spent.T.tolist() == [one[0] for one in expected]
        assert taken.T.tolist() == [one[1] for one in expected]
        assert torch.equal(asked, spent)
        assert (spent.sum(0) == start + m * (levels - 1)).all()

    def test_rising_rewards_save_all_for_the_last_level(self):
        rewards = torch.arange(5.0)[:, None, None].expand(5, 3, 99)
        spent, _, _ = self.run(rewards, 4, 2)
        assert spent[:, 0].tolist() == [2, 1, 1, 1, 13]

    def test_falling_rewards_spend_every_quota(self):
        spent, _, _ = self.run(-torch.arange(5.0)[:, None, None].expand(5, 3, 99), 4, 2)
        assert spent[:, 0].tolist() == [2, 4, 4, 4, 4]

    def test_of_one_step_is_the_best_of_the_initial_noises(self):
        spent, taken, _ = self.run(torch.tensor([[[0.0, 2.0, 1.0]]]), 4, 3)
        assert (spent.tolist(), taken.tolist()) == ([[3]], [[1]])


class TestLaw:
    STEPS, COUNT = 30, 512

    def law(self, reward, m, start=1, noise=None):
        bank = bank_of_four()

        def predict(step, x, rows):
            return posterior_mean(x, bank.samples, step.level.alpha, step.level.sigma)

        hook = Proposing(RBF(m, start), lambda x0, rows: reward(x0), predict, list(range(self.COUNT)))
        how = {"eta": 1.0}
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        if noise is not None:
            scheduler, how = diffusers.FlowMatchEulerDiscreteScheduler(), {}
        with (
            stochastic(scheduler, noise or "ddpm") if noise else attach(scheduler, Hook()),
            attach(scheduler, hook),
        ):
            ends = sample(scheduler, bank.samples, chains=self.COUNT, steps=self.STEPS, **how)
        return shares(ends, bank.samples)

    @pytest.mark.parametrize("noise", [None, "ddpm", "cps:0.5"])
    def test_a_quota_of_one_or_a_blind_reward_is_the_model_itself(self, noise):
        uniform = torch.full((4,), 0.25)
        for m, start in ((1, 1), (4, 3)):
            assert total_variation(self.law(lambda x0: torch.zeros(len(x0)), m, start, noise), uniform) < 0.08

    @pytest.mark.parametrize("noise", [None, "ddpm"])
    def test_climbs_to_the_best_member(self, noise):
        reward = smooth_reward(bank_of_four())
        best = [self.law(reward, *how, noise)[3] for how in ((1, 1), (2, 1), (8, 4))]
        assert best[0] < best[1] < best[2]
        assert best[2] > 0.75

    @pytest.mark.parametrize("noise", [None, "ddpm", "cps:0.5"])
    def test_further_proposals_have_the_law_of_the_first(self, noise):
        """From one parent, 4,000 draws have the mean and the spread of the sampler's own step."""
        rows = 4000
        g = torch.Generator().manual_seed(0)
        x = torch.randn(1, 16, generator=g).expand(rows, -1).contiguous()
        x0 = torch.randn(1, 16, generator=g).expand(rows, -1).contiguous()
        if noise is None:
            scheduler, eta = diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type="sample"), {"eta": 0.7}
        else:
            scheduler, eta = diffusers.FlowMatchEulerDiscreteScheduler(), {}
        scheduler.set_timesteps(10)
        later = {}

        class Look(Proposing):
            def before(self, step):
                if step.index == 2:
                    later["further"] = self._proposals(step, torch.arange(rows))
                return super().before(step)

            def finish(self):
                """Check three steps, which are enough."""

        hook = Look(RBF(2, 1), lambda x0, rows: torch.zeros(len(x0)), lambda step, x, rows: x, list(range(rows)))
        own = attach(scheduler, Hook())  # this changes nothing
        with stochastic(scheduler, noise, generator=g) if noise else own, attach(scheduler, hook):
            for index, t in enumerate(scheduler.timesteps[:3]):
                level = noise_level(scheduler, t)
                if index == 2:
                    later["first"] = x
                output = x0 if noise is None else (x - x0) / level.sigma
                x = scheduler.step(output, t, x, **eta, **({"generator": g} if eta else {}))[0]
                if index == 0:
                    x = x[:1].expand(rows, -1).contiguous()
        first, further = later["first"], later["further"]
        assert first.std(0).mean() > 0.1
        torch.testing.assert_close(further.mean(0), first.mean(0), rtol=0, atol=0.03)
        torch.testing.assert_close(further.std(0), first.std(0), rtol=0.05, atol=0)


FAMILIES = ["sdxl", "sd3", "flux", "wan", "sana-sprint"]


class TestThroughTheSampler:
    @pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
    def test_a_quota_of_one_is_the_sampler_bit_for_bit(self, scheduler):
        own = scheduler == "DDIMScheduler"
        lidar = make(scheduler, eta=1.0 if own else None, noise=None if own else "ddpm")
        alone, plain = RBF(1, 1).draw(lidar, PROMPTS, images=2, seed=1), lidar.sample(PROMPTS, 2, 1)
        assert torch.equal(alone.images, plain.images)
        ours, theirs = alone.cost["sampling"], plain.cost["sampling"]
        assert (ours.network_evaluations, ours.decodes) == (theirs.network_evaluations, theirs.decodes)
        assert ours.reward_calls == 0

    @pytest.mark.parametrize("key", FAMILIES)
    def test_another_sample_is_predicted_as_the_call_itself_would(self, key):
        """Checked at every step, for every row alone and in another order."""
        tiny = testing.PIPELINES[key]
        lidar = LiDAR(tiny.make(), reward=testing.brightness, steps=4, noise="ddpm", pipe_kwargs=dict(tiny.call), n=2)
        gaps = []

        class Ask(Hook):
            def __init__(self, batch):
                self.predict = Predictor(lidar, batch, lidar.arguments())

            def before(self, step):
                for rows in (torch.tensor([1]), torch.tensor([1, 0])):
                    asked = self.predict(step, step.x_t[rows], rows)
                    gaps.append((asked - step.x0[rows]).abs().max() / step.x0.abs().max())
                return step

        plain = lidar.sample(PROMPTS, 1, 0)
        asking = lidar.sample(PROMPTS, 1, 0, around=lambda batch: attach(lidar.pipe, Ask(batch)))
        assert len(gaps) == 2 * 4
        assert max(gaps) < 1e-4
        assert torch.equal(asking.images, plain.images)  # and nothing else has changed

    def test_of_a_perfect_model_finds_the_best_member(self):
        samples = 0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        lidar = make(steps=6, guidance_scale=1.0, batch_size=64, reward=testing.brightness)
        make_perfect(lidar.pipe, samples)
        decoded = lidar.pipe.vae.decode(samples / lidar.pipe.vae.config.scaling_factor).sample
        best = int(decoded.flatten(1).mean(1).argmax())
        found = [
            shares(RBF(*how).draw(lidar, ["a cat"], images=48, seed=0).latents[0].flatten(1), samples.flatten(1))[
                best
            ]
            for how in ((1, 1), (5, 8))
        ]
        assert found[0] < 0.45
        assert found[1] > 0.85  # measured .96, of 48 samples

    def test_does_not_depend_on_the_batch_and_costs_its_budget(self):
        results = []
        for batch_size in (1, 64):
            lidar = make(steps=3, batch_size=batch_size)
            results.append(RBF(3, 2).draw(lidar, PROMPTS, images=2, seed=1))
            cost = results[-1].cost["sampling"]
            proposals = 2 * 2 * (2 + 3 * 2)
            assert cost.network_evaluations == proposals * 2
            assert (cost.reward_calls, cost.decodes) == (proposals, proposals + 4)
            torch.testing.assert_close(results[-1].images, results[0].images, rtol=0, atol=1e-4)
        judged, plain = lidar.judge(results[0]), lidar.vanilla(PROMPTS, images=2, seed=1)
        assert (judged.rewards["brightness"] > plain.rewards["brightness"]).all()

    def test_batches_that_are_too_large_leave_no_trace(self):
        def too_large(module, args):
            if len(args[0]) > 4:
                raise torch.OutOfMemoryError("too large")

        plain = RBF(3, 3).draw(make(steps=3), PROMPTS, images=2, seed=1)
        tight = make(steps=3)
        tight.pipe.unet.register_forward_pre_hook(too_large)
        result = RBF(3, 3).draw(tight, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(result.images, plain.images, rtol=0, atol=1e-4)

    def test_arguments_of_each_prompt_reach_its_proposals(self):
        both = make(steps=3, pipe_kwargs={"negative_prompt": ["ugly", "blurred"]})
        one = make(steps=3, pipe_kwargs={"negative_prompt": "blurred"})
        ours, alone = (
            RBF(2, 2).draw(lidar, prompts, images=1, seed=0)
            for lidar, prompts in ((both, PROMPTS), (one, PROMPTS[1:]))
        )
        torch.testing.assert_close(ours.images[1], alone.images[0], rtol=0, atol=1e-5)

    def test_takes_its_own_steps_as_svdd_takes_the_settings(self):
        lidar = make(steps=7)
        assert RBF(2, 1, steps=3).cost(lidar, images=1).network_evaluations == (1 + 2 * 2) * 2
        assert (
            RBF(2, 2).cost(lidar, images=1).network_evaluations == SVDD(2).cost(lidar, images=1).network_evaluations
        )

    def test_refusals(self):
        lidar = make()
        with pytest.raises(ValueError, match="RBF proposes steps with DDIMScheduler alone, got DDPMScheduler"):
            RBF().draw(make("DDPMScheduler"), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="eta=0 has none: set eta above 0"):
            RBF().draw(make(eta=0.0), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="m must be at least 1, got 0"):
            RBF(0)
        with pytest.raises(ValueError, match="give the mixture a calibration"):
            RBF().draw(make(reward=Mixture({"brightness": 1.0})), PROMPTS, images=1, seed=0)
        lidar.pipe.scheduler = diffusers.DDIMScheduler.from_config(lidar.pipe.scheduler.config, clip_sample=True)
        with pytest.raises(ValueError, match="clip"):
            RBF().draw(lidar, PROMPTS, images=1, seed=0)
        cls, picture = diffusers.StableDiffusionImg2ImgPipeline, {"image": torch.zeros(1, 3, 16, 16), "strength": 0.5}
        other = make(make_pipe=lambda: testing.tiny_stable_diffusion(cls), pipe_kwargs=picture)
        with pytest.raises(TypeError, match="takes no latents"):
            RBF().draw(other, PROMPTS, images=1, seed=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("channels", [3, 6])
def test_a_moved_step_tells_the_scheduler_the_new_prediction(prediction, channels):
    """This holds for every kind of prediction, with or without a learned variance; rows that stay are unchanged."""

    class Move(Hook):
        def before(self, step):
            return step.with_shift(torch.ones_like(step.x_t)).with_samples(torch.tensor([1]), x[:1], x0)

    scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type=prediction)
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    x, x0 = torch.randn(2, 3, 4, 4, generator=g), torch.randn(1, 3, 4, 4, generator=g)
    output = torch.randn(2, channels, 4, 4, generator=g)
    t = scheduler.timesteps[3]
    step, told = before(Move(), scheduler, output, x, t)
    assert torch.equal(step.x_t, x[[0, 0]])
    torch.testing.assert_close(clean_prediction(noise_level(scheduler, t), told, step.x_t), step.x0)
    torch.testing.assert_close(step.x0[1:], x0)
    plain = clean_prediction(noise_level(scheduler, t), output, x)
    torch.testing.assert_close(step.x0[0], plain[0] + 1)
    assert torch.equal(told[:, 3:], output[:, 3:])


def test_items_of_a_batch_keep_their_prompts():
    """If two rows have different prompts, each is predicted with its own."""
    lidar = make(steps=2)
    predict = Predictor(lidar, [Item("a cat", 0), Item("a dog", 1)], lidar.arguments())
    seen = []

    class Ask(Hook):
        def before(self, step):
            if step.index == 1:
                seen.extend(predict(step, step.x_t[:1], torch.tensor([row])) for row in (0, 1))
            return step

    with attach(lidar.pipe, Ask()):
        lidar.vanilla("a cat", images=1)
    assert (seen[0] - seen[1]).abs().max() > 1e-4
