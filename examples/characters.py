"""Text: a tiny absorbing-noise model of made-up words, guided by a reward without a gradient.

The model learns words such as ``bakelito`` and ``akelitob``, in which vowels and consonants alternate. The reward
asks whether the vowels are in alphabetical order, which is a property of the whole word and not of any letter.
Training takes 20 seconds on a CPU; the words are written to ``words.txt``. Run it as ``python
examples/characters.py``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from lidar_sampling.discrete import Absorbing, TokenLiDAR, log_linear
from lidar_sampling.discrete.model import Denoiser, DenoiserConfig

VOWELS, CONSONANTS = "aeiou", "bdfgklmnprst"
LETTERS = VOWELS + CONSONANTS + "_"  # the last token is the mask
LENGTH = 8


def text(tokens: torch.Tensor) -> list[str]:
    """Return the words of tokens (B, 8)."""
    return ["".join(LETTERS[i] for i in row) for row in tokens.tolist()]


def is_ordered(tokens: torch.Tensor) -> torch.Tensor:
    """Return 1 for a word whose vowels are in alphabetical order, 0 for another word, -1 for what is not a word."""
    rewards = []
    for word in text(tokens):
        vowels = [letter for letter in word if letter in VOWELS]
        is_word = re.fullmatch(f"[{VOWELS}]?([{CONSONANTS}][{VOWELS}])+[{CONSONANTS}]?", word)
        rewards.append(-1.0 if not is_word else float(vowels == sorted(vowels)))
    return torch.tensor(rewards)


def train(steps: int) -> Denoiser:
    """Return a denoiser of such words, trained by cross entropy on masked letters."""
    torch.manual_seed(0)
    config = DenoiserConfig(
        vocab_size=len(LETTERS),
        length=LENGTH,
        hidden_size=32,
        cond_dim=16,
        layers=2,
        heads=2,
        noise="absorbing",
        mask_id=len(LETTERS) - 1,
        time_conditioning=False,
    )
    model, kernel = Denoiser(config), Absorbing(len(LETTERS), mask_id=len(LETTERS) - 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        syllables = torch.randint(len(CONSONANTS), (128, 4)) + len(VOWELS), torch.randint(len(VOWELS), (128, 4))
        x0 = torch.stack(syllables, 2).flatten(1)
        x0 = torch.where(torch.rand(128, 1) < 0.5, x0, x0.roll(1, dims=1))
        alpha = torch.tensor([log_linear(t) for t in torch.rand(len(x0)).tolist()])
        x_t = kernel.add_noise(x0, alpha)
        hidden = x_t == kernel.mask_id
        loss = F.cross_entropy(model(x_t, -alpha.log()).logits[hidden], x0[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


if __name__ == "__main__":
    tiny = "--tiny" in sys.argv
    model = train(20 if tiny else 500)
    lidar = TokenLiDAR(
        model, reward=is_ordered, n=64 if tiny else 1024, steps=32, lookahead_steps=16, reward_scale=3.0
    )
    plain, guided = lidar.vanilla(256), lidar(256)
    for name, result in (("plain", plain), ("guided", guided)):
        shares = [(result.rewards == value).float().mean().item() for value in (1, 0, -1)]
        print(f"{name}: {shares[0]:.2f} in order, {shares[1]:.2f} words, {shares[2]:.2f} no words")
    Path("words.txt").write_text("\n".join(text(guided.tokens)) + "\n")
