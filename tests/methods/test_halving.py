"""Successive halving continues with the seeds that look best, and pays only for those."""

import diffusers
import pytest
import torch
from oracle import SD, bank_of_four, model_output
from tiny_lidar import PROMPTS, make

from lidar_sampling import LiDAR, testing
from lidar_sampling._decode import decode
from lidar_sampling._hooks import Hook, Segment, attach
from lidar_sampling.methods import Halving
from lidar_sampling.methods._segments import run_part


class TestHalving:
    @pytest.mark.parametrize("make_pipe", [testing.tiny_stable_diffusion, testing.tiny_stable_diffusion_xl])
    def test_segments_join_to_the_whole(self, make_pipe):
        """For a deterministic sampler, three segments one after another are the whole run."""
        lidar = make(make_pipe=make_pipe, steps=6, eta=0.0)
        whole = lidar.sample(PROMPTS, 2, 1)
        latents = None
        for k in range(3):  # steps 0 and 1, 2 to 4, and the last
            rows = {} if latents is None else {"latents": latents}
            with attach(lidar.pipe.scheduler, Segment((1 / 3, 5 / 6), k)):
                part = lidar.sample(PROMPTS, 2, 1, rows=rows, decoded=k == 2)
            latents = part.latents.flatten(0, 1)
        torch.testing.assert_close(part.images, whole.images, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "times"),
        [
            ("DDIMScheduler", None),
            ("DDPMScheduler", None),
            ("DDPMScheduler", [900, 760, 640, 400, 220, 80]),
            ("LCMScheduler", None),
            ("LCMScheduler", [899, 779, 659, 419, 239, 99]),  # among those that it was distilled at
            ("TCDScheduler", None),
            ("TCDScheduler", [900, 760, 640, 400, 220, 80]),
        ],
    )
    def test_segments_join_to_the_whole_of_every_scheduler(self, name, times):
        """This holds with one stream of noise, also for schedulers that look up the next timestep."""
        bank = bank_of_four().samples

        def run(*hooks):
            scheduler = getattr(diffusers, name)(**SD, clip_sample=False)
            g = torch.Generator().manual_seed(0)
            x, taken = torch.randn(8, 16, generator=g), []
            for hook in hooks:
                with attach(scheduler, hook):
                    scheduler.set_timesteps(**({"timesteps": times} if times else {"num_inference_steps": 6}))
                    for t in scheduler.timesteps:
                        taken.append(int(t))
                        output = model_output(scheduler, x, bank, t)
                        x = scheduler.step(output, t, x, generator=g)[0]
            return x, taken

        whole, steps = run(Hook())
        parts, joined = run(*(Segment((1 / 3, 5 / 6), k) for k in range(3)))
        assert joined == steps
        torch.testing.assert_close(parts, whole)

    @pytest.mark.parametrize(
        "name", ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep"]
    )
    def test_parts_join_to_the_whole_of_schedulers_whose_steps_a_noise_replaces(self, name):
        """Some schedulers scale their starting noise, and the network's input by the number of the step."""
        lidar = make(f"{name}Scheduler", steps=6, noise="ddpm:0")
        whole, part = lidar.sample(PROMPTS, 2, 1), None
        for k in range(3):
            latents = None if part is None else part.latents
            part, _ = run_part(lidar, PROMPTS, 2, 1, (1 / 3, 5 / 6), k, steps=None, latents=latents)
        torch.testing.assert_close(part.images, whole.images, rtol=0, atol=1e-5)

    def test_a_batch_that_runs_out_of_memory_on_its_way_leaves_no_trace(self):
        calls = []

        def too_large(module, args):
            calls.append(len(args[0]))
            if calls[-1] > 4 and len(calls) > 1:  # its first step already has a prediction
                raise torch.OutOfMemoryError("too large")

        plain = Halving(n=4, keep_at=(0.5,)).draw(make(), PROMPTS, images=2, seed=1)
        tight = make()
        tight.pipe.unet.register_forward_pre_hook(too_large)
        result = Halving(n=4, keep_at=(0.5,)).draw(tight, PROMPTS, images=2, seed=1)
        torch.testing.assert_close(result.images, plain.images, rtol=0, atol=1e-4)

    def test_seeds_of_a_flow_model_with_memory_go_on_without_it(self):
        """Wan's scheduler remembers earlier steps, so survivors are samples of the deterministic step instead."""
        tiny = testing.PIPELINES["wan"]
        lidar = LiDAR(tiny.make(), reward=testing.brightness, steps=6, pipe_kwargs=dict(tiny.call))
        halved = Halving(n=4, keep_at=(0.5,)).draw(lidar, PROMPTS, images=2, seed=1)
        whole = lidar.with_settings(noise="ddpm:0").sample(PROMPTS, 4, 1)
        for row in range(2):
            apart = (halved.images[row, :, None] - whole.images[row]).flatten(2).abs().amax(2)
            assert apart.amin(1).max() < 1e-4

    def test_keeps_the_seeds_that_look_best(self):
        """For a deterministic sampler, the survivors are the whole samples with the best predictions."""
        lidar = make(steps=4, eta=0.0)
        halved = Halving(n=8, keep_at=(0.5,)).draw(lidar, PROMPTS, images=4, seed=1)
        whole = lidar.sample(PROMPTS, 8, 1)
        hook = Segment((0.5,), 0)
        with attach(lidar.pipe.scheduler, hook):
            lidar.sample(PROMPTS, 8, 1, decoded=False)
        looks = testing.brightness(images=decode(lidar.pipe, hook.x0), prompts=[]).view(2, 8)
        kept = looks.argsort(1, descending=True)[:, :4]
        for row in range(2):
            survivors = whole.images[row, kept[row]]
            order = survivors.flatten(1).mean(1).argsort(descending=True)
            torch.testing.assert_close(halved.images[row], survivors[order], rtol=0, atol=1e-4)

    def test_costs_what_is_left_of_the_seeds(self):
        lidar = make(steps=8)
        result = Halving(n=8, keep_at=(0.25, 0.5)).draw(lidar, PROMPTS, images=2, seed=1)
        cost = result.cost["sampling"]
        assert cost.network_evaluations == 2 * (8 * 2 + 4 * 2 + 2 * 4) * 2
        assert cost.reward_calls == 2 * (8 + 4 + 2)
        assert cost.decodes == 2 * (8 + 4 + 2)
        judged, plain = lidar.judge(result), lidar.vanilla(PROMPTS, images=8, seed=1)
        assert judged.rewards["brightness"].mean() > plain.rewards["brightness"].mean()
        assert type(lidar.pipe.scheduler) is diffusers.DDIMScheduler

    def test_refusals(self):
        with pytest.raises(ValueError, match="1 to the 2 that reach the end, got 3"):
            Halving(n=8).draw(make(), PROMPTS, images=3, seed=0)
        with pytest.raises(ValueError, match="rising fractions that differ in 5 steps"):
            Halving(n=8, keep_at=(0.45, 0.5)).draw(make(), PROMPTS, images=1, seed=0)
        with pytest.raises(ValueError, match="EulerDiscreteScheduler would not follow"):
            Halving(n=8).draw(make("EulerDiscreteScheduler"), PROMPTS, images=1, seed=0)
