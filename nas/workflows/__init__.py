"""The phases of runs."""
