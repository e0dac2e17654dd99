"""Evaluations on a Ray cluster, or on a Ray of our own on this machine."""

import os

# Ray prints what befalls machines to standard output, where results go. It reads this once, when
# it is imported, which happens below.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

from search.executors.on_ray.cluster import ClusterError, RayConnection
from search.executors.on_ray.executor import RayExecutor

__all__ = ["ClusterError", "RayConnection", "RayExecutor"]
