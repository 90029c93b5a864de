"""GenEval's judge for real models (Ghosh et al. 2023, https://arxiv.org/abs/2310.11513) on transformers alone.

Mask2Former finds the objects, CLIP names their colours where the prompt asks for one, and GenEval's rules decide.
GenEval itself runs mmdet's Mask2Former, which has the architecture and training set of Meta's weights used here, but
comes from another training run. The processing of the networks' outputs is the same, with three exceptions: padding
is always zero, whatever mmdet's version pads with; single grey levels differ from OpenCV's resizing; and CLIP's crop
may differ by a pixel (see ``_pixels.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .._geneval import CLASSES, COUNTING_TAGS, Detection, read_requirements, verdict
from .._hub import Published
from ._colors import ColorNames, cut_out
from ._mask2former import Instances, Mask2Former
from ._towers import Towers
from ._weights import CLIP_L, Source

MASK2FORMER = Published("facebook/mask2former-swin-small-coco-instance", "other; code MIT")


class GenEvalJudge:
    """GenEval's verdict as a metric: 1 if an image shows what its prompt asks for, else 0.

    Args:
        detector: function from an image (3, H, W) in [0, 1] to its objects, labelled by their index in GenEval's
            classes.
        colors: function from crops (3, h, w) in [0, 1] and their class to their colours.
        threshold: score above which an object counts.
        counting_threshold: the same for prompts that count objects.
        max_objects: number of objects per class that count, the surest first.
    """

    name = "geneval"
    differentiable = False
    reads_metadata = True

    def __init__(
        self,
        detector: Callable[[Tensor], Instances],
        colors: Callable[[Sequence[Tensor], str], list[str]],
        *,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
    ) -> None:
        self._detector, self._colors = detector, colors
        self.threshold, self.counting_threshold, self.max_objects = threshold, counting_threshold, max_objects

    @classmethod
    def from_pretrained(
        cls,
        detector: Source = MASK2FORMER,
        clip: Source = CLIP_L,
        *,
        device: torch.device | str = "cpu",
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
    ) -> GenEvalJudge:
        """Load published weights, folders or hub ids in float32, as GenEval runs them.

        Args:
            detector: a Mask2Former of COCO's 80 instances.
            clip: the CLIP that names colours.
            device: where both run.
            threshold: as for the class.
            counting_threshold: as for the class.
            max_objects: as for the class.

        Raises:
            FileNotFoundError: a model is neither a folder, nor in the hub's cache, nor reachable.
            ValueError: a model is of another kind.
        """
        return cls(
            Mask2Former.load(detector, device=device),
            ColorNames(Towers.load(clip, device=device, dtype=torch.float32)),
            threshold=threshold,
            counting_threshold=counting_threshold,
            max_objects=max_objects,
        )

    def check(self, prompts: Sequence[str | dict[str, Any]]) -> None:
        """Refuse metadata that cannot be judged.

        Raises:
            ValueError: the metadata is wrong; the message says how.
        """
        for prompt in prompts:
            read_requirements(prompt)

    def __call__(self, *, images: Tensor, prompts: Sequence[str | dict[str, Any]]) -> Tensor:
        """Judge images (B, 3, H, W) in [0, 1] by B prompts or GenEval metadata; return (B,) of 0, 1 or NaN.

        The verdict is NaN for a prompt outside GenEval's templates; metadata may ask for anything.

        Raises:
            ValueError: images and prompts differ in length, or metadata cannot be judged.
        """
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        wanted = [read_requirements(prompt) for prompt in prompts]
        return torch.tensor([self._judge(image, line) for image, line in zip(images, wanted, strict=True)])

    def _judge(self, image: Tensor, wanted: dict[str, Any] | None) -> float:
        if wanted is None:
            return float("nan")
        thresholds = {"threshold": self.threshold, "counting_threshold": self.counting_threshold}
        return float(verdict(self.detections(image, wanted), wanted, **thresholds))

    def detections(self, image: Tensor, metadata: dict[str, Any]) -> list[Detection]:
        """Return the objects in an image (3, H, W) in [0, 1] that matter for ``metadata``.

        They are those of its classes above the threshold, the surest of each class first. If a class must have a
        colour, only as many of its objects get a colour as are asked for, since GenEval looks at no others.
        """
        found = self._detector(image)
        pixels = image.to(found.masks.device)
        include = metadata.get("include", [])
        result = []
        for name in dict.fromkeys(item["class"] for item in [*include, *metadata.get("exclude", [])]):
            chosen = self._surest(found, name, counting=metadata["tag"] in COUNTING_TAGS)
            colored = max((item["count"] for item in include if item["class"] == name and "color" in item), default=0)
            colors = self._colors([cut_out(pixels, found.masks[i], found.boxes[i]) for i in chosen[:colored]], name)
            for i, color in zip_longest(chosen, colors):
                x1, y1, x2, y2 = found.boxes[i].tolist()
                result.append(Detection(name, found.scores[i].item(), (x1, y1, x2, y2), color))
        return result

    def _surest(self, found: Instances, name: str, *, counting: bool) -> list[int]:
        """Return the indices of at most ``max_objects`` objects of class ``name`` above its threshold, best first."""
        least = self.counting_threshold if counting else self.threshold
        (chosen,) = ((found.labels == CLASSES.index(name)) & (found.scores > least)).nonzero(as_tuple=True)
        return chosen[found.scores[chosen].argsort(descending=True)][: self.max_objects].tolist()


def load_judge(
    model: Source | None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> GenEvalJudge:
    """Return the judge of the registry, with the published detector or another; always in float32."""
    return GenEvalJudge.from_pretrained(model or MASK2FORMER, device=device)
