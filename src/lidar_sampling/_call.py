"""The arguments of a pipeline's call: which ones the sampler sets, and which ones differ between prompts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
from torch import Tensor

from ._contents import contents
from ._values import accepts, annotations_of, spelt

TARGET_ONLY = ("timesteps", "sigmas", "denoising_end")
"""Arguments that say how the target goes through its steps; a lookahead of other steps does without them."""

_OWN = {  # what the sampler sets for every batch -> what to use instead
    "prompt": "give the prompts to the sampler",
    "generator": "give it a seed",
    "latents": "give it a seed",
    "output_type": "it returns tensors, and Result.pil() pictures",
    "return_dict": "it returns a Result",
    "num_images_per_prompt": "give it images=",
    "num_videos_per_prompt": "give it images=",
    "num_waveforms_per_prompt": "give it images=",
    "batch_size": "give it batch_size=",
}
_TEXT = re.compile(r"prompt_\d|negative_prompt(_\d)?|lyrics|transcription|vocal_language")
_COUNTS = ("height", "width", "num_frames", "num_inference_steps")
_PICTURES = ("image", "mask_image", "control_image", "control_mask", "init_image")
# Pipelines that read a list of pictures as one picture per sample; others take several references for each sample.
_PAIRED = re.compile(
    "Img2Img|Inpaint|Fill|Pix2Pix|Depth2Img|Upscale|Adapter|ImageToVideo|ControlNet|ConsisID|QwenImageEdit(?!Plus)"
    "|Kandinsky5I2I"
)
# Some of these take one picture for all samples, and add no noise to it.
_SHARED = re.compile(
    "^(Wan|SkyReelsV2|Kandinsky5(?!I2I)|ChronoEdit|Sana)|(?<!QwenImage)Edit|MultiControlNet|MultiAdapter"
)
_VIDEOS = re.compile("^(AnimateDiff|CogVideoX)VideoToVideo")  # which read a video for each sample
# Pipelines that cannot draw several samples in a batch, or not each of them from its own noise (diffusers 0.42).
_ALONE = re.compile(
    "WanVACE|DreamLite|MotifVideoImage2Video|QwenImageEditPlus|HunyuanVideo15|Cosmos3|GlmImage|BriaFiboEdit"
    "|AnimateDiff(VideoToVideo)?ControlNet|Cosmos2?VideoToWorld|StableCascadeDecoder|^Kandinsky(Img2Img|Inpaint)?Pipe"
    "|CogVideoXFunControl|^Latte"
)
# Whose text encoders see the padding of shorter prompts, so that a sample depends on the longest prompt of its batch.
_APART = re.compile("^CogView4")
_ONE_TEXT = re.compile("WanVACE|DreamLite")  # and that take a text and a generator, not lists of one


class PerPrompt(dict[str, Any]):
    """An argument whose value differs from prompt to prompt: prompt -> value."""


def inputs_of(pipe: Any) -> Collection[str]:
    """Return the names of the arguments that ``pipe`` can be called with."""
    return inspect.signature(pipe.__call__).parameters if blocks_of(pipe) is None else blocks_of(pipe).input_names


def parameters_of(pipe: Any) -> dict[str, Any]:
    """Return the arguments that ``pipe`` can be called with, and their defaults."""
    blocks = blocks_of(pipe)
    if blocks is not None:
        return {parameter.name: parameter.default for parameter in blocks.inputs}
    return {name: parameter.default for name, parameter in inspect.signature(pipe.__call__).parameters.items()}


def blocks_of(pipe: Any) -> Any:
    """Return the blocks of a modular pipeline; None of a classic one."""
    return getattr(pipe, "blocks", None)


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuse arguments that ``pipe``, or a class of pipelines, does not take, or that the sampler sets itself.

    Raises:
        TypeError: an argument that the pipeline does not know.
        ValueError: one of another type, or of the sampler's own; the message names the argument and the mend.
    """
    known = inputs_of(pipe)
    cls = pipe if isinstance(pipe, type) else type(pipe)
    hints = annotations_of(cls.__call__) if blocks_of(pipe) is None else {}
    for name, value in call.items():
        if name in _OWN:
            raise ValueError(f"{name} is set by the sampler: {_OWN[name]}")
        if re.search(r"prompt.*_(embeds|mask)", name):
            raise ValueError(f"{name} is set by the sampler: give texts instead, for example as negative_prompt")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            mend = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{cls.__name__} takes no argument {name!r}{mend}")
        hint: Any = hints.get(name, Any)
        if _TEXT.fullmatch(name) and isinstance(value, list | tuple):
            hint = list[str]  # one per prompt
        checked = value is not None and (_is_plain(value) or _is_scalar(hint) or hint == list[str])
        if checked and not accepts(hint, value):
            raise ValueError(f"{cls.__name__}: {name} must be {spelt(hint)}, got {value!r}")
        if name in _COUNTS and value is not None and value < 1:
            raise ValueError(f"{cls.__name__}: {name} must be at least 1, got {value}")
        if name in ("strength", "denoising_end") and value is not None and not 0 < value <= 1:
            raise ValueError(f"{cls.__name__}: {name} must be above 0 and at most 1, got {value}")


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _is_scalar(hint: Any) -> bool:
    """Return whether an annotation allows numbers and texts alone."""
    either = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
    return all(one in (bool, int, float, str, type(None)) for one in either)


