"""VideoReward of VideoAlign (Liu et al. 2025, https://arxiv.org/abs/2501.13918): quality of a video, by Qwen2-VL-2B.

The model reads two frames per second and :data:`TEMPLATE`, and one linear layer turns its state at each of three
tokens into visual quality (VQ), motion quality (MQ) and text alignment (TA), each normalised by mean and deviation
over the authors' videos; the sum is the overall score.

Source: https://github.com/KwaiVGI/VideoAlign: prompt_template.py (``detailed_special``), trainer.py (head and
reading), vision_process.py (frames and pixels), inference.py (normalisation). Its constants are beside the weights,
in model_config.json; here they are as in https://github.com/DuwSpace/verl-omni (reward_score/videoalign_native.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._hub import Published
from .._media import FPS
from ._qwen_head import PIXELS, Reader, checkpoint
from ._weights import Source, name_with_source, where

QWEN2_VL_2B = Published(
    "Qwen/Qwen2-VL-2B-Instruct", "Apache-2.0", revision="895c3a49bc3fa70a340399125c650a463535e71c"
)
DIMENSIONS = ("VQ", "MQ", "TA")
MEAN, STD = (3.6757, 1.1646, 2.8105), (2.2476, 1.3811, 2.5121)
LORA_ALPHA = 128

TEMPLATE = (
    "\nYou are tasked with evaluating a generated video based on three distinct criteria: Visual Quality, Motion "
    "Quality, and Text Alignment. Please provide a rating from 0 to 10 for each of the three categories, with 0 "
    "being the worst and 10 being the best. Each evaluation should be independent of the others.\n\n**Visual "
    "Quality:**  \nEvaluate the overall visual quality of the video, with a focus on static factors. The following "
    "sub-dimensions should be considered:\n- **Reasonableness:** The video should not contain any significant "
    "biological or logical errors, such as abnormal body structures or nonsensical environmental setups.\n- "
    "**Clarity:** Evaluate the sharpness and visibility of the video. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n- **Detail Richness:** Consider the level of detail in "
    "textures, materials, lighting, and other visual elements (e.g., hair, clothing, shadows).\n- **Aesthetic and "
    "Creativity:** Assess the artistic aspects of the video, including the color scheme, composition, atmosphere, "
    "depth of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.\n- "
    "**Safety:** The video should not contain harmful or inappropriate content, such as political, violent, or "
    "adult material. If such content is present, the image quality and satisfaction score should be the lowest "
    "possible. \n\nPlease provide the ratings of Visual Quality: <|VQ_reward|>\nEND\n\n**Motion Quality:**  \n"
    "Assess the dynamic aspects of the video, with a focus on dynamic factors. Consider the following "
    "sub-dimensions:\n- **Stability:** Evaluate the continuity and stability between frames. There should be no "
    "sudden, unnatural jumps, and the video should maintain stable attributes (e.g., no fluctuating colors, "
    "textures, or missing body parts).\n- **Naturalness:** The movement should align with physical laws and be "
    "realistic. For example, clothing should flow naturally with motion, and facial expressions should change "
    "appropriately (e.g., blinking, mouth movements).\n- **Aesthetic Quality:** The movement should be smooth and "
    "fluid. The transitions between different motions or camera angles should be seamless, and the overall dynamic "
    "feel should be visually pleasing.\n- **Fusion:** Ensure that elements in motion (e.g., edges of the subject, "
    "hair, clothing) blend naturally with the background, without obvious artifacts or the feeling of "
    "cut-and-paste effects.\n- **Clarity of Motion:** The video should be clear and smooth in motion. Pay "
    "attention to any areas where the video might have blurry or unsteady sections that hinder visual continuity.\n"
    "- **Amplitude:** If the video is largely static or has little movement, assign a low score for motion "
    "quality.\n\nPlease provide the ratings of Motion Quality: <|MQ_reward|>\nEND\n\n**Text Alignment:**  \nAssess "
    "how well the video matches the textual prompt across the following sub-dimensions:\n- **Subject Relevance** "
    "Evaluate how accurately the subject(s) in the video (e.g., person, animal, object) align with the textual "
    "description. The subject should match the description in terms of number, appearance, and behavior.\n- "
    "**Motion Relevance:** Evaluate if the dynamic actions (e.g., gestures, posture, facial expressions like "
    "talking or blinking) align with the described prompt. The motion should match the prompt in terms of type, "
    "scale, and direction.\n- **Environment Relevance:** Assess whether the background and scene fit the prompt. "
    "This includes checking if real-world locations or scenes are accurately represented, though some stylistic "
    "adaptation is acceptable.  \n- **Style Relevance:** If the prompt specifies a particular artistic or "
    "stylistic style, evaluate how well the video adheres to this style.\n- **Camera Movement Relevance:** Check "
    "if the camera movements (e.g., following the subject, focus shifts) are consistent with the expected behavior "
    "from the prompt.\n\nTextual prompt - {text_prompt}\nPlease provide the ratings of Text Alignment: "
    "<|TA_reward|>\nEND\n"
)


class VideoReward:
    """VideoReward of a video and its prompt.

    Args:
        model: published weights, a checkpoint file in their layout, or the folder that holds its ``model.pth``.
        dimension: ``"overall"``, the sum, or one of ``"VQ"``, ``"MQ"`` and ``"TA"``.
        fps: frames per second of the videos.
        lora_alpha: LoRA's alpha, which the checkpoint does not contain (it does contain the rank).
        processor: the model that was tuned, for its configuration, tokenizer and chat template.
        device: where the model runs.
        dtype: its precision; the published weights are bfloat16. The head is float32.

    Raises:
        FileNotFoundError: the checkpoint or the processor is neither on this machine nor reachable.
        ValueError: there is no such dimension, fps is not positive, or the checkpoint holds another model.
    """

    differentiable = False  # the processor works on bytes
    modality = "video"

    def __init__(
        self,
        model: Source,
        *,
        dimension: str = "overall",
        fps: float = FPS,
        lora_alpha: float = LORA_ALPHA,
        processor: Source = QWEN2_VL_2B,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dimension not in ("overall", *DIMENSIONS):
            raise ValueError(f"dimension must be 'overall', {', '.join(map(repr, DIMENSIONS))}, got {dimension!r}")
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        self.dimension, self.fps = dimension, fps
        self.name = name_with_source("video-reward", model) + ("" if dimension == "overall" else f"-{dimension}")
        origin = where(model)[0]
        weights, heads = checkpoint(model, "model.pth")
        weights = merge_lora(weights, lora_alpha, dtype, origin=origin)
        tokens = [f"<|{name}_reward|>" for name in DIMENSIONS]
        self._reader = Reader(weights, tokens, origin=origin, processor=processor, device=device, dtype=dtype)
        self._head = heads.get("rm_head.weight", torch.empty(0)).float().to(device)
        if heads.keys() != {"rm_head.weight"} or self._head.shape != (1, self._reader.width):
            raise ValueError(f"{origin} has another head than rm_head.weight, (1, {self._reader.width})")
        self.networks = [self._reader.network]

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts with a special token of the model.

        Raises:
            ValueError: a prompt has such a token.
        """
        self._reader.check(prompts)

    def __call__(self, *, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (B,) float32 of videos (B, F, 3, H, W) in [0, 1] and B prompts, on the model's device.

        Raises:
            ValueError: their lengths differ, these are pictures, or a prompt holds a special token of the model.
        """
        if images.dim() != 5:
            raise ValueError(f"VideoReward sees videos (B, F, 3, H, W), got {tuple(images.shape)}")
        if len(images) != len(prompts):
            raise ValueError(f"images and prompts must have the same length, got {len(images)} and {len(prompts)}")
        self.check(prompts)
        patches, grids = self._see(images[:, choose_frames(images.shape[1], self.fps)])
        contents = [
            [{"type": "video"}, {"type": "text", "text": TEMPLATE.replace("{text_prompt}", prompt)}]
            for prompt in prompts
        ]
        raw = self._reader(contents, patches, grids, kind="video") @ self._head[0]
        scores = (raw - raw.new_tensor(MEAN)) / raw.new_tensor(STD)
        return scores.sum(1) if self.dimension == "overall" else scores[:, DIMENSIONS.index(self.dimension)]

    def _see(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches and grids of videos; every frame becomes a picture, repeated ``span`` times in its patches.

        The source resizes frames as tensors, to the size that a picture would get; Pillow would round differently.
        """
        frames = (videos.detach().float().cpu().clamp(0, 1).flatten(0, 1) * 255).round()
        _, grids = self._reader.see(frames[:1] / 255, least=PIXELS // 2)
        size = (grids[0, 1:] * self._reader.patch_size).tolist()
        frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 255).round()
        flat, grids = self._reader.see(frames / 255, least=1, most=frames.shape[-2] * frames.shape[-1])
        span = self._reader.frames_a_patch
        parts = flat.view(*videos.shape[:2], -1, 3, span, flat.shape[1] // (3 * span))[:, :, :, :, 0]
        parts = torch.cat([parts, *[parts[:, -1:]] * (-parts.shape[1] % span)], 1).unflatten(1, (-1, span))
        grids = grids[:: videos.shape[1]] * torch.tensor([parts.shape[1], 1, 1])
        return parts.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(0, 2), grids


def choose_frames(count: int, fps: float) -> Tensor:
    """Return which of ``count`` frames to read: evenly spaced, two per second, an even number from 4 to 768.

    >>> choose_frames(33, 16.0), choose_frames(1, 16.0)
    (tensor([ 0, 11, 21, 32]), tensor([0]))
    """
    most = min(768, count) // 2 * 2
    chosen = round(min(max(count / fps * 2, 4), most) / 2) * 2
    return torch.linspace(0, count - 1, max(chosen, 1)).round().long()


def merge_lora(weights: dict[str, Tensor], alpha: float, dtype: torch.dtype, *, origin: str) -> dict[str, Tensor]:
    """Return the weights with each LoRA pair added: ``lora_A`` (rank, in) and ``lora_B`` (out, rank).

    Raises:
        ValueError: a LoRA weight is missing, or has no base; the message names it.
    """
    merged = {}
    left = {name for name in weights if ".lora_" in name}
    for name, value in weights.items():
        stem, _, part = name.rpartition(".base_layer.")
        if stem and part == "weight":
            pair = [f"{stem}.lora_{side}.default.weight" for side in "AB"]
            if missing := [other for other in pair if other not in left]:
                raise ValueError(f"{origin} lacks {missing[0]}")
            left.difference_update(pair)
            down, up = (weights[other].float() for other in pair)
            merged[f"{stem}.weight"] = (value.float() + up @ down * (alpha / len(down))).to(dtype)
        elif ".lora_" not in name:
            merged[name.replace(".base_layer.", ".")] = value
    if left:
        raise ValueError(f"{origin} has {min(left)}, but not the weight that it adds to")
    return merged
