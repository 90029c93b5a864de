"""Rewards: plain callables ``reward(*, images, prompts) -> Tensor (B,)``, and a registry of known ones by name.

Images are float (B, 3, H, W) in [0, 1], prompts B strings; higher is better. A function is a reward; an object may
add ``name``, ``differentiable``, and ``networks``, the modules that see every image, for
:func:`lidar_sampling.accelerate`. Nothing is imported or loaded before it is asked for.

Of a video a reward sees evenly spaced frames, each as an image, and the mean counts; one with ``modality = "video"``
sees (B, F, 3, H, W) instead. Audio comes as (B, channels, samples) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._batches import shrinking
from .._hub import Published
from .._profile import timed

Reward = Callable[..., Tensor]

FRAMES = 8  # of a video that an image reward looks at


class Entry(NamedTuple):
    """A reward that is known by name.

    Attributes:
        factory: ``module:function``, called with (model, device=, dtype=).
        description: a line on it.
        published: what the factory gets as model, unless the user names another.
        takes_model: whether ``name:MODEL`` hands MODEL to the factory.
    """

    factory: str
    description: str
    published: Published | None = None
    takes_model: bool = False


REGISTRY = {
    "glyph": Entry("clip:glyph_reward", "CLIP trained with the embedded model; guides it by default"),
    "glyph-heldout": Entry("clip:glyph_heldout", "another CLIP of the embedded model, to judge and never to guide"),
    "image-reward": Entry(
        "image_reward:ImageReward",
        "ImageReward v1.0, human preference; image-reward:PATH loads a checkpoint of your own",
        Published(
            "THUDM/ImageReward", "Apache-2.0", "ImageReward.pt", revision="5736be03b2652728fb87788c9797b0570450ab72"
        ),
        takes_model=True,
    ),
    "hpsv2": Entry(
        "hps:HPS",
        "human preference score v2; hpsv2:PATH",
        Published(
            "xswu/HPSv2", "Apache-2.0", "HPS_v2_compressed.pt", revision="697403c78157020a1ae59d23f111aa58ced35b0a"
        ),
        takes_model=True,
    ),
    "hpsv2.1": Entry(
        "hps:HPS",
        "human preference score v2.1; hpsv2.1:PATH",
        Published(
            "xswu/HPSv2", "Apache-2.0", "HPS_v2.1_compressed.pt", revision="697403c78157020a1ae59d23f111aa58ced35b0a"
        ),
        takes_model=True,
    ),
    "pickscore": Entry(
        "clip:PickScore",
        "PickScore v1, human preference; pickscore:PATH or pickscore:HUB_ID",
        Published(
            "yuvalkirstain/PickScore_v1", "MIT (repository)", revision="a4e4367c6dfa7288a00c550414478f865b875800"
        ),
        takes_model=True,
    ),
    "clip": Entry(
        "clip:CLIPReward",
        "image-text logit of a CLIP or SigLIP model; clip:PATH or clip:HUB_ID picks another",
        Published(
            "openai/clip-vit-large-patch14", "MIT (repository)", revision="32bd64288804d66eefd0ccbe215aa642df71cc41"
        ),
        takes_model=True,
    ),
    "aesthetic": Entry(
        "aesthetic:Aesthetic",
        "LAION aesthetic predictor v2, 1 to 10, looks at no prompt; aesthetic:PATH",
        Published(
            "trl-lib/ddpo-aesthetic-predictor",
            "Apache-2.0 (repository)",
            "aesthetic-model.pth",
            revision="cf4bd10345610935a80a5d3be9a3133c50f121e4",
        ),
        takes_model=True,
    ),
    "vqascore": Entry(
        "vqascore:VQAScore",
        "P(yes) of a vision-language model asked if the image shows the prompt; vqascore:PATH or vqascore:HUB_ID",
        Published("Qwen/Qwen3-VL-4B-Instruct", "Apache-2.0", revision="ebb281ec70b05090aa6165b016eac8ec08e71b17"),
        takes_model=True,
    ),
    "geneval": Entry(
        "geneval:load",
        "GenEval's verdict by Mask2Former and CLIP, 0 or 1, NaN for prompts that are not its own; for metrics; "
        "geneval:PATH or geneval:HUB_ID picks another Mask2Former",
        takes_model=True,
    ),
    "jpeg-compressibility": Entry("jpeg:compressibility", "minus the kilobytes of the image as a JPEG"),
    "jpeg-incompressibility": Entry("jpeg:incompressibility", "the kilobytes of the image as a JPEG"),
    "ocr": Entry("ocr:OCR", "how well the text in double quotes in the prompt is written in the image, 0 to 1"),
    "http": Entry("service:connect", "a reward in another process: http://HOST:PORT/NAME", takes_model=True),
    "https": Entry("service:connect_tls", "the same behind TLS", takes_model=True),
    "brightness": Entry("brightness:load_brightness", "mean pixel; needs no weights, for tests"),
}


class RewardError(ValueError):
    """A reward raised or returned what is not one finite number an image; the message says which."""


def __getattr__(name: str) -> Any:
    if name in ("Ensemble", "Mixture"):
        return getattr(import_module(".mixture", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Reward:
    """The reward called ``name``, its model on ``device``.

    Args:
        name: one of :data:`REGISTRY`; where its line says so with ``:`` and a path or hub id of other weights.
        device: where its model runs.
        dtype: the precision of its model.

    Raises:
        ValueError: no such reward; the message names the nearest.

    Example:
        >>> load("brightness")(images=torch.ones(1, 3, 2, 2), prompts=["a cat"])
        tensor([1.])
    """
    base, _, model = name.partition(":")
    entry = REGISTRY.get(base)
    if entry is None or (model and not entry.takes_model):
        near = get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown reward {name!r}; {hint}known are {', '.join(REGISTRY)}")
    module, function = entry.factory.split(":")
    factory = getattr(import_module(f".{module}", __name__), function)
    return factory(model or entry.published, device=device, dtype=dtype)


def name_of(reward: Reward) -> str:
    """What results and banks call ``reward``: its ``name``, or a function's own."""
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    return str(name)


