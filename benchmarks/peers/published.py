"""The published LiDAR procedure, restated step by step: the incumbent.

Restated from the paper (Kim et al. 2026, https://arxiv.org/abs/2602.03211, algorithm 1 and equations 16-18) in the
style of the released sampler. It runs eagerly and decodes in big parts. Every image goes through PIL, which resizes
it, and is scored on its own. The bank stays on the CPU and is moved at each step. Guidance subtracts every member
from every sample, (B, n, D). The noise level is read from a timestep on the device at each step.
``tests/test_peers.py`` checks it against the library: the same bank, rewards and guided latents from the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from benchmarks.peers.clock import now
from lidar_sampling.rewards import Reward

UNTIL = 200  # of 1000; steps at larger timesteps are guided

Generators = torch.Generator | list[torch.Generator]


@dataclass(frozen=True)
class Plan:
    """The settings of sampling.

    Attributes:
        prompt: the prompt.
        images: number of samples to return.
        steps: DDIM steps per sample.
        n: number of lookahead samples.
        lookahead_steps: DPM-Solver++ steps per lookahead sample.
        karras: whether the lookahead uses the noise levels of Karras et al. 2022.
        guidance_scale: scale of classifier-free guidance.
        eta: noise of DDIM.
        scale: s.
        reward_scale: lambda.
        side: side of the reward's square input in pixels.
        lookahead_batch: lookahead samples at a time.
        decode_batch: images decoded at a time.
        decode_dtype: the precision of decoding; None is the pipeline's.
    """

    prompt: str
    images: int
    steps: int
    n: int
    lookahead_steps: int
    karras: bool
    guidance_scale: float
    eta: float
    scale: float
    reward_scale: float
    side: int
    lookahead_batch: int
    decode_batch: int
    decode_dtype: torch.dtype | None = None


@dataclass
class Drawn:
    """Images (B, 3, H, W) in [0, 1] and their latents, the bank with its rewards, and seconds by phase."""

    images: Tensor
    latents: Tensor
    bank: Tensor
    rewards: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def sample(pipe: Any, reward: Reward, plan: Plan, *, bank_noise: Generators, noise: Generators) -> Drawn:
    """Run both phases; the generators draw the noise of the bank and of the images, one for all or one each."""
    seconds: dict[str, float] = {}
    with _time(pipe, seconds, "lookahead"):
        bank = lookahead(pipe, plan, bank_noise).cpu()
    with _time(pipe, seconds, "bank decode"):
        pictures = decode(pipe, bank, plan)
    with _time(pipe, seconds, "reward"):
        rewards = scores(reward, pictures, plan)
    with _time(pipe, seconds, "guided loop"):
        latents = draw_guided(pipe, bank, rewards, plan, noise)
    with _time(pipe, seconds, "final decode"):
        images = decode(pipe, latents, plan).cpu()
    return Drawn(images, latents, bank, rewards, seconds)


def lookahead(pipe: Any, plan: Plan, noise: Generators) -> Tensor:
    """Return the bank's latents (n, *)."""
    solver: Any = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="linspace", thresholding=False, use_karras_sigmas=plan.karras
    )
    parts = []
    for start in range(0, plan.n, plan.lookahead_batch):
        chosen = slice(start, min(start + plan.lookahead_batch, plan.n))
        count = chosen.stop - start
        x = _noise(pipe, count, noise if isinstance(noise, torch.Generator) else noise[chosen])
        known = conditions(pipe, plan.prompt, count)
        solver.set_timesteps(plan.lookahead_steps, device=pipe.device)
        for t in solver.timesteps:
            x = solver.step(predict(pipe, x, t, known, plan.guidance_scale), t, x).prev_sample
        parts.append(x)
    return torch.cat(parts)


