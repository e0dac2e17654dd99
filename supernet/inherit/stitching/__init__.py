"""Stitching trained networks of one family: layers by least squares, joint training, the front."""
