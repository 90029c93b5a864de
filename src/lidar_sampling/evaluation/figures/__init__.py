"""The figures of a comparison, with matplotlib, which the extra ``plot`` installs and only this folder imports."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from ..rows import Row

NAMES = {
    "quality-cost": "Gain over the baseline against network evaluations a prompt. Filled: mean of the images "
    "returned; hollow: the best of them by the guiding reward. Dashed: the Pareto front of the means. Equal costs "
    "are drawn side by side.",
    "hacking": "Gain on the guiding reward against gain on the judges that did not guide, both in deviations of the "
    "baseline over prompts. Below the dashed diagonal a method gained more on what it was guided by.",
    "diversity": "Mean of the images returned against how different the images of a prompt are: down and left, a "
    "method gave up both.",
    "tags": "Mean of the images returned, by tag.",
    "scaling": "Gain over the baseline along the one number in which methods differ.",
}
"""The figures that :func:`draw` may make, in the order to show them in, with their captions."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(rows: Sequence[Row]) -> dict[str, dict[str, bytes]]:
    """The figures that ``rows`` have the numbers for.

    Args:
        rows: of :func:`lidar_sampling.evaluation.table`.

    Returns:
        name -> as :func:`draw_one`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    found = {name: draw_one(name, rows) for name in NAMES}
    return {name: files for name, files in found.items() if files is not None}


def draw_one(name: str, rows: Sequence[Row]) -> dict[str, bytes] | None:
    """Return ``svg`` and ``png`` -> content of the file, sized to be read at the width of a phone.

    Args:
        name: of :data:`NAMES`.
        rows: of :func:`lidar_sampling.evaluation.table`.

    Returns:
        None if ``rows`` have no numbers for this figure.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from . import _style

    with _style.use_style():
        figure = import_module(f".{name.replace('-', '_')}", __name__).draw(rows)
        return None if figure is None else _style.files(figure)
