"""Training and tuning by several workers, through Ray."""
