"""The weights of the embedded models of lidar-sampling: ``glyph`` and ``molecules``. Data alone, no code.

Use them through ``lidar_sampling.glyph`` and ``lidar_sampling.discrete.molecules``.
"""

__version__ = "0.1.0"  # equal to that of lidar-sampling, which refuses another
