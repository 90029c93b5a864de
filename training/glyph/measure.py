"""Stage ``measure``: judge what the finished model draws without guidance, by the detector and both CLIPs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from lidar_sampling._geneval import verdict
from lidar_sampling.glyph import Detector, prompts
from lidar_sampling.rewards.clip import CLIPReward

from .clip import HELD_OUT, REWARD
from .judging import by_tag
from .output import Output, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings: every ``every``-th prompt of the shipped set, DDPM-like (DDIM with eta 1)."""

    every: int = 4
    steps: int = 50
    guidance_scale: float = 3.0
    batch: int = 16

    def smoke(self) -> Settings:
        """Return tiny settings."""
        return replace(self, every=100, steps=2)


RECIPE = Settings()


def run(output: Output, device: torch.device, settings: Settings) -> None:
    """Write ``measure.json``: the share of right pictures by tag and the mean rewards."""
    pipe = StableDiffusionPipeline.from_pretrained(output.need(output.pipeline / "unet", "unet").parent)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.to(device).set_progress_bar_config(disable=True)
    detector = Detector.from_pretrained(output.need(output.detector, "detector")).to(device)
    names = [REWARD.name, HELD_OUT.name]
    rewards = {name: CLIPReward(output.need(output.clip(name), name), device=device) for name in names}
    wanted = prompts()[:: settings.every]
    right: list[bool] = []
    totals = dict.fromkeys(names, 0.0)
    for start in range(0, len(wanted), settings.batch):
        lines = wanted[start : start + settings.batch]
        texts = [line["prompt"] for line in lines]
        images = pipe(
            texts,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            eta=1.0,
            generator=torch.Generator().manual_seed(start),
            output_type="pt",
        ).images.float()
        right += [
            verdict(
                found,
                line,
                threshold=detector.threshold,
                counting_threshold=detector.counting_threshold,
            )
            for found, line in zip(detector.detect(images), lines, strict=True)
        ]
        with torch.no_grad():
            for name, reward in rewards.items():
                totals[name] += float(reward(images=images, prompts=texts).sum())
        log.info("%d of %d prompts", len(right), len(wanted))
    result = {
        "images": len(right),
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "geneval": by_tag(right, wanted),
        **{name: total / len(right) for name, total in totals.items()},
    }
    write_json(output.root / "measure.json", result)
    log.info("%s", result)
