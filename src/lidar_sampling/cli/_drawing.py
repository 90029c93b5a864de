"""Pictures of molecules: a grid of structures with their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from rdkit import Chem
from rdkit.Chem import Draw


def draw_molecules(molecules: Sequence[tuple[str, float]], name: str) -> tuple[str, bytes]:
    """Draw SMILES with their rewards, labelled ``name``, as SVG and PNG, eight per row."""
    drawn = [Chem.MolFromSmiles(smiles) for smiles, _ in molecules]
    legends = [f"{name} {reward:g}" if i == 0 else f"{reward:.3g}" for i, (_, reward) in enumerate(molecules)]
    how = {"molsPerRow": 8, "subImgSize": (180, 160), "legends": legends}
    svg = Draw.MolsToGridImage(drawn, useSVG=True, **how)
    png = BytesIO()
    Draw.MolsToGridImage(drawn, **how, returnPNG=False).save(png, format="PNG")
    return getattr(svg, "data", svg), png.getvalue()
