"""FK steering follows the tilted law with every potential, and its other form follows the released code."""

import math
from contextlib import nullcontext

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, sample, shares, smooth_reward, total_variation
from tiny_lidar import PROMPTS, make

from lidar_sampling import guide
from lidar_sampling._hooks import attach
from lidar_sampling.methods import FKSteering
from lidar_sampling.methods.fk_steering import Weighed
from lidar_sampling.rewards import Mixture


class TestFKSteering:
    """Particles of a perfect model with four equally likely members must follow softmax(lambda r)."""

    STEPS, LAMBDA = 30, 0.75

    def test_of_one_image_says_that_it_chooses_nothing(self, said):
        lidar = make()
        FKSteering().cost(lidar, images=1)
        assert not said()
        for _ in range(2):
            drawn = FKSteering().draw(lidar, PROMPTS, images=1, seed=1)
        assert said() == ["FK steering chooses among the images of a prompt: one alone is drawn as it is"]
        torch.testing.assert_close(drawn.images, lidar.sample(PROMPTS, 1, 1).images, rtol=0, atol=1e-5)

    def endpoints(self, k, *, populations=None, guided=0.0, **settings):
        bank = bank_of_four()
        scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)

        count = populations or 2048 // k
        how = FKSteering(**{"reward_scale": self.LAMBDA, "floor": -10.0, "form": "paper", **settings})
        particles = Weighed(how, smooth_reward(bank), list(range(count)))
        lidar = guide(scheduler, bank, scale=1.0, reward_scale=guided, window=(1.0, 0.0)) if guided else nullcontext()
        with lidar, attach(scheduler, particles):
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

    @pytest.mark.parametrize("potential", ["difference", "max"])
    def test_resampling_when_it_pays_converges_too(self, potential):
        law, _ = self.endpoints(256, potential=potential, adaptive=True)
        assert total_variation(law, self.target()) < 0.08

    def test_of_the_guided_sampler_converges_to_the_product_of_both_tilts(self):
        """The tilts are guidance by lambda / 2 and weights by lambda."""
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
        assert particles.times == {6, 12, 18, 24, 29}
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


def released(settings, rewards, generator, k=4):
    """Return which particles go on after each look, by the released rule for one population, in loops.

    Args:
        settings: FKSteering in the form of the released code.
        rewards: rewards[look][lineage]; a lineage is named by its first particle.
        generator: generator of the draws.
        k: number of particles.
    """
    past, product, lineages, chosen = [settings.floor] * k, [1.0] * k, list(range(k)), []
    for look, of_lineage in enumerate(rewards):
        last = look == len(rewards) - 1
        memory, weights = [], []
        for i, lineage in enumerate(lineages):
            r = of_lineage[lineage]
            memory.append({"max": max(r, past[i]), "sum": r + past[i], "rt": r, "difference": r}[settings.potential])
            telescopes = settings.potential == "difference"
            weight = math.exp(settings.reward_scale * (r - past[i] if telescopes else memory[i]))
            weight = weight / product[i] if last and not telescopes else weight
            weights.append(min(weight, 1e10) if settings.form == "cut" else weight)
        size = sum(weights) ** 2 / sum(w * w for w in weights)
        shares = torch.tensor(weights, dtype=torch.float64)
        drawn = torch.multinomial(shares / shares.sum(), k, replacement=True, generator=generator).tolist()
        if (settings.adaptive or last) and size >= k / 2:
            drawn = list(range(k))
        else:
            product = [product[i] * weights[i] for i in drawn]
        past, lineages = [memory[i] for i in drawn], [lineages[i] for i in drawn]
        chosen.append(drawn)
    return chosen


class TestReleasedRule:
    """The method against the restated rule, for five looks at fixed rewards."""

    @pytest.mark.parametrize("potential", ["max", "sum", "rt", "difference"])
    @pytest.mark.parametrize("adaptive", [False, True])
    @pytest.mark.parametrize(("form", "spread"), [("code", 1.0), ("cut", 15.0)])
    def test_who_goes_on(self, potential, adaptive, form, spread):
        how = FKSteering(potential, reward_scale=1.5, adaptive=adaptive, form=form)
        stayed = resampled = 0
        for seed in range(20):
            table = spread * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            expected = released(how, table.tolist(), torch.Generator().manual_seed(seed))
            particles, lineages = Weighed(how, None, [seed]), list(range(4))
            particles.start(10)
            for look, step in enumerate((2, 4, 6, 8, 9)):
                particles._step = step
                (chosen,) = particles.choose(table[look, lineages][None]).tolist()
                assert chosen == expected[look], (seed, look)
                lineages = [lineages[i] for i in chosen]
                stayed += chosen == [0, 1, 2, 3]
                resampled += chosen != [0, 1, 2, 3]
        assert stayed > 5
        assert resampled > 5

    def test_weights_above_the_cut_are_alike(self):
        r = torch.tensor([[20.0, 30.0, 40.0, 50.0]], dtype=torch.float64)  # exp(lambda r) is 1e13 and more
        for form, stays in (("cut", True), ("code", False)):
            particles = Weighed(FKSteering("rt", 1.5, adaptive=True, form=form), None, [0])
            particles.start(10)
            particles._step = 2
            assert (particles.choose(r).tolist() == [[0, 1, 2, 3]]) is stays

    def test_the_last_step_leaves_equal_weights_alone_and_the_paper_does_not(self):
        """The rewards grow too little to justify resampling: ess is at least half."""
        r = torch.tensor([[0.0, 0.1, 0.2, 0.3]], dtype=torch.float64)
        for form, stays in (("code", True), ("paper", False)):
            particles = Weighed(FKSteering("rt", 1.0, form=form), None, [0])
            particles.start(10)
            particles._step = particles._last
            assert (particles.choose(r).tolist() == [[0, 1, 2, 3]]) is stays

    @pytest.mark.parametrize(("form", "expected"), [("code", [3.0, 3.0]), ("paper", [0.0, 1.0])])
    def test_the_last_numerator_is_the_maximum_in_the_code_and_the_reward_in_the_paper(self, form, expected):
        """Both particles have been at 3; now they are at 0 and 1."""
        seen = []
        particles = Weighed(FKSteering("max", 1.0, adaptive=True, form=form), None, [0])
        particles.start(10)
        particles._step = 2
        particles.choose(torch.full((1, 2), 3.0, dtype=torch.float64))  # equal weights: all stay, and 3 is kept
        particles._step = particles._last
        multinomial = torch.multinomial
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "multinomial", lambda w, *a, **k: seen.append(w) or multinomial(w, *a, **k))
            particles.choose(torch.tensor([[0.0, 1.0]], dtype=torch.float64))
        torch.testing.assert_close(seen[0], torch.tensor(expected, dtype=torch.float64).softmax(0))

    @pytest.mark.parametrize(("potential", "expected"), [("max", 5.0), ("sum", 7.0)])
    @pytest.mark.parametrize("form", ["code", "paper"])
    def test_looks_that_resampled_nothing_are_kept(self, form, potential, expected):
        particles = Weighed(FKSteering(potential, 1.0, adaptive=True, form=form), None, [0])
        particles.start(10)
        for step, r in ((2, 5.0), (4, 2.0)):
            particles._step = step
            particles.choose(torch.full((1, 3), r, dtype=torch.float64))
        assert particles._kept.tolist() == [[expected] * 3]
        assert particles._log_product.tolist() == [[0.0] * 3]  # an unused weight is None
