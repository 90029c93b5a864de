"""The cost of LiDAR beside its peers: ``python -m benchmarks.peers``."""
