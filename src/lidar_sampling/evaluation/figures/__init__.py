"""The figures of a comparison. Only this folder imports matplotlib, which the extra ``plot`` installs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from ..rows import Row

NAMES = {
    "quality-cost": "Gain over the baseline against network evaluations per prompt. Filled: mean of the images "
    "returned; hollow: the best of them by the guiding reward. Dashed: the Pareto front of the means. Equal costs "
    "are drawn side by side.",
    "hacking": "Gain on the guiding reward against gain on the judges that did not guide, both in deviations of the "
    "baseline over prompts. Below the dashed diagonal a method gained more on the reward that guided it.",
    "diversity": "Mean of the images returned against how different the images of a prompt are: down and left, a "
    "method gave up both.",
    "tags": "Mean of the images returned, by tag.",
    "scaling": "Gain over the baseline along the one number in which methods differ.",
}
"""The figures that :func:`draw` may make, in their order, with their captions."""


def available() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(rows: Sequence[Row]) -> dict[str, dict[str, bytes]]:
    """Draw the figures for which ``rows`` have the numbers.

    Args:
        rows: rows of :func:`lidar_sampling.evaluation.table`.

    Returns:
        name -> the result of :func:`draw_one`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = {name: draw_one(name, rows) for name in NAMES}
    return {name: files for name, files in found.items() if files is not None}


def draw_one(name: str, rows: Sequence[Row]) -> dict[str, bytes] | None:
    """Draw a figure; return ``svg`` and ``png`` -> content of the file, legible at the width of a phone.

    Args:
        name: one of :data:`NAMES`.
        rows: rows of :func:`lidar_sampling.evaluation.table`.

    Returns:
        None if ``rows`` have no numbers for this figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from . import _style

    with _style.use_style():
        figure = import_module(f".{name.replace('-', '_')}", __name__).draw(rows)
        return None if figure is None else _style.files(figure)
