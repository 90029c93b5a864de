"""The base of ImageReward and CycleReward: a head on the first token of BLIP's BERT, which sees an image.

BERT reads the prompt and attends to the tokens of a ViT in every layer. The checkpoint's ``vision_proj`` and
``text_proj`` serve only BLIP's training, not the score.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .._hub import Published
from ._blip import text_encoder, vision_encoder
from ._pixels import Preprocessing
from ._weights import Source, load_pretrained, state_dict, where

_log = logging.getLogger(__name__)

BERT = Published("google-bert/bert-base-uncased", "Apache-2.0", revision="86b5e0934494bd15c9632b12f734a8a67f723594")

_PARTS = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
_UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.|\.position_ids$")

# Kept outside the objects: their attributes are their fingerprint and must not change with the first score.
_warned: WeakSet[BlipReward] = WeakSet()


class BlipReward:
    """A score of an image and its prompt by BLIP and a head.

    Args:
        model: the published checkpoint, or the path of a checkpoint of the same layout and any size.
        make_head: makes the head, in float32, from its weights; raises ValueError for weights of another head.
        tokenizer: a folder, hub id or published repository with the tokenizer of BERT.
        device: where the model runs.
        dtype: its precision; pixels and the head are float32.

    Raises:
        FileNotFoundError: the checkpoint or the tokenizer is neither on this machine nor reachable.
        ValueError: the checkpoint holds another model.
    """

    called: ClassVar[str]  # name of the reward in messages
    context: ClassVar[int]  # tokens per prompt, including [CLS] and [SEP]
    differentiable = True

    def __init__(
        self,
        model: Source,
        make_head: Callable[[dict[str, Tensor]], nn.Module],
        *,
        tokenizer: Source,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        from transformers import AutoTokenizer

        weights, origin = state_dict(model), where(model)[0]
        try:
            vision, text, head = _split(weights)
            self._vision = vision_encoder(vision, dtype).to(device)
            self._text = text_encoder(text, dtype, image_width=vision["cls_token"].shape[-1]).to(device)
            self._head = make_head(head).to(device)
        except (KeyError, ValueError) as error:
            problem = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{origin} is no {self.called} checkpoint: {problem}") from None
        self.networks = [self._vision, self._text]
        self._tokenizer = load_pretrained(AutoTokenizer.from_pretrained, tokenizer)
        self._tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        self._preprocessing = Preprocessing(self._vision.config.image_size)

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) float32, on the model's device, of images (B, 3, H, W) in [0, 1] and B prompts.

        Prompts longer than ``context`` tokens are truncated, as in the originals; the first case logs a warning.
        """
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        self._warn_of_truncation(prompts)
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
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
            if length > self.context:
                _log.warning("%s reads %d tokens and cuts the %d of %r", self.called, self.context, length, prompt)
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
