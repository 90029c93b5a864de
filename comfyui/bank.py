"""Banks in ComfyUI, whose samples are LATENTs; banks drawn by diffusers are converted if possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from lidar_sampling import BankError, LookaheadBank
from lidar_sampling._batches import run_batches
from lidar_sampling._space import Space

# Pipelines of diffusers whose latents have ComfyUI's layout; other pipelines pack theirs.
_FORMATS = {
    "StableDiffusionPipeline": "SD15",
    "StableDiffusionXLPipeline": "SDXL",
    "StableDiffusion3Pipeline": "SD3",
}


def space_of(model: Any, shape: tuple[int, ...]) -> Space:
    """Return the latent space of a MODEL for samples of this shape; models with the same VAE share it."""
    return Space(f"ComfyUI {type(model.get_model_object('latent_format')).__name__}", tuple(shape))


def check_space(bank: LookaheadBank, model: Any) -> None:
    """Refuse a bank from another latent space than the MODEL's.

    Raises:
        BankError: the bank is from another space.
    """
    if bank.space is not None and (why := bank.space.difference(space_of(model, bank.space.shape))):
        raise BankError(
            f"the bank was drawn in another latent space than the model's, {why}: draw it with this model"
        )


def draw_bank(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    *,
    prompt: str,
    n: int,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    batch: int,
) -> LookaheadBank:
    """Draw a bank of n samples in a few steps each.

    Args:
        model: MODEL.
        positive: CONDITIONING.
        negative: CONDITIONING.
        latent: LATENT; its first entry gives the size of a sample.
        prompt: the prompt for rewards.
        n: number of samples.
        seed: seed of their starting noise, which does not depend on the batch; noise that a sampler adds later does.
        steps: steps per sample.
        cfg: scale of classifier-free guidance.
        sampler_name: ComfyUI's name.
        scheduler: ComfyUI's name.
        batch: samples at a time, halved when memory runs out.

    Raises:
        ValueError: the latent has a mask.
        BankError: samples are not finite, or the prompt is empty.
    """
    if "noise_mask" in latent:
        raise ValueError("a bank holds whole pictures, and this latent has a mask: remove the mask")
    if not prompt.strip():
        raise BankError("prompt is empty: give the text for rewards, which is that of the positive prompt")
    empty = comfy.sample.fix_empty_latent_channels(model, latent["samples"][:1])
    noise = comfy.sample.prepare_noise(empty.repeat_interleave(n, 0), seed)
    told = _progress(model, n * steps)

    def some(rows: Sequence[int]) -> Tensor:
        return comfy.sample.sample(
            model,
            noise[rows[0] : rows[-1] + 1],
            steps,
            cfg,
            sampler_name,
            scheduler,
            positive,
            negative,
            empty.repeat_interleave(len(rows), 0),
            callback=told(rows, steps),
            disable_pbar=True,
            seed=seed + rows[0],
        )

    samples = torch.cat([*run_batches(range(n), batch, some)])
    how = {"seed": seed, "steps": steps, "cfg": cfg, "sampler": sampler_name, "scheduler": scheduler, "n": n}
    return LookaheadBank(samples.cpu(), {}, prompt, space_of(model, samples.shape[1:]), {"ComfyUI": how})


def _progress(model: Any, total: int) -> Callable[[Sequence[int], int], Callable[..., None]]:
    """Return a function that makes a batch's callback: progress over the bank, with a preview of the first sample."""
    bar = comfy.utils.ProgressBar(total)
    previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))

    def of(rows: Sequence[int], steps: int) -> Callable[..., None]:
        def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
            picture = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            done = rows[0] * steps + len(rows) * (step + 1) * steps // total_steps
            bar.update_absolute(done, total, picture)

        return callback

    return of


def load_bank(path: str | Path) -> LookaheadBank:
    """Read a bank that ComfyUI saved, or that was drawn with diffusers' SD, SDXL or SD 3.

    Raises:
        BankError: it is not a bank, or its pipeline packs latents differently.
    """
    bank = LookaheadBank.load(path)
    if bank.space is None or bank.space.pipeline.startswith("ComfyUI "):
        return bank
    found = _FORMATS.get(bank.space.pipeline)
    if found is None or not bank.space.fingerprint:
        raise BankError(
            f"{Path(path).name} was drawn by diffusers' {bank.space.pipeline}, whose latents are not ComfyUI's: draw "
            "the bank here"
        )
    scaling, offset, *_ = bank.space.fingerprint
    return replace(
        bank,
        samples=bank.samples.float() / scaling + offset,
        space=Space(f"ComfyUI {found}", bank.space.shape),
    )