def per_prompt(pipe: Any, call: Mapping[str, Any], prompts: Sequence[str]) -> dict[str, Any]:
    """Return ``call`` with each list that has a value per prompt turned into a :class:`PerPrompt`.

    Lists of texts (``negative_prompt``, ``prompt_2``) have a value per prompt; so have lists and batches of pictures,
    where the pipeline pairs them with samples.

    Raises:
        ValueError: there are more or fewer values than prompts, or one prompt comes with two values.
    """
    return {name: _of_prompts(pipe, name, value, prompts) for name, value in call.items()}


def _of_prompts(pipe: Any, name: str, value: Any, prompts: Sequence[str]) -> Any:
    if not _is_several(pipe, name, value):
        return value
    if len(value) != len(prompts):
        raise ValueError(f"{name} holds {len(value)} values for {len(prompts)} prompts: give one, or one per prompt")
    found = PerPrompt(zip(prompts, value, strict=True))
    for prompt, own in zip(prompts, value, strict=True):
        if found[prompt] is not own and contents(found[prompt]) != contents(own):
            raise ValueError(f"{prompt!r} comes twice, with two values of {name}: draw them one after the other")
    return found


def _is_several(pipe: Any, name: str, value: Any) -> bool:
    if _TEXT.fullmatch(name):
        return isinstance(value, list | tuple)
    if not _pairs(pipe, name):
        return False
    return isinstance(value, list | tuple) or (getattr(value, "ndim", 0) == 4 and len(value) > 1)


def _pairs(pipe: Any, name: str) -> bool:
    """Return whether ``name`` holds a picture for each sample, where there are several."""
    several = any(hasattr(_part(pipe, part), "nets") for part in ("controlnet",))
    several = several or hasattr(_part(pipe, "adapter"), "adapters")
    return name in _PICTURES and bool(_PAIRED.search(type(pipe).__name__)) and not several


def alone(pipe: Any) -> bool:
    """Return whether ``pipe`` must draw its samples one by one."""
    return bool(_ALONE.search(type(pipe).__name__))


def apart(pipe: Any) -> bool:
    """Return whether a batch of ``pipe`` must hold samples of one prompt alone."""
    return bool(_APART.search(type(pipe).__name__))


def _part(pipe: Any, name: str) -> Any:
    return getattr(pipe, name, None)


def for_batch(call: Mapping[str, Any], prompts: Sequence[str], pipe: Any = None) -> dict[str, Any]:
    """Return the arguments of a batch, given the prompt of each of its samples.

    One text or picture for all is repeated for each sample. Of one picture diffusers' pipelines make one latent, with
    the noise of the first sample's generator: then a sample would depend on its place in the batch.

    Args:
        call: the arguments.
        prompts: of the samples.
        pipe: whose arguments they are; None leaves pictures as they are.

    Raises:
        ValueError: a list of texts whose prompts were never said.

    >>> for_batch({"negative_prompt": "ugly", "height": 64}, ["a cat", "a dog"])
    {'negative_prompt': ['ugly', 'ugly'], 'height': 64}
    """
    found = {}
    for name, value in call.items():
        if isinstance(value, PerPrompt):
            found[name] = [value[prompt] for prompt in prompts]
        elif _TEXT.fullmatch(name) and isinstance(value, str):  # a list of prompts wants lists of these
            found[name] = [value] * len(prompts)
        elif _TEXT.fullmatch(name) and isinstance(value, list | tuple):
            raise ValueError(f"{name} holds a list, and this method draws without the list of prompts: give one text")
        elif pipe is not None and name == "video" and _VIDEOS.search(type(pipe).__name__):
            found[name] = _repeated_video(value, len(prompts))
        elif pipe is not None and _pairs(pipe, name) and not _SHARED.search(type(pipe).__name__):
            found[name] = _repeat(value, len(prompts))
        else:
            found[name] = value
        if pipe is not None and _ONE_TEXT.search(type(pipe).__name__) and _TEXT.fullmatch(name):
            (found[name],) = found[name]
    return found


def prompts_for(pipe: Any, prompts: Sequence[str]) -> Any:
    """Return ``prompts`` as ``pipe`` takes them; a copy, because some pipelines write into the list."""
    if _ONE_TEXT.search(type(pipe).__name__):
        (prompt,) = prompts
        return prompt
    return list(prompts)


def _repeat(value: Any, count: int) -> Any:
    """Return one picture as often as there are samples; several as they are."""
    if isinstance(value, Tensor):
        value = value[(None,) * (4 - value.ndim)] if value.ndim < 4 else value
        return value.repeat(count, *(1,) * (value.ndim - 1)) if len(value) == 1 else value
    if isinstance(value, np.ndarray):
        value = value[None] if value.ndim < 4 else value
        return value.repeat(count, axis=0) if len(value) == 1 else value
    if isinstance(value, list | tuple):
        return [*value] * count if len(value) == 1 else value
    return value if value is None else [value] * count


def _repeated_video(value: Any, count: int) -> Any:
    """Return one video, a list of frames or (1, F, C, H, W), as often as there are samples; several as they are."""
    if isinstance(value, Tensor | np.ndarray):
        return _repeat(value, count) if value.ndim == 5 else value
    several = isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple)
    return value if several or value is None else [value] * count
