"""The image-text logit of CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020) and its relatives as a reward.

``exp(logit_scale) cos(u, v)``: for OpenAI's models 100 times the cosine, which is CLIPScore (Hessel et al. 2021,
https://arxiv.org/abs/2104.08718) without its clamp and weight. SigLIP (Zhai et al. 2023,
https://arxiv.org/abs/2303.15343) adds a bias; its logit is that of a match. PickScore (Kirstain et al. 2023,
https://arxiv.org/abs/2305.01569, https://github.com/yuvalkirstain/PickScore) is a CLIP ViT-H/14 fitted to people's
choices between two images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._embedded import find_weights
from .._hub import Published
from .._quiet import quiet
from ._towers import Towers
from ._weights import CLIP_H, Source, name_with_source


class CLIPReward:
    """The match of images and prompts by a CLIP or SigLIP model of transformers.

    Args:
        model: published weights, a folder or a hub id.
        processor: where tokenizer and preprocessing are; by default with the model.
        name: name in results and banks; by default ``clip``, followed by the model unless it is the published one.
        device: where the model runs.
        dtype: its precision; pixels and cosines are float32.

    Raises:
        FileNotFoundError: the model is neither a folder, nor in the hub's cache, nor reachable.
        ValueError: the model is of another kind.

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
        """Return logits (B,) float32 of images (B, 3, H, W) in [0, 1] and B prompts, on the model's device.

        Prompts longer than the model's context (77 tokens for CLIP, 64 for SigLIP) are truncated, as the models do.
        """
        return self._scale * self._towers.cosine(images, prompts) + self._bias

    def features(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, d) float32 of images (B, 3, H, W) in [0, 1], on the model's device."""
        return self._towers.image(images)


class PickScore(CLIPReward):
    """PickScore v1: human preference among images of a prompt; values are about 20.

    Args:
        model: published weights, a folder or a hub id.
        processor: where tokenizer and preprocessing are; by default, for the published weights those of the CLIP
            ViT-H/14 it was trained from, else with the model.
        device: where the model runs.
        dtype: its precision.

    Example:
        >>> from lidar_sampling.glyph import DATA
        >>> reward = PickScore(DATA / "reward-clip")  # any CLIP shows the interface
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
    """Return the CLIP that guides the embedded model."""
    return CLIPReward(find_weights("glyph") / "reward-clip", name="glyph", device=device, dtype=dtype)


@quiet()
def glyph_heldout(
    model: None = None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CLIPReward:
    """Return the CLIP that judges the embedded model and never guides it."""
    return CLIPReward(find_weights("glyph") / "heldout-clip", name="glyph-heldout", device=device, dtype=dtype)
