"""The output of each stage, its inputs from earlier stages, and the storage of weights.

The folder has the layout of ``lidar_sampling.glyph.DATA``. Weights are stored in half precision to save space, but
every configuration says float32: transformers loads in the precision of the configuration, and a text encoder in half
precision fails beside a UNet in float32.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


class MissingError(RuntimeError):
    """A needed file does not exist; the message says how to make it."""


@dataclass(frozen=True)
class Output:
    """The folder for the output of the stages."""

    root: Path

    @property
    def sprites(self) -> Path:
        """The file of the glyphs of the 80 classes."""
        return self.root / "sprites.npz"

    @property
    def pipeline(self) -> Path:
        """The ``StableDiffusionPipeline``."""
        return self.root / "sd-glyph"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the pipeline, copied beside each CLIP."""
        return self.pipeline / "tokenizer"

    @property
    def vae(self) -> Path:
        """The autoencoder of the pipeline."""
        return self.pipeline / "vae"

    @property
    def tiny_decoder(self) -> Path:
        """The small decoder that can replace the autoencoder's."""
        return self.root / "tiny-decoder"

    @property
    def detector(self) -> Path:
        """The detector in the role of GenEval's judge."""
        return self.root / "detector"

    def clip(self, name: str) -> Path:
        """Return the folder of a CLIP model: ``reward-clip`` or ``heldout-clip``."""
        return self.root / name

    def need(self, path: Path, stage: str) -> Path:
        """Return ``path``, which ``stage`` makes.

        Raises:
            MissingError: it does not exist yet.
        """
        if not path.exists():
            raise MissingError(
                f"{path} does not exist; make it with: python -m training.glyph {stage} --out {self.root}"
            )
        return path


def save_transformers(model: Any, directory: Path) -> None:
    """Write a transformers model: weights in half precision, a configuration that says float32."""
    state = {name: tensor.half() for name, tensor in model.float().state_dict().items()}
    model.save_pretrained(directory, state_dict=state)


def save_diffusers(model: Any, directory: Path) -> None:
    """Write a diffusers model with half weights; its configuration names no precision."""
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    contiguous.half().save_pretrained(directory)


def copy_tokenizer(output: Output, directory: Path) -> None:
    """Put the tokenizer's files beside a model."""
    shutil.copytree(output.need(output.tokenizer, "tokenizer"), directory, dirs_exist_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def size(model: nn.Module) -> float:
    """Return the number of parameters in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6
