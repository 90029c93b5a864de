"""A Gaussian mixture, whose tilted law can be sampled: LiDAR's error falls with n, gradient guidance is biased.

    python -m benchmarks.gaussian_mixture

Six modes in the plane, lambda = 2, DDPM in 100 steps with the exact denoiser, scale 1. Errors are energy distances
of 1,000 points to the exactly tilted law; the first row is their floor, between two exact sets of that size.
"""

from __future__ import annotations

import diffusers
import torch
from torch import Tensor

from lidar_sampling import LookaheadBank, guide

POINTS, STEPS, REWARD_SCALE = 1000, 100, 2.0
ANGLES = torch.arange(6) * torch.pi / 3
CENTRES = 3 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
SPREAD = 0.3

REWARDS = torch.tensor([0.0, 1.0, -1.0, 1.5, 0.5, -0.5])


def reward(x: Tensor) -> Tensor:
    """Return the reward of the nearest mode, smoothed so that it has a gradient."""
    return (-torch.cdist(x, CENTRES).square() / 2).softmax(1) @ REWARDS


def exact(n: int, generator: torch.Generator) -> Tensor:
    """Return samples (n, 2) of the mixture."""
    modes = torch.randint(6, (n,), generator=generator)
    return CENTRES[modes] + SPREAD * torch.randn(n, 2, generator=generator)


def draw_tilted(n: int, generator: torch.Generator) -> Tensor:
    """Return samples (n, 2) of the tilted law, by importance resampling."""
    pool = exact(50 * n, generator)
    weights = (REWARD_SCALE * reward(pool)).softmax(0)
    return pool[torch.multinomial(weights, n, replacement=True, generator=generator)]


def denoise(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return E[x_0 | x_t] of the mixture."""
    variance = alpha**2 * SPREAD**2 + sigma**2
    log_weights = -(x[:, None] - alpha * CENTRES).square().sum(-1) / (2 * variance)
    pulled = CENTRES + (alpha * SPREAD**2 / variance) * (x[:, None] - alpha * CENTRES)
    return (log_weights.softmax(1)[..., None] * pulled).sum(1)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return the energy distance (Szekely and Rizzo 2013) of two sets; 0 in expectation only for equal laws."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def draw(*, bank: LookaheadBank | None = None, tweedie: float = 0.0, seed: int = 0) -> Tensor:
    """Return DDPM samples (POINTS, 2): plain, guided by a bank, or by the gradient of the reward of E[x_0 | x_t]."""
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(POINTS, 2, generator=g)

    def run(x: Tensor) -> Tensor:
        for t in scheduler.timesteps:
            signal = scheduler.alphas_cumprod[t]
            alpha, sigma = signal.sqrt().item(), (1 - signal).sqrt().item()
            x0 = denoise(x, alpha, sigma)
            if tweedie:
                with torch.enable_grad():
                    leaf = x.clone().requires_grad_()
                    total = reward(denoise(leaf, alpha, sigma)).sum()
                    score = torch.autograd.grad(REWARD_SCALE * tweedie * total, leaf)[0]
                x0 = x0 + sigma**2 / alpha * score
            x = scheduler.step((x - alpha * x0) / sigma, t, x, generator=g)[0]
        return x

    if bank is None:
        return run(x)
    with guide(scheduler, bank, scale=1.0, reward_scale=REWARD_SCALE, window=(1.0, 0.0)):
        return run(x)


def error_of_banks(n: int, count: int, target: Tensor, generator: torch.Generator) -> list[float]:
    """Return the errors of ``count`` banks of ``n`` exact samples."""
    errors = []
    for _ in range(count):
        samples = exact(n, generator)
        bank = LookaheadBank(samples, {"mode": reward(samples)}, "mixture")
        errors.append(energy_distance(draw(bank=bank), target))
    return errors


def main() -> None:
    """Measure, and print the table."""
    generator = torch.Generator().manual_seed(1)
    target = draw_tilted(POINTS, generator)
    rows = [("two exact sets", [energy_distance(draw_tilted(POINTS, generator), target) for _ in range(8)])]
    rows.append(("vanilla", [energy_distance(draw(seed=s), target) for s in range(4)]))
    for scale in (0.25, 0.5, 1.0, 2.0):
        errors = [energy_distance(draw(tweedie=scale, seed=s), target) for s in range(4)]
        rows.append((f"gradient guidance, scale {scale}", errors))
    for n, count in ((10, 8), (50, 8), (200, 8), (1000, 4), (5000, 2), (20_000, 1)):
        rows.append((f"LiDAR, n = {n}", error_of_banks(n, count, target, generator)))
    print("| method | mean energy distance | lowest | highest | runs |\n|---|---|---|---|---|")
    for name, errors in rows:
        mean = sum(errors) / len(errors)
        print(f"| {name} | {mean:.4f} | {min(errors):.4f} | {max(errors):.4f} | {len(errors)} |")


if __name__ == "__main__":
    main()
