"""VQAScore (Lin et al. 2024, https://arxiv.org/abs/2404.01291) with any vision-language model of transformers.

The score is ``P(yes) / (P(yes) + P(no))`` for the first token of the answer to :data:`QUESTION`. The paper takes
P(yes) of its own CLIP-FlanT5. Chat models spread their answer over spellings such as "Yes" and "yes", so each
probability here is the sum over the spellings that are one token, and the two are normalised by their sum.

Any other ``answer`` has no opposite. Its probability is normalised by the whole vocabulary, as in the authors' own
code (https://github.com/linzhiqiu/t2v_metrics, question and answer templates), which reads one spelling where we sum
them. That code has no question for counts; GenEval 2's is :data:`COUNT`, which ``soft_tifa.py`` asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._language import DIGITS, load_model, load_processor, log_probability, next_logits
from ._language import answer_tokens as answer_tokens
from ._weights import Source, name_with_source

QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'
COUNT = "How many {text} are in the image? Answer in one word."


class VQAScore:
    """The probability that a vision-language model says that an image shows its prompt.

    Args:
        model: published weights, a folder or a hub id of an instruction-tuned image-text-to-text model that answers
            at once: a model that thinks first does not begin with yes or no.
        question: the question; ``{text}`` becomes the prompt.
        answer: the answer whose probability counts; None for yes against no. A number from one to ten counts as word
            and digits: with ``question=COUNT, answer="four"`` the prompt "cats" asks for four cats.
        device: where the model runs.
        dtype: its precision; bfloat16 halves the memory.

    Raises:
        FileNotFoundError: the model is neither a folder, nor in the hub's cache, nor in reach.
        ValueError: it has no chat template or no single token for the answer, or the question has no ``{text}``.
    """

    differentiable = False  # its processor works on bytes

    def __init__(
        self,
        model: Source,
        *,
        question: str = QUESTION,
        answer: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if "{text}" not in question:
            raise ValueError(f"the question must have {{text}} where the prompt belongs, got {question!r}")
        self.name = name_with_source("vqascore", model)
        self._question = question
        self._processor = load_processor(model)
        tokenizer = self._processor.tokenizer
        self._yes = answer_tokens(tokenizer, *_spellings("yes" if answer is None else answer))
        self._no = answer_tokens(tokenizer, "no") if answer is None else None
        self._model = load_model(model, device=device, dtype=dtype)
        self.networks = [self._model]

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return probabilities (B,) float32 of images (B, 3, H, W) in [0, 1] and B prompts, on its device."""
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        questions = [self._question.replace("{text}", prompt) for prompt in prompts]
        logits = next_logits(self._model, self._processor, images=images, questions=questions)
        if self._no is None:
            return log_probability(logits, self._yes).exp()
        yes, no = (logits[:, tokens].logsumexp(1) for tokens in (self._yes, self._no))
        return torch.sigmoid(yes - no)


def _spellings(answer: str) -> list[str]:
    """Return ``answer``, and its other spelling if it is a number from one to ten.

    >>> _spellings("yes"), _spellings("four"), _spellings("4")
    (['yes'], ['four', '4'], ['4', 'four'])
    """
    other = {**DIGITS, **{digits: word for word, digits in DIGITS.items()}}.get(answer.lower())
    return [answer] if other is None else [answer, other]
