"""Wan 2.1 videos guided by a mixture of two rewards, each the mean over frames."""

from __future__ import annotations

import argparse

import torch
from diffusers import AutoencoderKLWan, WanPipeline

from lidar_sampling import LiDAR, testing
from lidar_sampling.rewards import Mixture


def main() -> None:
    """Draw a guided video and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="a cat walks on grass")
    parser.add_argument("--tiny", action="store_true", help="use tiny random weights, to check that it runs")
    arguments = parser.parse_args()

    if arguments.tiny:
        size = {"height": 16, "width": 16, "num_frames": 5}
        lidar = LiDAR(testing.tiny_wan(), reward="brightness", n=4, steps=4, pipe_kwargs=size)
    else:
        repo = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        vae = AutoencoderKLWan.from_pretrained(repo, subfolder="vae", dtype=torch.float32)
        pipe = WanPipeline.from_pretrained(repo, vae=vae, dtype=torch.bfloat16).to("cuda")
        reward = Mixture({"image-reward": 0.7, "aesthetic": 0.3}, device="cuda")
        # Rewards are standardised: reward_scale is in units of their deviation over the bank.
        lidar = LiDAR(pipe, reward=reward, n=16, reward_scale=5.0, batch_size=1, pipe_kwargs={"num_frames": 33})

    result = lidar(arguments.prompt, images=1, seed=0)
    for file in result.save("wan"):
        print(file)
    print({name: values.tolist() for name, values in result.rewards.items()})


if __name__ == "__main__":
    main()
