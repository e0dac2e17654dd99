"""How much the units inside a module matter, one file a criterion."""

from supernet.inherit.importance import activation, magnitude, taylor  # noqa: F401  they register
from supernet.inherit.importance.criteria import CRITERIA, Criterion, Scores, Units, criterion

__all__ = ["CRITERIA", "Criterion", "Scores", "Units", "criterion"]
