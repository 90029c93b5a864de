"""Rewards of molecules: any function of an RDKit molecule, by name or by place."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from rdkit import Chem, rdBase
from rdkit.Chem import QED
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ...rewards import RewardError, function_at
from ._tokenizer import decode

Property = Callable[[Any], float]
"""From an ``rdkit.Chem.Mol`` to a number; higher is better."""


def ring_count(molecule: Any) -> float:
    """Count the rings in the symmetrised smallest set, as UDLM's evaluation does."""
    return float(len(Chem.GetSymmSSSR(molecule)))


def qed(molecule: Any) -> float:
    """Return the drug-likeness QED, 0 to 1 (Bickerton et al. 2012, https://doi.org/10.1038/nchem.1243)."""
    return float(QED.qed(molecule))


PROPERTIES: dict[str, Property] = {"ring-count": ring_count, "qed": qed}


def load_property(name: str) -> Property:
    """Return a property by its name, by ``module:function``, or as the number of matches of a SMARTS pattern.

    Raises:
        ValueError: ``name`` is not one of these.
        RewardError: its module cannot be imported.

    Example:
        >>> load_property("ring-count")(Chem.MolFromSmiles("C1CC1"))
        1.0
        >>> load_property("[OX2H]")(Chem.MolFromSmiles("OCCO"))  # hydroxyl groups
        2.0
    """
    if name in PROPERTIES:
        return PROPERTIES[name]
    if (found := function_at(name)) is not None:
        return found
    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(name) if name else None
    if pattern is None:
        near = get_close_matches(name.lower().replace("_", "-"), PROPERTIES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{name!r} is no reward: {hint}name one of {', '.join(PROPERTIES)}, a SMARTS pattern, or module:function"
        )
    return lambda molecule: float(len(molecule.GetSubstructMatches(pattern)))


class MoleculeReward:
    """A property of molecules as a reward of tokens.

    Args:
        value: of an RDKit molecule.
        tokenizer: of the tokens.
        name: what results call it.
        invalid: the reward of tokens that are no molecule. It should lie below what molecules get, or invalid
            sequences are guided to.

    Example:
        >>> from lidar_sampling.discrete.molecules import smiles_tokenizer, encode
        >>> tokenizer = smiles_tokenizer()
        >>> reward = MoleculeReward(ring_count, tokenizer, name="ring-count")
        >>> reward(encode(tokenizer, ["C1CC1", "CC", "C1CC"])).tolist()  # the last closes no ring
        [1.0, 0.0, -1.0]
    """

    def __init__(
        self, value: Property, tokenizer: PreTrainedTokenizerFast, *, name: str, invalid: float = -1.0
    ) -> None:
        if not _finite(invalid):
            raise ValueError(f"invalid must be a finite number of float32, got {invalid}")
        self.value, self.tokenizer, self.name, self.invalid = value, tokenizer, name, invalid

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return rewards (B,) float32 of tokens (B, L).

        Raises:
            RewardError: the property of a molecule raised, or is not a finite number of float32; the message names
                the reward and the molecule.
        """
        return torch.tensor([self._of(smiles) for smiles in decode(self.tokenizer, tokens)])

    def _of(self, smiles: str) -> float:
        molecule = parse(smiles)
        if molecule is None:
            return self.invalid
        try:
            given = self.value(molecule)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:  # a script that ends itself would end the run without a word
            raise RewardError(f"the reward {self.name} of {smiles} raised {type(error).__name__}: {error}") from error
        try:
            value = float("nan") if isinstance(given, str | bytes) else float(given)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            value = float("nan")
        if not _finite(value):
            raise RewardError(f"the reward {self.name} of {smiles} is {given!r}: return a finite number of float32")
        return value


def parse(smiles: str) -> Any | None:
    """Return the molecule that a string writes, or None; the empty string writes none."""
    with rdBase.BlockLogs():  # RDKit reports every string that is not a molecule
        return Chem.MolFromSmiles(smiles) if smiles else None


def _finite(value: float) -> bool:
    """Return whether ``value`` is a finite number in float32, which rewards are kept in."""
    return abs(value) <= torch.finfo(torch.float32).max
