"""Loading of diffusers models from a path or a hub id, from safetensors alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ._hub import check_folder, why_no_model


def load_pipeline(
    name: str | Path, *, dtype: torch.dtype, variant: str | None = None, revision: str | None = None
) -> Any:
    """Return the pipeline in a folder or on the hub.

    Args:
        name: a path, or a hub id as owner/name.
        dtype: precision of its weights.
        variant: of the weights, such as ``"fp16"``; None takes that of a folder which has no other.
        revision: the commit on the hub.

    Raises:
        OSError, ValueError: there is no such model, or a file of it is damaged, which the message names.
    """
    from diffusers import DiffusionPipeline

    check_folder(name, "model_index.json", "a pipeline")
    if variant is None and Path(name).is_dir():
        variant = only_variant(Path(name))
    return load_model(DiffusionPipeline, name, dtype=dtype, variant=variant, revision=revision)


def load_model(cls: Any, name: str | Path, **options: Any) -> Any:
    """Return ``cls.from_pretrained(name)``, from safetensors alone.

    Raises:
        OSError, ValueError: there is no such model, or a file of it is damaged, which the message names.
    """
    try:
        return cls.from_pretrained(name, use_safetensors=True, **options)
    except Exception as error:
        if Path(name).is_dir() and (why := why_no_model(Path(name), error)):
            raise ValueError(why) from None
        raise


def only_variant(folder: Path) -> str | None:
    """Return the variant of a folder's weights, if they are all of one; None if some have the plain name.

    Raises:
        ValueError: there are several variants and none is plain.
    """
    # diffusion_pytorch_model.fp16-00001-of-00002.safetensors
    names = [re.sub(r"-\d+-of-\d+", "", file.name).split(".") for file in folder.glob("*/*.safetensors")]
    found = {name[1] if len(name) > 2 else "" for name in names}
    if not found or "" in found:
        return None
    if len(found) > 1:
        raise ValueError(f"{folder} holds the variants {', '.join(sorted(found))}: name one as variant (--variant)")
    return found.pop()
