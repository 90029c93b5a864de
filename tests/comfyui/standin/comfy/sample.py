import math
from functools import partial
from itertools import pairwise

import torch


def fix_empty_latent_channels(model, latent):
    return latent


def prepare_noise(latent, seed):
    return torch.randn(latent.shape, generator=torch.manual_seed(seed))


def sample(
    model,
    noise,
    steps,
    cfg,
    sampler_name,
    scheduler,
    positive,
    negative,
    latent_image,
    *,
    noise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
):
    """Sample by Euler from the largest sigma, with the patches of the model."""
    sampling = model.model.model_sampling
    sigmas = sampling.steps(steps)

    def outer(noise, latent_image, sampler, sigmas, denoise_mask=None):
        x = sampling.noise_scaling(sigmas[0], noise, model.model.process_latent_in(latent_image))
        for k, (here, there) in enumerate(pairwise(sigmas)):
            args = {"input": x, "sigma": here.expand(len(x)), "model": model.model}
            args["denoised"] = model.model.denoised(x, here)
            for after in model.after_cfg:
                args["denoised"] = after(args)
            if callback:
                callback(k, args["denoised"], x, steps)
            x = args["denoised"] + there / here * (x - args["denoised"]) if here else x
        return model.model.process_latent_out(x)

    run = outer
    for wrapper in model.wrappers:
        run = partial(wrapper, run)
    return run(noise, latent_image, sampler_name, sigmas, noise_mask)


class Sampling:
    """The noise levels of an epsilon model, or of a flow model."""

    def __init__(self, flow):
        self.flow = flow
        self.sigma_max = torch.tensor(1.0 if flow else 14.6)

    def steps(self, count):
        if self.flow:
            return torch.linspace(1, 0, count + 1)
        return torch.cat([torch.linspace(math.log(14.6), math.log(0.03), count).exp(), torch.zeros(1)])

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + ((1 - sigma) * latent_image if self.flow else latent_image)

    def percent_to_sigma(self, percent):
        if percent <= 0:
            return 1.0 if self.flow else 999999999.9
        return 1.0 - percent if self.flow else 14.6 ** (1 - percent) - 1
