"""Largest values that are no slip of the keyboard: beyond them a machine runs out of something."""

SEED = 2**63 - 1  # what all random generators take
BATCH_SIZE = 65_536
NUM_CLASSES = 1_000_000
THREADS = 1024
POPULATION = 100_000
