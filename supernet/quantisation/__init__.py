"""Quantisation: ranges of activations and weights, found on training images."""
