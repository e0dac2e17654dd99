"""Latency of networks on a device: measured block by block, predicted by an additive table.

``profile`` is what most callers want; import from the submodules, nothing is loaded here.
"""
