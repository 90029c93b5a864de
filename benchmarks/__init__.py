"""Programs that measure; each prints its table and its cost."""
