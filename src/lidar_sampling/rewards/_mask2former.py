"""Mask2Former (Cheng et al. 2022, https://arxiv.org/abs/2112.01527) as mmdet runs it: objects with scores and masks.

A query q has logits for K classes and "no object", and a mask of logits m_q. The 100 likeliest pairs (q, k) get

    score = softmax(logits_q)_k * mean of sigmoid(m_q) over the mask {m_q > 0},

so that one query may give several objects of different classes. Restated from ``instance_postprocess`` of mmdet 2.x
(https://github.com/open-mmlab/mmdetection, ``maskformer_fusion_head.py``, Apache-2.0). The processor of transformers
is not used: as published it resizes to 384 x 384, and it scores and thresholds differently.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._geneval import CLASSES
from ._weights import Source, load_pretrained, where

SHORT, LONG = 800, 1333  # new length of the shorter side, unless the longer one would exceed this
STRIDE = 32  # sides are padded to a multiple of this, for the backbone
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of ImageNet

Size = tuple[int, int]


class Instances(NamedTuple):
    """N objects of one picture, likeliest class first.

    Attributes:
        labels: (N,) classes.
        scores: (N,) in [0, 1].
        boxes: (N, 4) of x1, y1, x2, y2, tight around the mask: the first pixel alone is 0, 0, 1, 1; 0 if it is empty.
        masks: (N, H, W) bool.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor


class Mask2Former:
    """A detector of COCO's 80 classes.

    Args:
        model: a ``Mask2FormerForUniversalSegmentation`` on its device, in float32: transformers computes positions in
            the model's precision, and half precision gives NaN.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval().requires_grad_(False)

    @classmethod
    def load(cls, source: Source, *, device: torch.device | str) -> Mask2Former:
        """Load from a folder or a hub repository in the layout of transformers; only safetensors.

        Raises:
            FileNotFoundError: it is neither a folder, nor in the hub's cache, nor reachable.
            ValueError: the model is of another kind, or has other classes.
        """
        from transformers import AutoConfig, Mask2FormerForUniversalSegmentation

        config = load_pretrained(AutoConfig.from_pretrained, source)
        if config.model_type != "mask2former" or config.num_labels != len(CLASSES):
            kind = f"a {config.model_type} model of {config.num_labels} classes"
            raise ValueError(f"{where(source)[0]} is {kind}, not a Mask2Former of COCO's {len(CLASSES)} instances")
        model = load_pretrained(
            Mask2FormerForUniversalSegmentation.from_pretrained, source, dtype=torch.float32, use_safetensors=True
        )
        return cls(model.to(device))

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Instances:
        """Return the objects in an image (3, H, W) in [0, 1], on the model's device."""
        pixels, size = fit(image.to(self._model.device))
        seen = self._model(pixel_values=pixels)
        return instances(
            seen.class_queries_logits[0],
            seen.masks_queries_logits[0],
            padded=(pixels.shape[2], pixels.shape[3]),
            unpadded=size,
            original=(image.shape[1], image.shape[2]),
        )


def fit(image: Tensor) -> tuple[Tensor, Size]:
    """Return the network's input for an image (3, H, W) in [0, 1], and its size (h, w) without padding.

    The image is resized to a shorter side of 800, or a longer side of 1333 if that is smaller, bilinearly, without
    antialiasing, to bytes: OpenCV's pixels except for single grey levels. It is then normalised and padded at the
    right and bottom to multiples of 32 with zeros, which are ImageNet's mean. Square pictures need no padding.

    >>> pixels, size = fit(torch.rand(3, 480, 640))
    >>> pixels.shape, size
    (torch.Size([1, 3, 800, 1088]), (800, 1067))
    """
    height, width = image.shape[1:]
    scale = min(LONG / max(height, width), SHORT / min(height, width))
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = F.interpolate(image[None].float(), size=size, mode="bilinear")
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (MEAN, STD))
    pixels = ((pixels * 255).round() / 255 - mean) / std
    return F.pad(pixels, (0, -size[1] % STRIDE, 0, -size[0] % STRIDE)), size


def instances(
    class_logits: Tensor, mask_logits: Tensor, *, padded: Size, unpadded: Size, original: Size, most: int = 100
) -> Instances:
    """Return the objects that a picture's logits describe.

    Args:
        class_logits: (Q, K + 1), "no object" last.
        mask_logits: (Q, h, w), for the padded input at a lower resolution.
        padded: height and width of that input.
        unpadded: height and width of the picture in it, from the upper left corner.
        original: height and width of the original picture, which masks and boxes refer to.
        most: most pairs of a query and a class that become objects.
    """
    probabilities = class_logits.float().softmax(1)[:, :-1]
    likely, pairs = probabilities.flatten().topk(min(most, probabilities.numel()))
    labels = pairs % probabilities.shape[1]
    queries, of = (pairs // probabilities.shape[1]).unique(return_inverse=True)
    logits = F.interpolate(mask_logits[queries, None].float(), size=padded, mode="bilinear")
    logits = logits[:, :, : unpadded[0], : unpadded[1]]
    logits = F.interpolate(logits, size=original, mode="bilinear")[:, 0]
    masks = logits > 0
    sure = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    return Instances(labels, likely * sure[of], boxes(masks)[of], masks[of])


def boxes(masks: Tensor) -> Tensor:
    """Return the tight boxes (N, 4) of masks (N, H, W), as in :class:`Instances`.

    >>> mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    >>> mask[0, 1:3, 2:5] = True
    >>> boxes(mask).tolist()
    [[2, 1, 5, 3]]
    """
    edges = []
    for line in (masks.any(1).int(), masks.any(2).int()):  # for columns and rows
        edges.append((line.argmax(1), line.amax(1) * (line.shape[1] - line.flip(1).argmax(1))))
    (x1, x2), (y1, y2) = edges
    return torch.stack([x1, y1, x2, y2], 1)
