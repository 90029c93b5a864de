"""The pictures of a report: prompts below one another, methods side by side, rewards below each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..runs._lines import Line
from .guide import with_guide
from .thumbnails import thumbnails

MOST_IMAGES = 4  # pictures per method and prompt
BUDGET = 6_000_000  # characters of all pictures; prompts beyond this are counted in one line


def gallery(lines: Sequence[Line], methods: Sequence[str], folder: Path, *, budget: int = BUDGET) -> str:
    """Return HTML of as many prompts with pictures as ``budget`` allows; empty if no prompt has pictures.

    Args:
        lines: lines of :func:`lidar_sampling.evaluation.compare`.
        methods: the methods, in the order to show them.
        folder: the folder to which the lines' ``pictures`` are relative.
        budget: most characters that the pictures may take.
    """
    by_prompt: dict[str, dict[str, Line]] = {}
    lines, _ = with_guide(lines)
    for line in lines:
        if "pictures" in line:
            by_prompt.setdefault(line["prompt"], {})[line["method"]] = line
    found, spent, left = [], 0, 0
    for prompt, mine in by_prompt.items():
        pictures = {m: thumbnails(folder / mine[m]["pictures"], MOST_IMAGES) for m in methods if m in mine}
        size = sum(len(uri) for uris in pictures.values() for uri in uris.values())
        if size == 0:
            continue
        if spent + size > budget:
            left += 1
            continue
        spent += size
        cards = "".join(_card(mine[m], uris) for m, uris in pictures.items() if uris)
        name = next(iter(mine.values()))["tag"]
        tag = f' <span class="tag">{escape(name)}</span>' if name else ""
        found.append(f'<article><h3>{escape(prompt)}{tag}</h3><div class="row" tabindex="0">{cards}</div></article>')
    if not found:
        return ""
    judges = " · ".join(escape(judge) for judge in lines[0]["rewards"])
    rest = f"<p>{left} more prompts are in the folder <code>pictures</code>.</p>" if left else ""
    note = "Swipe a row for the other methods. Framed: the image that the guiding reward likes best."
    return f"<section><h2>Pictures</h2><p>Below each: {judges}. {note}</p>{''.join(found)}{rest}</section>"


def _card(line: Line, uris: Mapping[int, str]) -> str:
    """Return the HTML of a method's pictures of one prompt; ``uris`` maps an image's number to its picture."""
    rewards = list(line["rewards"].values())
    liked = [-np.inf if value is None else value for value in rewards[0]]
    best = int(np.argmax(liked)) if any(value is not None for value in rewards[0]) else None
    shown = []
    for k, uri in uris.items():
        if k >= len(liked):  # a file of another run
            continue
        values = " · ".join(_number(of_judge[k]) for of_judge in rewards)
        chosen = ' class="best"' if k == best and len(liked) > 1 else ""
        alt = escape(f"{line['prompt']}, by {line['method']}, image {k + 1}")
        shown.append(
            f'<figure{chosen}><img loading="lazy" src="{uri}" alt="{alt}"><figcaption>{values}</figcaption></figure>'
        )
    means = " · ".join(_number(float(np.mean([v for v in r if v is not None] or [np.nan]))) for r in rewards)
    head = f"<h4>{escape(line['method'])}</h4>"
    return f'<div class="card">{head}<div class="grid">{"".join(shown)}</div><p>mean {means}</p></div>'


def _number(value: float | None) -> str:
    """Return a reward in three or four digits.

    >>> [_number(value) for value in (28.669, 0.5, 1.0, None)]
    ['28.7', '0.50', '1', '-']
    """
    if value is None or value != value:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.0f}" if value in (0, 1) else f"{value:.2f}"
