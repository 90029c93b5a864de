"""Stage ``unet``: the denoiser and its text encoder, trained together, and the pipeline around them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import vae as autoencoder
from .captions import EMPTY, token_table, training_pairs
from .draws import Draws
from .optim import Average, Schedule, adamw, train
from .output import Output, save_diffusers, save_transformers, size, write_json
from .pool import Ring
from .render import Renderer, load_sprites
from .world import World

_WIDTH = 192  # width of the text encoder and of cross-attention
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the denoiser."""

    schedule: Schedule
    pool: int = 400_000
    fresh: int = 128
    """New latents per step, drawn every fourth step."""
    dropped: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    ema: float = 0.9995

    def smoke(self) -> Settings:
        """Return tiny settings."""
        return replace(self, schedule=replace(self.schedule, steps=3, batch=4), pool=16, fresh=1)


RECIPE = Settings(Schedule(steps=6007, batch=512, learning_rate=6e-4, warmup=500, floor=0.02, log_every=500))


def build(tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Return the untrained denoiser and text encoder: 13.31 and 1.53 million parameters."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 192, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=(3, 6, 6),
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=_WIDTH,
    )
    return unet, CLIPTextModel(text)


def run(output: Output, device: torch.device, settings: Settings) -> None:
    """Train denoiser and text encoder, and write the pipeline around them."""
    torch.manual_seed(1)  # seed of the initial weights
    tokenizer = CLIPTokenizer.from_pretrained(output.need(output.tokenizer, "tokenizer"))
    models = nn.ModuleList(build(tokenizer)).to(device).train()
    models[0].to(memory_format=torch.channels_last)
    log.info("UNet: %.2f million parameters, text encoder: %.2f", *map(size, models))
    noise = Draws(1, device)
    latents = Latents(output, device, noise, settings.pool)
    tokens = token_table(tokenizer).to(device)
    average = Average(models, settings.ema)
    alpha = DDIMScheduler(**_NOISE, clip_sample=False).alphas_cumprod.to(device)
    predict = torch.compile(models[0]) if device.type == "cuda" else models[0]
    schedule = settings.schedule

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step % 4 == 0:
            latents.refresh(min(4 * settings.fresh, settings.pool))
        x0, captions = latents.sample(schedule.batch)
        dropped = noise.uniform(len(x0)) < settings.dropped
        captions = torch.where(dropped, EMPTY, captions)
        t = noise.integers(len(alpha), len(x0))
        eps = noise.normal(*x0.shape)
        a = alpha[t].view(-1, 1, 1, 1)
        x_t = (a.sqrt() * x0 + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
        text = models[1](input_ids=tokens[captions].long()).last_hidden_state
        return F.mse_loss(predict(x_t, t, text).sample.float(), eps), {}

    optimizer = adamw(models.parameters(), schedule, betas=(0.9, 0.99), weight_decay=1e-2, device=device)
    seconds = train(
        loss, optimizer, schedule, device=device, log=log, after=lambda step: average.update(models, step)
    )
    save(output, *average.model, tokenizer)
    images = schedule.steps * schedule.batch
    info = {"steps": schedule.steps, "bs": schedule.batch, "seconds": seconds, "images": images}
    write_json(output.pipeline / "train_info.json", info)


class Latents:
    """A pool of ``size`` scaled latents (4, 16, 16) and their captions, held in half precision."""

    def __init__(self, output: Output, device: torch.device, noise: Draws, size: int) -> None:
        self._noise = noise
        self._vae = autoencoder.load(output, device)
        self._world = World(training_pairs(), Draws(2, device))
        self._renderer = Renderer(load_sprites(output.need(output.sprites, "sprites")), device)
        self._ring = Ring(size)
        for start in range(0, size, 1024):
            self.refresh(min(1024, size - start))

    @torch.no_grad()
    def refresh(self, n: int) -> None:
        """Replace the oldest ``n`` latents."""
        scenes = self._world.scenes(n)
        images = self._renderer(scenes)[0] * 2 - 1
        posterior = self._vae.encode(images.to(self._vae.dtype)).latent_dist
        std = (0.5 * posterior.logvar.float()).exp()
        latents = posterior.mean.float() + std * self._noise.normal(*std.shape)
        latents *= self._vae.config.scaling_factor
        self._ring.write(latents.half(), scenes.attributes.captions())

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Return latents (n, 4, 16, 16) float32 and caption indices (n,)."""
        latents, captions = self._ring.rows(self._noise.integers(self._ring.size, n))
        return latents.float(), captions


def save(output: Output, unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Write the missing parts of the pipeline; the tokenizer and the autoencoder are already there."""
    scheduler = PNDMScheduler(**_NOISE, skip_prk_steps=True)
    # Without it a DDIM scheduler made from this configuration clips the latents and draws blobs.
    scheduler.register_to_config(clip_sample=False)
    save_diffusers(unet, output.pipeline / "unet")
    save_transformers(text, output.pipeline / "text_encoder")
    scheduler.save_pretrained(output.pipeline / "scheduler")
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(output.vae),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_config(output.pipeline)
