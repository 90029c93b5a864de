"""Language models that read prompts: random weights, one token per byte, the pipelines' own classes."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from ._build import with_seed
from ._text import LETTERS, WIDTH

_CHATS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SEEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
# Only the user's turns: system instructions are longer than the context of a tiny model.
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|im_start|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>"
    "{% endif %}{% endfor %}"
)


def _bytes(*special: str) -> dict[str, int]:
    """Return a vocabulary of the bytes, as byte-level tokenizers spell them, and of other tokens."""
    from tokenizers import pre_tokenizers

    return {token: index for index, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *special])}


def qwen_tokenizer() -> Any:
    """Return a tokenizer of Qwen 2 and 3 whose tokens are bytes."""
    from transformers import Qwen2Tokenizer

    vocabulary = _bytes(*_CHATS, *_SEEN)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        chat_template=_TEMPLATE,
        model_max_length=2048,
        extra_special_tokens=[*_CHATS[1:], *_SEEN],
    )


def roberta_tokenizer() -> Any:
    """Return a RoBERTa tokenizer whose tokens are bytes."""
    from transformers import RobertaTokenizer

    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocabulary = {token: index for index, token in enumerate([*names, *_bytes()])}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _language(**changes: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": 272,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,  # large enough for one letter among hundreds of tokens to count
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": 256,
    }
    return {**sizes, **changes}


def qwen_3(**changes: Any) -> Any:
    """Return a Qwen 3 model of two layers."""
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(**_language(**changes))).eval()


def qwen_2_5_vl() -> Any:
    """Return a Qwen 2.5 VL model of two layers, which reads pictures in patches of 4 x 4."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = qwen_tokenizer().get_vocab()
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    config = Qwen2_5_VLConfig(
        text_config=_language(rope_parameters=rope),
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen_processor(patch: int = 4) -> Any:
    """Return the processor of pictures and texts for :func:`qwen_2_5_vl`; it reads no videos.

    Reading videos needs torchvision, which the full processor requires even without a video.
    """
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pictures = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, min_pixels=4 * patch**2, max_pixels=16 * patch**2
    )
    checks = mock.patch.object(
        Qwen2VLProcessor, "check_argument_for_proper_class", lambda _, name, value: type(value)
    )
    with checks:
        return Qwen2VLProcessor(pictures, qwen_tokenizer(), None)


def mistral_3() -> Any:
    """Return a Mistral 3 model of three layers; the pipelines give it texts alone."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    vision = {
        "model_type": "pixtral",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    text = {"model_type": "mistral", "sliding_window": None, **_language()}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=260)
    return Mistral3ForConditionalGeneration(config).eval()


def llama(**changes: Any) -> Any:
    """Return a Llama model of two layers, with its head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_language(**changes))).eval()


@with_seed
def tiny_llada_2() -> Any:
    """Return a ``LLaDA2Pipeline`` that writes bytes in blocks of 4, with a Llama model of two layers."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    tokenizer = qwen_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    return LLaDA2Pipeline(llama(), BlockRefinementScheduler(block_length=4), tokenizer)


@functools.cache
def _letters_of_sentencepiece() -> tuple[Any, Path]:
    """Return a folder, kept until the process ends, with a SentencePiece model whose tokens are letters."""
    import sentencepiece

    folder = TemporaryDirectory(prefix="lidar-sampling-")
    path = Path(folder.name, "tokenizer.model")
    letters = [" ".join(LETTERS)] * 2
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(letters), model_writer=file, model_type="char", vocab_size=100, minloglevel=2
        )
    return folder, path


def chat_glm_tokenizer() -> Any:
    """Return the tokenizer of ChatGLM, whose tokens are letters; it needs ``sentencepiece``."""
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    return ChatGLMTokenizer(str(_letters_of_sentencepiece()[1]))


def chat_glm() -> Any:
    """Return a ChatGLM of two layers."""
    import torch
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=128,
        hidden_size=WIDTH,
        ffn_hidden_size=2 * WIDTH,
        kv_channels=8,
        num_attention_heads=2,
        add_qkv_bias=True,
        original_rope=True,
    )
    model = ChatGLMModel(config)
    for name, parameter in model.named_parameters():  # otherwise uninitialised memory
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def glm() -> Any:
    """Return a GLM 4 model of two layers."""
    from transformers import GlmConfig, GlmModel

    return GlmModel(GlmConfig(**_language())).eval()


def gemma_3() -> Any:
    """Return a Gemma 3 model of two layers; the pipelines give it texts alone."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    text = _language(query_pre_attn_scalar=8, sliding_window=64)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config).eval()


def t5_gemma() -> Any:
    """Return the encoder of a T5Gemma model of two layers."""
    from transformers import T5GemmaConfig, T5GemmaEncoderModel, T5GemmaModuleConfig

    part = T5GemmaModuleConfig(**_language(query_pre_attn_scalar=8, sliding_window=64)).to_dict()
    return T5GemmaEncoderModel(T5GemmaConfig(encoder=part, decoder=part, is_encoder_decoder=False)).eval()
