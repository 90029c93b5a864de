"""The command ``lidar``, as ``python -m lidar_sampling``."""

from .cli import main

main()
