"""Stage ``tokenizer``: a CLIP tokenizer, learnt from the captions, so that each word is one token."""

from __future__ import annotations

import json
import logging
from collections import Counter
from itertools import pairwise

from transformers import CLIPTokenizer

from lidar_sampling._geneval import CLASSES, COLORS, NUMBERS, RELATIONS, plural

from .captions import LENGTH
from .output import Output, write_json

_EXTRA = "photos picture image with next to in on the blurry low quality bad one five"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_SPECIAL = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}

log = logging.getLogger(__name__)


def make(output: Output) -> None:
    """Write the tokenizer's files, in CLIP's own format and in that of ``tokenizers``."""
    vocabulary, merges = learn(words())
    directory = output.tokenizer
    directory.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate([*vocabulary, _START, _END])}
    (directory / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
    write_json(directory / "tokenizer_config.json", {**config, **_SPECIAL})
    write_json(directory / "special_tokens_map.json", _SPECIAL)
    CLIPTokenizer.from_pretrained(directory).save_pretrained(directory)
    log.info("%d tokens in %s", len(ids), directory)


def words() -> list[str]:
    """Return every word of the captions, and some that people add to prompts, sorted."""
    nouns = [*CLASSES, *map(plural, CLASSES), *COLORS, *RELATIONS, *NUMBERS]
    return sorted(set(" ".join(["a photo of an and", _EXTRA, *nouns]).split()))


def learn(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn vocabulary and merges of byte pair encoding until each word is one symbol.

    The vocabulary starts with the 256 bytes, and the same 256 as a word's end.
    """
    alphabet = byte_symbols()
    vocabulary = dict.fromkeys([*alphabet, *(symbol + "</w>" for symbol in alphabet)])
    merges: list[tuple[str, str]] = []
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in words]
    while any(len(symbols) > 1 for symbols in spelt):
        pairs = Counter(pair for symbols in spelt for pair in pairwise(symbols))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        vocabulary["".join(best)] = None
        for symbols in spelt:
            _merge(symbols, best)
    return list(vocabulary), merges


def byte_symbols() -> list[str]:
    """Return CLIP's printable characters for the 256 bytes: printable bytes first, as themselves, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]


def _merge(symbols: list[str], pair: tuple[str, str]) -> None:
    i = 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i : i + 2] = ["".join(pair)]
        i += 1
