"""One stochastic step for every Gaussian path: its special cases, its law, and every method on flow models."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, sample, shares, smooth_reward, total_variation
from scipy.stats import chi2, norm

from lidar_sampling import LiDAR, guide, methods, noise_level, stochastic, testing
from lidar_sampling._hooks import Hook, attach
from lidar_sampling._kernel import Kernel, read_noise
from lidar_sampling.methods import FKSteering
from lidar_sampling.methods.fk_steering import Weighed

MEAN, VARIANCE = 0.7, 0.25  # of the data of a perfect model


def flow(**config):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **config)


def ddim(**config):
    return diffusers.DDIMScheduler(**SD, clip_sample=False, **config)


def euler(**config):
    return diffusers.EulerDiscreteScheduler(**SD, **config)


def drawn(scheduler, noise, *, steps=20, chains=2048, **call):
    """Draw samples of a perfect model of one Gaussian, in float64; return them and their noise levels."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(chains, 1, generator=generator, dtype=torch.float64)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    levels = []

    def run(x):
        for t in list(scheduler.timesteps):
            level = noise_level(scheduler, t)
            levels.append((level.alpha, level.sigma))
            x0 = MEAN + slope(*levels[-1]) * (x - level.alpha * MEAN)
            output = level.slope * x0 + level.tilt * x
            scheduler.is_scale_input_called = True
            x = scheduler.step(output, t, x, generator=generator, return_dict=False, **call)[0]
        return x

    if noise is None:
        return run(x), levels
    with stochastic(scheduler, noise):
        return run(x), levels


def slope(alpha, sigma):
    """Return d E[x_0 | x] / d x."""
    return VARIANCE * alpha / (alpha**2 * VARIANCE + sigma**2)


class TestEquals:
    @pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
    def test_ddim_with_its_eta(self, eta):
        ours, _ = drawn(ddim(), f"ddpm:{eta}")
        theirs, _ = drawn(ddim(), None, eta=eta)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)  # its levels are float32

    @pytest.mark.parametrize("noise", ["ddpm:0", "cps:0"])
    @pytest.mark.parametrize("make", [flow, euler])
    def test_the_deterministic_step(self, make, noise):
        ours, _ = drawn(make(), noise)
        theirs, _ = drawn(make(), None)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)

    @pytest.mark.parametrize("make", [flow, ddim, euler])
    def test_ddpm_where_every_step_is_a_transition(self, make):
        ours, _ = drawn(make(), "glass:1")
        theirs, _ = drawn(make(), "ddpm")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)

    @pytest.mark.parametrize("make", [flow, ddim])
    def test_the_deterministic_sampler_of_new_noise_where_all_steps_are_one(self, make):
        """It starts from a sample of pure noise, which a transition forgets."""
        scheduler = make()
        ours, levels = drawn(scheduler, "glass:20")
        generator = torch.Generator().manual_seed(0)
        torch.randn(2048, 1, generator=generator, dtype=torch.float64)
        x = torch.randn(2048, 1, generator=generator, dtype=torch.float64)
        if make is ddim:  # its start contains a little signal
            assert abs(ours.var() - drawn(make(), "ddpm:0")[0].var()) < 0.02
            return
        for (alpha, sigma), (to, rest) in pairwise([*levels, (1.0, 0.0)]):
            x0 = MEAN + slope(alpha, sigma) * (x - alpha * MEAN)
            x = to * x0 + rest / sigma * (x - alpha * x0)
        torch.testing.assert_close(ours, x, rtol=0, atol=5e-6)

    def test_ddpm(self):
        ours, _ = drawn(diffusers.DDPMScheduler(**SD, clip_sample=False), "ddpm")
        theirs, _ = drawn(diffusers.DDPMScheduler(**SD, clip_sample=False), None)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)

    def test_nothing_where_it_is_not_attached(self):
        scheduler = flow()
        with stochastic(scheduler):
            pass
        assert type(scheduler) is diffusers.FlowMatchEulerDiscreteScheduler
        assert torch.equal(drawn(scheduler, None)[0], drawn(flow(), None)[0])


