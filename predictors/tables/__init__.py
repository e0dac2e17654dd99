"""Additive tables of costs, the latency table among them."""
