"""Programs that measure; each prints its table and says what it cost."""
