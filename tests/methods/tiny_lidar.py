"""A small LiDAR for tests of methods, and its prompts."""

import diffusers

from lidar_sampling import LiDAR, testing

PROMPTS = ["a cat", "a dog"]


def make(scheduler="DDIMScheduler", reward=testing.brightness, make_pipe=testing.tiny_stable_diffusion, **options):
    pipe = make_pipe()
    config = {**pipe.scheduler.config, "clip_sample": False}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(config)
    settings = {"n": 6, "steps": 5, "lookahead": "dpm:3", "scale": 2.0, "reward_scale": 1e6, "guidance_scale": 3.0}
    settings["eta"] = 1.0 if scheduler == "DDIMScheduler" else None
    return LiDAR(pipe, reward=reward, **{**settings, **options})
