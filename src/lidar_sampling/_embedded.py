"""Where the embedded models lie: in the package ``lidar-sampling-glyph``, which the extra ``glyph`` brings.

Their weights are large and change seldom, so they are a distribution of their own. Nothing else here imports it.
"""

from __future__ import annotations

from pathlib import Path

from . import __version__


def find_weights(name: str) -> Path:
    """Return the folder of an embedded model: ``glyph`` or ``molecules``.

    Raises:
        ImportError: the package is not installed, or is that of another version of the library.
    """
    try:
        import lidar_sampling_glyph as package
    except ModuleNotFoundError as error:
        if error.name != "lidar_sampling_glyph":
            raise
        raise ImportError('the embedded models are not installed: pip install "lidar-sampling[glyph]"') from None
    if package.__version__ != __version__:
        raise ImportError(
            f"lidar-sampling-glyph is {package.__version__}, and lidar-sampling {__version__} needs its own: "
            f'pip install "lidar-sampling[glyph]=={__version__}"'
        )
    return Path(package.__file__).parent / name
