"""Weights for the alternatives to a trained network's blocks, taken from that network."""
