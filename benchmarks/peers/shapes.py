"""The shapes to measure: real architectures on random weights, and small ones for a CPU; nothing from the hub.

UNets, autoencoders and ImageReward follow their public configurations; ``tests/test_peers.py`` checks their numbers
of parameters. Text encoders are tiny, with outputs as wide as the real ones, so times exclude text encoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from lidar_sampling import LiDAR, glyph
from lidar_sampling._settings import GLYPH, PRESETS, Settings
from lidar_sampling.rewards import Reward
from lidar_sampling.rewards import load as load_reward
from lidar_sampling.rewards.image_reward import CONTEXT, ImageReward

_PAPER = {"StableDiffusionPipeline": PRESETS["paper-sd15"], "StableDiffusionXLPipeline": PRESETS["paper-sdxl"]}
_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_TOKENS = 77

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SDXL_VAE = {**VAE, "sample_size": 1024, "scaling_factor": 0.13025}
# A tenth of the channels of SD 1.5, in two heads, and an eighth of its decoder's, on a quarter of the latents.
REDUCED_UNET = {
    **SD15_UNET,
    "sample_size": 32,
    "block_out_channels": (32, 64, 128, 128),
    "attention_head_dim": 2,
    "cross_attention_dim": 64,
}
REDUCED_VAE = {**VAE, "block_out_channels": (16, 32, 64, 64), "norm_num_groups": 16, "sample_size": 256}

IMAGE_REWARD: dict[str, Any] = {"width": 1024, "layers": 24, "text": 768, "text_layers": 12, "vocabulary": 30524}
REDUCED_REWARD: dict[str, Any] = {"width": 192, "layers": 6, "text": 128, "text_layers": 4, "vocabulary": 1000}


@dataclass(frozen=True)
class Shape:
    """One shape to measure.

    Attributes:
        pipe: function that makes the pipeline on a device.
        reward: function that makes the reward from a working folder, a device and a precision.
        side: side of the reward model's square input in pixels.
        settings: settings of the sampler; None takes the defaults of the pipeline's class.
        lookahead_batch: samples at a time in the published procedure's lookahead.
        decode_batch: images at a time in its decoding.
        decode_dtype: the precision of its decoding; None is the pipeline's.
        repeats: default number of timed runs per row.
        levers: arguments of ``accelerate`` on a GPU.
        preview: function that makes a small decoder; by default an untrained TAESD.
        on_cpu: further defaults that are smaller on a CPU.
    """

    pipe: Callable[[torch.device], Any]
    reward: Callable[[Path, torch.device, torch.dtype], Reward]
    side: int = 224
    settings: Settings | None = None
    lookahead_batch: int = 50
    decode_batch: int = 25
    decode_dtype: torch.dtype | None = None
    repeats: int = 3
    levers: Mapping[str, Any] = field(default_factory=dict)
    preview: Callable[[], Any] = AutoencoderTiny
    on_cpu: Mapping[str, int] = field(default_factory=lambda: {"steps": 20, "n": 16, "gradient_steps": 3})

    def sampler(self, pipe: Any, reward: Reward, **changes: Any) -> LiDAR:
        """Return the library's sampler over ``pipe`` with the settings of this shape."""
        return LiDAR(pipe, reward=reward, settings=self.settings or _PAPER[type(pipe).__name__], **changes)


def half(device: torch.device) -> torch.dtype:
    """Return the precision of models on ``device``: float16, or float32 on a CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


def stable_diffusion(device: torch.device, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Any:
    """Return a ``StableDiffusionPipeline`` with DDIM on random weights."""
    from diffusers import StableDiffusionPipeline

    networks = _networks(device, unet, vae)
    pipe = StableDiffusionPipeline(
        **networks,
        text_encoder=_text_encoder(unet["cross_attention_dim"]),
        tokenizer=_tokenizer(),
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return place(pipe, device, half(device))


def stable_diffusion_xl(device: torch.device, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Any:
    """Return a random ``StableDiffusionXLPipeline`` with DDIM; in half precision its decoder is bfloat16."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline(
        **_networks(device, unet, vae),
        text_encoder=_text_encoder(768),
        text_encoder_2=_text_encoder(1280, projection=True),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=_ddim(),
        add_watermarker=False,
    )
    precision = half(device)
    return place(pipe, device, precision, torch.bfloat16 if precision == torch.float16 else precision)


def place(pipe: Any, device: torch.device, dtype: torch.dtype, vae_dtype: torch.dtype | None = None) -> Any:
    """Return ``pipe`` on ``device``, with its decoder in another precision, to which it casts latents."""
    pipe = pipe.to(device, dtype)
    if vae_dtype not in (None, dtype):
        pipe.vae.to(vae_dtype)
        pipe.vae.post_quant_conv.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype),))
    return pipe


