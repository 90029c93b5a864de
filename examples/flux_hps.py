"""FLUX.1 [dev] guided by HPS v2.1, with the 8-step Hyper-FLUX LoRA as lookahead (non-commercial, needs peft)."""

from __future__ import annotations

import argparse

import torch
from diffusers import FluxPipeline

from lidar_sampling import LiDAR, testing


def main() -> None:
    """Draw two guided pictures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="a photo of a green clock above a purple bench")
    parser.add_argument("--tiny", action="store_true", help="use tiny random weights, to check that it runs")
    arguments = parser.parse_args()

    if arguments.tiny:
        size = {"height": 16, "width": 16}
        lidar = LiDAR(testing.tiny_flux(), reward="brightness", n=4, steps=4, window=(1.0, 0.0), pipe_kwargs=size)
    else:
        pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16).to("cuda")
        # The paper's lambda of 5,000 is for ImageReward; we take the spread of HPS to be fifty times smaller.
        lidar = LiDAR(pipe, reward="hpsv2.1", lookahead="hyper-flux:8", reward_scale=250_000.0)

    result = lidar(arguments.prompt, images=2, seed=0)
    for file in result.save("flux"):
        print(file)
    print({name: values.tolist() for name, values in result.rewards.items()})


if __name__ == "__main__":
    main()
