"""One integer programme over a whole space: feasibility, proven optima and proven fronts.

Quantities that add up over components (``predictors.tables.additive``) are linear in it, and so is
DeepMAD's score. ``optimise`` gives the best architecture within limits, ``sweep`` the front of two
quantities, ``meeting`` any architecture within limits or the proof that there is none, and
``solve`` does what a ``Problem`` asks for. Tables go in; genes come out, with bound and gap.
"""

from search.exact.front import Front, sweep
from search.exact.optimum import meeting, optimise
from search.exact.problems import linear_constraints, refusal, solve
from search.exact.programme import Programme, Proof, Solution

__all__ = [
    "Front",
    "Programme",
    "Proof",
    "Solution",
    "linear_constraints",
    "meeting",
    "optimise",
    "refusal",
    "solve",
    "sweep",
]
