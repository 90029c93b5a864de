"""ReNO descends to the optimum of a linear model, along gradients of finite differences through all of its steps."""

import math

import pytest
import torch
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._hooks import attach
from lidar_sampling.methods import FMRG, ReNO, UniversalGuidance, Vanilla, load
from lidar_sampling.methods.reno import Descent, End, Iterate
from lidar_sampling.rewards import Mixture, RewardError

D = 64


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def descend(settings, start, gradient, iterations):
    descent = Descent(settings, start)
    for _ in range(iterations):
        descent(gradient(descent.noise))
    return descent.noise


class TestDescent:
    def test_is_the_released_optimiser_restated(self):
        """For one image: SGD with Nesterov's momentum, K by autograd, the gradient clipped by its norm."""
        start, slopes = noise(3, 4, 4, 4), noise(8, 3, 4, 4, 4, seed=1)
        slopes[:, 1] *= 1e-3  # too small to be cut
        descent = Descent(ReNO(), start)
        for slope in slopes:
            descent(slope)
        for row in range(3):
            z = torch.nn.Parameter(start[row : row + 1].clone())
            optimizer = torch.optim.SGD([z], lr=5.0, momentum=0.9, nesterov=True)
            for slope in slopes:
                optimizer.zero_grad()
                length = torch.linalg.vector_norm(z)
                (0.01 * (length**2 / 2 - (D - 1) * length.log()) - (z * slope[row]).sum()).backward()
                torch.nn.utils.clip_grad_norm_(z, 0.1)
                optimizer.step()
            torch.testing.assert_close(descent.noise[row], z.detach()[0], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_finds_the_optimum_of_a_linear_reward(self, momentum):
        """r = b . c z: along b, at the norm rho with penalty (rho - (d - 1) / rho) = c |b|."""
        b, c, penalty = noise(2, D, seed=1) * 0.05, 0.7, 0.01
        found = descend(ReNO(momentum=momentum), noise(2, D), lambda z: c * b, 600)
        u = c * b.norm(dim=1, keepdim=True) / penalty
        rho = (u + (u.square() + 4 * (D - 1)).sqrt()) / 2
        torch.testing.assert_close(found, rho * b / b.norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("penalty", [0.0, 0.01])
    def test_finds_the_optimum_of_a_quadratic_reward(self, penalty):
        """r = -k |c z - a|^2 / 2: along a, where (k c^2 + penalty) rho^2 - k c |a| rho = penalty (d - 1)."""
        a, k, c = noise(2, D, seed=2), 0.05, 0.7
        found = descend(ReNO(penalty=penalty), noise(2, D), lambda z: k * c * (a - c * z), 600)
        length = a.norm(dim=1, keepdim=True)
        square, linear = k * c**2 + penalty, k * c * length
        rho = (linear + (linear.square() + 4 * square * penalty * (D - 1)).sqrt()) / (2 * square)
        torch.testing.assert_close(found, rho * a / length, rtol=1e-6, atol=1e-6)
        if penalty == 0:
            torch.testing.assert_close(c * found, a, rtol=1e-6, atol=1e-6)

    def test_without_a_reward_comes_to_the_likeliest_norm_in_its_own_direction(self):
        start = 3 * noise(2, D)
        found = descend(ReNO(), start, torch.zeros_like, 600)
        torch.testing.assert_close(found.norm(dim=1), torch.full((2,), math.sqrt(D - 1), dtype=torch.float64))
        torch.testing.assert_close(torch.cosine_similarity(found, start), torch.ones(2, dtype=torch.float64))

    def test_cuts_the_gradient_of_each_image_by_itself(self):
        settings = ReNO(rate=2.0, momentum=0.0, clip=0.1, penalty=0.0)
        start, slopes = torch.ones(2, 2), torch.tensor([[3.0, 4.0], [0.03, 0.04]])
        torch.testing.assert_close(Descent(settings, start)(slopes), torch.tensor([[1.12, 1.16], [1.06, 1.08]]))


def linear(c=0.8, steps=1):
    """Return a LiDAR whose one-step sample is ``c`` times its noise, and whose pictures are linear in it."""
    lidar = make(reward=slope, steps=steps, guidance_scale=1.0, eta=0.0)
    pipe = lidar.pipe

    def forward(sample, timestep, **kwargs):
        signal = float(pipe.scheduler.alphas_cumprod[timestep])
        return ((1 - c * signal**0.5) / (1 - signal) ** 0.5 * sample,)

    pipe.unet.forward = forward
    pipe.scheduler.register_to_config(set_alpha_to_one=True)
    pipe.scheduler.final_alpha_cumprod = torch.tensor(1.0)
    pipe.vae.decode = lambda z, **_: (z[:, :3] * pipe.vae.config.scaling_factor / 100,)
    return lidar


B = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(5)) * 0.05


def slope(*, images, prompts):
    """Return a reward that is linear in the first three channels of latents, as decoded above."""
    return ((images - 0.5) * 200 * B.to(images)).flatten(1).sum(1)


slope.differentiable = True


class TestReNO:
    def test_finds_the_optimum_of_a_linear_model_through_the_pipeline(self):
        """Without momentum the reward rises to the end, so the best iterate is the last: the closed form."""
        c, penalty, d = 0.8, 0.01, 4 * 8 * 8
        how = ReNO(n=120, steps=1, momentum=0.0, rate=20.0, clip=1.0, penalty=penalty)
        result = how.draw(linear(c), ["a cat"], images=2, seed=0)
        b = torch.cat([B, torch.zeros(1, 8, 8)])
        u = c * b.norm() / penalty
        optimum = c * (u + (u**2 + 4 * (d - 1)).sqrt()) / 2 * b / b.norm()
        torch.testing.assert_close(result.latents[0], optimum.expand(2, -1, -1, -1), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    @pytest.mark.parametrize(
        ("scheduler", "h", "rtol"),
        [
            ("DDIMScheduler", 1e-5, 1e-6),
            ("LCMScheduler", 1e-5, 1e-6),
            ("EulerDiscreteScheduler", 2e-3, 1e-3),  # these two step in float32
            ("DPMSolverMultistepScheduler", 2e-3, 1e-3),
        ],
    )
    def test_its_gradient_is_that_of_finite_differences_through_all_steps(self, make_pipe, scheduler, h, rtol):
        """d r(decode(G(z))) / d z of three steps, along random directions, in float64."""
        lidar = make(scheduler, make_pipe=make_pipe)
        lidar.pipe.to(torch.float64)

        def judge(x0):
            decoded = lidar.pipe.vae.decode(x0 / lidar.pipe.vae.config.scaling_factor, return_dict=False)[0]
            return decoded, decoded.square().flatten(1).sum(1)

        def end(latents, *, climbs):
            end = End(judge, climbs=climbs, given=True)
            call = lidar.arguments(num_inference_steps=3)
            around = lambda batch: attach(lidar.pipe, end)  # noqa: E731
            rows = {"latents": latents}
            lidar.sample(["a cat"], 2, 0, around=around, call=call, rows=rows, differentiable=climbs, decoded=False)
            return end

        z = noise(2, 4, 8, 8)
        found = end(z, climbs=True)
        torch.testing.assert_close(found.noise, z, rtol=0, atol=1e-12)
        for seed in range(2):
            v = noise(*z.shape, seed=10 + seed)
            up, down = (end(z + s * h * v, climbs=False).rewards for s in (1, -1))
            expected = (found.gradient * v).flatten(1).sum(1)
            torch.testing.assert_close((up - down) / (2 * h), expected, rtol=rtol, atol=rtol)

    @pytest.mark.parametrize("name", ["reno-1", "reno-1@3", "reno-1@dpm:1", "reno-1@own:2-unguided"])
    def test_its_first_iterate_is_the_few_step_sample(self, name):
        how = load(name)
        lidar = make(lookahead="dpm:2")
        plain = Vanilla(how.steps, how.solver) if "@" in name else load("vanilla@dpm:2")
        ours, theirs = (method.draw(lidar, PROMPTS, images=2, seed=1) for method in (how, plain))
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.latents, theirs.latents)

    @pytest.mark.parametrize("key", ["sd3", "flux", "sana-sprint", "wan", "cogvideox", "stable-audio-3"])
    def test_its_noise_comes_back_as_it_was_on_any_pipeline(self, key, monkeypatch):
        """At the rate 0 every iterate is the first one, also with scaled, packed and stochastic samplers."""
        pairs = []
        better = Iterate.or_better
        monkeypatch.setattr(Iterate, "or_better", lambda *pair: pairs.append(pair) or better(*pair))
        tiny = testing.PIPELINES[key]

        def level(*, images, prompts):
            return images.flatten(1).mean(1)

        level.modality = "video"
        lidar = LiDAR(tiny.make(), reward=level, steps=2, lookahead="own:2", pipe_kwargs=dict(tiny.call))
        load("reno-2:rate=0.0").draw(lidar, ["a cat"], images=2, seed=0)
        ((first, second),) = pairs
        torch.testing.assert_close(first.noise, second.noise, rtol=0, atol=1e-6)
        torch.testing.assert_close(first.result.latents, second.result.latents, rtol=0, atol=1e-5)
        assert first.gradient.norm() > 0

    def test_climbs_with_its_iterates_and_counts_them(self):
        lidar = make()
        runs = [load(f"reno-{n}@2:rate=50.0").draw(lidar, PROMPTS, images=2, seed=1) for n in (1, 2, 4)]
        rewards = torch.stack([lidar.judge(run).rewards["brightness"] for run in runs])
        assert (rewards.diff(dim=0) > 0).all()
        cost = runs[-1].cost["sampling"]
        assert cost.network_evaluations == 4 * 4 * 2 * 2
        assert cost.backward_passes == 4 * 3 * 2 * 2  # the last iterate climbs no more
        assert cost.decodes == cost.reward_calls == 4 * 4
        # The images are the latents as the pipeline decodes them.
        again = lidar.pipe.vae.decode(runs[-1].latents[0] / lidar.pipe.vae.config.scaling_factor).sample
        torch.testing.assert_close(runs[-1].images[0], (again / 2 + 0.5).clamp(0, 1).detach(), rtol=0, atol=1e-5)

    def test_keeps_the_best_iterate_of_each_image(self):
        """With too large a rate, the last iterate is not the best."""
        lidar = make()
        long, short = (
            load(f"reno-{n}@1:rate=1e4,penalty=1.0").draw(lidar, PROMPTS, images=2, seed=1) for n in (5, 1)
        )
        longer, shorter = (lidar.judge(run).rewards["brightness"] for run in (long, short))
        assert (longer >= shorter).all()

    def test_searches_do_not_see_each_other(self):
        how = ReNO(n=3, rate=50.0)
        both = how.draw(make(batch_size=3), PROMPTS, images=2, seed=1)
        one = how.draw(make(), PROMPTS[1:], images=1, seed=1)
        torch.testing.assert_close(one.images[0, 0], both.images[1, 0], rtol=0, atol=1e-4)

    def test_leaves_the_pipeline_as_it_was(self):
        lidar = make()
        lidar.pipe.unet.requires_grad_(True)
        scheduler = lidar.pipe.scheduler
        result = ReNO(n=2).draw(lidar, PROMPTS, images=1, seed=1)
        assert not result.images.requires_grad
        assert not result.latents.requires_grad
        assert all(p.requires_grad for p in lidar.pipe.unet.parameters())
        assert "prepare_latents" not in vars(lidar.pipe)
        assert lidar.pipe.scheduler is scheduler

    def test_refusals(self):
        with pytest.raises(ValueError, match="ReNO needs the gradient of the reward, and 'jpeg-compressibility'"):
            ReNO().draw(make(reward="jpeg-compressibility"), PROMPTS, images=1, seed=0)
        loose = Mixture({"slope": 1.0}, rewards=[slope])
        with pytest.raises(ValueError, match="give the mixture a calibration"):
            ReNO().draw(make(reward=loose), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
            ReNO(momentum=1.0)
        with pytest.raises(ValueError, match=r"dpm:1 brings steps of its own: leave out steps=2"):
            load("reno-3@dpm:1:steps=2")
        with pytest.raises(TypeError, match=r"such as solvers.load\('dpm:5'\), got 'dpm:5'"):
            ReNO(solver="dpm:5")
        with pytest.raises(TypeError, match=r"FLUX\.2 takes them in another shape"):
            ReNO().cost(LiDAR(testing.PIPELINES["flux-2"].make(), reward="brightness"), images=1)

    def test_a_reward_through_which_no_gradient_comes_is_told(self):
        def blind(*, images, prompts):
            return images.detach().mean((1, 2, 3))

        with pytest.raises(TypeError, match="no gradient of the reward reaches the latents"):
            ReNO(n=2).draw(make(reward=blind), PROMPTS, images=1, seed=0)
        assert ReNO(n=1).draw(make(reward=blind), PROMPTS, images=1, seed=0).images.isfinite().all()

    @pytest.mark.parametrize("method", [ReNO(n=2), UniversalGuidance(), FMRG()])
    def test_a_reward_that_is_not_one_number_an_image_is_told(self, method):
        """A mean over the batch has a gradient, and would let one image climb for the others."""

        def mean(*, images, prompts):
            return images.mean()

        with pytest.raises(RewardError, match=r"'mean' must return one number per image, \(2,\), got \(\)"):
            method.draw(make(reward=mean), PROMPTS, images=1, seed=0)

    @pytest.mark.parametrize("method", [ReNO(n=2), UniversalGuidance(), FMRG()])
    def test_a_reward_of_images_sees_the_frames_of_a_video(self, method):
        wan = testing.PIPELINES["wan"]
        lidar = LiDAR(wan.make(), reward="brightness", steps=2, lookahead="own:2", pipe_kwargs=dict(wan.call))
        assert method.draw(lidar, ["a cat"], images=1, seed=0).images.isfinite().all()

    def test_a_reward_that_is_no_number_is_told(self):
        def nothing(*, images, prompts):
            return images.mean((1, 2, 3)) * float("nan")

        with pytest.raises(RewardError, match="'nothing' returned nan"):
            ReNO(n=2).draw(make(reward=nothing), PROMPTS, images=1, seed=0)
