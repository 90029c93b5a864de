"""glyph: a small, real Stable Diffusion model that runs offline on a CPU.

It consists of a stock diffusers ``StableDiffusionPipeline`` that draws emoji scenes of 128 x 128 pixels for GenEval's
caption templates, two CLIP models (one to guide, one held out to judge), and a detector in the role of GenEval's
judge. The weights are those of ``lidar-sampling-glyph``, which ``pip install "lidar-sampling[glyph]"`` brings; the
prompts are here. How they were made: ``training/glyph`` in the repository; their licences: ``THIRD_PARTY.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._embedded import find_weights
from .._geneval import read_requirements, verdict
from .._media import check_batch
from .._quiet import quiet
from ._detector import Detector as Detector
from ._prompts import generate_hard_prompts as generate_hard_prompts
from ._prompts import generate_prompts as generate_prompts
from ._prompts import held_out_pairs as held_out_pairs
from ._prompts import prompts as prompts
from ._prompts import read_metadata as read_metadata
from ._prompts import spread as spread

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    DATA: Path

SIDE = 128  # side of a picture in pixels; the detector was trained on this size


def __getattr__(name: str) -> Any:
    if name == "DATA":  # asked for when it is used, since the weights may not be installed
        return find_weights("glyph")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@quiet()
def load_pipeline(*, dtype: torch.dtype = torch.float32) -> Any:
    """Load glyph's ``StableDiffusionPipeline`` with a ``DDIMScheduler`` (DDPM-like with ``eta=1``).

    It draws best with ``guidance_scale=3``; at 7.5 its five-step lookahead fails.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(find_weights("glyph") / "sd-glyph", dtype=dtype)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@quiet()
def load_tiny_decoder(*, dtype: torch.dtype = torch.float32) -> AutoencoderTiny:
    """Load a small decoder to replace glyph's autoencoder, for pictures that are only scored.

    It is a diffusers ``AutoencoderTiny``, distilled from the full decoder, and about five times faster on a CPU. Any
    pipeline of glyph takes it (``pipe.vae = load_tiny_decoder()``), since it reads latents (B, 4, 16, 16) as the
    scheduler has them and draws (B, 3, 128, 128) in [-1, 1]. How well it ranks: docs/results/preview.md.

    Its encoder was never trained: ``encode`` raises TypeError.

    Example:
        >>> load_tiny_decoder().decode(torch.zeros(1, 4, 16, 16)).sample.shape
        torch.Size([1, 3, 128, 128])
    """
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny.from_pretrained(find_weights("glyph") / "tiny-decoder", dtype=dtype)
    tiny.encoder.register_forward_pre_hook(_no_encoder)
    return tiny.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU


def _no_encoder(module: Any, arguments: Any) -> None:
    raise TypeError("glyph's tiny decoder has no trained encoder; encode with the vae of glyph.load_pipeline()")


class Judge:
    """GenEval's verdict as a metric: 1 if the detector finds what the prompt asks for, else 0.

    A prompt outside GenEval's templates has no verdict: NaN.
    """

    name = "geneval"
    differentiable = False
    reads_metadata = True

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        self.detector = Detector.from_pretrained(find_weights("glyph") / "detector").to(device)

    def check(self, prompts: Sequence[str | dict[str, Any]]) -> None:
        """Refuse metadata that cannot be judged.

        Raises:
            ValueError: the metadata is wrong; the message says how.
        """
        for prompt in prompts:
            read_requirements(prompt)

    def __call__(self, *, images: Tensor, prompts: Sequence[str | dict[str, Any]]) -> Tensor:
        """Judge images (B, 3, 128, 128) in [0, 1] by B prompts or GenEval metadata; return (B,) of 0, 1 or NaN.

        Raises:
            ValueError: images have another type, range or size, their number is not that of the prompts, or metadata
                cannot be judged.
        """
        check_batch(images, prompts)
        if images.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(
                f"glyph's detector judges pictures (B, 3, {SIDE}, {SIDE}), got {tuple(images.shape)}: "
                "judge others by the reward 'geneval'"
            )
        metadata = [read_requirements(prompt) for prompt in prompts]
        found = self.detector.detect(images)
        return torch.tensor(
            [
                float("nan")
                if wanted is None
                else float(
                    verdict(
                        objects,
                        wanted,
                        threshold=self.detector.threshold,
                        counting_threshold=self.detector.counting_threshold,
                    )
                )
                for objects, wanted in zip(found, metadata, strict=True)
            ]
        )