class TestLaw:
    """For Gaussian data everything stays Gaussian, so the variance after every step is known."""

    @pytest.mark.parametrize("noise", ["ddpm:0", "ddpm:0.5", "ddpm", "cps:0.3", "cps:0.7", "cps"])
    @pytest.mark.parametrize("make", [flow, ddim, euler])
    def test_is_that_of_the_formula(self, make, noise):
        """Mean and variance of 20,000 chains; each check is wrong once in 10,000 runs."""
        x, levels = drawn(make(), noise, steps=12, chains=20_000)
        name, eta = read_noise(noise)
        last = make()
        last.set_timesteps(12)
        signal = float(getattr(last, "final_alpha_cumprod", 1.0)) if make is ddim else 1.0
        levels = [*levels, (signal**0.5, (1 - signal) ** 0.5)]
        start = float(getattr(last, "init_noise_sigma", 1.0))
        mean, variance = 0.0, start**2
        for (alpha, sigma), (to, rest) in pairwise(levels):
            ancestral = alpha * rest / (to * sigma)
            rho = math.cos(eta * math.pi / 2) if name == "cps" else math.sqrt(1 - eta**2 * (1 - ancestral**2))
            k = slope(alpha, sigma)
            factor = to * k + rho * rest / sigma * (1 - alpha * k)
            offset = (to - rho * rest / sigma * alpha) * (1 - k * alpha) * MEAN
            mean, variance = factor * mean + offset, factor**2 * variance + rest**2 * (1 - rho**2)
        n = len(x)
        assert abs(x.mean() - mean) < norm.ppf(1 - 5e-5) * math.sqrt(variance / n)
        low, high = (chi2.ppf(q, n - 1) / (n - 1) for q in (5e-5, 1 - 5e-5))
        assert low < x.var() / variance < high

    def test_becomes_the_models_with_ddpm_and_not_with_cps(self):
        """In 640 steps ``ddpm`` has the data's variance to 5 %, and ``cps`` at eta 1 has half of it."""
        found = {noise: drawn(flow(), noise, steps=640, chains=20_000)[0].var() for noise in ("ddpm", "cps")}
        assert abs(found["ddpm"] / VARIANCE - 1) < 0.05
        assert 0.4 < found["cps"] / VARIANCE < 0.6

    @pytest.mark.parametrize("noise", ["ddpm", "ddpm:0.5", "glass:6"])
    def test_under_guidance_is_the_tilted_one(self, noise):
        bank, scheduler = bank_of_four(), flow()
        with guide(scheduler, bank, scale=1.0, reward_scale=0.75, window=(1.0, 0.0)), stochastic(scheduler, noise):
            ends = sample(scheduler, bank.samples, chains=1024, steps=60)
        target = (0.75 * bank.reward()).softmax(0)
        assert total_variation(shares(ends, bank.samples), target) < 0.06

    @pytest.mark.parametrize("noise", ["ddpm", "glass:3"])
    @pytest.mark.parametrize("make", [flow, euler])
    def test_of_fk_particles_is_the_tilted_one(self, make, noise):
        bank, scheduler, k = bank_of_four(), make(), 256
        how = FKSteering(potential="difference", reward_scale=0.75, floor=-10.0, form="paper")
        particles = Weighed(how, smooth_reward(bank), list(range(8)))
        with stochastic(scheduler, noise), attach(scheduler, particles):
            ends = sample(scheduler, bank.samples, chains=8 * k, steps=30)
        target = (0.75 * bank.reward()).softmax(0)
        assert total_variation(shares(ends, bank.samples), target) < 0.08