def decode(pipe: Any, latents: Tensor, plan: Plan) -> Tensor:
    """Return pictures (B, 3, H, W) float32 in [0, 1]."""
    vae, own = pipe.vae, pipe.vae.dtype
    if plan.decode_dtype:
        vae.to(plan.decode_dtype)
    scaled = latents.to(pipe.device, vae.dtype) / vae.config.scaling_factor
    decoded = torch.cat([vae.decode(part).sample for part in scaled.split(plan.decode_batch)])
    if plan.decode_dtype:
        vae.to(own)
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def scores(reward: Reward, pictures: Tensor, plan: Plan) -> Tensor:
    """Return rewards (n,) on the CPU, one picture after another through PIL."""
    values = []
    for picture in pictures:
        array = (picture * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        resized = Image.fromarray(array).resize((plan.side, plan.side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        values.append(float(reward(images=pixels.to(pictures.device), prompts=[plan.prompt])))
    return torch.tensor(values)


def draw_guided(pipe: Any, bank: Tensor, rewards: Tensor, plan: Plan, noise: Generators) -> Tensor:
    """Return guided latents (images, *), from a bank and rewards on the CPU."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(plan.steps, device=pipe.device)
    known = conditions(pipe, plan.prompt, plan.images)
    x = _noise(pipe, plan.images, noise)
    for t in scheduler.timesteps:
        output = predict(pipe, x, t, known, plan.guidance_scale)
        if t > UNTIL:
            alpha_bar = scheduler.alphas_cumprod[t].to(pipe.device)
            gradient = guidance(x, bank.to(pipe.device), rewards.to(pipe.device), alpha_bar, plan.reward_scale)
            output = (output - (1 - alpha_bar).sqrt() * plan.scale * gradient).to(output.dtype)
        x = scheduler.step(output, t, x, eta=plan.eta, generator=noise).prev_sample
    return x


def guidance(x: Tensor, bank: Tensor, rewards: Tensor, alpha_bar: Tensor, reward_scale: float) -> Tensor:
    """Return the gradient of the expected future reward at ``x`` (B, *), in float32 or better (equations 16-18)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    members = bank.flatten(1).to(dtype)
    differences = x.flatten(1).to(dtype)[:, None] - alpha_bar.sqrt() * members[None]  # (B, n, D)
    logits = -differences.square().sum(2) / (2 * (1 - alpha_bar))
    weights = (logits + reward_scale * rewards).softmax(1) - logits.softmax(1)
    return (alpha_bar.sqrt() / (1 - alpha_bar) * (weights @ members)).view(x.shape)


def predict(pipe: Any, x: Tensor, t: Tensor, known: dict[str, Any], guidance_scale: float) -> Tensor:
    """Return the noise prediction (B, *) after classifier-free guidance."""
    free, bound = pipe.unet(torch.cat([x, x]), t, **known).sample.chunk(2)
    return free + guidance_scale * (bound - free)


def conditions(pipe: Any, prompt: str, count: int) -> dict[str, Any]:
    """Return the network's inputs for the prompt: ``count`` unconditional rows, then as many conditional ones."""
    bound, free, *pooled = pipe.encode_prompt(
        prompt=prompt, device=pipe.device, num_images_per_prompt=count, do_classifier_free_guidance=True
    )
    known: dict[str, Any] = {"encoder_hidden_states": torch.cat([free, bound])}
    if pooled:  # SDXL
        side = pipe.default_sample_size * pipe.vae_scale_factor
        sizes = torch.tensor([side, side, 0, 0, side, side], dtype=bound.dtype, device=pipe.device)
        both = torch.cat([pooled[1], pooled[0]])
        known["added_cond_kwargs"] = {"text_embeds": both, "time_ids": sizes.expand(2 * count, -1)}
    return known


def _noise(pipe: Any, count: int, generators: Generators) -> Tensor:
    side = pipe.unet.config.sample_size
    shape = (count, pipe.unet.config.in_channels, side, side)
    return randn_tensor(shape, generator=generators, device=pipe.device, dtype=pipe.unet.dtype)


@contextmanager
def _time(pipe: Any, seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = now(pipe.device)
    yield
    seconds[phase] = now(pipe.device) - start
