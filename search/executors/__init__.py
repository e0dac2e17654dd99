"""Executors run evaluations, here or on many machines; the loop only submits and waits.

``RayExecutor`` is in ``search.executors.on_ray``, so that Ray is imported by those only who
use it.
"""

from search.executors.base import Evaluate, Executor, InProcessExecutor, Outcome, describe

__all__ = ["Evaluate", "Executor", "InProcessExecutor", "Outcome", "describe"]
