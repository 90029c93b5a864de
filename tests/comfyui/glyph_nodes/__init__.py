"""Nodes that load glyph into ComfyUI, for tests: its UNet is not among those that ComfyUI's loaders know."""

from functools import lru_cache

import torch
from comfy import model_management, model_patcher, supported_models, utils
from comfy_api.latest import ComfyExtension, io

CONFIG = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 96,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 192,
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
    "dtype": torch.float32,
}


@lru_cache
def pipeline():
    """Return glyph as diffusers' pipeline."""
    from lidar_sampling import glyph

    return glyph.load_pipeline()


def load_model():
    """Return glyph's UNet as a MODEL."""
    config = supported_models.SD15(dict(CONFIG))
    config.unet_config = dict(CONFIG)  # otherwise it gets eight heads
    model = config.get_model({})
    weights = pipeline().unet.state_dict()
    names = utils.unet_to_diffusers(CONFIG)
    model.diffusion_model.load_state_dict({names[key]: value for key, value in weights.items()})
    device = model_management.get_torch_device()
    return model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def encode(text):
    """Return a CONDITIONING."""
    return [[pipeline().encode_prompt(text, "cpu", 1, False)[0], {}]]


class GlyphVAE:
    """Glyph's VAE, decoded by diffusers, since its groups have another size than ComfyUI's."""

    @torch.no_grad()
    def decode(self, latents):
        """Return pictures (B, H, W, C) in [0, 1]."""
        pictures = pipeline().vae.decode(latents.float()).sample
        return (pictures / 2 + 0.5).clamp(0, 1).movedim(1, -1)


class LoadGlyph(io.ComfyNode):
    """MODEL and VAE."""

    @classmethod
    def define_schema(cls):
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="LoadGlyph", category="tests", inputs=[], outputs=[io.Model.Output(), io.Vae.Output()]
        )

    @classmethod
    def execute(cls):
        """Load glyph."""
        return io.NodeOutput(load_model(), GlyphVAE())


class GlyphText(io.ComfyNode):
    """CONDITIONING of a text."""

    @classmethod
    def define_schema(cls):
        """Return the inputs and outputs of the node."""
        return io.Schema(
            node_id="GlyphText",
            category="tests",
            inputs=[io.String.Input("text", multiline=True, default="")],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text):
        """Encode a text."""
        return io.NodeOutput(encode(text))


class GlyphExtension(ComfyExtension):
    """The extension, which gives ComfyUI the nodes."""

    async def get_node_list(self):
        """Return them."""
        return [LoadGlyph, GlyphText]


async def comfy_entrypoint():
    """Return the extension."""
    return GlyphExtension()
