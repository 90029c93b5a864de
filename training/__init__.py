"""How the weights that ship with lidar_sampling were made; not part of the installed package."""
