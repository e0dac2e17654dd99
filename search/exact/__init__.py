"""The proven optimum, and the proven front, of additive objectives under additive limits.

With resolution and widths fixed, everything that adds up over components is linear in how often
each block choice is used at the positions of a stage that cost the same: a small integer
programme. ``optimum`` makes one for each combination of resolution and widths, ``best`` solves
them together, from the best bound down, and ``front`` again and again while the cost is lowered.
"""

from search.exact.best import Best, Solver, best_of
from search.exact.front import Front, sweep
from search.exact.optimum import Optimum, Sliceable, optimise
from search.exact.problems import solve
from search.exact.programme import Effectiveness, Limit, Programme, Solution
from search.exact.weighted import weighted_sum

__all__ = [
    "Best",
    "Effectiveness",
    "Front",
    "Limit",
    "Optimum",
    "Programme",
    "Sliceable",
    "Solution",
    "Solver",
    "best_of",
    "optimise",
    "solve",
    "sweep",
    "weighted_sum",
]