class TestTransitions:
    """GLASS: several inner steps form one transition with the law of the model instead of one Gaussian."""

    MEMBERS = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)

    def denoised(self, x, alpha, sigma):
        """Return E[x_0 | x] of a model of two members."""
        logits = -((x - alpha * self.MEMBERS.T) ** 2) / (2 * sigma**2)
        return logits.softmax(1) @ self.MEMBERS

    def transition(self, scheduler, steps, start, *, noise):
        """Return the end of a transition from ``start`` (B, 1) over all ``steps`` but the last, and its levels."""
        scheduler.set_timesteps(steps)
        x, levels, generator = start, [], torch.Generator().manual_seed(1)
        with stochastic(scheduler, noise):
            for t in list(scheduler.timesteps)[:-1]:
                level = noise_level(scheduler, t)
                levels.append((level.alpha, level.sigma))
                x0 = self.denoised(x, level.alpha, level.sigma)
                output = level.slope * x0 + level.tilt * x
                x = scheduler.step(output, t, x, generator=generator, return_dict=False)[0]
        level = noise_level(scheduler, scheduler.timesteps[-1])
        return x, [*levels, (level.alpha, level.sigma)]

    def test_are_those_of_the_published_algorithm(self):
        """Restated: the covariance of (x, x_s), the sufficient statistic, Euler's steps on the inner flow."""
        start = torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        class FromTheSecond(diffusers.FlowMatchEulerDiscreteScheduler):
            """A schedule from the second step on, since the first step of a flow sees pure noise."""

            def set_timesteps(self, steps):
                super().set_timesteps(steps + 1)
                self.timesteps, self.sigmas = self.timesteps[1:], self.sigmas[1:]

        ours, levels = self.transition(FromTheSecond(shift=3.0), 9, start, noise="glass:8")
        (alpha, sigma), (to, rest) = levels[0], levels[-1]
        rho = alpha * rest / (sigma * to)
        gamma = rho * rest / sigma
        alpha_bar, sigma_bar = to - gamma * alpha, rest * math.sqrt(1 - rho**2)
        eps = torch.randn(64, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        first = 1.0  # any deviation of the inner flow's noise
        place, s = gamma * start + first * eps, 0.0
        for there in levels[1:]:
            alpha_s, sigma_s = s * alpha_bar, (1 - s) * first + s * sigma_bar
            mean = torch.tensor([alpha, alpha_s + gamma * alpha], dtype=torch.float64)
            covariance = torch.tensor(
                [
                    [sigma**2, gamma * sigma**2],
                    [gamma * sigma**2, sigma_s**2 + gamma**2 * sigma**2],
                ],
                dtype=torch.float64,
            )
            weights = torch.linalg.solve(covariance, mean)
            precision = float(weights @ mean)
            statistic = (weights[0] * start + weights[1] * place) / precision
            x0 = self.denoised(statistic, 1.0, precision**-0.5)  # the denoiser of x_0 with that much noise
            u = (sigma_bar - first) / sigma_s
            velocity = u * place + (alpha_bar - alpha_s * u) * x0 - u * gamma * start
            goal = math.sqrt((there[0] / there[1]) ** 2 - (alpha / sigma) ** 2)  # alpha_s / sigma_s at the next level
            s_next = goal * first / (alpha_bar + goal * (first - sigma_bar))
            place, s = place + (s_next - s) * velocity, s_next
        assert s == pytest.approx(1.0)
        torch.testing.assert_close(ours, place, rtol=0, atol=1e-5)

    def test_have_the_law_of_the_model_and_one_gaussian_has_not(self):
        """Between two members the sample goes to one or the other; a single Gaussian step goes between them."""
        chains, steps = 20_000, 40

        class Late(diffusers.FlowMatchEulerDiscreteScheduler):
            """A schedule from sigma = .7 to .2 and to the end, in one step or in many."""

            def set_timesteps(self, steps):
                super().set_timesteps(sigmas=torch.linspace(0.7, 0.2, steps).tolist())

        start = torch.full((chains, 1), 0.06, dtype=torch.float64)
        member = (0.3 * self.MEMBERS.flatten() * 0.06 / 0.49).softmax(0)  # p(x_0 | x)
        rho = 0.3 * 0.2 / (0.7 * 0.8)
        gamma = rho * 0.2 / 0.7
        far = 0.8 - gamma * 0.3
        known = float(member @ self.MEMBERS.flatten())
        mean, variance = gamma * 0.06 + far * known, far**2 * (1 - known**2) + 0.04 * (1 - rho**2)
        found = {
            noise: self.transition(Late(), count, start, noise=noise)[0]
            for noise, count in ((f"glass:{steps}", steps), ("ddpm", 2))
        }
        assert abs(found["glass:40"].mean() - mean) < 0.03
        assert found["glass:40"].var() == pytest.approx(variance, rel=0.05)
        assert found["ddpm"].var() < 0.1 * variance
        near = (found["glass:40"] / far).abs()
        assert ((near > 0.5) & (near < 1.5)).float().mean() > 0.9

    def test_lose_less_of_the_models_spread(self):
        """In 10 steps of a flow of one Gaussian of variance .25; one step per transition is ``ddpm``."""
        found = [drawn(flow(), f"glass:{m}", steps=10, chains=20_000)[0].var() for m in (1, 2, 5, 10)]
        assert all(a < b for a, b in pairwise(found))

    def test_copies_part_at_once_where_particles_go_on_from_one_another(self):
        class Taking(Hook):
            def before(self, step):
                return step.with_rows(torch.zeros(len(step.x_t), dtype=torch.long)) if step.index == 3 else step

        scheduler, seen = flow(), []

        class Spy(Hook):
            def after(self, step, x):
                seen.append(len(x.unique()))
                return x

        with stochastic(scheduler, "glass:5"), attach(scheduler, Taking()), attach(scheduler, Spy()):
            drawn(scheduler, None, steps=10, chains=8)
        assert seen[3] == 8

    def test_go_on_from_the_survivors_of_fk_alone(self):
        """What the others were before they were dropped does not matter."""

        class Copying(Weighed):
            def choose(self, r):
                return torch.zeros(r.shape, dtype=torch.long) if self._step == 6 else torch.arange(8).expand(r.shape)

        class Moving(Hook):
            def __init__(self, others):
                self.others, self.step = others, -1

            def after(self, step, x):
                self.step += 1
                return torch.cat([x[:1], x[1:] * (self.others if self.step == 4 else 1.0)])

        found = []
        for others in (1.0, 3.0):
            scheduler, hook = flow(), Copying(FKSteering(), lambda x0: torch.zeros(len(x0)), [0])
            hook.start(10)
            with stochastic(scheduler, "glass:5"), attach(scheduler, Moving(others)), attach(scheduler, hook):
                found.append(drawn(scheduler, None, steps=10, chains=8)[0])
        assert len(found[0].unique()) == 8
        assert torch.equal(*found)

    @pytest.mark.parametrize("name", ["fk", "steered-4:islands=2", "svdd-2", "beam-2x2", "threshold-2:parts=2"])
    @pytest.mark.parametrize("key", ["sd", "sd3"])
    def test_serve_every_method_that_wants_noise(self, key, name):
        lidar, method = tiny(key, noise="glass:2"), methods.load(name)
        lidar.pipe.scheduler = lidar.pipe.scheduler if key == "sd3" else ddim()
        result = method.draw(lidar, ["a cat"], images=2, seed=0)
        told = method.cost(lidar, images=2)
        assert told.network_evaluations == result.cost["sampling"].network_evaluations
        assert torch.equal(result.images, method.draw(lidar, ["a cat"], images=2, seed=0).images)
        assert not torch.equal(result.images[0, 0], result.images[0, 1])

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("das", "DAS proposes along the noise of every step"),
            ("ug:recurrence=2", "recurrence takes every step again"),
            ("rbf-3:start=2", "RBF proposes along the noise of every step"),
            ("evo:population=(4,4),schedule=(0.4,),elites=2", "EvoSearch mutates by the noise of a step"),
        ],
    )
    def test_are_refused_where_every_step_needs_noise(self, name, message):
        with pytest.raises(ValueError, match=f"{message}, and noise=glass:2 draws noise once for several steps"):
            methods.load(name).cost(tiny("sd3", noise="glass:2"), images=2)

    @pytest.mark.parametrize("noise", ["glass", "glass:0", "glass:-1", "glass:1.5", "glass:x"])
    def test_need_a_number_of_steps(self, noise):
        with pytest.raises(ValueError, match="glass needs its number of steps per transition"):
            read_noise(noise)


