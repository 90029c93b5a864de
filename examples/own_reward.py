"""Your own reward: any function of images and prompts, on the embedded model."""

from __future__ import annotations

import argparse

from torch import Tensor

from lidar_sampling import LiDAR, testing


def warmth(*, images: Tensor, prompts: list[str]) -> Tensor:
    """Return red minus blue, averaged over each image (B, 3, H, W); higher is warmer."""
    return (images[:, 0] - images[:, 2]).flatten(1).mean(1)


def main() -> None:
    """Draw four warm pictures and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="a photo of a cat")
    parser.add_argument("--tiny", action="store_true", help="use tiny random weights, to check that it runs")
    arguments = parser.parse_args()

    if arguments.tiny:
        lidar = LiDAR(testing.tiny_stable_diffusion(), reward=warmth, n=4, steps=4, reward_scale=50.0)
    else:
        lidar = LiDAR.from_pretrained("glyph", reward=warmth, reward_scale=300.0)

    result = lidar(arguments.prompt, images=4, seed=0)
    for file in result.save("warm"):
        print(file)
    print({name: values.tolist() for name, values in result.rewards.items()})


if __name__ == "__main__":
    main()
