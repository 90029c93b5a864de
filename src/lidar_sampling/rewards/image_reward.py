"""ImageReward v1.0 (Xu et al. 2023, https://arxiv.org/abs/2304.05977, https://github.com/THUDM/ImageReward).

The score is ``(h(c) - 0.167) / 1.033``, where ``c`` is the first token of BLIP's BERT, which reads the prompt and
attends to the tokens of a ViT-L/16 in every layer, and ``h`` is five linear layers with nothing between them. The
constants are those of ``ImageReward/ImageReward.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._blip_reward import BERT, BlipReward
from ._weights import Source, linear_head, name_with_source

CONTEXT = 35  # tokens per prompt, including [CLS] and [SEP]
MEAN, STD = 0.16717362830052426, 1.0333394966054072


class ImageReward(BlipReward):
    """Human preference of an image for its prompt; -2.03 to .58 on the four images of its README.

    Args:
        model: the published checkpoint, or the path of a checkpoint of the same layout and any size.
        tokenizer: a folder, hub id or published repository with the tokenizer of BERT.
        device: where the model runs.
        dtype: its precision; pixels and the head are float32.

    Raises:
        FileNotFoundError: the checkpoint or the tokenizer is neither on this machine nor reachable.
        ValueError: the checkpoint holds another model.
    """

    called, context = "ImageReward", CONTEXT

    def __init__(
        self,
        model: Source,
        *,
        tokenizer: Source = BERT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name_with_source("image-reward", model)
        super().__init__(model, _head, tokenizer=tokenizer, device=device, dtype=dtype)

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) float32 of images (B, 3, H, W) in [0, 1] and B prompts, on the model's device.

        Prompts longer than 35 tokens are truncated, as in the original; the first case logs a warning.
        """
        return (super().__call__(images=images, prompts=prompts) - MEAN) / STD


def _head(weights: dict[str, Tensor]) -> nn.Sequential:
    if "layers.8.weight" in weights:  # there is something between the layers
        raise ValueError("it is one of CycleReward: load it as cycle-reward:PATH")
    return linear_head(weights)
