"""The recipes of the weights that ship with lidar_sampling; not part of the installed package."""
