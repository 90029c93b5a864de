"""Whether the image shows the text of the prompt (the reward of Flow-GRPO, https://arxiv.org/abs/2505.05470).

    r = 1 - min(d, |target|) / |target|

The target is the text between the first two double quotes of the prompt. d is the edit distance between it and all
text read in the image, or 0 if the target is part of that text. Both are compared in lower case without white space.
Unlike in Flow-GRPO, a failing reader is an error and not a reward of 0, and curly quotes count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

Reader = Callable[[np.ndarray], Sequence[str]]


class OCR:
    """The degree to which the image shows the quoted text of its prompt, 0 to 1.

    Args:
        reader: function from an image (H, W, 3) of uint8 to its strings in reading order. The default is RapidOCR,
            which is PaddleOCR's detector and recogniser on ONNX, on the CPU (about .3 s per picture of 256 pixels on
            one core).

    Raises:
        ImportError: no reader was given and ``rapidocr`` is not installed.

    Example:
        >>> ocr = OCR(reader=lambda image: ["GRAND", "0PENING"])
        >>> ocr(images=torch.zeros(1, 3, 8, 8), prompts=['a poster that says "Grand Opening"'])
        tensor([0.9167])
    """

    differentiable = False
    name = "ocr"

    def __init__(
        self,
        model: None = None,
        *,
        reader: Reader | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._read = reader or _rapidocr()
        if reader is None:  # the user's reader is identified by its code
            self.fingerprint = _versions()

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that quote no text.

        Raises:
            ValueError: a prompt quotes no text.
        """
        for prompt in prompts:
            read_quote(prompt)

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (B,) in [0, 1] for images (B, 3, H, W) in [0, 1] and B prompts with a text in double quotes.

        Raises:
            ValueError: a prompt quotes no text.
        """
        targets = [_plain(read_quote(prompt)) for prompt in prompts]
        pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
        read = [_plain("".join(self._read(image))) for image in pixels]
        return torch.tensor([_likeness(text, target) for text, target in zip(read, targets, strict=True)])


def read_quote(prompt: str) -> str:
    """Return the text between the first two double quotes of ``prompt``, straight or curly.

    Raises:
        ValueError: the prompt quotes no text.

    >>> read_quote('a sign that says "OPEN" in red')
    'OPEN'
    """
    match = re.search(r'["“”]([^"“”]*\S[^"“”]*)["“”]', prompt)
    if match is None:
        raise ValueError(f'the prompt must quote the text to read, as in: a sign that says "OPEN"; got {prompt!r}')
    return match[1]


def edit_distance(a: str, b: str) -> int:
    """Return Levenshtein's distance: the insertions, deletions and substitutions that turn ``a`` into ``b``.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def _likeness(text: str, target: str) -> float:
    distance = 0 if target in text else min(edit_distance(text, target), len(target))
    return 1 - distance / len(target)


_SETTINGS = {
    "Global.use_cls": False,  # text upside down is not read, as in Flow-GRPO
    "Global.text_score": 0.0,  # half-formed letters count, as in Flow-GRPO
}


def _versions() -> dict[str, Any]:
    """Return what determines the scores of RapidOCR: versions, with which its models come."""
    versions = {}
    for package in ("rapidocr", "onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"reward": "ocr", "settings": _SETTINGS, "versions": versions}


def _rapidocr() -> Reader:
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise ImportError("the reward 'ocr' needs a reader: pip install 'lidar-sampling[ocr]'") from None
    from PIL import Image

    settings = {
        **_SETTINGS,
        "Global.log_level": "critical",
        "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
    }
    engine: Any = RapidOCR(params=settings)
    return lambda image: engine(Image.fromarray(image)).txts or ()
