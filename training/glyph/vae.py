"""Stage ``vae``: the autoencoder, 128 x 128 pixels to 4 x 16 x 16 latents."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .captions import training_pairs
from .draws import Draws
from .optim import Average, Schedule, adamw, train
from .output import Output, save_diffusers, size, write_json
from .render import Renderer, load_sprites
from .world import World

SCALE = 0.18215  # Stable Diffusion 1.5's scaling factor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the autoencoder."""

    schedule: Schedule
    kl_weight: float = 2e-4
    uncaptioned: float = 0.4
    ema: float = 0.998
    evaluated: int = 2048

    def smoke(self) -> Settings:
        """Return tiny settings."""
        return replace(self, schedule=replace(self.schedule, steps=3, batch=4), evaluated=8)


RECIPE = Settings(Schedule(steps=2347, batch=128, learning_rate=8e-4, warmup=200, floor=0.02))


def build() -> AutoencoderKL:
    """Return the untrained autoencoder: 2.73 million parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=SCALE,
    )


def load(output: Output, device: torch.device) -> AutoencoderKL:
    """Return the trained autoencoder, frozen; in bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae = AutoencoderKL.from_pretrained(output.need(output.vae, "vae"), dtype=dtype)
    return vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def run(output: Output, device: torch.device, settings: Settings) -> None:
    """Train the autoencoder and write it."""
    torch.manual_seed(0)  # seed of the initial weights
    vae = build().to(device, memory_format=torch.channels_last)
    log.info("autoencoder: %.2f million parameters", size(vae))
    noise = Draws(0, device)
    world = World(training_pairs(), Draws(1, device))
    renderer = Renderer(load_sprites(output.need(output.sprites, "sprites")), device)
    average = Average(vae, settings.ema)
    schedule = settings.schedule

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            images, _ = renderer(world.scenes(schedule.batch, uncaptioned=settings.uncaptioned))
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        return reconstruction_loss(vae, images, noise, settings.kl_weight)

    optimizer = adamw(vae.parameters(), schedule, betas=(0.9, 0.99), weight_decay=1e-3, device=device)
    seconds = train(loss, optimizer, schedule, device=device, log=log, after=lambda step: average.update(vae, step))
    trained = average.model.float().eval()

    def fresh(n: int) -> Tensor:
        return renderer(world.scenes(n))[0] * 2 - 1

    mean, std, psnr = measure(trained, fresh, noise, settings.evaluated)
    log.info("%.2f dB on fresh scenes; latents' mean %s, std %s", psnr, mean.tolist(), std.tolist())
    whiten(trained, mean, std)
    mean, std, folded_psnr = measure(trained, fresh, noise, settings.evaluated)
    log.info(
        "whitened: %.2f dB; scaled latents' mean %s, std %s",
        folded_psnr,
        (mean * SCALE).tolist(),
        (std * SCALE).tolist(),
    )
    save_diffusers(trained, output.vae)
    info = {"steps": schedule.steps, "bs": schedule.batch, "seconds": seconds, "psnr": psnr}
    write_json(output.vae / "train_info.json", info)


def reconstruction_loss(
    vae: AutoencoderKL, images: Tensor, noise: Draws, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return :func:`picture_loss` of the reconstruction + weighted KL; images are (B, 3, 128, 128) in [-1, 1]."""
    mean, log_variance = vae.quant_conv(vae.encoder(images)).float().chunk(2, 1)
    log_variance = log_variance.clamp(-20, 6)
    latents = mean + (0.5 * log_variance).exp() * noise.normal(*mean.shape)
    decoded = vae.decoder(vae.post_quant_conv(latents)).float()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    difference, info = picture_loss(decoded, images)
    return difference + kl_weight * kl, {**info, "kl": kl}


def picture_loss(decoded: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L1 + 2 MSE + 0.7 L1 of image gradients + 0.5 L1 of 4 x 4 means, for pictures (B, 3, H, W) in [-1, 1].

    The gradients keep edges sharp without a perceptual network.
    """
    l1, mse = F.l1_loss(decoded, images), F.mse_loss(decoded, images)
    edges = sum(F.l1_loss(decoded.diff(dim=d), images.diff(dim=d)) for d in (2, 3))
    coarse = F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(images, 4))
    return l1 + 2 * mse + 0.7 * edges + 0.5 * coarse, {"l1": l1, "mse": mse}


@torch.no_grad()
def measure(vae: AutoencoderKL, fresh: Callable[[int], Tensor], noise: Draws, n: int) -> tuple[Tensor, Tensor, float]:
    """Return mean and deviation (4,) of sampled latents, and the mean PSNR in dB, over ``n`` fresh images."""
    latents, errors = [], []
    for start in range(0, n, 256):
        images = fresh(min(256, n - start))
        latents.append(vae.encode(images).latent_dist.sample(generator=noise.generator))
        errors.append((vae.decode(latents[-1]).sample - images).square().mean((1, 2, 3)))
    channels = torch.cat(latents).transpose(0, 1).flatten(1)
    psnr = 10 * torch.log10(4 / torch.cat(errors))  # pixels span 2
    return channels.mean(1), channels.std(1), float(psnr.mean())


@torch.no_grad()
def whiten(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Fold an affine map of the latents into the autoencoder's inner convolutions, exactly.

    Afterwards ``SCALE`` times a latent has zero mean and unit deviation in each of the four channels, as the UNet
    needs, and a stock pipeline needs only Stable Diffusion's scaling factor.
    """
    scale = 1 / (std * SCALE)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    inward.weight[:4] *= scale.view(4, 1, 1, 1)
    inward.bias[:4] = (inward.bias[:4] - mean) * scale
    inward.bias[4:] += 2 * scale.log()  # the other four outputs are log variances
    outward.bias += (outward.weight[:, :, 0, 0] * mean).sum(1)
    outward.weight /= scale.view(1, 4, 1, 1)
