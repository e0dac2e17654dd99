"""Predictions of what an architecture costs and promises: counts, latency, proxies, accuracy.

Knows nothing of how candidates are chosen. Import from the submodules; nothing is loaded here.
"""
