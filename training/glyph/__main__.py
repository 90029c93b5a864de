"""Command line: ``python -m training.glyph STAGE``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

STAGES = ("sprites", "tokenizer", "vae", "unet", "reward-clip", "heldout-clip", "detector", "tiny-decoder", "measure")
TRAINED = STAGES[2:-1]
OUT = Path(__file__).parent / "out"

log = logging.getLogger("training.glyph")


def main(arguments: list[str] | None = None) -> None:
    """Run one stage, or all in order."""
    parser = argparse.ArgumentParser(
        prog="python -m training.glyph", description="Train the embedded model; see training/glyph/README.md."
    )
    parser.add_argument("stage", choices=(*STAGES, "all"), help="all runs every stage in this order")
    parser.add_argument("--out", type=Path, default=OUT, help="default: training/glyph/out")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--steps", type=int, help="number of training steps, instead of that of the shipped weights")
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few pictures, to try all stages")
    args = parser.parse_args(arguments)
    if args.steps is not None and (args.steps < 1 or args.stage not in (*TRAINED, "all")):
        parser.error(f"--steps takes 1 or more, and a stage that trains: {', '.join(TRAINED)} or all")

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    from .output import MissingError  # load torch and diffusers only when there is something to do

    for stage in STAGES if args.stage == "all" else [args.stage]:
        start = time.perf_counter()
        try:
            run(stage, args.out, device=args.device, smoke=args.smoke, steps=args.steps)
        except MissingError as error:
            sys.exit(f"error: {error}")
        log.info("%s took %.1f s", stage, time.perf_counter() - start)


def run(stage: str, out: Path, *, device: str | None = None, smoke: bool = False, steps: int | None = None) -> None:
    """Run one of STAGES.

    Args:
        stage: name of the stage.
        out: folder for the output of the stages.
        device: where to train; by default cuda if there is one.
        smoke: make everything tiny.
        steps: number of training steps, instead of the recipe's.
    """
    import torch

    from . import clip, detector, measure, sprites, tiny_decoder, tokenizer, unet, vae
    from .output import MissingError, Output

    output = Output(out)
    if stage == "sprites":
        return sprites.make(output)
    if stage == "tokenizer":
        return tokenizer.make(output)
    module, settings = {
        "vae": (vae, vae.RECIPE),
        "unet": (unet, unet.RECIPE),
        "reward-clip": (clip, clip.REWARD),
        "heldout-clip": (clip, clip.HELD_OUT),
        "detector": (detector, detector.RECIPE),
        "tiny-decoder": (tiny_decoder, tiny_decoder.RECIPE),
        "measure": (measure, measure.RECIPE),
    }[stage]
    if smoke:
        settings = settings.smoke()
        torch.set_num_threads(1)  # such small batches gain nothing from threads, and lose on a busy machine
    if steps is not None and stage in TRAINED:
        settings = replace(settings, schedule=replace(settings.schedule, steps=steps))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise MissingError("PyTorch finds no CUDA device; use --device cpu")
    if place.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: the weights were trained with it
        torch.backends.cudnn.benchmark = True
    module.run(output, place, settings)


if __name__ == "__main__":
    main()
