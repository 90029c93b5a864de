"""Small autoencoders of the latent spaces of known models, to decode banks with: for rewards, not for eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._hub import Published, check_folder
from ._load import load_model
from .solvers import base_of
from .solvers.presets import FLUX, SD, SD3, SDXL

# https://github.com/madebyollin/taesd; no commit is pinned, since none could be confirmed here.
PREVIEWS = {
    SD: Published("madebyollin/taesd", "MIT"),
    SDXL: Published("madebyollin/taesdxl", "MIT"),
    SD3: Published("madebyollin/taesd3", "MIT"),
    FLUX: Published("madebyollin/taef1", "MIT"),
}


def load_preview(source: str | Path, pipe: Any) -> Any:
    """Load an ``AutoencoderTiny`` to where ``pipe`` is, in its precision.

    Args:
        source: ``tiny`` for the one that is known for the family of ``pipe``, or a path or hub id.
        pipe: the pipeline whose latents it decodes.

    Raises:
        ValueError: none is known for this family, or the path is of something else; the message says of what.
        OSError: it is neither here nor in reach.
    """
    from diffusers import AutoencoderTiny

    if source == "tiny":
        known = PREVIEWS.get(base_of(pipe))
        if known is None:
            raise ValueError(f"no small autoencoder is known for {type(pipe).__name__}: give a path or a hub id")
        source = known.repo
    elif (Path(source) / "model_index.json").is_file():
        raise ValueError(f"{source} is a pipeline: give the folder of a small autoencoder (AutoencoderTiny)")
    else:
        config = check_folder(source, "config.json", "a small autoencoder")
        if config is not None and config["_class_name"] != "AutoencoderTiny":
            raise ValueError(f"{source} is an {config['_class_name']}: give an AutoencoderTiny")
    return load_model(AutoencoderTiny, source, dtype=pipe.dtype).to(pipe.device)
