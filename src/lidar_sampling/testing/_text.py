"""Tokenizers and text encoders: random weights, one token per letter, the classes that the pipelines use."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

WIDTH = 16
LETTERS = string.ascii_letters + string.digits + string.punctuation


def clip_tokenizer() -> Any:
    """Return a CLIP tokenizer of 1,001 tokens, which is a copy of the embedded model's."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(Path(__file__).parent / "tokenizer")


def clip_text_encoder(*, projection: bool = False, positions: int | None = None) -> Any:
    """Return a CLIP text encoder of two layers, with or without projection, for its tokenizer's length."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions or tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=WIDTH,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_tokenizer() -> Any:
    """Return a T5 tokenizer whose tokens are letters."""
    from transformers import T5Tokenizer

    special = ["<pad>", "</s>", "<unk>", "▁"]
    vocabulary = [*((token, 0.0) for token in special), *((letter, -1.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=128)


def t5_encoder(width: int = WIDTH, *, multilingual: bool = False) -> Any:
    """Return a T5 encoder of one layer; the multilingual one is UMT5, of Wan."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    sizes: dict[str, Any] = {
        "vocab_size": 128,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * WIDTH,
        "num_layers": 1,
        "num_heads": 2,
    }
    if multilingual:
        return UMT5EncoderModel(UMT5Config(**sizes)).eval()
    return T5EncoderModel(T5Config(**sizes)).eval()


def gemma_tokenizer() -> Any:
    """Return a Gemma tokenizer whose tokens are letters; SANA's instruction is a thousand of them."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    vocabulary = {token: index for index, token in enumerate([*special, *LETTERS])}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=2048)


def gemma() -> Any:
    """Return a Gemma 2 model of one layer."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    return Gemma2Model(config).eval()
