"""Questions to vision-language models of transformers: one picture and one question per chat, many chats per batch.

Batches are padded on the left, so that every answer follows its question. A reward reads either the logits of the
first token of the answer, or the whole answer, decoded greedily.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._media import to_pil
from ._weights import Source, load_pretrained, where

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS, 1)}


class Answer(NamedTuple):
    """A model's text, and whether it ended or was cut off."""

    text: str
    ended: bool


def load_processor(source: Source) -> Any:
    """Return the processor of an instruction-tuned model, padding on the left.

    Its part for videos is left out, because transformers ties it to torchvision.

    Raises:
        FileNotFoundError: the model is neither a folder, nor in the hub's cache, nor reachable.
        ValueError: it has no chat template.
    """
    processor = _without_video(source)
    if not processor.chat_template:
        raise ValueError(f"{where(source)[0]} has no chat template: choose an instruction-tuned model")
    processor.tokenizer.padding_side = "left"
    return processor


def load_model(source: Source, *, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Return the image-text-to-text model of ``source``, frozen, on ``device``."""
    from transformers import AutoModelForImageTextToText

    loaded = load_pretrained(AutoModelForImageTextToText.from_pretrained, source, dtype=dtype)
    return loaded.to(device).eval().requires_grad_(False)


@torch.no_grad()
def next_logits(model: Any, processor: Any, *, images: Tensor, questions: Sequence[str]) -> Tensor:
    """Return the logits (B, vocabulary) float32 of the first token of each answer; images (B, 3, H, W) in [0, 1]."""
    inputs = _chats(model, processor, images, questions)
    return model(**inputs, logits_to_keep=1).logits[:, -1].float()


@torch.no_grad()
def write_answers(
    model: Any, processor: Any, *, images: Tensor, questions: Sequence[str], max_tokens: int
) -> list[Answer]:
    """Return the answers to B questions about images (B, 3, H, W) in [0, 1], each of at most ``max_tokens``.

    They are greedy if :func:`make_greedy` was called on the model.
    """
    inputs = _chats(model, processor, images, questions)
    written = model.generate(**inputs, max_new_tokens=max_tokens)[:, inputs["input_ids"].shape[1] :].cpu()
    ends = model.generation_config.eos_token_id
    ended = torch.isin(written, torch.tensor(ends)).any(1).tolist()
    texts = processor.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [Answer(*pair) for pair in zip(texts, ended, strict=True)]


def make_greedy(model: Any, tokenizer: Any) -> None:
    """Make ``model`` always take the likeliest token.

    This replaces the sampling settings of the model (temperature, penalties and the like), because a call without
    such settings would use them. The tokens for beginning, end and padding stay.

    Raises:
        ValueError: no token marks the end of an answer.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    ends = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    if ends is None:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no eos_token, so no answer would end")
    pad = tokenizer.pad_token_id if own.pad_token_id is None else own.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, bos_token_id=own.bos_token_id, eos_token_id=ends, pad_token_id=pad
    )


def log_probability(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the log-probability (B,), over the whole vocabulary, that one of ``tokens`` comes next.

    >>> log_probability(torch.tensor([[0.5, 0.25, 0.25]]).log(), [0, 2]).exp()
    tensor([0.7500])
    """
    return (logits[:, tokens].logsumexp(1) - logits.logsumexp(1)).clamp(max=0)


def answer_tokens(tokenizer: Any, *words: str) -> list[int]:
    """Return the single tokens that spell any of ``words``.

    Spellings are lower case, capitalised or upper case, with or without a leading space.

    Raises:
        ValueError: no spelling is a single token.
    """
    cases = [spelling for word in words for spelling in (word, word.title(), word.upper())]
    encoded = [
        tokenizer.encode(space + spelling, add_special_tokens=False) for spelling in cases for space in ("", " ")
    ]
    return _known_tokens(tokenizer, (ids[0] for ids in encoded if len(ids) == 1), f"single token for {words[0]!r}")


def first_tokens(tokenizer: Any, spellings: Sequence[str]) -> list[int]:
    """Return the first token of each of ``spellings``, each token once.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    encoded = [tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
    return _known_tokens(tokenizer, (ids[0] for ids in encoded if ids), f"token for {spellings[0]!r}")


def _known_tokens(tokenizer: Any, tokens: Iterable[int], what: str) -> list[int]:
    known = sorted({token for token in tokens if token != tokenizer.unk_token_id})
    if not known:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no {what}")
    return known


def _chats(model: Any, processor: Any, images: Tensor, questions: Sequence[str]) -> Any:
    """Return the inputs of ``model`` for one chat per picture, each with one question."""
    pictures = [to_pil(image) for image in images.detach().float().clamp(0, 1).cpu()]
    contents = [
        [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        for picture, question in zip(pictures, questions, strict=True)
    ]
    return processor.apply_chat_template(
        [[{"role": "user", "content": content}] for content in contents],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(model.device, dtype=model.dtype)


def _without_video(source: Source) -> Any:
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING.get(type(load_pretrained(AutoConfig.from_pretrained, source)), None)
    if kind is None or "video_processor" not in kind.get_attributes():
        return load_pretrained(AutoProcessor.from_pretrained, source)

    class WithoutVideo(kind):
        # transformers loads the parts that are arguments of __init__.
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    WithoutVideo.__name__ = kind.__name__
    return load_pretrained(WithoutVideo.from_pretrained, source)
