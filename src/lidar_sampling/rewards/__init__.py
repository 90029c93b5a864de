"""Rewards: plain callables ``reward(*, images, prompts) -> Tensor (B,)``, and a registry of known rewards.

Images are float (B, 3, H, W) in [0, 1], prompts are B strings; higher is better. A reward gets copies, which it may
modify. Nothing is imported or loaded before it is needed.

Any such function is a reward. A reward may have attributes:

``name``            its name in results and banks
``differentiable``  True if gradients reach the images
``reads_prompt``    False if the score depends only on the images
``networks``        the modules that see every image, for :func:`lidar_sampling.accelerate`
``modality``        ``"video"`` if it takes whole videos, as below
``check(prompts)``  raises ValueError for prompts that it cannot read; called before drawing
``reads_metadata``  True if it takes a prompt's metadata, a dictionary, when the caller has it
``fingerprint``     a JSON value that identifies what determines its scores, if its attributes do not
``features(images)``  unit vectors (B, d) of images, which measure the diversity of a set

For a video, a reward gets evenly spaced frames as images, and the mean counts; one with ``modality = "video"`` gets
(B, F, 3, H, W) instead. Audio is (B, channels, samples) in [-1, 1].
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import torch

from .._hub import Published
from ._diversity import diversity as diversity
from ._diversity import features_of as features_of
from ._diversity import select_diverse as select_diverse
from ._diversity import with_features as with_features
from ._examine import Finding as Finding
from ._examine import examine as examine
from ._imported import function_at as function_at
from ._score import FRAMES as FRAMES
from ._score import Reward as Reward
from ._score import RewardError as RewardError
from ._score import ask as ask
from ._score import ask_part as ask_part
from ._score import check_prompts as check_prompts
from ._score import name_of as name_of
from ._score import score as score
from ._score import score_pictures as score_pictures


class Entry(NamedTuple):
    """A reward in the registry.

    Attributes:
        factory: ``module:function``, called with (model, device=, dtype=).
        description: one line that describes it.
        published: the factory's model, unless the user names another.
        takes_model: whether ``name:MODEL`` passes MODEL to the factory.
    """

    factory: str
    description: str
    published: Published | None = None
    takes_model: bool = False


REGISTRY = {
    "glyph": Entry("clip:glyph_reward", "CLIP trained with the embedded model; guides it by default"),
    "glyph-heldout": Entry("clip:glyph_heldout", "another CLIP of the embedded model, which judges and never guides"),
    "image-reward": Entry(
        "image_reward:ImageReward",
        "ImageReward v1.0, human preference; image-reward:PATH loads your own checkpoint",
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
        "LAION aesthetic predictor v2, 1 to 10, ignores the prompt; aesthetic:PATH",
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
    "hpsv3": Entry(
        "hpsv3:HPSv3",
        "human preference score v3, by Qwen2-VL-7B; hpsv3:PATH",
        Published(
            "MizzenAI/HPSv3", "Apache-2.0", "HPSv3.safetensors", revision="4f81e3e09edd82fe3c5f636444c721b592a735ca"
        ),
        takes_model=True,
    ),
    "unified-reward": Entry(
        "unified_reward:UnifiedReward",
        "UnifiedReward 2.0, a vision-language model's mean score for alignment, coherence and style, 1 to 5; "
        "unified-reward:PATH or unified-reward:HUB_ID",
        Published(
            "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b",
            "MIT (repository)",
            revision="4175e6b78d62f639282797d05ccea35d3be823cf",
        ),
        takes_model=True,
    ),
    "cycle-reward": Entry(
        "cycle_reward:CycleReward",
        "CycleReward, whether image and text match; needs a checkpoint, cycle-reward:PATH, since the hub has none",
        takes_model=True,
    ),
    "edit-reward": Entry(
        "edit_reward:EditReward",
        'how well an edit follows its instruction; the original picture is "source" in the metadata; '
        "edit-reward:PATH",
        Published("TIGER-Lab/EditReward-MiMo-VL-7B-SFT-2508", "MIT (repository)", "model.safetensors"),
        takes_model=True,
    ),
    "video-reward": Entry(
        "video_reward:VideoReward",
        "VideoReward of VideoAlign, visual quality, motion quality and text alignment of a video; video-reward:PATH",
        Published(
            "KlingTeam/VideoReward",
            "Apache-2.0",
            "checkpoint-11352/model.pth",
            revision="4f26600130683e6f1de9f5d463887f28e8ef995c",
        ),
        takes_model=True,
    ),
    "clap": Entry(
        "clap:CLAP",
        "audio-text logit of a CLAP model, for audio; clap:PATH or clap:HUB_ID picks another",
        Published("laion/larger_clap_general", "see its page", revision="ada0c23a36c4e8582805bb38fec3905903f18b41"),
        takes_model=True,
    ),
    "soft-tifa": Entry(
        "soft_tifa:SoftTIFA",
        "Soft-TIFA of GenEval 2, geometric mean, 0 to 1, for metrics; soft-tifa:PATH gives its file of questions",
        takes_model=True,
    ),
    "soft-tifa-am": Entry(
        "soft_tifa:soft_tifa_am", "the same by the arithmetic mean; soft-tifa-am:PATH", takes_model=True
    ),
    "geneval": Entry(
        "geneval:load_judge",
        "GenEval's verdict by Mask2Former and CLIP, 0 or 1, NaN for prompts outside its templates; for metrics; "
        "geneval:PATH or geneval:HUB_ID picks another Mask2Former",
        takes_model=True,
    ),
    "jpeg-compressibility": Entry("jpeg:compressibility", "minus the kilobytes of the image as a JPEG"),
    "jpeg-incompressibility": Entry("jpeg:incompressibility", "the kilobytes of the image as a JPEG"),
    "ocr": Entry("ocr:OCR", "how well the image shows the text that the prompt has in double quotes, 0 to 1"),
    "http": Entry("service:connect", "a reward in another process: http://HOST:PORT/NAME", takes_model=True),
    "https": Entry("service:connect_tls", "the same over TLS", takes_model=True),
    "brightness": Entry("brightness:load_brightness", "mean pixel; needs no weights, for tests"),
}


def __getattr__(name: str) -> Any:
    if name in ("Ensemble", "Mixture"):
        return getattr(import_module(".mixture", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Reward:
    """Return the reward called ``name``, with its model on ``device``.

    Args:
        name: a key of :data:`REGISTRY`, possibly with ``:`` and a path or hub id of other weights; or
            ``package.module:function`` of your own; or a mixture of these, ``clip:0.9+brightness:0.1``.
        device: where its model runs.
        dtype: the precision of its model.

    Raises:
        ValueError: there is no such reward; the message names the nearest.
        RewardError: the module of your function cannot be imported.

    Example:
        >>> load("brightness")(images=torch.ones(1, 3, 2, 2), prompts=["a cat"])
        tensor([1.])
    """
    if weights := read_mixture(name):
        from .mixture import Mixture

        return Mixture(weights, device=device, dtype=dtype)
    found = _find(name)
    if callable(found):
        return found
    entry, model = found
    module, function = entry.factory.split(":")
    factory = getattr(import_module(f".{module}", __name__), function)
    return factory(model or entry.published, device=device, dtype=dtype)


def check_name(name: str) -> None:
    """Refuse a name that :func:`load` does not know, without loading anything.

    Raises:
        ValueError: the name is unknown; the message names the nearest.
        RewardError: the module of a function cannot be imported.
    """
    for part in read_mixture(name) or [name]:
        _find(part)


def read_mixture(text: str) -> dict[str, float]:
    """Return the names and weights of a mixture ``NAME:WEIGHT+NAME:WEIGHT``; empty for a single name.

    Raises:
        ValueError: one part has a weight and another has none, or a name comes twice.

    >>> read_mixture("image-reward:0.9+clip:some/model:0.1"), read_mixture("clip:a+b")
    ({'image-reward': 0.9, 'clip:some/model': 0.1}, {})
    """
    found: dict[str, float] = {}
    parts = [part.rpartition(":") for part in text.split("+")]
    weighed = [name for name, _, weight in parts if name and _is_number(weight)]
    if len(parts) < 2 or not weighed:
        return found
    for name, _, weight in parts:
        if name not in weighed:
            raise ValueError(f"a mixture must be NAME:WEIGHT+NAME:WEIGHT, got {text!r}")
        if name in found:
            raise ValueError(f"the mixture {text!r} names {name} twice: leave one out")
        found[name] = float(weight)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _find(name: str) -> tuple[Entry, str] | Reward:
    """Return the entry of ``name`` and the model after its colon, or the user's own function."""
    base, _, model = name.partition(":")
    entry = REGISTRY.get(base)
    if entry is None and (function := function_at(name)) is not None:
        return function
    if entry is None or (model and not entry.takes_model):
        near = get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"unknown reward {name!r}; {hint}known are {', '.join(REGISTRY)}, or your own package.module:function"
        )
    return entry, model