def score(
    reward: Reward,
    *,
    images: Tensor,
    prompts: Sequence[str],
    batch_size: int = 64,
    allow_nan: bool = False,
) -> Tensor:
    """Score images in batches and check what comes back.

    Args:
        reward: the reward.
        images: (B, 3, H, W) in [0, 1], or videos or audio.
        prompts: B prompts, one an image.
        batch_size: images a call; halved when memory runs out.
        allow_nan: let NaN pass, for a metric that does not apply to every prompt.

    Returns:
        (B,) float32 on the CPU.

    Raises:
        RewardError: images that are not finite, or the reward raised or did not return one finite number an image.

    Example:
        >>> score(load("brightness"), images=torch.zeros(3, 3, 2, 2), prompts=["a cat"] * 3)
        tensor([0., 0., 0.])
    """
    if len(images) != len(prompts):
        raise ValueError(f"images and prompts must be as many, got {len(images)} and {len(prompts)}")
    if not images.isfinite().all():  # as bytes NaN would be black, and black pictures get scores
        raise RewardError("images hold NaN or infinity: the decoder overflowed; decode in float32")
    name = name_of(reward)
    by_frames = images.dim() == 5 and getattr(reward, "modality", "image") != "video"
    see = partial(_frame_mean, reward) if by_frames else reward

    def call(indices: Sequence[int]) -> Tensor:
        chosen, texts = images[indices[0] : indices[-1] + 1], list(prompts[indices[0] : indices[-1] + 1])

        def again(size: int) -> Callable[[], Any]:
            rows = [k % len(texts) for k in range(size)]
            return partial(see, images=chosen[rows], prompts=[texts[k] for k in rows])

        try:
            with torch.no_grad(), timed("reward", len(texts), again):
                result = see(images=chosen, prompts=texts)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
        return _checked(result, len(indices), name, allow_nan)

    parts = shrinking(range(len(images)), batch_size, call)
    return torch.cat(list(parts)) if len(images) else torch.zeros(0)


def score_pictures(reward: Reward, *, pictures: Sequence[Tensor], prompts: Sequence[str]) -> list[float]:
    """Score pictures (3, H, W) of any sizes, together where they are of one; otherwise as :func:`score`.

    Example:
        >>> white, black = torch.ones(3, 2, 2), torch.zeros(3, 4, 2)
        >>> score_pictures(load("brightness"), pictures=[white, black], prompts=["a", "b"])
        [1.0, 0.0]
    """
    values = [0.0] * len(pictures)
    for shape in dict.fromkeys(picture.shape for picture in pictures):
        chosen = [i for i, picture in enumerate(pictures) if picture.shape == shape]
        images = torch.stack([pictures[i] for i in chosen])
        scores = score(reward, images=images, prompts=[prompts[i] for i in chosen])
        for i, value in zip(chosen, scores.tolist(), strict=True):
            values[i] = value
    return values


def _frame_mean(reward: Reward, *, images: Tensor, prompts: list[str]) -> Tensor:
    """The mean of an image reward over evenly spaced frames of each video (B, F, 3, H, W)."""
    count = min(FRAMES, images.shape[1])
    frames = images[:, torch.linspace(0, images.shape[1] - 1, count).round().long()]
    repeated = [prompt for prompt in prompts for _ in range(count)]
    return torch.as_tensor(reward(images=frames.flatten(0, 1), prompts=repeated)).view(-1, count).mean(1)


def _checked(result: Any, count: int, name: str, allow_nan: bool) -> Tensor:
    try:
        scores = torch.as_tensor(result).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise RewardError(f"reward {name!r} must return a tensor, got {type(result).__name__}") from None
    if scores.shape != (count,):
        raise RewardError(f"reward {name!r} must return one number an image, ({count},), got {tuple(scores.shape)}")
    bad = scores.isinf() if allow_nan else ~scores.isfinite()
    if bad.any():
        raise RewardError(
            f"reward {name!r} returned {scores[bad][0].item()} for image {int(bad.nonzero()[0])} of {count}"
        )
    return scores
