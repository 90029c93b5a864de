"""Soft-TIFA of GenEval 2 (Kamath et al. 2025, https://arxiv.org/abs/2512.16853): it judges a prompt part by part.

A file has questions on each prompt. A vision-language model is asked each of them, followed by "Answer in one word.".
Let p_k be the probability, over the whole vocabulary, that the first token is the expected answer:

    soft_tifa_am = (p_1 + ... + p_K) / K            how many parts are shown
    soft_tifa_gm = (p_1 * ... * p_K) ** (1 / K)     whether all parts are shown

As in evaluation.py of https://github.com/facebookresearch/GenEval2, p sums the first tokens of the spellings of the
answer: lower case and capitalised, with and without a leading space, and for "How many ..." the digits, with and
without a space. If a tokenizer splits a space from the digit after it, the bare space therefore counts too, and ten
counts as 1. There are three differences: a token that begins two spellings counts once here; numbers above ten have
no digits (there they have the word "other"); and an answer other than yes is searched as it is (there it is read as
yes).

GenEval 2 asks Qwen/Qwen3-VL-8B-Instruct; here the default is VQAScore's model. The file of GenEval 2 is CC BY-NC 4.0
and not in this package: download geneval2_data.jsonl from its repository. Each line is JSON with ``prompt`` and
``vqa_list``, pairs of question and answer; ``atom_count`` and ``skills`` are not read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._language import DIGITS, first_tokens, load_model, load_processor, log_probability, next_logits
from ._weights import Source, name_with_source

Pairs = list[tuple[str, str]]

MEANS = {"geometric": "soft-tifa", "arithmetic": "soft-tifa-am"}
ASKED = "{} Answer in one word."


class SoftTIFA:
    """The mean probability of the expected answers to a file's questions on the prompt, 0 to 1.

    Each question costs one call of the model per picture; prompts of GenEval 2 have 7.5 questions on average. The
    batch size in questions is that in pictures.

    Args:
        questions: a file in GenEval 2's format.
        mean: ``"geometric"``, GenEval 2's score of a prompt, or ``"arithmetic"``, its score of parts.
        model: published weights, a folder or a hub id of the model to ask; None for that of VQAScore.
        device: where the model runs.
        dtype: its precision; bfloat16 halves the memory.

    Raises:
        FileNotFoundError: there is no such file, or the model is not reachable.
        ValueError: no file was given, a line of it is broken, there is no such mean, or the model has no chat
            template or no token for an answer.
    """

    differentiable = False  # the processor of its model works on bytes

    def __init__(
        self,
        questions: str | Path | None,
        *,
        mean: str = "geometric",
        model: Source | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from . import REGISTRY

        if mean not in MEANS:
            raise ValueError(f"mean must be one of {', '.join(MEANS)}, got {mean!r}")
        if not questions:
            raise ValueError(f"{MEANS[mean]} needs GenEval 2's file of questions: {MEANS[mean]}:geneval2_data.jsonl")
        source: Any = model or REGISTRY["vqascore"].published
        self.name = name_with_source(MEANS[mean], questions)
        self._mean, self._file = mean, str(questions)
        self._questions = read_questions(questions)
        self._processor = load_processor(source)
        answers = {_spell(*pair) for pairs in self._questions.values() for pair in pairs}
        self._tokens = {spellings: first_tokens(self._processor.tokenizer, spellings) for spellings in answers}
        self._model = load_model(source, device=device, dtype=dtype)
        self.networks = [self._model]

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts for which the file has no questions.

        Raises:
            ValueError: the file has no questions on a prompt.
        """
        for prompt in prompts:
            if prompt not in self._questions:
                raise ValueError(f"{self._file} has no questions on {prompt!r}: write the prompt as the file does")

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) float32 of images (B, 3, H, W) in [0, 1] and B prompts, on the model's device.

        Raises:
            ValueError: images and prompts differ in length, or the file has no questions on a prompt.
        """
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        self.check(prompts)
        counts = [len(self._questions[prompt]) for prompt in prompts]
        rows = torch.arange(len(images)).repeat_interleave(torch.tensor(counts))
        pairs = [pair for prompt in prompts for pair in self._questions[prompt]]
        size = len(images)
        parts = [self._ask(images[rows[k : k + size]], pairs[k : k + size]) for k in range(0, len(pairs), size)]
        return torch.stack([self._average(of_one) for of_one in torch.cat(parts).split(counts)])

    def _ask(self, images: Tensor, pairs: Pairs) -> Tensor:
        """Return the log-probability of the expected answer, one per question."""
        asked = [ASKED.format(question) for question, _ in pairs]
        logits = next_logits(self._model, self._processor, images=images, questions=asked)
        tokens = [self._tokens[_spell(*pair)] for pair in pairs]
        return torch.cat([log_probability(row[None], some) for row, some in zip(logits, tokens, strict=True)])

    def _average(self, log_p: Tensor) -> Tensor:
        return log_p.mean().exp() if self._mean == "geometric" else log_p.exp().mean()


def soft_tifa_am(
    questions: str | Path | None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SoftTIFA:
    """Return Soft-TIFA by the arithmetic mean, for the registry."""
    return SoftTIFA(questions, mean="arithmetic", device=device, dtype=dtype)


def read_questions(file: str | Path) -> dict[str, Pairs]:
    """Return each prompt's pairs of question and answer from a file in GenEval 2's format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is broken, a prompt has different questions in two lines, or the file holds no questions.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file of questions at {path}: download geneval2_data.jsonl of GenEval 2")
    found: dict[str, Pairs] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            prompt, pairs = _read_line(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if found.setdefault(prompt, pairs) != pairs:
            raise ValueError(
                f"{path}, line {number}: the prompt {prompt!r} had other questions before: leave one out"
            )
    if not found:
        raise ValueError(f"{path} holds no questions: download geneval2_data.jsonl of GenEval 2 again")
    return found


def _read_line(line: bytes) -> tuple[str, Pairs]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(prompt := content.get("prompt"), str):
        raise ValueError('must be an object with a text as its "prompt"')
    pairs = content.get("vqa_list")
    if not isinstance(pairs, list) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise ValueError('must have pairs [question, answer] of texts as its "vqa_list", at least one')
    return prompt, [(question, answer) for question, answer in pairs]


def _is_pair(pair: Any) -> bool:
    texts = isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
    return texts and all(text.strip() for text in pair)


def _spell(question: str, answer: str) -> tuple[str, ...]:
    """Return the spellings that count as ``answer``.

    >>> _spell("Is the pig green?", "Yes")
    ('yes', ' yes', 'Yes', ' Yes')
    >>> _spell("How many pigs are in the image?", "four")
    ('four', ' four', 'Four', ' Four', '4', ' 4')
    """
    words = [answer.lower(), answer.capitalize()]
    if question.startswith("How many") and answer.lower() in DIGITS:
        words.append(DIGITS[answer.lower()])
    return tuple(space + word for word in words for space in ("", " "))
