"""The exact denoiser of a finite bank, in any parametrization, driving any scheduler.

The conversions are written out here on purpose and share nothing with ``lidar_sampling._levels``.
"""

import inspect
import math

import torch

from lidar_sampling import LookaheadBank, noise_level
from lidar_sampling._hooks import _apply, _step_of

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
STARTS = {"SCMScheduler": {"intermediate_timesteps": None}}  # by default it has only two steps


def start(scheduler, steps):
    """Set ``steps`` steps, with all other arguments that this scheduler needs."""
    steps += type(scheduler).__name__ == "MiniMaxH3Scheduler"  # it counts the clean end
    shift = {"mu": 0.7} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **STARTS.get(type(scheduler).__name__, {}), **shift)


def bank_of_four():
    samples = torch.randn(4, 16, generator=torch.Generator().manual_seed(3)) * 1.5
    return LookaheadBank(samples, {"r": torch.arange(4.0)}, "four")


def smooth_reward(bank):
    """Return a smooth reward of x0 (B, D) that has the members' rewards at the members of ``bank``."""
    return lambda x0: (-torch.cdist(x0, bank.samples).square() / 8).softmax(1) @ bank.reward()


def posterior_mean(x, bank, alpha, sigma):
    """Return E[x_0 | x_t] if x_0 is uniform over the bank."""
    distance = (x[:, None] - alpha * bank[None]).square().sum(-1)
    return (-distance / (2 * max(sigma, 1e-8) ** 2)).softmax(1) @ bank


def model_output(scheduler, x, bank, t):
    """Return the output of a perfect network for ``scheduler`` at ``t``."""
    alpha, sigma = noise_level(scheduler, t)[:2]
    return output_for(scheduler, x, posterior_mean(x, bank, alpha, sigma), alpha, sigma)


def output_for(scheduler, x, x0, alpha, sigma):
    """Return the model output that means ``x0`` if the sample is ``x``."""
    if type(scheduler).__name__ == "SCMScheduler":
        data = scheduler.config.sigma_data
        return (alpha / data * x - data * x0) / (max(sigma, 1e-8) / data)
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if "EDM" in type(scheduler).__name__ or "Cosine" in type(scheduler).__name__:
        data = scheduler.config.sigma_data
        skip, out = data**2 / (sigma**2 + data**2), sigma * data / math.hypot(sigma, data)
        return (x0 - skip * x) / (out if kind == "epsilon" else -out)
    eps = (x - alpha * x0) / max(sigma, 1e-8)
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if type(scheduler).__name__ == "DDPMWuerstchenScheduler":
        return eps
    if kind == "flow_prediction" and (
        scheduler.config.get("invert_sigmas") or type(scheduler).__name__ == "MiniMaxH3Scheduler"
    ):
        return x0 - eps  # d x / d t, where t counts the signal
    if kind == "flow_prediction" and alpha == 1 and sigma > 0:
        return eps  # d x / d sigma in EDM's levels, as pipelines of Cosmos 2 hand it over
    if kind == "flow_prediction":
        return eps - x0
    length = math.hypot(alpha, sigma)  # v lives in variance preserving coordinates
    return alpha / length * eps - sigma / length * x0


def sample(scheduler, bank, *, chains, steps, seed=0, dtype=torch.float32, differentiable=False, **extra):
    """Return endpoints (chains, D) of the scheduler with the exact denoiser of ``bank``.

    With ``differentiable`` the first sample is a leaf, as hooks with gradients expect; ``step`` gets ``extra``.
    """
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # CosineDPM and SDE samplers that take no generator
    start(scheduler, steps)
    data = scheduler.config.sigma_data if type(scheduler).__name__ == "SCMScheduler" else 1.0
    # Cosmos 2 multiplies by the sigma_max that it registers; other flows start at 1.
    scale = data * float(getattr(scheduler, "init_noise_sigma", scheduler.config.get("sigma_max") or 1.0))
    x = scale * torch.randn(chains, bank.shape[1], generator=g, dtype=dtype)
    parameters = inspect.signature(scheduler.step).parameters
    extra = {**extra, "generator": g} if "generator" in parameters else extra
    x.requires_grad_(differentiable)
    old = None
    arrives = type(scheduler).__name__ in ("SCMScheduler", "DDPMWuerstchenScheduler")  # at its last timestep
    for i, t in enumerate(scheduler.timesteps[: -1 if arrives else None]):
        t = t[None] if type(scheduler).__name__ == "DDPMWuerstchenScheduler" else t
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)  # some schedulers require it
        output = model_output(scheduler, x, bank, t)
        if "old_pred_original_sample" in parameters:
            back = scheduler.timesteps[i - 1] if i else None
            x, old = scheduler.step(output, old, t, back, x, **extra)
        else:
            x = scheduler.step(output, t, x, **extra)[0]
    return x / data


def shares(x, bank):
    """Return the fraction of endpoints nearest to each member of the bank."""
    return torch.bincount(torch.cdist(x, bank).argmin(1), minlength=len(bank)) / len(x)


def total_variation(p, q):
    return 0.5 * (p - q).abs().sum().item()


def make_perfect(pipe, bank):
    """Make ``pipe.unet`` the exact denoiser of ``bank`` (n, *), for a DDIM scheduler and guidance_scale 1."""

    def forward(sample, timestep, **kwargs):
        output = model_output(pipe.scheduler, sample.flatten(1), bank.flatten(1), timestep)
        return (output.view_as(sample),)

    pipe.unet.forward = forward


def before(hook, scheduler, output, x, timestep, *, index=0, total=1, **arguments):
    """Apply a hook to a step of a scheduler; return the step and the model output that the scheduler gets."""
    arguments = {"model_output": output, "sample": x, "timestep": timestep, **arguments}
    step = hook.before(_step_of(scheduler, arguments, index, total))
    _apply(step, arguments)
    return step, arguments["model_output"]


def output_of(step):
    """Return the model output that the scheduler gets for a step after its hooks."""
    arguments = {"model_output": step.output}
    _apply(step, arguments)
    return arguments["model_output"]
