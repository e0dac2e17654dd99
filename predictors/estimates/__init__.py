"""Latencies of unavailable GPUs, estimated from datasheets and published figures."""
