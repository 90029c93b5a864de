"""FMRG: closed forms for a Gaussian, the published step, and its relation to universal guidance."""

import math

import diffusers
import pytest
import torch
from oracle import SD, before
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._hooks import attach
from lidar_sampling._levels import clean_prediction, noise_level
from lidar_sampling.methods import FMRG, UniversalGuidance
from lidar_sampling.methods.fmrg import Lean
from lidar_sampling.methods.universal_guidance import Gradient


def network(x):
    """Return a field that is not linear, and mixes the coordinates of each sample."""
    return (0.3 * x + 0.2 * x.roll(1, -1)).sin() + 0.1 * x.square()


def reward(x0):
    return (x0 * torch.linspace(-1, 2, x0.shape[-1], dtype=x0.dtype)).tanh().flatten(1).sum(1)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestStep:
    """One step against the released arithmetic written out, in float64."""

    def released(self, x, t, t_next, i, n, how):
        """Compute FMRG-J with ``sample_mode=flow_matching``, for one sample."""
        z = x.clone().requires_grad_()
        v = network(z)
        (g,) = torch.autograd.grad(-reward(z - t * v).sum(), z)  # of the loss
        if how.rule == "adam":
            parameter = torch.nn.Parameter(z.detach().clone())
            optimizer = torch.optim.Adam([parameter], lr=how.step_size * (1 - i / n))
            parameter.grad = g
            optimizer.step()
            toward = z.detach() - parameter.detach()
        else:
            toward = how.step_size * v.norm() * g / g.norm()
        return (z - (t - t_next) * (v + toward)).detach()

    @pytest.mark.parametrize("rule", ["velocity", "adam"])
    @pytest.mark.parametrize("i", [0, 2])
    def test_is_the_released_one(self, rule, i):
        how = FMRG(0.7, end=0.5, rule=rule)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
        scheduler.set_timesteps(8)
        scheduler._step_index = i
        x = draws(3, 5).requires_grad_()
        hook = Lean(how, lambda x0: reward(x0).sum())
        output = network(x)
        _, moved = before(hook, scheduler, output, x, scheduler.timesteps[i], index=i, total=8)
        t, t_next = scheduler.sigmas[i : i + 2].double()
        ours = x.detach() - (t - t_next) * moved
        for row in range(3):
            theirs = self.released(x.detach()[row : row + 1], t, t_next, i, 4, how)
            torch.testing.assert_close(ours[row : row + 1], theirs, rtol=1e-6, atol=1e-6)

    def test_is_universal_guidance_with_a_strength_of_its_own(self):
        """The strength is lambda = s |z - x0| alpha / (sigma^2 |g|), different for each sample and step."""
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(10)
        t = scheduler.timesteps[3]
        level = noise_level(scheduler, t)
        x = draws(1, 5).requires_grad_()
        x0 = clean_prediction(level, network(x), x)
        (g,) = torch.autograd.grad(reward(x0).sum(), x)
        away = x.detach() / (level.alpha + level.sigma) - x0.detach()
        strength = 0.7 * float(away.norm() * level.alpha / (level.sigma**2 * g.norm()))
        outputs = [
            before(hook, scheduler, network(x), x, t, index=0, total=10)[1]
            for hook in (
                Lean(FMRG(0.7), lambda x0: reward(x0).sum()),
                Gradient(UniversalGuidance(strength), lambda x0: reward(x0).sum()),
            )
        ]
        torch.testing.assert_close(*outputs)

    def test_ignores_the_scale_of_the_reward_and_its_absence(self):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(4)
        x = draws(2, 5).requires_grad_()
        outputs = [
            before(Lean(FMRG(), total), scheduler, network(x), x, scheduler.timesteps[0], total=4)[1]
            for total in (lambda x0: reward(x0).sum(), lambda x0: 1e-9 * reward(x0).sum(), lambda x0: 0 * x0.sum())
        ]
        torch.testing.assert_close(outputs[0], outputs[1])
        assert torch.equal(outputs[2], network(x).detach())


