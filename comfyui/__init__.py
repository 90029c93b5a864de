"""LiDAR in ComfyUI: draw a bank of few-step samples, score it, and guide any sampler toward what scored well."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
