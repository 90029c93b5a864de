"""Examples; each runs as a test on tiny random weights with ``--tiny``."""
