"""Training: the loop, objectives, strategies, teachers, checkpoints."""
