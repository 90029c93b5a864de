"""The LAION aesthetic predictor v2, which ignores the prompt.

``h(u)``: five linear layers, with nothing between them, on the unit feature ``u`` of an image from CLIP ViT-L/14
(https://github.com/christophschuhmann/improved-aesthetic-predictor, ``sac+logos+ava1-l14-linearMSE.pth``). It was
fitted to ratings from 1 to 10, but may go beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._towers import Towers
from ._weights import CLIP_L, Source, linear_head, name_with_source, state_dict, where


class Aesthetic:
    """A prediction of people's rating of an image from 1 to 10, independent of its prompt.

    Args:
        model: the published head, or the path of one.
        clip: its CLIP: published weights, a folder or a hub id.
        device: where they run.
        dtype: the precision of CLIP; the head is float32.

    Raises:
        FileNotFoundError: the head or the CLIP is neither on this machine nor reachable.
        ValueError: the file holds no such head, or a head for features of another size.
    """

    differentiable = True
    reads_prompt = False

    def __init__(
        self,
        model: Source,
        *,
        clip: Source = CLIP_L,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name_with_source("aesthetic", model)
        try:
            head = linear_head(state_dict(model))
        except ValueError as error:
            origin = where(model)[0]
            named = "" if origin in str(error) else f"{origin} is no aesthetic predictor: "
            raise ValueError(f"{named}{error}") from None
        self._head = head.to(device)
        self._towers = Towers.load(clip, device=device, dtype=dtype)
        self.networks = self._towers.networks
        wanted, given = self._head[0].in_features, self._towers.model.config.projection_dim
        if wanted != given:
            raise ValueError(f"the head {model} takes {wanted} features and the CLIP {clip} gives {given}")

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return ratings (B,) float32 of images (B, 3, H, W) in [0, 1], on the model's device; ignore prompts."""
        return self._head(self._towers.image(images)).squeeze(1)
