"""The result of sampling: the samples of every prompt, with their rewards, costs and settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ._bank import LookaheadBank
from ._cost import Cost
from ._guide import Trace
from ._media import save_sample, to_pil
from ._settings import Settings


@dataclass
class Result:
    """Samples of P prompts, m each, with their rewards, costs and settings.

    Attributes:
        prompts: the P prompts.
        images: pictures (P, m, 3, H, W) or videos (P, m, F, 3, H, W) in [0, 1], or audio (P, m, channels, S);
            float32, on the CPU.
        latents: (P, m, *), as the scheduler returned them, on the CPU.
        rewards: name -> (P, m): what guided first (each part of a mixture), then the metrics; NaN where a metric
            does not apply.
        cost: what each phase cost: ``lookahead``, ``sampling``, ``scoring``.
        seed: the seed.
        settings: how it was sampled.
        banks: the bank of each prompt; empty for vanilla samples.
        trace: what guidance did at each step, rows in the order of ``images``; empty for vanilla samples.
        sampling_rate: of audio, in Hz.
    """

    prompts: list[str]
    images: Tensor
    latents: Tensor
    rewards: dict[str, Tensor]
    cost: dict[str, Cost]
    seed: int
    settings: Settings
    banks: list[LookaheadBank] = field(default_factory=list)
    trace: Trace = field(default_factory=Trace)
    sampling_rate: int | None = None

    def pil(self) -> list[list[Any]]:
        """Return the images as PIL images, a list per prompt; a video is the list of its frames."""
        return [[to_pil(image) for image in row] for row in self.images]

    def split(self) -> list[Result]:
        """Return the result of each prompt alone; counts and seconds are shared evenly, rounded."""
        count, m = len(self.prompts), self.images.shape[1]
        cost = {phase: part.share(count) for phase, part in self.cost.items()}
        return [
            replace(
                self,
                prompts=[prompt],
                images=self.images[p : p + 1],
                latents=self.latents[p : p + 1],
                rewards={name: values[p : p + 1] for name, values in self.rewards.items()},
                cost=cost,
                banks=self.banks[p : p + 1],
                trace=self.trace.of(range(p * m, (p + 1) * m)),
            )
            for p, prompt in enumerate(self.prompts)
        ]

    def save(self, folder: str | Path) -> list[Path]:
        """Write every sample to ``folder`` as PROMPT-SAMPLE: ``.png``, ``.webp`` for a video, ``.wav`` for audio."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return [
            save_sample(sample, folder / f"{p:05d}-{k:04d}", sampling_rate=self.sampling_rate)
            for p, row in enumerate(self.images)
            for k, sample in enumerate(row)
        ]
