"""Samples as files and as PIL images: pictures, videos and audio, told apart by their shape."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FPS = 16  # of a video file; diffusers' pipelines do not say theirs


def to_pil(sample: Tensor) -> Any:
    """A picture (3, H, W) as a PIL image, a video (F, 3, H, W) as a list of them; values in [0, 1].

    Raises:
        ValueError: the sample is neither.

    Example:
        >>> to_pil(torch.zeros(3, 4, 6)).size
        (6, 4)
    """
    from PIL import Image

    if sample.dim() == 4:
        return [to_pil(frame) for frame in sample]
    if sample.dim() != 3:
        raise ValueError(f"expected a picture (3, H, W) or a video (F, 3, H, W), got {tuple(sample.shape)}")
    return Image.fromarray((sample * 255).round().to(torch.uint8).movedim(0, -1).numpy())


def save_sample(sample: Tensor, stem: Path, *, sampling_rate: int | None = None) -> Path:
    """Write one sample beside ``stem``: ``.png``, animated ``.webp`` for a video, ``.wav`` for audio.

    Args:
        sample: as in :func:`to_pil`, or audio (channels, S) in [-1, 1].
        stem: the path without its ending.
        sampling_rate: of audio, in Hz.

    Returns:
        The path that was written.
    """
    if sample.dim() == 2:
        path = stem.with_suffix(".wav")
        with wave.open(str(path), "wb") as file:
            file.setnchannels(len(sample))
            file.setsampwidth(2)
            file.setframerate(sampling_rate or 44100)
            file.writeframes((sample.clamp(-1, 1).T * 32767).round().to(torch.int16).numpy().tobytes())
        return path
    pictures = to_pil(sample)
    if sample.dim() == 3:
        path = stem.with_suffix(".png")
        pictures.save(path)
        return path
    path = stem.with_suffix(".webp")
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0, quality=90)
    return path
