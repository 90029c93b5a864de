"""VQAScore (Lin et al. 2024, https://arxiv.org/abs/2404.01291) with any vision-language model of transformers.

``P(yes) / (P(yes) + P(no))`` for the first token of the answer to :data:`QUESTION`. The paper takes P(yes) of its own
CLIP-FlanT5; chat models spread their answer over spellings such as "Yes" and "yes", so each probability here is the
sum over the spellings that are one token, and the two are normalised by their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._media import to_pil
from ._weights import Source, load, name_of, where

QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'


class VQAScore:
    """The probability that a vision-language model says that an image shows its prompt.

    Args:
        model: published weights, a folder or a hub id of an instruction-tuned image-text-to-text model that answers
            at once: one that thinks first puts neither yes nor no in the first place.
        question: what is asked; ``{text}`` becomes the prompt.
        device: where the model runs.
        dtype: its precision; bfloat16 halves the memory.

    Raises:
        FileNotFoundError: the model is neither a folder, nor in the hub's cache, nor in reach.
        ValueError: it has no chat template, or no single token for yes or for no, or the question has no ``{text}``.
    """

    differentiable = False  # its processor works on bytes

    def __init__(
        self,
        model: Source,
        *,
        question: str = QUESTION,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        if "{text}" not in question:
            raise ValueError(f"the question must have {{text}} where the prompt belongs, got {question!r}")
        self.name = name_of("vqascore", model)
        self._question = question
        self._processor = _processor(model)
        if not self._processor.chat_template:
            raise ValueError(f"{where(model)[0]} has no chat template: choose an instruction-tuned model")
        self._processor.tokenizer.padding_side = "left"  # so that the answer follows every prompt of a batch
        self._yes, self._no = (answer_tokens(self._processor.tokenizer, word) for word in ("yes", "no"))
        loaded = load(AutoModelForImageTextToText.from_pretrained, model, dtype=dtype)
        self._model = loaded.to(device).eval().requires_grad_(False)
        self.networks = [self._model]

    @torch.no_grad()
    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and B prompts to probabilities (B,) float32, on the model's device."""
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must be as many, got {len(images)} and {len(prompts)}")
        pictures = [to_pil(image) for image in images.detach().float().clamp(0, 1).cpu()]
        chats = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": picture},
                        {"type": "text", "text": self._question.replace("{text}", prompt)},
                    ],
                }
            ]
            for picture, prompt in zip(pictures, prompts, strict=True)
        ]
        inputs = self._processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device, dtype=self._model.dtype)
        logits = self._model(**inputs, logits_to_keep=1).logits[:, -1].float()
        yes, no = (logits[:, tokens].logsumexp(1) for tokens in (self._yes, self._no))
        return torch.sigmoid(yes - no)


def answer_tokens(tokenizer: Any, word: str) -> list[int]:
    """The single tokens that spell ``word``: lower case, capitalised or upper case, with or without a space before.

    Raises:
        ValueError: there is none.
    """
    spellings = [space + spelling for spelling in (word, word.title(), word.upper()) for space in ("", " ")]
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    tokens = sorted({ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id})
    if not tokens:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no single token for {word!r}")
    return tokens


def _processor(source: Source) -> Any:
    """The processor of a model, without the half of it that reads videos, which transformers ties to torchvision."""
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING.get(type(load(AutoConfig.from_pretrained, source)), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return load(AutoProcessor.from_pretrained, source)

    class WithoutVideo(kind):
        # The parts that transformers loads are the arguments of __init__.
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    WithoutVideo.__name__ = kind.__name__
    return load(WithoutVideo.from_pretrained, source)
