"""Molecules as SMILES: the embedded model, rewards by RDKit, and summaries of samples.

Needs RDKit and the weights: ``pip install "lidar-sampling[glyph,molecules]"``.

>>> from lidar_sampling.discrete import TokenLiDAR, molecules
>>> lidar = TokenLiDAR(molecules.load_model(), reward=molecules.reward("ring-count"), n=32, steps=8)
>>> len(molecules.decode(molecules.smiles_tokenizer(), lidar(4).tokens))
4
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..._embedded import find_weights
from ..model import Denoiser
from ._judge import Summary as Summary
from ._judge import digests as digests
from ._judge import summarize as summarize
from ._rewards import PROPERTIES as PROPERTIES
from ._rewards import MoleculeReward as MoleculeReward
from ._rewards import load_property as load_property
from ._rewards import parse as parse
from ._rewards import qed as qed
from ._rewards import ring_count as ring_count
from ._tokenizer import LENGTH as LENGTH
from ._tokenizer import decode as decode
from ._tokenizer import encode as encode
from ._tokenizer import smiles_tokenizer as smiles_tokenizer


def load_model() -> Denoiser:
    """Load the embedded denoiser of training/molecules: uniform noise, canonical SMILES of QM9 in 32 tokens."""
    return Denoiser.from_pretrained(find_weights("molecules")).eval()


def reward(name: str, *, invalid: float = -1.0) -> MoleculeReward:
    """Return a reward of the embedded model's tokens: a property, a SMARTS pattern, or ``module:function``."""
    return MoleculeReward(load_property(name), smiles_tokenizer(), name=name, invalid=invalid)


@cache
def load_known() -> np.ndarray:
    """Load the sorted digests of the canonical SMILES of QM9, (130744,) uint64."""
    return np.load(find_weights("molecules") / "qm9-digests.npy")
