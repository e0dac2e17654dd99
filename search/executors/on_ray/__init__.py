"""Evaluations on a Ray cluster, or on a Ray of our own on this machine."""

from supernet.cluster.connection import quieten

quieten()  # Ray is imported below

from search.executors.on_ray.executor import RayExecutor  # noqa: E402

__all__ = ["RayExecutor"]
