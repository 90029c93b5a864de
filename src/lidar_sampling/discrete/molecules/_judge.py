"""Summaries of samples: valid, unique and novel molecules, and the reward of each kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from ._rewards import parse


def digests(strings: Iterable[str]) -> np.ndarray:
    """Return 64-bit BLAKE2b digests (N,) uint64 of strings."""
    found = [int.from_bytes(hashlib.blake2b(s.encode(), digest_size=8).digest(), "big") for s in strings]
    return np.array(found, dtype=np.uint64)


@dataclass(frozen=True)
class Summary:
    """A summary of samples, by UDLM's rules (https://arxiv.org/abs/2412.10193), and by canonical strings.

    Attributes:
        samples: how many there are.
        valid: how many are molecules.
        unique: distinct strings among the valid.
        novel_raw: distinct strings among the valid that are not canonical strings of the training set: another
            spelling of a known molecule counts, as it does in the published figures.
        unique_molecules: distinct molecules.
        novel: distinct molecules that are not in the training set.
        reward: mean over the valid, NaN if no sample is.
        reward_novel_raw: mean over ``novel_raw``.
        reward_novel: mean over ``novel``.
    """

    samples: int
    valid: int
    unique: int
    novel_raw: int
    unique_molecules: int
    novel: int
    reward: float
    reward_novel_raw: float
    reward_novel: float


def summarize(smiles: Sequence[str], rewards: Sequence[float], known: np.ndarray) -> Summary:
    """Count and average samples.

    Args:
        smiles: strings of the samples, valid or not.
        rewards: theirs; those of strings that are no molecules do not count.
        known: :func:`digests` of the training set's canonical SMILES.

    Example:
        >>> known = digests(["CCO"])
        >>> s = summarize(["OCC", "CCO", "C1CC1", "C1CC1", "C1C"], [0, 0, 1, 1, -1], known)
        >>> s.valid, s.unique, s.novel_raw, s.unique_molecules, s.novel, s.reward
        (4, 3, 2, 2, 1, 0.5)
    """
    parsed = [(one, parse(one), reward) for one, reward in zip(smiles, rewards, strict=True)]
    valid = [(one, molecule, reward) for one, molecule, reward in parsed if molecule is not None]
    raw = {one: reward for one, _, reward in valid}
    canonical = {Chem.MolToSmiles(molecule): reward for _, molecule, reward in valid}
    novel_raw, novel = _novel(raw, known), _novel(canonical, known)
    return Summary(
        samples=len(smiles),
        valid=len(valid),
        unique=len(raw),
        novel_raw=len(novel_raw),
        unique_molecules=len(canonical),
        novel=len(novel),
        reward=_mean(reward for _, _, reward in valid),
        reward_novel_raw=_mean(novel_raw.values()),
        reward_novel=_mean(novel.values()),
    )


def _novel(values: dict[str, float], known: np.ndarray) -> dict[str, float]:
    new = ~np.isin(digests(values), known)
    return {name: value for (name, value), is_new in zip(values.items(), new, strict=True) if is_new}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else float("nan")
