"""Samplers: ask for candidates, tell their results.

``make_sampler`` makes any of them by name. What needs more than NumPy is imported when made.
"""

from search.samplers.base import Sampler
from search.samplers.evolution import NSGA2
from search.samplers.random_search import RandomSearch
from search.samplers.registry import DEFAULT, SAMPLERS, make_sampler

__all__ = ["DEFAULT", "NSGA2", "SAMPLERS", "RandomSearch", "Sampler", "make_sampler"]
