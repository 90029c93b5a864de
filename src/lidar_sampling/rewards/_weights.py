"""Sources of reward models: the hub at a pinned commit, a folder, or one checkpoint file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._hub import Published, load_state_dict, why_no_model, why_no_weights

Source = Published | str | Path

_PARTS = ("weight", "bias")

# Parts shared by several rewards; the registry pins the rewards' own weights.
CLIP_L = Published(
    "openai/clip-vit-large-patch14", "MIT (repository)", revision="32bd64288804d66eefd0ccbe215aa642df71cc41"
)
CLIP_H = Published(
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "MIT", revision="1c2b8495b28150b8a4922ee1c8edee224c284c0c"
)


def name_with_source(reward: str, source: Source) -> str:
    """Return the name of ``reward`` in results: its own with the published weights, ``name:source`` with others."""
    return reward if isinstance(source, Published) else f"{reward}:{source}"


def where(source: Source) -> tuple[str, str | None]:
    """Return the hub id or path, and the commit, for ``from_pretrained`` of transformers."""
    return (source.repo, source.revision) if isinstance(source, Published) else (str(source), None)


def load_pretrained(function: Callable[..., Any], source: Source, **options: Any) -> Any:
    """Return ``function(source, **options)`` at the pinned commit, for a ``from_pretrained`` of transformers.

    Raises:
        FileNotFoundError: the source is neither a folder nor reachable on the hub, or parts of it are missing.
        ValueError: the source is a file, or a file in the folder is empty, cut off, a pointer or a pickle; the
            message names it.
    """
    repo, revision = where(source)
    if Path(repo).is_file():
        problem = why_no_weights(Path(repo)) or "is a file: give the folder that holds it, with its config.json"
        raise ValueError(f"{repo} {problem}")
    try:
        return function(repo, revision=revision, **options)
    except MemoryError:
        raise
    except Exception as error:
        folder = Path(repo)
        if folder.is_dir() and (why := why_no_model(folder, error)):
            raise ValueError(why) from None
        if not isinstance(error, OSError):
            raise
        if folder.is_dir():
            raise FileNotFoundError(f"{repo} is no complete model: {str(error).splitlines()[0]}") from None
        if repo.startswith(("/", ".", "~")) or repo.count("/") > 1:
            raise FileNotFoundError(f"no model at {repo}") from None
        at = f" --revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{repo} is neither a folder, nor in the cache of the model hub, nor in reach: "
            f"download it once with 'hf download {repo}{at}'"
        ) from None


def state_dict(source: Source) -> dict[str, Tensor]:
    """Return the tensors of one checkpoint file, published or the user's own."""
    return load_state_dict(source.download() if isinstance(source, Published) else source)


def rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    r"""Apply regular expressions to the name of a weight, one after the other.

    >>> rename("blocks.3.norm1.bias", [("^blocks", "layers"), (r"norm(.)", r"layer_norm\1")])
    'layers.3.layer_norm1.bias'
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def build(cls: Any, config: Any, weights: dict[str, Tensor], dtype: torch.dtype, **options: Any) -> Any:
    """Return a transformers model of ``cls`` with exactly these weights; ``options`` go to its constructor.

    Raises:
        ValueError: a weight is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        expected = {name: value.shape for name, value in cls(config, **options).state_dict().items()}
    given = {name: value.shape for name, value in weights.items()}
    if given != expected:
        wrong = sorted(name for name in {*expected, *given} if expected.get(name) != given.get(name))
        raise ValueError(f"the checkpoint does not fit {cls.__name__}: {len(wrong)} weights differ, first {wrong[0]}")
    model = cls.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **options)
    return model.eval().requires_grad_(False)


def linear_head(weights: dict[str, Tensor]) -> nn.Sequential:
    """Return the head of ImageReward and the aesthetic predictor: linear layers ``layers.N`` with nothing between.

    Gaps in N are dropouts, which do nothing in scoring. The head is always float32, since its output is the score.

    Raises:
        ValueError: the weights are not those of linear layers that fit one another.
    """
    indices = sorted({int(name.split(".")[1]) for name in weights if name.startswith("layers.")})
    names = {f"layers.{i}.{part}" for i in indices for part in _PARTS}
    if not indices or names != weights.keys():
        raise ValueError(f"a head has weights layers.N.weight and layers.N.bias, got {', '.join(sorted(weights))}")
    shapes = [weights[f"layers.{i}.weight"].shape for i in indices]
    head = nn.Sequential(*(nn.Linear(columns, rows) for rows, columns in shapes))
    head.load_state_dict({f"{n}.{p}": weights[f"layers.{i}.{p}"] for n, i in enumerate(indices) for p in _PARTS})
    return head.eval().requires_grad_(False)
