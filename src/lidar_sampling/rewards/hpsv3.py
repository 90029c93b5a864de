"""HPSv3 (Ma et al. 2025, https://arxiv.org/abs/2508.03789): human preference of an image for its prompt.

Qwen2-VL-7B reads the image and :data:`TEMPLATE`; a head of three layers turns its state at ``<|Reward|>`` into the
mean mu and the log sigma of the score's normal distribution; mu is the reward.

Source: hpsv3 1.0.0 (https://pypi.org/project/hpsv3, that of https://github.com/MizzenAI/HPSv3): the template in
dataset/data_collator_qwen.py, head and reading in model/qwen2vl_trainer.py, pixels in inference.py. Ports that number
positions as Qwen2-VL does, in time, height and width, only come near these scores; see ``_qwen_head.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .._hub import Published
from ._qwen_head import Reader, checkpoint
from ._weights import Source, name_with_source, where

QWEN2_VL_7B = Published(
    "Qwen/Qwen2-VL-7B-Instruct", "Apache-2.0", revision="eed13092ef92e448dd6875b2a00151bd3f7db0ac"
)
REWARD_TOKEN = "<|Reward|>"

TEMPLATE = (
    "\nYou are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a "
    "overall score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst "
    "and 10 being the best. \n\n**Visual Quality:**  \nEvaluate the overall visual quality of the image. The "
    "following sub-dimensions should be considered:\n- **Reasonableness:** The image should not contain any "
    "significant biological or logical errors, such as abnormal body structures or nonsensical environmental "
    "setups.\n- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and "
    "easy to interpret, with no blurring or indistinct areas.\n- **Detail Richness:** Consider the level of detail "
    "in textures, materials, lighting, and other visual elements (e.g., hair, clothing, shadows).\n- **Aesthetic "
    "and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, "
    "atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of harmony and "
    "balance.\n- **Safety:** The image should not contain harmful or inappropriate content, such as political, "
    "violent, or adult material. If such content is present, the image quality and satisfaction score should be "
    "the lowest possible. \n\n**Text Alignment:**  \nAssess how well the image matches the textual prompt across "
    "the following sub-dimensions:\n- **Subject Relevance** Evaluate how accurately the subject(s) in the image "
    "(e.g., person, animal, object) align with the textual description. The subject should match the description "
    "in terms of number, appearance, and behavior.\n- **Style Relevance:** If the prompt specifies a particular "
    "artistic or stylistic style, evaluate how well the image adheres to this style.\n- **Contextual "
    "Consistency**: Assess whether the background, setting, and surrounding elements in the image logically fit "
    "the scenario described in the prompt. The environment should support and enhance the subject without "
    "contradictions.\n- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., "
    "colors, clothing, accessories, expressions, actions) are faithfully represented in the image. Minor "
    "deviations may be acceptable, but critical attributes should be preserved.\n- **Semantic Coherence**: "
    "Evaluate whether the overall meaning and intent of the prompt are captured in the image. The generated "
    "content should not introduce elements that conflict with or distort the original description.\nTextual prompt "
    "- {text_prompt}\n\n\n\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"
)


class HPSv3:
    """HPSv3 of an image and its prompt.

    Args:
        model: published weights, a checkpoint file in their layout, or the folder that holds ``HPSv3.safetensors``.
        processor: the model that was tuned, for its configuration, tokenizer and chat template.
        device: where the model runs.
        dtype: its precision; the published weights are bfloat16. The head is float32.

    Raises:
        FileNotFoundError: the checkpoint or the processor is neither on this machine nor reachable.
        ValueError: the checkpoint holds another model.
    """

    differentiable = False  # the processor works on bytes

    def __init__(
        self,
        model: Source,
        *,
        processor: Source = QWEN2_VL_7B,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name_with_source("hpsv3", model)
        origin = where(model)[0]
        weights, heads = checkpoint(model, "HPSv3.safetensors")
        self._reader = Reader(weights, [REWARD_TOKEN], origin=origin, processor=processor, device=device, dtype=dtype)
        self._head = ranking_heads(heads, ["rm_head"], self._reader.width, origin=origin)[0].to(device)
        self.networks = [self._reader.network]

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts with a special token of the model.

        Raises:
            ValueError: a prompt has such a token.
        """
        self._reader.check(prompts)

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) float32 of images (B, 3, H, W) in [0, 1] and B prompts, on the model's device.

        Raises:
            ValueError: their lengths differ, or a prompt holds a special token of the model.
        """
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        self.check(prompts)
        contents = [
            [{"type": "image"}, {"type": "text", "text": TEMPLATE.replace("{text_prompt}", prompt)}]
            for prompt in prompts
        ]
        states = self._reader(contents, *self._reader.see(list(images)))
        return self._head(states[:, 0])[:, 0]


def ranking_heads(
    weights: Mapping[str, Tensor], names: Sequence[str], width: int, *, origin: str
) -> list[nn.Sequential]:
    """Return these heads, from states (..., width) to mean and log sigma (..., 2) of a score, in float32.

    Each has linear layers 0, 3 and 5, with a ReLU after each of the first two; 2 is a dropout, which does nothing
    here.

    Raises:
        ValueError: the weights differ; the message names the first.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    heads = []
    for name in names:
        sizes = [width, *(len(weights.get(f"{name}.{place}.weight", ())) for place in (0, 3)), 2]
        for place, (columns, rows) in zip((0, 3, 5), pairwise(sizes), strict=True):
            shapes |= {f"{name}.{place}.weight": (rows, columns), f"{name}.{place}.bias": (rows,)}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(name for name in {*shapes, *given} if shapes.get(name) != given.get(name)):
        raise ValueError(f"{origin} has another head: {len(wrong)} weights differ, first {wrong[0]}")
    for name in names:
        first, second, third = (nn.Linear(*weights[f"{name}.{place}.weight"].mT.shape) for place in (0, 3, 5))
        head = nn.Sequential(first, nn.ReLU(), nn.Identity(), second, nn.ReLU(), third)
        head.load_state_dict({key: weights[f"{name}.{key}"] for key in head.state_dict()})
        heads.append(head.eval().requires_grad_(False))
    return heads
