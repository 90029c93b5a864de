"""The image-text logit of CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020) and its relatives as a reward.

``exp(logit_scale) cos(u, v)``: for OpenAI's models 100 times the cosine, which is CLIPScore (Hessel et al. 2021,
https://arxiv.org/abs/2104.08718) without its clamp and weight. SigLIP (Zhai et al. 2023,
https://arxiv.org/abs/2303.15343) adds a bias, and its logit is that of a match. PickScore (Kirstain et al. 2023,
https://arxiv.org/abs/2305.01569, https://github.com/yuvalkirstain/PickScore) is a CLIP ViT-H/14 that was fitted to
which of two images people chose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._embedded import embedded
from .._hub import Published
from .._quiet import quiet
from ._towers import Towers
from ._weights import CLIP_H, Source, name_with_source


class CLIPReward:
    """How well images match their prompts, by a CLIP or SigLIP model of transformers.

    Args:
        model: published weights, a folder or a hub id.
        processor: where tokenizer and preprocessing lie; by default with the model.
        name: what results and banks call the reward; by default ``clip``, and the model unless it is the published.
        device: where the model runs.
        dtype: its precision; pixels and cosines are float32.

    Raises:
        FileNotFoundError: the model is neither a folder, nor in the hub's cache, nor in reach.
        ValueError: it is another kind of model.

    Example:
        >>> from lidar_sampling.rewards import load
        >>> import torch
        >>> reward = load("glyph")
        >>> reward(images=torch.rand(2, 3, 128, 128), prompts=["a photo of a cat"] * 2).shape
        torch.Size([2])
    """

    differentiable = True

    def __init__(
        self,
        model: Source,
        *,
        processor: Source | None = None,
        name: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name or name_with_source("clip", model)
        self._towers = Towers.load(model, processor=processor, device=device, dtype=dtype)
        self.networks = self._towers.networks
        self._scale = self._towers.model.logit_scale.float().exp()
        bias = getattr(self._towers.model, "logit_bias", None)
        self._bias = 0 if bias is None else bias.float()

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] and B prompts to logits (B,) float32, on the model's device.

        Prompts beyond the model's context (77 tokens of CLIP, 64 of SigLIP) are truncated, as the models do.
        """
        return self._scale * self._towers.cosine(images, prompts) + self._bias

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to unit vectors (B, d) float32, on the model's device."""
        return self._towers.image(images)


class PickScore(CLIPReward):
    """PickScore v1: which image of a prompt people would choose; about 20.

    Args:
        model: published weights, a folder or a hub id.
        processor: where tokenizer and preprocessing lie; by default those of the CLIP ViT-H/14 it was trained from
            with the published weights, else with the model.
        device: where the model runs.
        dtype: its precision.

    Example:
        >>> from lidar_sampling.glyph import DATA
        >>> reward = PickScore(DATA / "reward-clip")  # any CLIP serves to see the face
        >>> reward(images=torch.rand(1, 3, 128, 128), prompts=["a photo of a cat"]).shape
        torch.Size([1])
    """

    def __init__(
        self,
        model: Source,
        *,
        processor: Source | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if processor is None and isinstance(model, Published):
            processor = CLIP_H
        super().__init__(
            model, processor=processor, name=name_with_source("pickscore", model), device=device, dtype=dtype
        )


@quiet()
def glyph_reward(
    model: None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CLIPReward:
    """The CLIP that guides the embedded model."""
    return CLIPReward(embedded("glyph") / "reward-clip", name="glyph", device=device, dtype=dtype)


@quiet()
def glyph_heldout(
    model: None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CLIPReward:
    """The CLIP that judges the embedded model and never guides it."""
    return CLIPReward(embedded("glyph") / "heldout-clip", name="glyph-heldout", device=device, dtype=dtype)