C = 0.4  # the variance of the data


def flow_of_a_gaussian(scheduler, steps, how, *, total):
    """Return starts, t, and guided ends of a perfect model of N(0, C), in straight coordinates."""
    scheduler.set_timesteps(steps)
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None].requires_grad_()
    hook, start = Lean(how, total), None
    with attach(scheduler, hook):
        for timestep in scheduler.timesteps:
            level = noise_level(scheduler, timestep)
            if start is None:
                start = x.detach() / (level.alpha + level.sigma), level.sigma / (level.alpha + level.sigma)
            x0 = level.alpha * C / (level.alpha**2 * C + level.sigma**2) * x
            eps = (x - level.alpha * x0) / level.sigma
            flow = "Flow" in type(scheduler).__name__
            x = scheduler.step(eps - x0 if flow else eps, timestep, x)[0]
    return *start, x.detach()


def q(t):
    """Return the variance of z at t."""
    return (1 - t) ** 2 * C + t**2


class TestGaussian:
    """v = lambda(t) z with lambda = q' / 2q, so that unguided z is as large as sqrt(q); the reward is x0 itself."""

    def by_velocity(self, z, t, s):
        """Return z for v (1 -+ s) by the sign of v, which changes at t = C / (1 + C): powers of q in two parts."""
        turn, up = C / (1 + C), z.sign()
        return z * (q(turn) / q(t)) ** ((1 - s * up) / 2) * (q(0) / q(turn)) ** ((1 + s * up) / 2)

    def by_adam(self, z, t, s):
        """Return z for dz/dt = lambda z - s t, where t is the share of steps left: (z / sqrt q)' = -s t / sqrt q."""
        grid = torch.linspace(0, t, 20_001, dtype=torch.float64)
        pushed = s * torch.trapezoid(grid / q(grid).sqrt(), grid)
        return math.sqrt(q(0)) * (z / math.sqrt(q(t)) + pushed)

    def ends(self, scheduler, steps, how):
        start, t, ends = flow_of_a_gaussian(scheduler, steps, how, total=torch.sum)
        return ends, getattr(self, f"by_{how.rule}")(start, t, how.step_size)

    @pytest.mark.parametrize("how", [FMRG(0.6, 1.0), FMRG(1.4, 1.0), FMRG(0.0, 1.0), FMRG(0.8, 1.0, "adam")])
    def test_ends_where_the_guided_flow_ends_to_first_order(self, how):
        errors = []
        for steps in (250, 500):
            ends, exact = self.ends(diffusers.FlowMatchEulerDiscreteScheduler(), steps, how)
            errors.append(float((ends - exact).abs().max() / exact.abs().max()))
        assert errors[1] < 0.006
        assert 1.8 < errors[0] / errors[1] < 2.2

    @pytest.mark.parametrize("s", [0.6, 1.4])
    def test_is_the_same_flow_whatever_the_path(self, s):
        """DDIM's samples follow another curve, which is this one in straight coordinates."""
        scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=True)
        ends, exact = self.ends(scheduler, 1000, FMRG(s, 1.0))
        torch.testing.assert_close(ends, exact, rtol=0.02, atol=1e-3)

    def test_keeps_the_origin_apart(self):
        """Scaled by the length of the velocity, which is 0 at 0, even a strong push lets no sample cross 0."""
        ends, exact = self.ends(diffusers.FlowMatchEulerDiscreteScheduler(), 500, FMRG(3.0, 1.0))
        assert torch.equal(ends.sign(), exact.sign())
        assert ends.max() > 10 * ends.min().abs()

    def test_guides_the_share_of_the_steps_that_it_is_told(self):
        """The rest is the plain flow, which only stretches."""
        steps, s, end = 500, 0.6, 0.25
        start, _, ends = flow_of_a_gaussian(
            diffusers.FlowMatchEulerDiscreteScheduler(), steps, FMRG(s, end), total=torch.sum
        )
        guided = start * (q(0.75) / q(1)) ** ((1 - s * start.sign()) / 2)
        torch.testing.assert_close(ends, guided * (q(0) / q(0.75)) ** 0.5, rtol=0.01, atol=0)


