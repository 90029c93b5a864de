"""Published weights: their place, their licence, and how to load them without running anybody's code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Published:
    """Weights on the model hub.

    Attributes:
        repo: hub id, ``owner/name``.
        licence: of the weights, as their page names it.
        file: the file that holds them; None for a whole repository in the layout of diffusers or transformers.
        revision: the commit that is meant; None takes the newest, where no commit could be confirmed.
        commercial: whether the licence allows commercial use.
    """

    repo: str
    licence: str
    file: str | None = None
    revision: str | None = None
    commercial: bool = True

    def __str__(self) -> str:
        where = "/".join(part for part in (self.repo, self.file) if part) + (
            f"@{self.revision}" if self.revision else ""
        )
        return f"{where} ({self.licence}{'' if self.commercial else '; non-commercial'})"

    def download(self) -> Path:
        """Return the file's path in the hub's cache; fetch it if it is not there.

        Raises:
            FileNotFoundError: it is neither in the cache nor in reach.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        if self.file is None:
            raise ValueError(f"{self.repo} is a whole repository, not a file")
        try:
            return Path(hf_hub_download(self.repo, self.file, revision=self.revision))
        except LocalEntryNotFoundError:
            at = f" --revision {self.revision}" if self.revision else ""
            raise FileNotFoundError(
                f"{self.repo}/{self.file} is neither in the cache of the model hub nor in reach: "
                f"download it once with 'hf download {self.repo} {self.file}{at}'"
            ) from None


def fill(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a module its weights.

    Args:
        module: takes them.
        weights: name -> tensor, all of the module's and no other.
        path: where they are from, for the message.

    Raises:
        ValueError: they are those of another network.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(f"{path} holds the weights of another network ({first[0].strip()})") from None


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file without unpickling objects.

    A checkpoint that keeps its tensors under ``state_dict`` is unwrapped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, empty, cut off or a pointer, or holds something else; the message names it and
            the mend.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file of weights itself")
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if why := why_no_weights(path):
        raise ValueError(f"{path} {why}")
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path} {_why_unreadable(error)}") from None  # torch advises to unpickle: not repeated
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no plain dictionary of tensors")
    return dict(content)


def why_no_weights(path: Path) -> str | None:
    """Return why a file holds no weights, by its first bytes, as the end of a sentence; None if it may hold some.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     why_no_weights(Path(file.name))
    'is empty: download it again'
    """
    with open(path, "rb") as file:
        start = file.read(200)
    if not start:
        return "is empty: download it again"
    if start.startswith(b"version https://git-lfs."):
        return "is a pointer of Git LFS, not the file itself: run 'git lfs pull' in its clone, or download it again"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file itself: download it again"
    return None


def why_no_model(folder: Path, error: Exception) -> str | None:
    """Return why loading the model in ``folder`` failed with ``error``; None if no file of it is to blame."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix.lower() in _OF_A_MODEL and (why := why_no_weights(path)):
            return f"{path} {why}"
    for path in sorted(folder.rglob("*.safetensors")):
        if why := _why_damaged(path):
            return f"{path} {why}"
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth"))
    if pickles and not isinstance(error, OSError):
        return f"{folder} holds {pickles[0]}, which {_why_unreadable(error)}"
    return None


def check_folder(name: str | Path, index: str, what: str) -> dict[str, Any] | None:
    """Return the JSON object in file ``index`` of a model's folder; None for what can only be a hub id.

    Args:
        name: a path or a hub id.
        index: the file that every such folder has.
        what: the model is, for errors.

    Raises:
        FileNotFoundError: the path leads nowhere, or the folder lacks the file.
        ValueError: it is a file, or ``index`` is not a JSON object with a ``_class_name``; the message has the mend.
    """
    path = Path(name)
    if path.is_file():
        problem = why_no_weights(path) or f"is a file: give the folder of {what}, which holds {index}"
        raise ValueError(f"{path} {problem}")
    if not path.is_dir():
        if str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1:
            raise FileNotFoundError(f"no folder of {what} at {name}")
        return None
    if not (path / index).is_file():
        raise FileNotFoundError(f"{path} is not a folder of {what}: it holds no {index}")
    if why := why_no_weights(path / index):
        raise ValueError(f"{path / index} {why}")
    try:
        found = json.loads((path / index).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path / index} is not JSON ({error}): download it again") from None
    if not isinstance(found, dict) or not isinstance(found.get("_class_name"), str):
        raise ValueError(f"{path / index} has no _class_name, as that of {what} does: download it again")
    return found


_OF_A_MODEL = (".safetensors", ".bin", ".pt", ".pth", ".json", ".model", ".txt")


def _why_damaged(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return None
    except SafetensorError as error:
        return _why_unreadable(error)


def _why_unreadable(error: Exception) -> str:
    """Return why a reader of weights failed with ``error``, as the end of a sentence."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"pickles an object, {found[1]}, and pickled code is never run here: "
            "save the state_dict of the model alone, best as .safetensors"
        )
    first = " ".join(re.split(r"\n|(?<=\w)\. ", text)[0].split())
    why = "" if not first or "weights_only" in text else f" ({first})"
    return f"is damaged, or no file of weights{why}: download it again"
