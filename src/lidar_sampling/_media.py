"""Samples as tensors, files and PIL images: pictures, videos and audio, which differ in shape.

Pictures are float (B, 3, H, W) and videos (B, F, 3, H, W), both in [0, 1]; audio is (B, channels, S) in [-1, 1].
"""

from __future__ import annotations

import io
import math
import re
import struct
import wave
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._files import name_path

FPS = 16  # of a video file; diffusers' pipelines do not say theirs
_SLACK = 1e-3  # beyond the range, for what half precision rounds
_MOST_CHANNELS = 8  # of audio; what has more is a picture that lacks its batch


def check_pictures(images: Tensor) -> None:
    """Refuse anything but pictures, videos or audio in the range that rewards are written for.

    Args:
        images: (B, 3, H, W) or (B, F, 3, H, W) in [0, 1], or audio (B, channels, S) in [-1, 1]; of any floating type.

    Raises:
        TypeError: ``images`` is not a tensor.
        ValueError: the type, the shape or the values are others; the message says how to mend them.

    >>> check_pictures(torch.zeros(1, 3, 4, 4))
    >>> check_pictures(torch.zeros(1, 3, 4, 4) - 1)
    Traceback (most recent call last):
    ValueError: images must lie in [0, 1], got values from -1 to -1: give (images + 1) / 2
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        mend = "images.float() / 255" if images.dtype == torch.uint8 else "floats in [0, 1]"
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: give {mend}")
    audio = images.dim() == 3
    if not (images.shape[1] <= _MOST_CHANNELS if audio else images.dim() in (4, 5) and images.shape[-3] == 3):
        raise ValueError(
            "images must be pictures (B, 3, H, W), videos (B, F, 3, H, W) or audio (B, channels, S), "
            f"got {tuple(images.shape)}{_mend_of_shape(images)}"
        )
    if not images.numel():
        return
    low, high = (bound.item() for bound in images.detach().aminmax())  # NaN if there is one
    if not math.isfinite(low + high):  # as bytes NaN would be black, and black pictures get scores
        raise ValueError("images hold NaN or infinity: the decoder overflowed; decode in float32")
    if low < (-1 if audio else 0) - _SLACK or high > 1 + _SLACK:
        what, span = ("audio", "[-1, 1]") if audio else ("images", "[0, 1]")
        mend = f"give {what}.clamp({span[1:-1]})"
        if high > 16:  # bytes, rather than what a decoder overshoots by
            mend = f"give {what} / {32768 if audio else 255}"
        elif not audio and -1 - _SLACK <= low < -_SLACK and high <= 1 + _SLACK:
            mend = "give (images + 1) / 2"
        raise ValueError(f"{what} must lie in {span}, got values from {low:.4g} to {high:.4g}: {mend}")


def check_batch(images: Tensor, prompts: Any) -> None:
    """Refuse images that :func:`check_pictures` refuses, and prompts that are not a list of as many.

    Raises:
        TypeError: as :func:`check_pictures`.
        ValueError: as :func:`check_pictures`, or for the prompts.
    """
    check_pictures(images)
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of prompts, one per image, got the text {prompts!r}")
    if len(images) != len(prompts):
        raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")


def _mend_of_shape(images: Tensor) -> str:
    """Return what to do about a shape that is not known; an empty text where we cannot say."""
    if images.dim() == 3:
        return ": give images[None], a batch of one"
    if images.dim() not in (4, 5):
        return ""
    if images.shape[-3] == 1:
        return f": repeat the one channel, images.repeat_interleave(3, dim={images.dim() - 3})"
    if images.shape[-1] == 3:
        return ": move the channels, images.movedim(-1, -3)"
    if images.shape[-3] == 4:
        return ": lay the pictures over white, and leave the fourth channel out"
    if images.dim() == 5 and images.shape[1] == 3:
        return ": move the channels, images.movedim(1, 2)"
    return ""


def read_picture(file: str | Path | bytes, *, name: str = "", formats: tuple[str, ...] | None = None) -> Tensor:
    """Return a picture (3, H, W) in [0, 1], upright, with transparent parts over white.

    Args:
        file: a path, or what is in the file.
        name: what errors call it; by default the path.
        formats: of Pillow, the only ones that are tried; None tries all.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: it is not a picture, is cut off or too large, moves, or has more than 8 bits per channel.
    """
    name = name or ("the picture" if isinstance(file, bytes) else str(file))
    (picture,) = _read_frames(io.BytesIO(file) if isinstance(file, bytes) else file, name, formats, moving=False)
    return picture


def read_sample(file: str | Path) -> Tensor:
    """Return a picture as :func:`read_picture` does, or the frames (F, 3, H, W) of one that moves.

    Raises:
        OSError: as :func:`read_picture`.
        ValueError: as :func:`read_picture`, but for what moves, whose frames must be of one size.
    """
    frames = _read_frames(file, str(file), None, moving=True)
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{file} holds pictures of several sizes: save each to a file of its own")
    return torch.stack(frames) if len(frames) > 1 else frames[0]


def _read_frames(file: Any, name: str, formats: tuple[str, ...] | None, *, moving: bool) -> list[Tensor]:
    """Return the frames of a picture, as :func:`read_picture` does; more than one only if it may be ``moving``."""
    from PIL import Image, ImageSequence, UnidentifiedImageError

    problems = OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError
    try:
        with Image.open(file, formats=formats) as image:
            count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a photograph and its preview
            refused, stored = None, _read_mode(image)
            if image.mode.startswith(("I", "F")):  # Pillow would cut, not scale
                refused = f"has pixels of mode {image.mode}: save it with 8 bits a channel"
            elif _DEEP.search(stored):  # Pillow cuts them, and misses their transparency
                refused = f"has 16 bits a channel ({stored}): save it with 8"
            elif count > 1 and not moving:
                refused = f"holds {count} pictures, not one: save each to a file of its own"
            if stored in _SCALES and isinstance(image.info.get("transparency"), int):
                image.info["transparency"] *= _SCALES[stored]  # Pillow scales the pixels alone
            seen = [image] if count == 1 else ImageSequence.Iterator(image)
            frames = [] if refused else [_over_white(frame) for frame in seen]
    except UnidentifiedImageError:
        kind = "picture" if formats is None else " or ".join(formats)
        raise ValueError(f"{name} is not a {kind}") from None
    except problems as error:
        if getattr(error, "filename", None):  # it cannot be opened, and says which
            raise
        raise ValueError(f"{name} cannot be read: {error}") from None
    if refused:
        raise ValueError(f"{name} {refused}")
    return frames


_DEEP = re.compile(";16[BLN]")  # ";16" alone is a bitmap's 16 bits per pixel
_SCALES = {"L;2": 85, "L;4": 17}  # from a grey level of 2 or 4 bits to one of 8


def _read_mode(image: Any) -> str:
    """Return how the file of a Pillow image that was not yet read stores its pixels; empty if it does not say."""
    for _, _, _, arguments in getattr(image, "tile", ()):
        first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        return first if isinstance(first, str) else ""
    return ""


def _over_white(image: Any) -> Tensor:
    import numpy as np
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image).convert("RGBA")
    page = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return torch.from_numpy(np.array(page)).movedim(-1, 0).float() / 255


def to_pil(sample: Tensor) -> Any:
    """Convert a picture (3, H, W) to a PIL image, a video (F, 3, H, W) to a list of them; values in [0, 1].

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


