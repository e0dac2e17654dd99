"""Search for architectures: problem, feasibility, samplers, executors, loop.

Importing this package needs NumPy only; ``search.evaluator`` is where torch comes in, and
``search.executors.on_ray`` where Ray does.
"""

from search.executors import Executor, InProcessExecutor, Outcome
from search.feasibility import FeasibleRange, check_feasible, extreme_rows, feasible_range
from search.history import Progress, SearchResult
from search.loop import search, window_for
from search.problem import Constraint, Objective, Problem, Table

__all__ = [
    "Constraint",
    "Executor",
    "FeasibleRange",
    "InProcessExecutor",
    "Objective",
    "Outcome",
    "Problem",
    "Progress",
    "SearchResult",
    "Table",
    "check_feasible",
    "extreme_rows",
    "feasible_range",
    "search",
    "window_for",
]