def tiny(key, **options):
    pipeline = testing.PIPELINES[key]
    how = {"n": 4, "steps": 4, "lookahead": "own:2", "scale": 1.0, "reward_scale": 5.0}
    return LiDAR(pipeline.make(), reward=testing.brightness, pipe_kwargs=dict(pipeline.call), **{**how, **options})


FLOWS = ["sd3", "sana", "flux", "wan"]
NAMES = ["fk", "fk+lidar", "das:reward_scale=5", "svdd-2", "beam-2x2", "steered-4", "halving-8", "ug:recurrence=2"]
NAMES += ["svdd-2:rollout_steps=3,rollouts=2,temperature=0.1", "beam-2x2@3", "fmrg", "reno-2", "rbf-2:start=2"]
NAMES += ["evo:population=(4,3,2),schedule=(0,0.5),elites=1"]


class TestEveryMethod:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("key", FLOWS)
    def test_draws_from_flow_models(self, key, name):
        lidar, method = tiny(key), methods.load(name)
        if key == "wan" and "recurrence" in name:
            with pytest.raises(TypeError, match="WanPipeline reads noise levels by the number of the step"):
                method.draw(lidar, ["a cat"], images=1, seed=0)
            return
        images = 1 if name == "halving-8" else 2
        result = method.draw(lidar, ["a cat"], images=images, seed=0)
        assert result.images.isfinite().all()
        assert torch.equal(result.images, method.draw(lidar, ["a cat"], images=images, seed=0).images)
        counted = sum((part for phase, part in result.cost.items()), start=type(result.cost["sampling"])())
        told = method.cost(lidar, images=images)
        for what in ("network_evaluations", "backward_passes", "decodes", "reward_calls"):
            assert getattr(told, what) == getattr(counted, what), what
        if images > 1 and not name.startswith(("ug", "halving")):
            assert not torch.equal(result.images[0, 0], result.images[0, 1])

    def test_takes_the_noise_that_the_settings_name(self):
        plain, noisy = (tiny("sd3", noise=noise).vanilla("a cat", images=2) for noise in (None, "ddpm"))
        assert not torch.equal(plain.images, noisy.images)
        still = tiny("sd3", noise="ddpm:0").vanilla("a cat", images=2)
        torch.testing.assert_close(still.latents, plain.latents, rtol=0, atol=1e-4)
        pndm = LiDAR(testing.tiny_stable_diffusion(), reward=testing.brightness, steps=4, noise="ddpm")
        assert methods.load("fk").draw(pndm, ["a cat"], images=3, seed=0).images.isfinite().all()

    def test_parts_of_a_flow_join_to_the_whole(self):
        from lidar_sampling._hooks import Segment

        lidar = tiny("sd3")
        whole = lidar.sample(["a cat"], 2, 0)
        latents = None
        for part in range(2):
            segment = Segment((0.5,), part, lidar.pipe.scheduler)

            def around(batch, segment=segment):
                return attach(lidar.pipe, segment)

            rows = {} if latents is None else {"latents": latents.flatten(0, 1)}
            latents = lidar.sample(["a cat"], 2, 0, around=around, rows=rows).latents
        torch.testing.assert_close(latents, whole.latents, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise": "ddmp"}, "noise must be one of ddpm, cps"),
            ({"noise": "cps:2"}, "eta of a noise must be a number from 0 to 1"),
            ({"noise": "cps:x"}, "eta of a noise must be a number from 0 to 1"),
        ],
    )
    def test_refuses_a_noise_that_is_not_one(self, options, message):
        with pytest.raises(ValueError, match=message):
            tiny("sd3", **options)

    def test_refuses_parts_where_a_pipeline_reads_levels_by_the_number_of_the_step(self):
        from lidar_sampling.methods._checks import check_level_by_step

        check_level_by_step(tiny("wan").pipe, "halving", cache=False)  # only for its cache
        pipe = object.__new__(diffusers.Cosmos2TextToImagePipeline)
        with pytest.raises(TypeError, match="Cosmos2TextToImagePipeline reads noise levels by the number"):
            check_level_by_step(pipe, "halving", cache=False)

    def test_refuses_several_evaluations_per_step(self):
        with (
            pytest.raises(ValueError, match="asks the model several times per step"),
            stochastic(diffusers.HeunDiscreteScheduler()),
        ):
            pass

    def test_refuses_copies_without_noise(self):
        with pytest.raises(ValueError, match="FK steering needs a sampler with noise, and noise=ddpm:0 has none"):
            methods.load("fk").draw(tiny("sd3", noise="ddpm:0"), ["a cat"], images=2, seed=0)


def test_a_hook_sees_the_noise_and_how_much_of_it_is_added():
    seen = []

    class Spy(Hook):
        def before(self, step):
            seen.append((step.index, step.total, step.deviation, step.noise is not None))
            return step

    scheduler = flow()
    with attach(scheduler, Kernel("ddpm")), attach(scheduler, Spy()):
        drawn(scheduler, None, steps=3, chains=4)
    assert [index for index, *_ in seen] == [0, 1, 2]
    assert seen[0][2] == pytest.approx(noise_after(1))
    assert seen[-1][2:] == (0.0, False)


def noise_after(index):
    scheduler = flow()
    scheduler.set_timesteps(3)
    return float(scheduler.sigmas[index])  # at alpha = 0 all of the noise is drawn anew
