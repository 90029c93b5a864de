"""CycleReward (Bahng et al. 2025, https://arxiv.org/abs/2506.02095, https://github.com/hjbahng/cyclereward).

The score is ``h(c)``, where ``c`` is the first token of BLIP's BERT, as in ImageReward. ``h`` is five linear layers
with GELU between them (ImageReward has nothing between them), and the result is not normalised
(``cyclereward/model.py``). The variants Combo, I2T and T2I differ only in their weights.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ._blip_reward import BERT, BlipReward
from ._weights import Source, linear_head, name_with_source

CONTEXT = 128  # tokens per prompt, including [CLS] and [SEP]
RELEASE = "https://github.com/hjbahng/cyclereward/releases/download/v1.0.0/CycleReward-Combo.pth"


class CycleReward(BlipReward):
    """The match of image and text, learnt from comparisons: of two, which can better be turned back into the other.

    Args:
        model: a checkpoint of Combo, I2T or T2I, or the path of a checkpoint of the same layout and any size.
        tokenizer: a folder, hub id or published repository with the tokenizer of BERT.
        device: where the model runs.
        dtype: its precision; pixels and the head are float32.

    Raises:
        FileNotFoundError: the checkpoint or the tokenizer is neither on this machine nor reachable.
        ValueError: no checkpoint is given, or it holds another model.
    """

    called, context = "CycleReward", CONTEXT

    def __init__(
        self,
        model: Source | None,
        *,
        tokenizer: Source = BERT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not model:
            raise ValueError(f"CycleReward got no checkpoint: download {RELEASE} and give its path")
        variant = re.search("-(i2t|t2i)", str(getattr(model, "repo", "")).lower())
        self.name = name_with_source(f"cycle-reward{variant[0] if variant else ''}", model)
        super().__init__(model, _gelu_head, tokenizer=tokenizer, device=device, dtype=dtype)


def _gelu_head(weights: dict[str, Tensor]) -> nn.Sequential:
    """Return linear layers with GELU between them; every other N of ``layers.N`` is a GELU.

    Raises:
        ValueError: the numbers have other gaps, as in ImageReward's head, or weights are missing.
    """
    layers = list(linear_head(weights))
    numbers = sorted({int(name.split(".")[1]) for name in weights})
    if numbers != list(range(0, 2 * len(layers), 2)):
        raise ValueError(f"its head must have every other layer from 0, got {numbers}; is it ImageReward's?")
    return nn.Sequential(layers[0], *(step for layer in layers[1:] for step in (nn.GELU(), layer)))
