"""UnifiedReward 2.0 (Wang et al. 2025, https://arxiv.org/abs/2503.05236): a vision-language model that writes scores.

It is asked :data:`QUESTION` and answers with three numbers from 1 to 5: whether the image matches its prompt
(alignment), whether it is free of glitches (coherence), and whether it is pleasing (style). The question is that of
https://github.com/CodeGoat24/UnifiedReward, inference_qwen/UnifiedReward-2.0-inference/
point_score_ACS_image_generation.py. The authors train with single scores and their own weights
(https://github.com/CodeGoat24/Pref-GRPO: 1.4 alignment + 0.7 style); the value here is the plain mean of the three.

Three things differ from their code. The answer is decoded greedily, whatever sampling settings come with the weights.
The picture is not compressed to a JPEG in between. An answer without three scores is an error here, whereas their
code reads a missing score as the mean of the batch or as 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ._language import Answer, load_model, load_processor, make_greedy, write_answers
from ._weights import Source, name_with_source

QUESTION = """\
You are presented with a generated image and its associated text caption. \
Your task is to analyze the image across multiple dimensions in relation to the caption. Specifically:
Provide overall assessments for the image along the following axes (each rated from 1 to 5):
- Alignment Score: How well the image matches the caption in terms of content.
- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, etc.).
- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.

Output your evaluation using the format below:

Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

Your task is provided as follows:
Text Caption: [{text}]"""

ASPECTS = ("alignment", "coherence", "style")
MAX_TOKENS = 512  # most tokens per answer; three scores with all digits are about 80
_SHOWN = 300  # most characters of an answer in an error


class UnifiedReward:
    """The mean of the scores for alignment, coherence and style that UnifiedReward 2.0 writes, 1 to 5.

    Args:
        model: published weights, a folder or a hub id of UnifiedReward 2.0, of any size.
        aspect: one of :data:`ASPECTS`, to take only its score; None for the mean.
        device: where the model runs.
        dtype: its precision; bfloat16 halves the memory.

    Raises:
        FileNotFoundError: the model is neither a folder, nor in the hub's cache, nor in reach.
        ValueError: it has no chat template, or there is no such aspect.
    """

    differentiable = False  # it writes text

    def __init__(
        self,
        model: Source,
        *,
        aspect: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if aspect is not None and aspect not in ASPECTS:
            raise ValueError(f"aspect must be one of {', '.join(ASPECTS)}, or None for their mean, got {aspect!r}")
        self.name = name_with_source(f"unified-reward-{aspect}" if aspect else "unified-reward", model)
        self.aspect = aspect
        self._processor = load_processor(model)
        self._model = load_model(model, device=device, dtype=dtype)
        make_greedy(self._model, self._processor.tokenizer)
        self.networks = [self._model]

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) float32 in [1, 5] of images (B, 3, H, W) in [0, 1] and B prompts, on the CPU.

        Raises:
            ValueError: images and prompts differ in length, or an answer is not three scores; the message shows it.
        """
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        questions = [QUESTION.replace("{text}", prompt) for prompt in prompts]
        answers = write_answers(
            self._model, self._processor, images=images, questions=questions, max_tokens=MAX_TOKENS
        )
        return torch.tensor([self._value(*pair) for pair in zip(answers, prompts, strict=True)])

    def _value(self, answer: Answer, prompt: str) -> float:
        if not answer.ended:
            problem = f"the answer did not end within {MAX_TOKENS} tokens, got {_shorten(answer.text)}"
            raise ValueError(f"prompt {_shorten(prompt)}: {problem}")
        try:
            scores = read_scores(answer.text)
        except ValueError as error:
            raise ValueError(f"prompt {_shorten(prompt)}: {error}") from None
        return scores[self.aspect] if self.aspect else sum(scores.values()) / len(scores)


def read_scores(answer: str) -> dict[str, float]:
    r"""Return the scores in an answer by aspect.

    Each must appear once, alone on its line, as a decimal number from 1 to 5. Other lines do not count.

    Raises:
        ValueError: a score is missing, appears twice, is not a number or out of range; the message shows the answer.

    >>> read_scores("Alignment Score (1-5): 2.5\nCoherence Score (1-5): 3\nStyle Score (1-5): 4.0")
    {'alignment': 2.5, 'coherence': 3.0, 'style': 4.0}
    """
    return {aspect: _read_score(answer, f"{aspect.title()} Score (1-5):") for aspect in ASPECTS}


def _read_score(answer: str, label: str) -> float:
    found = [line.strip() for line in answer.splitlines()]
    values = [line.removeprefix(label).strip() for line in found if line.startswith(label)]
    if len(values) != 1:
        problem = f'must have one line "{label} X", got {len(values)} of them in {_shorten(answer)}'
    elif not re.fullmatch(r"[0-9]+(\.[0-9]+)?", values[0]) or not 1 <= float(values[0]) <= 5:
        problem = f'must give a number from 1 to 5 after "{label}", got {values[0][:40]!r} in {_shorten(answer)}'
    else:
        return float(values[0])
    raise ValueError(f"the answer {problem}")


def _shorten(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
