"""Measurements of latencies on this machine."""
