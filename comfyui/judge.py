"""Rewards of pictures: numbers for ComfyUI's IMAGE, and the pictures with their numbers as captions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import comfy.model_management
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lidar_sampling import rewards
from lidar_sampling._media import to_pil
from lidar_sampling._values import cut

_TILE = 256  # side of a captioned picture in pixels


def check_reward(name: str) -> None:
    """Refuse a text that is neither a reward of the library nor a mixture of such.

    People exchange workflows, so these must not name modules, files or addresses.

    Raises:
        ValueError: the text names another reward.
    """
    known = [each for each in rewards.REGISTRY if each not in ("http", "https")]
    for part in rewards.read_mixture(name) or [name]:
        if part not in known:
            raise ValueError(
                f"unknown reward {cut(part)!r}; known here are {', '.join(known)}: score others in nodes of their own"
            )


@lru_cache(maxsize=1)
def load_reward(name: str) -> rewards.Reward:
    """Return the reward with this name, kept in memory until another is asked for.

    It is on the device of ComfyUI's text encoders.

    Raises:
        ValueError: there is no such reward; the message names the nearest.
    """
    return rewards.load(name, device=comfy.model_management.text_encoder_device())


def judge(name: str, pictures: Tensor, prompt: str) -> Tensor:
    """Return the rewards (B,) of pictures.

    Args:
        name: a reward of ``lidar rewards``, or a mixture ``clip:0.9+brightness:0.1``.
        pictures: (B, H, W, C) in [0, 1], or videos (B, F, H, W, C).
        prompt: what they should show.

    Raises:
        ValueError: there is no such reward, or it cannot read the prompt or the pictures.
    """
    check_reward(name)
    reward = load_reward(name)
    rewards.check_prompts(reward, [prompt])
    return rewards.score(
        reward, images=pictures[..., :3].movedim(-1, -3).clamp(0, 1), prompts=[prompt] * len(pictures)
    )


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return the pictures (B, H, W, C) of latents (B, *), or their videos (B, F, H, W, C)."""
    pictures = [vae.decode(latents[k : k + 1]) for k in range(len(latents))]
    return torch.cat([each.unsqueeze(0) if latents.dim() == 5 and each.dim() == 4 else each for each in pictures])


def flat(pictures: Tensor) -> Tensor:
    """Return an IMAGE (B, H, W, C): the frames of videos one after another, as ComfyUI passes them."""
    return pictures.flatten(0, 1) if pictures.dim() == 5 else pictures


def caption(pictures: Tensor, captions: list[str]) -> Tensor:
    """Return the pictures as tiles (B, H, W, 3), each above a line of text; a video is shown by its middle frame."""
    if pictures.dim() == 5:
        pictures = pictures[:, pictures.shape[1] // 2]
    font = ImageFont.load_default(size=_TILE // 12)
    tiles = []
    for picture, caption in zip(pictures, captions, strict=True):
        shown = to_pil(picture[..., :3].movedim(-1, 0).clamp(0, 1).cpu())
        shown = shown.resize((_TILE, max(1, round(_TILE * shown.height / shown.width))))
        tile = Image.new("RGB", (_TILE, shown.height + _TILE // 8), "black")
        tile.paste(shown)
        place = (_TILE // 2, shown.height + _TILE // 16)
        ImageDraw.Draw(tile).text(place, caption, fill="white", font=font, anchor="mm")
        tiles.append(torch.from_numpy(np.asarray(tile).copy()).float() / 255)
    return torch.stack(tiles)
