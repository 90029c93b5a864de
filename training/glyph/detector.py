"""Stage ``detector``: the judge. It is trained on every combination of classes, held-out pairs included.

The objective is CenterNet's (https://arxiv.org/abs/1904.07850), a focal loss on heat maps with a Gaussian at
each centre and L1 on box and offset, and cross-entropy on the colour. The threshold is chosen on rendered
pictures.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lidar_sampling._geneval import CLASSES, Detection
from lidar_sampling.glyph import Detector

from . import vae as autoencoder
from .captions import all_pairs, metadata
from .draws import Draws
from .judging import best_threshold, judge
from .optim import Schedule, adamw, train
from .output import Output, size, write_json
from .pool import Batch, Pictures
from .render import Renderer, load_sprites
from .world import SLOTS, World

_STRIDE = 4  # pixels per cell
_SPREAD = 1.3  # deviation of a centre on the heat map, in cells

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the detector."""

    schedule: Schedule
    uncaptioned: float = 0.4
    pool: int = 80_000
    fresh: int = 64
    """New pictures per step, drawn every fourth step."""
    evaluated: int = 6144

    def smoke(self) -> Settings:
        """Return tiny settings."""
        return replace(self, schedule=replace(self.schedule, steps=3, batch=4), pool=16, fresh=1, evaluated=16)


RECIPE = Settings(Schedule(steps=685, batch=256, learning_rate=2e-3, warmup=300, floor=0.005, max_norm=5.0))


def run(output: Output, device: torch.device, settings: Settings) -> None:
    """Train the detector, choose its threshold, measure it and write it."""
    torch.manual_seed(5)  # seed of the initial weights
    model = Detector(CLASSES).to(device, memory_format=torch.channels_last).train()
    log.info("detector: %.2f million parameters", size(model))
    vae = autoencoder.load(output, device)
    renderer = Renderer(load_sprites(output.need(output.sprites, "sprites")), device)
    noise = Draws(5, device)
    world = World(all_pairs(), Draws(50, device))
    pool = Pictures(world, renderer, vae, noise, size=settings.pool, uncaptioned=settings.uncaptioned)
    schedule = settings.schedule

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step % 4 == 0:
            pool.refresh(min(4 * settings.fresh, settings.pool))
        batch = pool.sample(schedule.batch)
        return detection_loss(model, batch)

    optimizer = adamw(model.parameters(), schedule, betas=(0.9, 0.999), weight_decay=1e-2, device=device)
    seconds = train(loss, optimizer, schedule, device=device, log=log)
    model.save_pretrained(output.detector)
    model = Detector.from_pretrained(output.detector).to(device)  # measured as stored

    accuracy: dict[str, Any] = {}
    for name, share in (("rendered", 0.0), ("vae_reconstructed", 1.0)):
        unseen = World(all_pairs(), Draws(777, device))
        test = Pictures(unseen, renderer, vae, noise, size=settings.evaluated, reconstructed=share, latent_noise=0.0)
        found, wanted = detect(model, test)
        if name == "rendered":
            model.threshold = model.counting_threshold = best_threshold(found, wanted)
        accuracy |= {f"{name}{key}": figure for key, figure in judge(found, wanted, model.threshold).items()}
    log.info("threshold %.2f; share of pictures judged right: %s", model.threshold, accuracy)
    model.save_pretrained(output.detector)
    info = {"steps": schedule.steps, "bs": schedule.batch, "seconds": seconds}
    write_json(output.detector / "train_info.json", {**info, "accuracy": accuracy, "threshold": model.threshold})


def detection_loss(model: Detector, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return focal loss + 0.5 (L1 of log size + L1 of offset + cross-entropy of colour), per object."""
    logits, boxes, colors = (head.float() for head in model(_channels_last(batch.images)))
    corners = batch.boxes / _STRIDE
    centers = (corners[..., :2] + corners[..., 2:]) / 2
    shown = batch.present & (corners.sum(-1) > 0)
    cells = centers.floor().long().clamp(0, logits.shape[-1] - 1)
    heat = heat_maps(logits, cells, batch.classes, shown)

    probability = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    peak = heat >= 0.999
    hit = -((1 - probability) ** 2 * probability.log())[peak].sum()
    miss = -(probability**2 * (1 - heat) ** 4 * (1 - probability).log())[~peak].sum()

    row, slot = shown.nonzero(as_tuple=True)
    x, y = cells[row, slot].unbind(1)
    box = boxes[row, :, y, x]
    sides = (corners[..., 2:] - corners[..., :2]).clamp_min(0.5).log()[row, slot]
    offsets = (centers - cells - 0.5)[row, slot]
    size_error = (box[:, :2] - sides).abs().sum()
    offset_error = (box[:, 2:] - offsets).abs().sum()
    color_error = F.cross_entropy(colors[row, :, y, x], batch.colors[row, slot], reduction="sum")
    n = max(1, len(row))
    info = {"hit": hit / n, "miss": miss / n, "size": size_error / n, "color": color_error / n}
    return (hit + miss + 0.5 * (size_error + offset_error + color_error)) / n, info


def heat_maps(like: Tensor, cells: Tensor, classes: Tensor, shown: Tensor) -> Tensor:
    """Return targets (B, 80, 32, 32): a Gaussian around each shown object's cell (B, 4, 2), 1 at the cell itself."""
    heat = torch.zeros_like(like)
    line = torch.arange(like.shape[-1], device=like.device)
    for slot in range(SLOTS):  # one at a time: two objects of a class share a map
        row = shown[:, slot].nonzero()[:, 0]
        x, y = cells[row, slot].unbind(1)
        distance = (line - x[:, None]).square()[:, None, :] + (line - y[:, None]).square()[:, :, None]
        bump = (-distance / (2 * _SPREAD**2)).exp()
        heat[row, classes[row, slot]] = torch.maximum(heat[row, classes[row, slot]], bump)
    return heat


def detect(model: Detector, pictures: Pictures) -> tuple[list[list[Detection]], list[dict[str, Any]]]:
    """Return what the detector finds in each picture, and the metadata of its caption."""
    found, captions = [], []
    for batch in pictures.batches():
        found += model.detect(_channels_last(batch.images))
        captions += batch.attributes.captions().tolist()
    return found, [wanted for caption in captions if (wanted := metadata(caption))]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
