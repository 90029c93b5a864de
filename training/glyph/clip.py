"""Stages ``reward-clip`` and ``heldout-clip``: two CLIP models, one that guides and one that only judges.

They differ in size, seed, learning rate and augmentation; :mod:`.contrastive` has their objective.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from . import vae as autoencoder
from .augment import augment
from .captions import held_out_pairs, token_table, training_pairs
from .contrastive import beats, contrastive_loss, hard_negative_accuracy, similarities
from .draws import Draws
from .negatives import hard_negatives
from .optim import Average, Schedule, adamw, train
from .output import Output, copy_tokenizer, save_transformers, size, write_json
from .pool import Pictures
from .render import Renderer, load_sprites
from .world import World

_LONGEST = 16  # tokens: no caption is longer, so training leaves out the padding beyond
_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "CLIPProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 128},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 128, "width": 128},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of a CLIP; widths and layers are first for the images, then for the text."""

    name: str
    seed: int
    width: int
    layers: int
    heads: int
    text_width: int
    text_layers: int
    projection: int
    augmentation: float
    schedule: Schedule
    negatives: int = 6
    pool: int = 80_000
    fresh: int = 64
    """New pictures per step, drawn every fourth step."""
    ema: float = 0.998
    evaluated: int = 2048

    def smoke(self) -> Settings:
        """Return tiny settings."""
        schedule = replace(self.schedule, steps=3, batch=4)
        return replace(self, schedule=schedule, pool=16, fresh=1, evaluated=16)


REWARD = Settings(
    name="reward-clip",
    seed=3,
    width=224,
    layers=6,
    heads=7,
    text_width=128,
    text_layers=3,
    projection=192,
    augmentation=0.2,
    schedule=Schedule(steps=2724, batch=512, learning_rate=8e-4, warmup=400, floor=0.01),
)
HELD_OUT = Settings(
    name="heldout-clip",
    seed=4,
    width=192,
    layers=8,
    heads=6,
    text_width=160,
    text_layers=3,
    projection=256,
    augmentation=0.6,
    schedule=Schedule(steps=2449, batch=512, learning_rate=7e-4, warmup=400, floor=0.01),
)


def build(settings: Settings, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return the untrained model: about four million parameters."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": settings.projection,
    }
    vision = {
        "image_size": 128,
        "patch_size": 16,
        "hidden_size": settings.width,
        "intermediate_size": 3 * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "projection_dim": settings.projection,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=settings.projection,
            logit_scale_init_value=math.log(14),
        )
    )


def run(output: Output, device: torch.device, settings: Settings) -> None:
    """Train one CLIP, measure it on training and held-out pairs, and write it."""
    torch.manual_seed(settings.seed)  # seed of the initial weights
    tokenizer = CLIPTokenizer.from_pretrained(output.need(output.tokenizer, "tokenizer"))
    model = build(settings, tokenizer).to(device).train()
    log.info("%s: %.2f million parameters", settings.name, size(model))
    tokens = token_table(tokenizer)[:, :_LONGEST].to(device)
    vae = autoencoder.load(output, device)
    renderer = Renderer(load_sprites(output.need(output.sprites, "sprites")), device)
    noise = Draws(settings.seed, device)
    world = World(training_pairs(), Draws(100 + settings.seed, device))
    pool = Pictures(world, renderer, vae, noise, size=settings.pool)
    average = Average(model, settings.ema)
    schedule = settings.schedule

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step % 4 == 0:
            pool.refresh(min(4 * settings.fresh, settings.pool))
        batch = pool.sample(schedule.batch)
        batch = batch._replace(images=augment(batch.images, settings.augmentation, noise))
        negatives = hard_negatives(batch.attributes, world.draws, settings.negatives)
        among, beside = similarities(model, batch, negatives, tokens)
        info = {"hard": beats(among, beside).float().mean(), "scale": model.logit_scale.exp()}
        return contrastive_loss(among, beside), info

    optimizer = adamw(
        model.parameters(),
        schedule,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        device=device,
        decay_vectors=False,
    )
    seconds = train(loss, optimizer, schedule, device=device, log=log, after=lambda step: average.update(model, step))
    trained = average.model.eval().half().float()  # as it will be stored
    accuracy = {}
    for name, pairs in (("trainpairs", training_pairs()), ("heldoutpairs", held_out_pairs())):
        unseen = World(pairs, Draws(999, device))
        test = Pictures(unseen, renderer, vae, noise, size=settings.evaluated, reconstructed=0.5, latent_noise=0.0)
        accuracy[name] = hard_negative_accuracy(trained, test, unseen.draws, tokens)
    log.info("share of pictures whose caption beats all eight hard negatives: %s", accuracy)
    directory = output.clip(settings.name)
    save_transformers(trained, directory)
    copy_tokenizer(output, directory)
    write_json(directory / "preprocessor_config.json", _PREPROCESSOR)
    info = {"steps": schedule.steps, "bs": schedule.batch, "seconds": seconds}
    write_json(directory / "train_info.json", {**info, "hard_negative_accuracy": accuracy})
