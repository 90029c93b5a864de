"""SDXL guided by ImageReward, judged by HPS v2.1, with the paper's n, scale and lambda.

settings="paper-sdxl" adds the paper's sampler.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusionXLPipeline

from lidar_sampling import LiDAR, testing


def main() -> None:
    """Draw four guided pictures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="a photo of a red cube left of a blue ball")
    parser.add_argument("--tiny", action="store_true", help="use tiny random weights, to check that it runs")
    arguments = parser.parse_args()

    if arguments.tiny:
        lidar = LiDAR(testing.tiny_stable_diffusion_xl(), reward="brightness", n=4, steps=4)
    else:
        pipe = StableDiffusionXLPipeline.from_pretrained(
            "stabilityai/stable-diffusion-xl-base-1.0", dtype=torch.float16, variant="fp16", use_safetensors=True
        ).to("cuda")
        lidar = LiDAR(pipe, reward="image-reward", metrics=["hpsv2.1"])

    result = lidar(arguments.prompt, images=4, seed=0)
    for file in result.save("sdxl"):
        print(file)
    print({name: values.tolist() for name, values in result.rewards.items()})


if __name__ == "__main__":
    main()
