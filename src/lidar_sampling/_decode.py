"""Decoding of clean latents, for methods that look at a prediction before sampling has ended."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ._call import alone
from ._draw import Item, to_pictures
from ._tail import Tail

# These scale latents and decode them. For every other pipeline its own call does it.
_PLAIN = re.compile(r"(StableDiffusion(XL|3)?|PixArt\w+|Sana(Sprint)?)(Img2Img|Inpaint|ControlNet\w*)?Pipeline")

# Pipelines whose call cannot be repeated without its networks, and why. Others that fail in it are refused then.
_EXCEPTIONS = {
    "AnyFlowFAR": "it draws in sections, each with steps of its own",
    "Helios": "it draws in sections, each with steps of its own",
    "HunyuanVideoFramepack": "it draws in sections, each with steps of its own",
    "SkyReelsV2DiffusionForcing": "it draws in sections, by copies of its scheduler",
    "IF": "its pictures are latents themselves, in [-1, 1]",
    "StableDiffusionLatentUpscale": "its network is shown other channels than it returns",
    "LTXCondition": "it adds noise to its conditions at every step",
}


class Decoder:
    """A function from clean latents (B, *) in the scheduler's space to samples as a reward sees them.

    Samples are float32: pictures (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1], or audio (B, channels, S). No text
    encoder and no denoiser runs, and the pipeline stays as it is, even in the middle of a call of its own. Gradients
    flow where the latents have them.

    Args:
        pipe: a diffusers pipeline, classic or modular. Plain latents (B, C, h, w) of Stable Diffusion and its like go
            straight to the decoder, without a safety checker; all others through the pipeline's own :class:`Tail`.
        call: the arguments that the latents were drawn with, such as ``height``; by default the pipeline's own.
        items: the prompts and seeds that they were drawn with. They matter where the pipeline goes on from the noise
            of a seed after its last step: where it pastes an encoded picture, or its decoder adds noise.
        batch_size: samples at a time; None takes all.

    Raises:
        TypeError: the pipeline cannot decode; the message says why.
    """

    def __init__(
        self,
        pipe: Any,
        call: Mapping[str, Any] | None = None,
        items: Sequence[Item] | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        self._pipe, self._call, self._items = pipe, call or {}, items
        self._size = 1 if alone(pipe) else batch_size
        self._plain = is_plain(pipe, self._call)
        self._tails: dict[int, Tail] = {}
        if not self._plain:
            check_decodes(pipe)

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the samples of ``latents``.

        Raises:
            ValueError: the latents are of another shape than the call draws.
            TypeError: gradients are wanted, and the decoder changes its precision on the way.
        """
        size = self._size or len(latents)
        starts = range(0, len(latents), size)
        return torch.cat([self._decode(start, latents[start : start + size]) for start in starts])

    def _decode(self, start: int, latents: Tensor) -> Tensor:
        pipe = self._pipe
        latents = latents.to(getattr(pipe, "_execution_device", pipe.device))
        if latents.requires_grad and torch.is_grad_enabled() and _upcasts(pipe):
            raise TypeError("a vae that is upcast from float16 has no gradient: load it in bfloat16 or float32")
        if self._plain and latents.dim() == 4:
            return _scale_and_decode(pipe, latents)
        if start not in self._tails:
            items = None if self._items is None else self._items[start : start + len(latents)]
            self._tails[start] = Tail(pipe, self._call, items)
        drawn = self._tails[start](latents)
        if latents.requires_grad and torch.is_grad_enabled() and not drawn.requires_grad:
            raise TypeError(f"{type(pipe).__name__} decodes without a gradient")
        return to_pictures(pipe, drawn.float())


def decode(
    pipe: Any, latents: Tensor, call: Mapping[str, Any] | None = None, items: Sequence[Item] | None = None
) -> Tensor:
    """Decode clean latents (B, *) to what the pipeline draws: a :class:`Decoder` for a single time."""
    return Decoder(pipe, call, items)(latents)


@torch.no_grad()
def pictures(
    pipe: Any,
    latents: Tensor,
    batch_size: int,
    call: Mapping[str, Any] | None = None,
    items: Sequence[Item] | None = None,
) -> Tensor:
    """Decode any number of latents on any device, a few at a time, without gradients; see :func:`decode`."""
    return Decoder(pipe, call, items, batch_size=batch_size)(latents)


def is_plain(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Return whether a pipeline's latents are plain (B, C, h, w): those of its autoencoder, up to a scale."""
    vae = getattr(pipe, "vae", None)
    if vae is None or not _PLAIN.fullmatch(type(pipe).__name__) or _upcasts(pipe):
        return False
    pastes = any(call.get(name) is not None for name in ("mask_image", "mask"))
    return not pastes and vae.config.get("latents_mean") is None and hasattr(pipe, "image_processor")


def _upcasts(pipe: Any) -> bool:
    """Return whether the pipeline, like SDXL's, turns its float16 decoder to float32 and back in its call."""
    vae: Any = getattr(pipe, "vae", None)
    return hasattr(pipe, "upcast_vae") and vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))


def check_decodes(pipe: Any) -> None:
    """Refuse a pipeline whose latents cannot be decoded apart from its own call.

    Raises:
        TypeError: the pipeline is one of these; the message says why.
    """
    name = type(pipe).__name__
    if hasattr(pipe, "prior_pipe"):
        raise TypeError(
            f"{name} cannot decode latents apart from its call: it runs two pipelines; use its decoder_pipe"
        )
    if why := next((why for family, why in _EXCEPTIONS.items() if name.startswith(family)), ""):
        raise TypeError(f"{name} cannot decode latents apart from its call: {why}")


def _scale_and_decode(pipe: Any, latents: Tensor) -> Tensor:
    vae = pipe.vae
    unscaled = latents / (vae.config.get("scaling_factor") or 1.0) + (vae.config.get("shift_factor") or 0.0)
    decoded = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded, output_type="pt").float()


def check_preview(preview: Any, pipe: Any) -> None:
    """Refuse a decoder for banks that is not an autoencoder, or that has another latent space.

    Raises:
        TypeError: it cannot decode, or the pipeline has no decoder that it could stand in for.
        ValueError: its latents have another number of channels than the pipeline's.
    """
    if not callable(getattr(preview, "decode", None)) or not hasattr(preview, "config"):
        raise TypeError(f"preview must be an autoencoder of diffusers, such as AutoencoderTiny, got {preview!r}")
    if getattr(pipe, "vae", None) is None:
        raise TypeError(f"{type(pipe).__name__} has no vae that a preview could stand in for")
    theirs, own = preview.config.get("latent_channels"), pipe.vae.config.get("latent_channels")
    if None not in (theirs, own) and theirs != own:
        raise ValueError(f"preview decodes latents of {theirs} channels, and {type(pipe).__name__} has {own}")


@contextmanager
def decode_with(pipe: Any, preview: Any) -> Iterator[None]:
    """Let ``pipe`` decode with ``preview``, if there is one, inside the block."""
    own = getattr(pipe, "vae", None)
    if preview is None:
        yield
        return
    pipe.vae = preview
    try:
        yield
    finally:
        pipe.vae = own
