"""ImageReward v1.0 (Xu et al. 2023, https://arxiv.org/abs/2304.05977, https://github.com/THUDM/ImageReward).

``(h(c) - 0.167) / 1.033``: ``c`` is the first token of BLIP's BERT, which reads the prompt and attends to the tokens
of a ViT-L/16 in every layer, and ``h`` is five linear layers with nothing between them. The constants are those of
``ImageReward/ImageReward.py``. The checkpoint's ``vision_proj`` and ``text_proj`` serve BLIP's training and no score.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor

from .._hub import Published
from ._blip import text_encoder, vision_encoder
from ._pixels import Preprocessing
from ._weights import Source, linear_head, load, name_of, state_dict, where

_log = logging.getLogger(__name__)

BERT = Published("google-bert/bert-base-uncased", "Apache-2.0", revision="86b5e0934494bd15c9632b12f734a8a67f723594")
CONTEXT = 35  # tokens of a prompt, two of them [CLS] and [SEP]
MEAN, STD = 0.16717362830052426, 1.0333394966054072

_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.|\.position_ids$")

# Kept outside the objects: their attributes decide their scores, and must be the same before and after the first.
_warned: WeakSet[ImageReward] = WeakSet()


class ImageReward:
    """How much people would prefer an image for its prompt; -2.03 to .58 on the four images of its README.

    Args:
        model: the published checkpoint, or the path of one of the same layout and any size.
        tokenizer: a folder, hub id or published repository with the tokenizer of BERT.
        device: where the model runs.
        dtype: its precision; pixels and the head are float32.

    Raises:
        FileNotFoundError: checkpoint or tokenizer are neither here nor in reach.
        ValueError: the checkpoint holds another model.
    """

    differentiable = True

    def __init__(
        self,
        model: Source,
        *,
        tokenizer: Source = BERT,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoTokenizer

        self.name = name_of("image-reward", model)
        vision, text, head = _split(state_dict(model), where(model)[0])
        self._tokenizer = load(AutoTokenizer.from_pretrained, tokenizer)
        self._tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        self._vision = vision_encoder(vision, dtype).to(device)
        self._text = text_encoder(text, dtype, image_width=vision["cls_token"].shape[-1]).to(device)
        self.networks = [self._vision, self._text]
        self._head = linear_head(head).to(device)
        self._preprocessing = Preprocessing(self._vision.config.image_size)

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and B prompts to scores (B,) float32, on the model's device.

        Prompts beyond 35 tokens are truncated, as the original does; the first one is logged as a warning.
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
        return (self._head(states[:, 0].float()).squeeze(1) - MEAN) / STD

    def _warn_of_truncation(self, prompts: Sequence[str]) -> None:
        for prompt in () if self in _warned else dict.fromkeys(prompts):
            length = len(self._tokenizer(prompt)["input_ids"])
            if length > CONTEXT:
                _log.warning("ImageReward reads %d tokens and cuts the %d of %r", CONTEXT, length, prompt)
                _warned.add(self)
                return


def _split(weights: dict[str, Tensor], origin: str) -> tuple[dict[str, Tensor], ...]:
    """The weights of the vision encoder, the text encoder and the head, under their names in the checkpoint."""
    parts: dict[str, dict[str, Tensor]] = {"blip.visual_encoder.": {}, "blip.text_encoder.": {}, "mlp.": {}}
    for name, value in weights.items():
        if _UNUSED.search(name):
            continue
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is None:
            raise ValueError(f"{origin} is no ImageReward checkpoint: unknown weight {name}")
        parts[prefix][name.removeprefix(prefix)] = value
    if "layers.8.weight" in parts["mlp."]:  # with something between the layers
        raise ValueError(f"{origin} is a checkpoint of CycleReward: load it as cycle-reward:{origin}")
    for prefix, part in parts.items():
        if not part:
            raise ValueError(f"{origin} is no ImageReward checkpoint: it has no {prefix}*")
    return tuple(parts.values())
