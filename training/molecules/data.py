"""QM9 as canonical SMILES, from the PyPI package ``qm9pack``."""

from __future__ import annotations

import csv
from importlib.metadata import files
from pathlib import Path

import torch
from rdkit import Chem
from torch import Tensor

from lidar_sampling.discrete.molecules import encode, parse, smiles_tokenizer


def canonical_smiles() -> list[str]:
    """Return the molecules of QM9 as RDKit's canonical SMILES, each once, in the order of the data set.

    Raises:
        importlib.metadata.PackageNotFoundError: ``qm9pack`` is not installed.
    """
    found: dict[str, None] = {}
    for path in _tables():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                molecule = parse(row["SMILES"])
                if molecule is not None:
                    found[Chem.MolToSmiles(molecule)] = None
    return list(found)


def tokens(smiles: list[str]) -> Tensor:
    """Return tokens (N, 32) uint8; all of QM9 can be written in this way."""
    return encode(smiles_tokenizer(), smiles).to(torch.uint8)


def _tables() -> list[Path]:
    """Return the three parts of the data set, without importing the package, which needs ``pkg_resources``."""
    return sorted(Path(str(p.locate())) for p in files("qm9pack") or [] if "qm9_part" in p.name)
