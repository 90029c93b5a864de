"""Published weights: where they lie, under which licence, and how they are loaded without running anybody's code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


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
        """The file's path in the hub's cache, fetched if it is not there.

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


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pt``, ``.pth`` or ``.bin`` file without unpickling objects.

    A checkpoint that keeps its tensors under ``state_dict`` is unwrapped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no plain dictionary of tensors")
    return dict(content)
