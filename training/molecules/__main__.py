"""Command line: ``python -m training.molecules``."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

OUT = Path(__file__).parent / "out"

log = logging.getLogger("training.molecules")


def main(arguments: list[str] | None = None) -> None:
    """Write digests, weights and the curve of the loss; see training/molecules/README.md."""
    parser = argparse.ArgumentParser(prog="python -m training.molecules", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="default: training/molecules/out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, help="number of training steps, instead of that of the shipped weights")
    parser.add_argument("--threads", type=int, help="threads of a CPU; default: all")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model on a few molecules")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    import numpy as np
    import torch

    if not hasattr(torch.optim, "Muon"):
        raise SystemExit(f"training needs torch 2.9 or newer, for torch.optim.Muon, and this is {torch.__version__}")

    from lidar_sampling.discrete.molecules import digests

    from . import data
    from .train import RECIPE, train

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    recipe = RECIPE.smoke() if args.smoke else RECIPE
    if args.steps is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, steps=args.steps))
    args.out.mkdir(parents=True, exist_ok=True)
    smiles = ["C", "CC", "CCO", "C1CC1"] * 25 if args.smoke else data.canonical_smiles()
    np.save(args.out / "qm9-digests.npy", np.unique(digests(smiles)))
    log.info("%d molecules", len(smiles))
    train(data.tokens(smiles), recipe, args.out, device=torch.device(args.device))


if __name__ == "__main__":
    main()
