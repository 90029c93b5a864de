"""CycleReward (Bahng et al. 2025, https://arxiv.org/abs/2506.02095, https://github.com/hjbahng/cyclereward).

``h(c)``: ``c`` is the first token of BLIP's BERT, which reads the prompt and attends to the tokens of a ViT-L/16 in
every layer, as in ImageReward. ``h`` is five linear layers with GELU between them, where ImageReward has nothing
between them; and nothing is subtracted or divided afterwards (``cyclereward/model.py``). The variants Combo, I2T and
T2I differ in their weights alone. The checkpoint's ``vision_proj`` and ``text_proj`` serve BLIP's training and no
score.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ._blip import text_encoder, vision_encoder
from ._pixels import Preprocessing
from ._weights import Source, linear_head, load, name_of, state_dict, where
from .image_reward import BERT

_log = logging.getLogger(__name__)

CONTEXT = 128  # tokens of a prompt, two of them [CLS] and [SEP]
RELEASE = "https://github.com/hjbahng/cyclereward/releases/download/v1.0.0/CycleReward-Combo.pth"

_PARTS = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.|\.position_ids$")

# Kept outside the objects: their attributes decide their scores, and must be the same before and after the first.
_warned: WeakSet[CycleReward] = WeakSet()


class CycleReward:
    """How well image and text match, learnt from which of two can better be turned back into the other.

    Args:
        model: a checkpoint of Combo, I2T or T2I, or the path of one of the same layout and any size.
        tokenizer: a folder, hub id or published repository with the tokenizer of BERT.
        device: where the model runs.
        dtype: its precision; pixels and the head are float32.

    Raises:
        FileNotFoundError: checkpoint or tokenizer are neither here nor in reach.
        ValueError: no checkpoint is given, or it holds another model.
    """

    differentiable = True

    def __init__(
        self,
        model: Source | None,
        *,
        tokenizer: Source = BERT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoTokenizer

        if not model:
            raise ValueError(f"CycleReward got no checkpoint: download {RELEASE} and give its path")
        variant = re.search("-(i2t|t2i)", str(getattr(model, "repo", "")).lower())
        self.name = name_of(f"cycle-reward{variant[0] if variant else ''}", model)
        weights, origin = state_dict(model), where(model)[0]
        try:
            vision, text, head = _split(weights)
            self._vision = vision_encoder(vision, dtype).to(device)
            self._text = text_encoder(text, dtype, image_width=vision["cls_token"].shape[-1]).to(device)
            self._head = _gelu_head(head).to(device)
        except (KeyError, ValueError) as error:
            problem = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{origin} is no CycleReward checkpoint: {problem}") from None
        self.networks = [self._vision, self._text]
        self._tokenizer = load(AutoTokenizer.from_pretrained, tokenizer)
        self._tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        self._preprocessing = Preprocessing(self._vision.config.image_size)

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and B prompts to scores (B,) float32, on the model's device.

        Prompts beyond 128 tokens are truncated, as the original does; the first one is logged as a warning.
        """
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must be as many, got {len(images)} and {len(prompts)}")
        self._warn_of_truncation(prompts)
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        ).to(self._vision.device)
        pixels = self._preprocessing(images.to(self._vision.device)).to(self._vision.dtype)
        states = self._text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=self._vision(pixel_values=pixels).last_hidden_state,
            is_decoder=False,
        ).last_hidden_state
        scores: Tensor = self._head(states[:, 0].float()).squeeze(1)
        return scores

    def _warn_of_truncation(self, prompts: Sequence[str]) -> None:
        for prompt in () if self in _warned else dict.fromkeys(prompts):
            length = len(self._tokenizer(prompt)["input_ids"])
            if length > CONTEXT:
                _log.warning("CycleReward reads %d tokens and cuts the %d of %r", CONTEXT, length, prompt)
                _warned.add(self)
                return


def _split(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    """Return the weights of the vision encoder, the text encoder and the head, by their names in the checkpoint."""
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in _PARTS}
    for name, value in weights.items():
        if _UNUSED.search(name):
            continue
        prefix = next((prefix for prefix in _PARTS if name.startswith(prefix)), None)
        if prefix is None:
            raise ValueError(f"unknown weight {name}")
        parts[prefix][name.removeprefix(prefix)] = value
    for prefix, part in parts.items():
        if not part:
            raise ValueError(f"it has no {prefix}*")
    return tuple(parts.values())


def _gelu_head(weights: dict[str, Tensor]) -> nn.Sequential:
    """Return linear layers with GELU between them; every other N of ``layers.N`` is a GELU.

    Raises:
        ValueError: the numbers leave other gaps, as those of ImageReward's head do, or weights are missing.
    """
    layers = list(linear_head(weights))
    numbers = sorted({int(name.split(".")[1]) for name in weights})
    if numbers != list(range(0, 2 * len(layers), 2)):
        raise ValueError(f"its head must have every other layer from 0, got {numbers}; is it ImageReward's?")
    return nn.Sequential(layers[0], *(step for layer in layers[1:] for step in (nn.GELU(), layer)))
