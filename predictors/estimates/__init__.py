"""Latencies of GPUs that are not at hand, estimated from datasheets and published figures."""
