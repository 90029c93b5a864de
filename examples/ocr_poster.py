"""SD 3.5 guided by OCR, so that the text in quotes is spelt correctly (needs the extra ocr)."""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusion3Pipeline

from lidar_sampling import LiDAR, testing
from lidar_sampling.rewards.ocr import OCR


def main() -> None:
    """Draw four guided posters and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default='a poster that says "GRAND OPENING"')
    parser.add_argument("--tiny", action="store_true", help="use tiny random weights, to check that it runs")
    arguments = parser.parse_args()

    if arguments.tiny:
        reader = OCR(reader=lambda image: ["GRAND"] if image.mean() > 127 else ["OPENING"])
        lidar = LiDAR(testing.tiny_stable_diffusion_3(), reward=reader, n=4, steps=4, reward_scale=20.0)
    else:
        pipe = StableDiffusion3Pipeline.from_pretrained(
            "stabilityai/stable-diffusion-3.5-medium", dtype=torch.bfloat16
        ).to("cuda")
        lidar = LiDAR(pipe, reward="ocr", n=50, reward_scale=20.0)

    result = lidar(arguments.prompt, images=4, seed=0)
    for file in result.save("poster"):
        print(file)
    print({name: values.tolist() for name, values in result.rewards.items()})


if __name__ == "__main__":
    main()
