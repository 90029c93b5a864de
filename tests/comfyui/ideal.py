"""ComfyUI for tests of the pack: the checkout in COMFYUI_PATH if its packages are installed, else a stand-in.

Both have a MODEL that is the exact denoiser of a bank.
"""

import os
import sys
from pathlib import Path

import torch

COMFYUI = os.environ.get("COMFYUI_PATH")
SCALE = 0.5  # of the latent space of the ideal model

if COMFYUI:
    sys.path.append(COMFYUI)  # last, since it has a folder "tests" too
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
else:
    sys.path.insert(0, str(Path(__file__).parent / "standin"))


def posterior_mean(x, alpha, sigma, samples):
    """Return E[x_0 | x_t] (B, *) if x_0 is uniform over the samples (n, *)."""
    fall = -(x.flatten(1)[:, None] - alpha * samples.flatten(1)[None]).square().sum(-1) / (2 * sigma**2)
    return (fall.softmax(1) @ samples.flatten(1)).reshape(x.shape)


def _real(flow, samples):
    from comfy import model_base, model_patcher, supported_models_base

    class Ideal(model_base.BaseModel):
        def apply_model(self, x, t, *args, **kwargs):
            alpha = 1 - t[0] if flow else 1.0
            return posterior_mean(x, alpha, t[0].clamp_min(1e-6), self.process_latent_in(samples))

    config = supported_models_base.BASE({"disable_unet_model_creation": True})
    config.latent_format.scale_factor = SCALE
    model = Ideal(config, model_base.ModelType.FLOW if flow else model_base.ModelType.EPS)
    model.diffusion_model = torch.nn.Linear(1, 1)
    model.diffusion_model.dtype = torch.float32
    cpu = torch.device("cpu")
    return model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _standin(flow, samples):
    from comfy.sample import Sampling

    class LatentFormat:
        latent_channels = 4

    class Model:
        model_sampling = Sampling(flow)
        latent_format = LatentFormat()

        def process_latent_in(self, latent):
            return latent * SCALE

        def process_latent_out(self, latent):
            return latent / SCALE

        def denoised(self, x, sigma):
            alpha = 1 - sigma if flow else 1.0
            return posterior_mean(x, alpha, sigma.clamp_min(1e-6), self.process_latent_in(samples))

    class Patcher:
        load_device = "cpu"

        def __init__(self, after_cfg=(), wrappers=()):
            self.model, self.after_cfg, self.wrappers = Model(), [*after_cfg], [*wrappers]

        def clone(self):
            return Patcher(self.after_cfg, self.wrappers)

        def get_model_object(self, name):
            return getattr(self.model, name)

        def set_model_sampler_post_cfg_function(self, function):
            self.after_cfg.append(function)

        def add_wrapper_with_key(self, kind, key, wrapper):
            self.wrappers.append(wrapper)

    return Patcher()


def ideal_model(flow, samples):
    """Return the exact denoiser of LATENTs (n, *), as an epsilon or a flow model."""
    return (_real if COMFYUI else _standin)(flow, samples)
