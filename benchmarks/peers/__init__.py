"""What LiDAR costs beside its peers: ``python -m benchmarks.peers``."""
