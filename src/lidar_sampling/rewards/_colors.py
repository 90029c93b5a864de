"""The colour of an object by CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020), as GenEval asks for it.

The object is cut out along its mask, on grey, and classified without training: a colour's class is the mean of the
unit features of its :data:`TEMPLATES`, of unit length again, and the class nearest the crop wins. Restated from
``color_classification`` in https://github.com/djghosh13/geneval (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from .._geneval import COLORS
from ._towers import Towers

GREY = 0x99 / 255  # of what is not the object
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

# Kept outside the object: its attributes decide its scores, and must be the same before and after the first.
_embedded: WeakKeyDictionary[ColorNames, dict[str, Tensor]] = WeakKeyDictionary()


class ColorNames:
    """Names the colours of objects.

    Args:
        towers: the CLIP that looks; GenEval's is OpenAI's ViT-L/14.
    """

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    @torch.no_grad()
    def __call__(self, crops: Sequence[Tensor], name: str) -> list[str]:
        """One of GenEval's ten colours for each crop (3, h, w) in [0, 1] of an object of class ``name``."""
        return [COLORS[int((self._towers.image(crop[None]) @ self._embed(name).T).argmax())] for crop in crops]

    def _embed(self, name: str) -> Tensor:
        """The ten colours of ``name`` as unit vectors (10, d)."""
        classes = _embedded.setdefault(self, {})
        if name not in classes:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            features = self._towers.text(texts).unflatten(0, (len(COLORS), len(TEMPLATES)))
            classes[name] = F.normalize(features.mean(1), dim=1)
        return classes[name]


def cut_out(image: Tensor, mask: Tensor, box: Tensor) -> Tensor:
    """The part of an image (3, H, W) in its box (x1, y1, x2, y2), grey where its mask (H, W) is not."""
    x1, y1, x2, y2 = box.tolist()
    return torch.where(mask, image, GREY)[:, y1:y2, x1:x2]
