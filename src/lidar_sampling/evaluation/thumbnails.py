"""Small copies of a comparison's pictures, inside a page: data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from pathlib import Path

SIDE, QUALITY = 192, 70  # pixels of the longer side, and of WebP: 2 to 10 kB a picture


def thumbnails(folder: Path, most: int) -> list[str]:
    """The first ``most`` pictures of a folder as data URIs, the first frame of a video; none of audio.

    Args:
        folder: of ``0000.png``, ``0001.png``, ... or ``.webp``; it may be missing.
        most: pictures.

    Example:
        >>> thumbnails(Path("nowhere"), 4)
        []
    """
    from PIL import Image

    found = []
    for path in sorted(p for p in folder.glob("*") if p.suffix in (".png", ".webp"))[:most]:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        small.save(file, "webp", quality=QUALITY)
        found.append(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}")
    return found
