"""The base of rewards on Qwen2-VL: the model reads a chat, and a head scores its last states at special tokens.

The reward adds these tokens to the vocabulary. Positions count up by one per token, also within pictures. Qwen2-VL
itself counts positions of pictures in time, height and width. The published rewards, however, pass embeddings to its
language model, which cannot see in them where pictures are, and they were trained in this way.

Sources: ``Qwen2VLRewardModelBT`` in hpsv3 1.0.0 (https://pypi.org/project/hpsv3, model/qwen2vl_trainer.py) and in
https://github.com/KwaiVGI/VideoAlign (trainer.py), both on transformers 4.45.2, whose ``Qwen2VLModel.forward`` counts
positions by ``cache_position``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._hub import Published
from .._media import to_pil
from ._language import load_processor
from ._weights import Source, build, load_pretrained, rename, state_dict, where

PIXELS = 256 * 28 * 28  # approximate pixels per picture after resizing: 256 tokens
_NAMES = [  # prefixes of weights: with LoRA, from transformers 4.52 on, and before it
    (r"^base_model\.model\.", ""),
    (r"^model\.(?=(visual|language_model)\.)", ""),
    (r"^model\.", "language_model."),
]
_INPUTS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}


class Reader:
    """A Qwen2-VL or Qwen2.5-VL model that reads chats and returns its last states at special tokens.

    Args:
        weights: weights of the model without its head, from :func:`checkpoint`; ``origin`` is their source.
        tokens: the special tokens, in the order of the vocabulary.
        processor: the published model that was tuned, for its configuration, tokenizer and template.
        device: where the model runs; ``dtype`` is its precision.

    Raises:
        FileNotFoundError: the processor is neither a folder, nor in the hub's cache, nor reachable.
        ValueError: the processor belongs to another kind of model, or the weights do not fit it.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        tokens: Sequence[str],
        *,
        origin: str,
        processor: Source,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        from transformers import AutoConfig, Qwen2_5_VLModel, Qwen2VLModel

        kinds = {"qwen2_vl": Qwen2VLModel, "qwen2_5_vl": Qwen2_5_VLModel}
        config: Any = load_pretrained(AutoConfig.from_pretrained, processor)
        if config.model_type not in kinds:
            name = where(processor)[0]
            raise ValueError(f"{name} is of type {config.model_type}: give the Qwen2-VL model that was tuned")
        self._processor = load_processor(processor)
        self._tokenizer = self._processor.tokenizer
        self._tokenizer.padding_side = "right"
        self._tokenizer.add_tokens(list(tokens), special_tokens=True)
        self._tokens = self._tokenizer.convert_tokens_to_ids(list(tokens))
        config.text_config.vocab_size = len(self._tokenizer)
        try:
            self.network = build(kinds[config.model_type], config, weights, dtype).to(device)
        except ValueError as error:
            raise ValueError(f"{origin} is no checkpoint tuned from {where(processor)[0]}: {error}") from None
        self.width: int = config.text_config.hidden_size
        self.patch_size: int = self._processor.image_processor.patch_size
        self.frames_a_patch: int = self._processor.image_processor.temporal_patch_size

    def check(self, texts: Sequence[str]) -> None:
        """Refuse texts with a special token, which would be taken for one of the chat's own.

        Raises:
            ValueError: a text has one; the message names the token.
        """
        marks = [str(token) for token in self._tokenizer.added_tokens_decoder.values()]
        for text in texts:
            if mark := next((mark for mark in marks if mark in text), None):
                raise ValueError(f"a prompt must not hold the special token {mark}, got {text!r}: leave it out")

    def see(self, pictures: Iterable[Tensor], *, least: int = PIXELS, most: int = PIXELS) -> tuple[Tensor, Tensor]:
        """Return patches and grids (n, 3) of pictures (3, H, W) in [0, 1], resized to the range of pixels."""
        images = [to_pil(picture.detach().float().clamp(0, 1).cpu()) for picture in pictures]
        size = {"shortest_edge": least, "longest_edge": most}
        seen = self._processor.image_processor(images=images, size=size, return_tensors="pt")
        return seen["pixel_values"], seen["image_grid_thw"]

    @torch.no_grad()
    def __call__(
        self, contents: Sequence[list[dict[str, str]]], patches: Tensor, grids: Tensor, *, kind: str = "image"
    ) -> Tensor:
        """Return the states (B, tokens, width) float32 at the special tokens of B chats of one turn.

        Args:
            contents: content of each turn, with a part of ``type`` ``kind`` for every grid.
            patches: patches of all pictures or videos, one after the other.
            grids: (n, 3) number of patches of each in time, height and width.
            kind: ``"image"`` or ``"video"``.
        """
        config, device = self.network.config, self.network.device
        chats = [[{"role": "user", "content": content}] for content in contents]
        texts = self._processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        mark = self._tokenizer.convert_ids_to_tokens(getattr(config, f"{kind}_token_id"))
        lengths = iter((grids.prod(1) // config.vision_config.spatial_merge_size**2).tolist())
        texts = [re.sub(re.escape(mark), lambda found: found[0] * next(lengths), text) for text in texts]
        inputs = self._tokenizer(texts, padding=True, return_tensors="pt").to(device)
        ids = inputs["input_ids"]
        states = self.network(
            input_ids=ids,
            attention_mask=inputs["attention_mask"],
            position_ids=torch.arange(ids.shape[1], device=device).expand(3, *ids.shape),
            use_cache=False,
            **dict(zip(_INPUTS[kind], (patches.to(device), grids.to(device)), strict=True)),
        ).last_hidden_state
        rows = torch.arange(len(ids), device=device)
        return torch.stack([states[rows, (ids == token).int().argmax(1)] for token in self._tokens], 1).float()


def checkpoint(source: Source, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the model without its language head, and those of the reward's heads.

    They are read from the published file, a checkpoint file, or the one file ``name`` in a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights, or the folder holds several such files.
    """
    if not isinstance(source, Published) and Path(source).is_dir():
        files = sorted(Path(source).glob(f"**/{name}"))
        if not files:
            raise FileNotFoundError(f"{source} holds no {name}: give the checkpoint file itself")
        if len(files) > 1:
            raise ValueError(f"{source} holds {len(files)} files {name}: give one of them")
        source = files[0]
    model: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for key, value in state_dict(source).items():
        renamed = rename(key, _NAMES)
        if renamed.startswith("rm_head"):
            heads[renamed] = value
        elif renamed != "lm_head.weight":
            model[renamed] = value
    return model, heads
