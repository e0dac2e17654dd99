"""Samplers: ask for candidates, tell their results."""

from search.samplers.base import Sampler
from search.samplers.nsga2 import NSGA2
from search.samplers.random_search import RandomSearch

__all__ = ["NSGA2", "RandomSearch", "Sampler"]
