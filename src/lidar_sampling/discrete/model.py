"""The denoiser of token sequences: a transformer that predicts each clean token from all noisy ones.

The architecture is the DiT of MDLM and UDLM (Sahoo et al. 2024, https://arxiv.org/abs/2406.07524; Schiff et al. 2024,
https://arxiv.org/abs/2412.10193): rotary positions, attention over the whole sequence, and layer norms whose shift,
scale and gate follow from the noise level. So the weights that they published load here (:func:`from_udlm`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .._hub import fill, load_state_dict


class DenoiserConfig(PretrainedConfig):
    """Sizes of a :class:`Denoiser`, and the noise it was trained on.

    Attributes:
        vocab_size: V, specials included.
        length: L, tokens of a sequence.
        hidden_size: width; a multiple of ``heads``, and even in each head.
        cond_dim: width of the embedding of the noise level.
        layers: transformer blocks.
        heads: of attention.
        dropout: in training.
        noise: name of the forward process, ``uniform`` or ``absorbing``.
        mask_id: the token that absorbs; None for uniform noise.
        time_conditioning: whether the noise level is told to the network.
    """

    model_type = "lidar-token-denoiser"

    def __init__(
        self,
        vocab_size: int = 35,
        length: int = 32,
        hidden_size: int = 160,
        cond_dim: int = 128,
        layers: int = 6,
        heads: int = 5,
        dropout: float = 0.0,
        noise: str = "uniform",
        mask_id: int | None = None,
        time_conditioning: bool = True,
        **kwargs: Any,
    ) -> None:
        if hidden_size % (2 * heads):
            raise ValueError(f"hidden_size must be a multiple of 2 * heads = {2 * heads}, got {hidden_size}")
        self.vocab_size, self.length = vocab_size, length
        self.hidden_size, self.cond_dim, self.layers, self.heads = hidden_size, cond_dim, layers, heads
        self.dropout, self.noise, self.mask_id, self.time_conditioning = dropout, noise, mask_id, time_conditioning
        super().__init__(**kwargs)


class Denoiser(PreTrainedModel):
    """Noisy tokens to logits of the clean ones.

    Example:
        >>> model = Denoiser(DenoiserConfig(vocab_size=5, length=4, hidden_size=16, layers=1, heads=2))
        >>> model(torch.zeros(3, 4, dtype=torch.long), torch.ones(3)).logits.shape
        torch.Size([3, 4, 5])
    """

    config_class = DenoiserConfig
    config: DenoiserConfig
    base_model_prefix = "denoiser"
    main_input_name = "input_ids"

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        width, cond = config.hidden_size, config.cond_dim
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.level = nn.Sequential(nn.Linear(FREQUENCIES, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.modulation = zero(nn.Linear(cond, 2 * width))
        self.head = zero(nn.Linear(width, config.vocab_size))
        nn.init.kaiming_uniform_(self.tokens.weight, a=math.sqrt(5))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: modules are made as they should start."""

    def forward(self, input_ids: Tensor, timesteps: Tensor) -> MaskedLMOutput:
        """Return logits (B, L, V) of the clean tokens.

        Args:
            input_ids: noisy tokens (B, L), integers below V.
            timesteps: total noise (B,), ``-log alpha``.
        """
        sigma = timesteps if self.config.time_conditioning else torch.zeros_like(timesteps)
        c = F.silu(self.level(sinusoids(sigma).to(self.head.weight.dtype)))[:, None]
        x = self.tokens(input_ids)
        angles = rotary_angles(input_ids.shape[1], self.config.hidden_size // self.config.heads, x)
        for block in self.blocks:
            x = block(x, c, angles)
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return MaskedLMOutput(logits=self.head(self.norm(x) * (1 + scale) + shift))


class Block(nn.Module):
    """A transformer block whose layer norms follow the noise level (adaLN-zero)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = zero(nn.Linear(config.cond_dim, 6 * width))

    def forward(self, x: Tensor, c: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Return activations (B, L, width) under conditions c (B, 1, cond_dim), with :func:`rotary_angles`."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(c).chunk(6, dim=-1)
        qkv = self.qkv(self.norm_attention(x) * (1 + scale) + shift)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v)
        x = x + gate * self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + gate_mlp * self.dropout(self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp))


FREQUENCIES = 256


def zero(layer: nn.Linear) -> nn.Linear:
    """Return the layer with weights and biases set to 0, as a residual branch starts."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoids(sigma: Tensor) -> Tensor:
    """Return features (B, 256) of noise levels (B,): cosines, then sines."""
    half = FREQUENCIES // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device) / half)
    angles = sigma.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotary_angles(length: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (length, size / 2) of rotary positions (https://arxiv.org/abs/2104.09864)."""
    rates = 10_000 ** (-torch.arange(0, size, 2, device=like.device) / size)
    angles = torch.arange(length, device=like.device)[:, None] * rates
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate vectors x (..., L, size), their first half against their second, by the angles of each position."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


# What the published implementation calls our modules, outer names first.
_UDLM = {
    "backbone.": "",
    "vocab_embed.embedding": "tokens.weight",
    "sigma_map.mlp": "level",
    "output_layer.norm_final": "norm",
    "output_layer.linear": "head",
    "output_layer.adaLN_modulation": "modulation",
    "adaLN_modulation": "modulation",
    "norm1": "norm_attention",
    "norm2": "norm_mlp",
    "attn_qkv": "qkv",
    "attn_out": "out",
}


def from_udlm(folder: str | Path) -> Denoiser:
    """Load the denoiser in ``folder``, laid out like ``kuleshov-group/udlm-qm9``; none of its code runs.

    Its ``config.json`` and ``model.safetensors`` are read, nothing else. Source of the layout:
    https://github.com/kuleshov-group/discrete-diffusion-guidance (``models/hf``).

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: it is another model, or was trained with classes.
    """
    folder = Path(folder)
    try:
        published = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is damaged ({error}): download it again") from None
    if published.get("model_type") != "udlm":
        raise ValueError(f"{folder} holds a {published.get('model_type')!r} model, not a 'udlm'")
    if published.get("cfg"):
        raise ValueError(f"{folder} was trained with classes for classifier-free guidance: take the one without")
    names = {"model_length": "length", "hidden_dim": "hidden_size", "n_blocks": "layers", "n_heads": "heads"}
    same = ("vocab_size", "cond_dim", "dropout", "time_conditioning")
    if missing := [name for name in (*names, *same) if name not in published]:
        raise ValueError(f"{folder / 'config.json'} has no {missing[0]!r}, which a 'udlm' model needs")
    fields = {ours: published[theirs] for theirs, ours in {**names, **{name: name for name in same}}.items()}
    model = Denoiser(DenoiserConfig(**fields, noise="uniform"))
    file = folder / "model.safetensors"
    weights = {name: w for name, w in load_state_dict(file).items() if not name.endswith("rotary_emb.inv_freq")}
    fill(model, {_rename(name): w for name, w in weights.items()}, file)
    return model.eval()


def _rename(name: str) -> str:
    for theirs, ours in _UDLM.items():
        name = name.replace(theirs, ours)
    return name
