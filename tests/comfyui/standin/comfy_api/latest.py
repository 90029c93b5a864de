"""Schemas that are only kept, and outputs that are only read."""

from types import SimpleNamespace


class _Part:
    def __init__(self, *args, **options):
        self.args, self.options = args, options


class _Type:
    Input = Output = _Part


class _Node:
    pass


class _Output:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class ComfyExtension:
    pass


_TYPES = ("Model", "Conditioning", "Latent", "String", "Int", "Float", "Combo", "Vae", "Image")
io = SimpleNamespace(
    ComfyNode=_Node, Schema=_Part, NodeOutput=_Output, Custom=lambda name: _Type, **dict.fromkeys(_TYPES, _Type)
)
ui = SimpleNamespace(PreviewImage=lambda images, cls=None: images, PreviewText=lambda text: text)
