"""EditReward (Wu et al. 2025, https://arxiv.org/abs/2509.26346): how well an edit follows its instruction.

The model sees the picture before and after and reads a template, twice: :data:`FOLLOWING` asks how well the
instruction was followed, :data:`QUALITY` how good the edited picture is. Each has its own head like HPSv3's, and the
mean of their means is the reward.

Source: https://github.com/TIGER-AI-Lab/EditReward: dataset/prompts.py and dataset/data_collator_qwen_edit.py
(templates), model/qwen2_5_vl_trainer.py (heads, ``ranknet_multi_head``), inference_edit.py (order and pixels of the
pictures), config/EditReward-MiMo-VL-7B-SFT-2508.yaml (mean). Positions are as in ``_qwen_head.py``: in transformers
4.57.0, which it pins, ``Qwen2_5_VLModel`` gives embeddings alone positions by the attention mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._hub import Published
from .._media import check_pictures, read_picture
from ._qwen_head import Reader, checkpoint
from ._weights import Source, name_with_source, where
from .hpsv3 import REWARD_TOKEN, ranking_heads

MIMO_VL_7B = Published("XiaomiMiMo/MiMo-VL-7B-SFT-2508", "MIT (page of MiMo-VL-7B-RL)")

FOLLOWING = (
    "\nYou are tasked with evaluating an edited image **in comparison with the original source image** based on "
    "**Instruction Following & Semantic Fidelity**, and assigning a score from 1 to 4, with 1 being the worst and "
    "4 being the best.  \nThis dimension focuses on how accurately, completely, and exclusively the model executed "
    "the given text instruction.\n\n**Inputs Provided:**  \n- Source Image (before editing)  \n- Edited Image "
    "(after applying the instruction)  \n- Text Instruction  \n\n**Sub-Dimensions to Evaluate:**\n\n- **Semantic "
    "Accuracy:**  \n  Assess whether the edited content accurately captures the semantics of the instruction. The "
    'edited result should precisely match the intended meaning. For example, if the instruction is "replace apples '
    'with oranges," the object must clearly be oranges, not other fruits.\n\n- **Completeness of Editing:**  \n  '
    'Check whether **all parts** of the instruction are fully executed. For multi-step edits (e.g., "replace a red '
    'car with a blue bicycle"), both the color change and the object replacement must be done without '
    "omissions.\n\n- **Exclusivity of Edit (No Over-Editing):**  \n  Ensure that only the requested parts are "
    "changed. The rest of the image (as seen in the source) should remain unaltered. For example, if the "
    "instruction only involves replacing an object, the background, lighting, and unrelated objects should not be "
    "unnecessarily modified.\n\n**Scoring Criteria:**\n- **4 (Very Good):** Perfectly accurate, complete, and "
    "exclusive execution of the instruction.  \n- **3 (Relatively Good):** Largely correct, but with minor "
    "omissions or slight over-editing.  \n- **2 (Relatively Poor):** Major misinterpretation, incomplete edits, or "
    "noticeable unintended changes.  \n- **1 (Very Poor):** Instruction ignored or completely wrong execution.\n\n"
    "Text instruction - {text_prompt}\n\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"
)
QUALITY = (
    "\nYou are tasked with evaluating an edited image **in comparison with the original source image** based on "
    "**Visual Quality & Realism**, and assigning a score from 1 to 4, with 1 being the worst and 4 being the best. "
    " \nThis dimension focuses on how realistic, artifact-free, and aesthetically appealing the edited image is, "
    "while remaining consistent with the source image.\n\n**Inputs Provided:**  \n- Source Image (before editing)  "
    "\n- Edited Image (after applying the instruction)  \n- Text Instruction  \n\n**Sub-Dimensions to "
    "Evaluate:**\n\n- **Plausibility & Physical Consistency:**  \n  Check whether the edit aligns with the laws of "
    "physics and the scene context. Lighting, shadows, reflections, perspective, size, and interactions with the "
    "environment should all appear natural compared to the source image.\n\n- **Artifact-Free Quality:**  \n  Look "
    "for technical flaws such as blur, distortions, pixel misalignment, unnatural textures, or seams around edited "
    "regions. High-quality results should be free from such visible artifacts.\n\n- **Aesthetic Quality:**  \n  "
    "Evaluate the overall harmony and visual appeal. The image should look natural, balanced, and pleasant. "
    "Colors, composition, and atmosphere should enhance the image rather than degrade it.\n\n**Scoring "
    "Criteria:**\n- **4 (Very Good):** Perfectly realistic, artifact-free, seamless, and aesthetically pleasing.  "
    "\n- **3 (Relatively Good):** Mostly realistic and clean, with only minor flaws that do not significantly "
    "distract.  \n- **2 (Relatively Poor):** Noticeable physical inconsistencies or visible artifacts that make "
    "the edit unnatural.  \n- **1 (Very Poor):** Severe artifacts, incoherent composition, or visually unusable "
    "result.\n\nText instruction - {text_prompt}\n\nPlease provide the overall ratings of this image: "
    "<|Reward|>\n\nEND\n"
)


class EditReward:
    """EditReward of an edited picture and its instruction.

    The picture before the edit is ``source``, or it is at the path under ``"source"`` in a prompt's metadata.

    Args:
        model: published weights, a checkpoint file in their layout, or the folder that holds ``model.safetensors``.
        source: the picture (3, H, W) in [0, 1] before the edit, or its path; None if the prompts' metadata have it.
        processor: the model that was tuned, for its configuration, tokenizer and chat template.
        device: where the model runs.
        dtype: its precision; the published weights are bfloat16. The heads are float32.

    Raises:
        FileNotFoundError: the checkpoint or the processor is neither on this machine nor reachable.
        ValueError: the checkpoint holds another model.
    """

    differentiable = False  # the processor works on bytes
    reads_metadata = True

    def __init__(
        self,
        model: Source,
        *,
        source: Tensor | str | Path | None = None,
        processor: Source = MIMO_VL_7B,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name_with_source("edit-reward", model)
        origin = where(model)[0]
        weights, heads = checkpoint(model, "model.safetensors")
        self._source = source if source is None or isinstance(source, Tensor) else read_picture(source)
        if isinstance(source, Tensor):
            if source.dim() != 3:
                raise ValueError(f"source must be a picture (3, H, W), got {tuple(source.shape)}")
            check_pictures(source[None])
        self._reader = Reader(weights, [REWARD_TOKEN], origin=origin, processor=processor, device=device, dtype=dtype)
        names = ["rm_heads.head_0", "rm_heads.head_1"]
        self._heads = [head.to(device) for head in ranking_heads(heads, names, self._reader.width, origin=origin)]
        self.networks = [self._reader.network]

    def check(self, prompts: Sequence[str | Mapping[str, Any]]) -> None:
        """Refuse prompts with a special token of the model, or without a picture before the edit.

        Raises:
            ValueError: a prompt has such a token, or no picture.
            OSError: the picture cannot be opened.
        """
        self._reader.check([_text(prompt) for prompt in prompts])
        for prompt in prompts:
            self._before(prompt)

    def __call__(self, *, images: Tensor, prompts: Sequence[str | Mapping[str, Any]]) -> Tensor:
        """Return scores (B,) float32 of images (B, 3, H, W) in [0, 1] for B instructions, on the model's device.

        Raises:
            ValueError: their lengths differ, or as in :meth:`check`.
        """
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        texts = [_text(prompt) for prompt in prompts]
        self._reader.check(texts)
        pairs = [(self._before(prompt), image) for prompt, image in zip(prompts, images, strict=True)]
        seen = self._reader.see([picture for pair in pairs for picture in pair])
        scores = []
        for template, head in zip((FOLLOWING, QUALITY), self._heads, strict=True):
            asked = [template.replace("{text_prompt}", text) for text in texts]
            contents = [[{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}] for text in asked]
            scores.append(head(self._reader(contents, *seen)[:, 0])[:, 0])
        return torch.stack(scores).mean(0)

    def _before(self, prompt: str | Mapping[str, Any]) -> Tensor:
        if not isinstance(prompt, str) and prompt.get("source") is not None:
            return read_picture(prompt["source"])
        if self._source is None:
            raise ValueError(f'EditReward needs the picture before the edit as source= or "source", got {prompt!r}')
        return self._source


def _text(prompt: str | Mapping[str, Any]) -> str:
    return prompt if isinstance(prompt, str) else str(prompt["prompt"])
