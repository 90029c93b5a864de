"""``python -m lidar_sampling.cli``."""

from . import main

main()
