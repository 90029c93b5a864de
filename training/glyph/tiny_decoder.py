"""Stage ``tiny-decoder``: a small decoder that imitates the autoencoder's, for pictures that are only scored.

It is to glyph what TAESD is to Stable Diffusion (https://github.com/madebyollin/taesd). It is trained to reproduce
the full decoder's pictures from latents of rendered scenes and of few-step samples, which banks hold.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from lidar_sampling import solvers
from lidar_sampling.glyph import prompts

from . import vae as autoencoder
from .captions import EMPTY, text, training_pairs
from .draws import Draws
from .optim import Average, Schedule, adamw, train
from .output import Output, save_diffusers, size, write_json
from .render import Renderer, load_sprites
from .vae import SCALE, picture_loss
from .world import World

_CHUNK = 32  # pictures at a time while the data is made

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the distillation."""

    schedule: Schedule
    rendered: int = 1536
    """Number of latents of rendered scenes."""
    sampled: int = 768
    """Number of few-step samples, one per caption."""
    evaluated: int = 64
    """Number of further ones of each, for measuring only."""
    solver: str = "dpm:5"
    guidance_scale: float = 3.0
    ema: float = 0.995

    def smoke(self) -> Settings:
        """Return tiny settings."""
        schedule = replace(self.schedule, steps=3, batch=4)
        return replace(self, schedule=schedule, rendered=8, sampled=4, evaluated=4, solver="dpm:2")


RECIPE = Settings(Schedule(steps=20000, batch=8, learning_rate=4e-3, warmup=50, floor=0.02, log_every=500))


def build() -> AutoencoderTiny:
    """Return the untrained decoder, with an encoder that stays untrained, since the class requires one.

    It takes latents as the scheduler has them. Its blocks work at 16 x 16 to 64 x 64, where they are cheap; none
    works at full size.
    """
    return AutoencoderTiny(
        encoder_block_out_channels=(1,) * 4,
        num_encoder_blocks=(0,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_decoder_blocks=(8, 8, 4, 0),
        scaling_factor=1.0,
    )


def run(output: Output, device: torch.device, settings: Settings) -> None:
    """Distil the decoder, measure it on latents it was not trained on, and write it."""
    torch.manual_seed(6)  # seed of the initial weights
    model = build().to(device, memory_format=torch.channels_last)
    log.info("tiny decoder: %.3f million parameters", size(model.decoder))
    vae = autoencoder.load(output, device)
    noise = Draws(6, device)
    world = World(training_pairs(), Draws(106, device))
    renderer = Renderer(load_sprites(output.need(output.sprites, "sprites")), device)
    rendered = render_latents(world, renderer, vae, noise, settings.rendered + settings.evaluated)
    sampled = sample_latents(output, world, settings, device)
    held_back = {"rendered": rendered[settings.rendered :], "sampled": sampled[settings.sampled :]}
    latents = torch.cat([rendered[: settings.rendered], sampled[: settings.sampled]])
    targets = (decode(vae, latents / SCALE) * 255).round().to(torch.uint8)
    log.info("%d latents and pictures", len(latents))
    average = Average(model, settings.ema)
    schedule = settings.schedule

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = noise.integers(len(latents), schedule.batch)
        wanted = targets[rows].float() / 127.5 - 1
        with torch.autocast(device.type, dtype=torch.bfloat16):  # on a CPU too: a third faster if it has bfloat16
            decoded = model.decoder(latents[rows])
        return picture_loss(decoded.float(), wanted)

    optimizer = adamw(model.decoder.parameters(), schedule, betas=(0.9, 0.99), weight_decay=1e-3, device=device)
    seconds = train(loss, optimizer, schedule, device=device, log=log, after=lambda step: average.update(model, step))
    trained = average.model.eval().half().float()  # as it will be stored
    info = {"steps": schedule.steps, "bs": schedule.batch, "seconds": seconds}
    for name, latents_of in held_back.items():
        info[f"psnr_{name}"] = psnr(decode(trained, latents_of), decode(vae, latents_of / SCALE))
        log.info("%.2f dB on %s latents", info[f"psnr_{name}"], name)
    save_diffusers(trained, output.tiny_decoder)
    config = json.loads((output.tiny_decoder / "config.json").read_text())
    del config["block_out_channels"]  # the class derives it, and would warn on reading it
    write_json(output.tiny_decoder / "config.json", config)
    write_json(output.tiny_decoder / "train_info.json", info)


@torch.no_grad()
def render_latents(world: World, renderer: Renderer, vae: AutoencoderKL, noise: Draws, n: int) -> Tensor:
    """Return latents (n, 4, 16, 16) of rendered scenes, as the scheduler has them."""
    latents = []
    for start in range(0, n, _CHUNK):
        images, _ = renderer(world.scenes(min(_CHUNK, n - start)))
        posterior = vae.encode((images * 2 - 1).to(vae.dtype)).latent_dist
        latents.append(posterior.sample(generator=noise.generator).float() * SCALE)
    return torch.cat(latents)


def sample_latents(output: Output, world: World, settings: Settings, device: torch.device) -> Tensor:
    """Return few-step samples (n, 4, 16, 16), one per caption, as the scheduler has them.

    Captions are those of training scenes, so they contain no held-out pair and no prompt of the shipped sets.
    """
    pipe = StableDiffusionPipeline.from_pretrained(output.need(output.pipeline / "unet", "unet").parent)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.to(device).set_progress_bar_config(disable=True)
    solver = solvers.load(settings.solver)
    texts = other_captions(world, settings.sampled + settings.evaluated)
    latents = []
    with solvers.use_solver(solver, pipe):
        for start in range(0, len(texts), _CHUNK):
            latents.append(
                pipe(
                    texts[start : start + _CHUNK],
                    guidance_scale=settings.guidance_scale,
                    num_inference_steps=solver.steps,
                    generator=torch.Generator().manual_seed(start),
                    output_type="latent",
                ).images.float()
            )
    return torch.cat(latents)


def other_captions(world: World, n: int) -> list[str]:
    """Return ``n`` captions of training scenes that are not among the shipped prompts."""
    shipped = {line["prompt"] for split in ("geneval", "hard") for line in prompts(split)}
    found: list[str] = []
    while len(found) < n:
        drawn = [text(index) for index in world.scenes(n).attributes.captions().tolist() if index != EMPTY]
        found += [caption for caption in drawn if caption not in shipped]
    return found[:n]


@torch.no_grad()
def decode(vae: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Return pictures (n, 3, 128, 128) in [0, 1] of latents in the autoencoder's own scale."""
    decoded = [vae.decode(part.to(vae.dtype)).sample.float() for part in latents.split(_CHUNK)]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def psnr(pictures: Tensor, references: Tensor) -> float:
    """Return the mean over pictures of the peak signal-to-noise ratio in dB; pixels span 1."""
    return float((-10 * torch.log10((pictures - references).square().mean((1, 2, 3)))).mean())