def image_reward_shapes(
    *,
    width: int,
    layers: int,
    text: int,
    text_layers: int,
    vocabulary: int,
    patch: int = 16,
    side: int = 224,
    positions: int = 512,
    head: tuple[int, ...] = (1024, 128, 64, 16),
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a checkpoint in the layout of ``ImageReward.pt``."""
    shapes: dict[str, tuple[int, ...]] = {}

    def affine(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    see, read = "blip.visual_encoder", "blip.text_encoder"
    shapes[f"{see}.cls_token"] = (1, 1, width)
    shapes[f"{see}.pos_embed"] = (1, (side // patch) ** 2 + 1, width)
    affine(f"{see}.patch_embed.proj", width, 3, patch, patch)
    affine(f"{see}.norm", width)
    for block in (f"{see}.blocks.{i}" for i in range(layers)):
        affine(f"{block}.norm1", width)
        affine(f"{block}.attn.qkv", 3 * width, width)
        affine(f"{block}.attn.proj", width, width)
        affine(f"{block}.norm2", width)
        affine(f"{block}.mlp.fc1", 4 * width, width)
        affine(f"{block}.mlp.fc2", width, 4 * width)
    shapes[f"{read}.embeddings.word_embeddings.weight"] = (vocabulary, text)
    shapes[f"{read}.embeddings.position_embeddings.weight"] = (positions, text)
    affine(f"{read}.embeddings.LayerNorm", text)
    for layer in (f"{read}.encoder.layer.{i}" for i in range(text_layers)):
        for kind, source in (("attention", text), ("crossattention", width)):
            affine(f"{layer}.{kind}.self.query", text, text)
            affine(f"{layer}.{kind}.self.key", text, source)
            affine(f"{layer}.{kind}.self.value", text, source)
            affine(f"{layer}.{kind}.output.dense", text, text)
            affine(f"{layer}.{kind}.output.LayerNorm", text)
        affine(f"{layer}.intermediate.dense", 4 * text, text)
        affine(f"{layer}.output.dense", text, 4 * text)
        affine(f"{layer}.output.LayerNorm", text)
    for index, rows, columns in zip((0, 2, 4, 6, 7), (*head, 1), (text, *head), strict=True):
        affine(f"mlp.layers.{index}", rows, columns)
    return shapes


def image_reward(folder: Path, device: torch.device, dtype: torch.dtype, **sizes: int) -> Reward:
    """Return the library's ImageReward on random weights; checkpoint and tokenizer are kept in ``folder``."""
    checkpoint = folder / "ImageReward.pt"
    if not checkpoint.exists():
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: torch.empty(shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)
            + ("norm" in name.lower() and name.endswith("weight"))
            for name, shape in image_reward_shapes(**sizes).items()
        }
        torch.save(weights, checkpoint)
        _word_tokenizer().save_pretrained(folder)
    return ImageReward(checkpoint, tokenizer=folder, device=device, dtype=dtype)


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of parameters of a checkpoint."""
    return sum(math.prod(shape) for shape in shapes.values())


def _networks(device: torch.device, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> dict[str, Any]:
    """Return UNet and autoencoder, made directly on ``device``, where random weights are drawn quickly."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        made: tuple[Any, Any] = UNet2DConditionModel(**unet), AutoencoderKL(**vae)
    return dict(zip(("unet", "vae"), (module.to(half(device)).eval() for module in made), strict=True))


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _tokenizer() -> Any:
    """Return the embedded model's tokenizer, which makes as many tokens as the real ones."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(glyph.DATA / "sd-glyph" / "tokenizer", model_max_length=_TOKENS)


def _text_encoder(width: int, *, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=_TOKENS,
        projection_dim=width,
        **{f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")},
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _word_tokenizer() -> Any:
    """Return a tokenizer with BERT's special tokens; every word is unknown to it, at the same cost as a known one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]"}
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(special.values())}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    named = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=CONTEXT, **named)


def _glyph_pipe(device: torch.device) -> Any:
    return glyph.load_pipeline(dtype=half(device)).to(device)


def _glyph_reward(folder: Path, device: torch.device, dtype: torch.dtype) -> Reward:
    return load_reward("glyph", device=device, dtype=dtype)


SHAPES = {
    "sd15": Shape(
        partial(stable_diffusion, unet=SD15_UNET, vae=VAE),
        partial(image_reward, **IMAGE_REWARD),
        repeats=2,
        levers={"channels_last": True, "compile": "whole", "cuda_graphs": True},
    ),
    "sdxl": Shape(
        partial(stable_diffusion_xl, unet=SDXL_UNET, vae=SDXL_VAE),
        partial(image_reward, **IMAGE_REWARD),
        lookahead_batch=25,
        decode_batch=4,
        decode_dtype=torch.float32,
        repeats=1,
        levers={"compile": "blocks"},
    ),
    "glyph": Shape(
        _glyph_pipe,
        _glyph_reward,
        side=128,
        settings=GLYPH,
        preview=glyph.load_tiny_decoder,
        on_cpu={"steps": 50, "n": 50, "gradient_steps": 3},
    ),
    "reduced": Shape(
        partial(stable_diffusion, unet=REDUCED_UNET, vae=REDUCED_VAE), partial(image_reward, **REDUCED_REWARD)
    ),
}
"""The shapes by name. ``glyph`` is the embedded model with its own weights."""
