"""What an index of packages shows of this one: the README with links that lead somewhere from there.

The links of the README are relative, as a repository wants them. ``repository`` in pyproject.toml, the address of the
repository on a host with GitHub's layout, makes them absolute and adds the addresses of the project. While it is
empty the texts of links stay without their links, and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[([^]]*)\]\((?!https?:)([^)]+)\)")
_LINK = re.compile(r"(?<!!)\[([^]]*)\]\((?!https?:)([^)]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Fill in the readme, and the addresses of the project if that of its repository is known."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Change ``metadata``, which hatchling hands over before it builds."""
        repository = self.config["repository"].rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        readme = with_absolute_links(text, repository, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
        pages = {"Repository": "", "Changelog": "/blob/main/CHANGELOG.md", "Issues": "/issues"}
        metadata["urls"] = {name: repository + path for name, path in pages.items()} if repository else {}


def with_absolute_links(text: str, repository: str, tag: str) -> str:
    """Return Markdown whose relative links lead into the repository at a tag, or are gone if it has no address."""
    if not repository:
        return _LINK.sub(r"\1", _PICTURE.sub("", text))
    text = _PICTURE.sub(rf"![\1]({repository}/raw/{tag}/\2)", text)
    return _LINK.sub(rf"[\1]({repository}/blob/{tag}/\2)", text)