class TestFMRG:
    @pytest.mark.parametrize("how", [FMRG(0.0), FMRG(end=0.0)])
    def test_without_strength_is_the_pipeline(self, how):
        lidar = make()
        free, plain = how.draw(lidar, PROMPTS, images=2, seed=1), lidar.vanilla(PROMPTS, images=2, seed=1)
        torch.testing.assert_close(free.images, plain.images, rtol=0, atol=1e-5)
        assert free.cost["sampling"].backward_passes == free.cost["sampling"].reward_calls == 0

    @pytest.mark.parametrize("rule", ["velocity", "adam"])
    def test_raises_the_reward_at_its_cost_and_leaves_the_pipeline_as_it_was(self, rule):
        lidar = make(batch_size=3)
        lidar.pipe.unet.requires_grad_(True)
        plain = lidar.vanilla(PROMPTS, images=2, seed=1)
        guided = lidar.judge(FMRG(0.3, rule=rule).draw(lidar, PROMPTS, images=2, seed=1))
        assert (guided.rewards["brightness"] > plain.rewards["brightness"]).all()
        assert not guided.latents.requires_grad
        assert all(p.requires_grad for p in lidar.pipe.unet.parameters())
        assert "prepare_latents" not in vars(lidar.pipe)
        cost = guided.cost["sampling"]
        assert cost.network_evaluations == 4 * 5 * 2
        assert cost.backward_passes == 4 * 2 * 2  # a quarter of 5 steps, rounded up
        assert (cost.reward_calls, cost.decodes) == (4 * 2, 4 * 2 + 4)

    def test_samples_do_not_see_each_other(self):
        both = FMRG(0.3).draw(make(), PROMPTS, images=2, seed=1)
        one = FMRG(0.3).draw(make(), PROMPTS[1:], images=1, seed=1)
        torch.testing.assert_close(one.images[0, 0], both.images[1, 0], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("key", ["sd3", "flux", "sana", "wan", "sana-sprint"])
    def test_guides_flow_models_from_pure_noise_on(self, key):
        """At alpha = 0 the velocity still gives x_0, so the first step is guided, too."""
        tiny = testing.PIPELINES[key]

        def level(*, images, prompts):
            return images.flatten(1).mean(1)

        level.modality = "video"
        lidar = LiDAR(tiny.make(), reward=level, steps=4, lookahead="own:2", pipe_kwargs=dict(tiny.call))
        guided = lidar.judge(FMRG(0.5).draw(lidar, ["a cat"], images=2, seed=0))
        plain = lidar.vanilla("a cat", images=2, seed=0)
        assert (guided.rewards["level"] > plain.rewards["level"]).all()
        assert guided.cost["sampling"].reward_calls == 2

    def test_refusals(self):
        with pytest.raises(ValueError, match="FMRG needs the gradient of the reward, and 'jpeg-compressibility'"):
            FMRG().draw(make(reward="jpeg-compressibility"), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match=r"end must be in \[0, 1\], got 1\.5"):
            FMRG(end=1.5)
        with pytest.raises(ValueError, match="'velocity' or 'adam', got 'sgd'"):
            FMRG(rule="sgd")
        clipping = make()
        clipping.pipe.scheduler.register_to_config(clip_sample=True)
        with pytest.raises(ValueError, match="clip_sample"):
            FMRG().draw(clipping, PROMPTS, images=1, seed=0)

    def test_a_reward_through_which_no_gradient_comes_is_told(self):
        def blind(*, images, prompts):
            return images.detach().mean((1, 2, 3))

        with pytest.raises(TypeError, match="no gradient of the reward reaches the latents"):
            FMRG().draw(make(reward=blind), PROMPTS, images=1, seed=0)