def save_sample(
    sample: Tensor, stem: Path, *, sampling_rate: int | None = None, texts: Mapping[str, str] | None = None
) -> Path:
    """Write one sample beside ``stem``: ``.png``, animated ``.webp`` for a video, ``.wav`` for audio.

    Args:
        sample: as in :func:`to_pil`, or audio (channels, S) in [-1, 1].
        stem: the path without its ending.
        sampling_rate: of audio, in Hz.
        texts: what a picture says of itself, by keys of its PNG.

    Returns:
        The path that was written.
    """
    if sample.dim() == 2:
        path = stem.with_suffix(".wav")
        with name_path(path), wave.open(str(path), "wb") as file:
            file.setnchannels(len(sample))
            file.setsampwidth(2)
            file.setframerate(sampling_rate or 44100)
            file.writeframes((sample.clamp(-1, 1).T * 32767).round().to(torch.int16).numpy().tobytes())
        return path
    pictures = to_pil(sample)
    if sample.dim() == 3:
        path = stem.with_suffix(".png")
        with name_path(path):
            pictures.save(path, pnginfo=_texts(texts or {}))
        return path
    path = stem.with_suffix(".webp")
    with name_path(path):
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0, quality=90)
    return path


def _texts(texts: Mapping[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)  # beyond Latin 1 Pillow writes UTF-8
    return info
