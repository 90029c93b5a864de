"""Small copies of a comparison's pictures for a page: data URIs of bounded size."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

_log = logging.getLogger(__name__)

SIDE, QUALITY = 192, 70  # pixels of the longer side, and quality of WebP: 2 to 10 kB per picture


def thumbnails(folder: Path, most: int) -> dict[int, str]:
    """Return the first ``most`` pictures of a folder as data URIs; of a video the first frame, of audio nothing.

    A picture that cannot be read is logged and left out.

    Args:
        folder: a folder with ``0000.png``, ``0001.png``, ... or ``.webp``; it may be missing.
        most: most pictures to return.

    Returns:
        The picture's number among the images -> its URI.

    Example:
        >>> thumbnails(Path("nowhere"), 4)
        {}
    """
    from PIL import Image

    found = {}
    for path in sorted(p for p in folder.glob("*") if p.suffix in (".png", ".webp") and p.stem.isdecimal())[:most]:
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises many kinds of errors for damaged files
            _log.warning("left out %s, which cannot be read: %s", path, " ".join(str(error).split()))
            continue
        small.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        small.save(file, "webp", quality=QUALITY)
        found[int(path.stem)] = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return found
