"""SMILES as tokens: atoms, bonds, brackets and ring numbers, by the usual regular expression.

The vocabulary is that of the public ``yairschiff/qm9-tokenizer``, so its models' tokens are ours: five special
tokens, then the 30 that canonical SMILES of QM9 are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

LENGTH = 32

# Schwaller et al. 2019, https://arxiv.org/abs/1811.02633.
PATTERN = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>|\*|\$|\%[0-9]{2}|[0-9])"
SPECIAL = ("<bos>", "<eos>", "<mask>", "<pad>", "<unk>")
# fmt: off
SYMBOLS = (
    "#", "(", ")", "-", "1", "2", "3", "4", "5", "=", "C", "F", "N", "O",
    "[C-]", "[CH-]", "[N+]", "[N-]", "[NH+]", "[NH2+]", "[NH3+]", "[O-]", "[c-]", "[cH-]",
    "[n-]", "[nH+]", "[nH]", "c", "n", "o",
)
# fmt: on


def smiles_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: ``<bos> ... <eos>``, padded to 32.

    Example:
        >>> tokenizer = smiles_tokenizer()
        >>> tokenizer.tokenize("C[NH3+]"), tokenizer.vocab_size
        (['C', '[NH3+]'], 35)
    """
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *SYMBOLS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A <eos>", None, [("<bos>", 0), ("<eos>", 1)])
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        mask_token="<mask>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=LENGTH,
    )


def encode(tokenizer: PreTrainedTokenizerFast, smiles: Sequence[str]) -> Tensor:
    """Return the tokens (B, 32) of SMILES.

    Raises:
        ValueError: one is too long, or holds a symbol that the vocabulary lacks.
    """
    rows = tokenizer(list(smiles), padding="max_length", max_length=LENGTH)["input_ids"]
    if (longest := max(map(len, rows))) > LENGTH:
        raise ValueError(f"SMILES must have at most {LENGTH - 2} tokens, and one has {longest - 2}")
    ids = torch.tensor(rows)
    if (unknown := (ids == tokenizer.unk_token_id).any(1)).any():
        raise ValueError(f"{smiles[int(unknown.nonzero()[0])]!r} holds a symbol that the vocabulary lacks")
    return ids


def decode(tokenizer: PreTrainedTokenizerFast, tokens: Tensor) -> list[str]:
    """Return the strings of tokens (B, L), without ``<bos>``, ``<eos>`` and ``<pad>`` wherever they stand.

    A ``<mask>`` or ``<unk>`` stays, and no string with one is a molecule.

    Raises:
        ValueError: a token that the vocabulary lacks.
    """
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(tokenizer):
        raise ValueError(f"tokens must be 0 to {len(tokenizer) - 1}, got {int(tokens.min())} to {int(tokens.max())}")
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    written = ["" if token in ("<bos>", "<eos>", "<pad>") else token for token in vocabulary]
    return ["".join(written[i] for i in row) for row in tokens.tolist()]
