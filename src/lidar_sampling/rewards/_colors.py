"""The colour of an object by CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020), as in GenEval.

The object is cut out along its mask, put on grey, and classified without training. A colour's class is the normalised
mean of the unit features of its :data:`TEMPLATES`, and the class nearest to the crop wins. Restated from
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

GREY = 0x99 / 255  # grey outside the object
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")

# Kept outside the object: its attributes are its fingerprint and must not change with the first score.
_embedded: WeakKeyDictionary[ColorNames, dict[str, Tensor]] = WeakKeyDictionary()


class ColorNames:
    """A classifier of the colours of objects.

    Args:
        towers: the CLIP; GenEval's is OpenAI's ViT-L/14.
    """

    def __init__(self, towers: Towers) -> None:
        self._towers = towers

    @torch.no_grad()
    def __call__(self, crops: Sequence[Tensor], name: str) -> list[str]:
        """Return one of GenEval's ten colours for each crop (3, h, w) in [0, 1] of an object of class ``name``."""
        return [COLORS[int((self._towers.image(crop[None]) @ self._embed(name).T).argmax())] for crop in crops]

    def _embed(self, name: str) -> Tensor:
        """Return the ten colours of ``name`` as unit vectors (10, d)."""
        classes = _embedded.setdefault(self, {})
        if name not in classes:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            features = self._towers.text(texts).unflatten(0, (len(COLORS), len(TEMPLATES)))
            classes[name] = F.normalize(features.mean(1), dim=1)
        return classes[name]


def cut_out(image: Tensor, mask: Tensor, box: Tensor) -> Tensor:
    """Return the part of an image (3, H, W) in a box (x1, y1, x2, y2), grey outside the mask (H, W)."""
    x1, y1, x2, y2 = box.tolist()
    return torch.where(mask, image, GREY)[:, y1:y2, x1:x2]
