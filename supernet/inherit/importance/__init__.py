"""How much the units inside a module matter, one file a criterion."""

from supernet.inherit.importance import (  # noqa: F401  they register themselves
    activation,
    energy_share,
    gate,
    magnitude,
    optin,
    reconstruction,
    second_order,
    taylor,
)
from supernet.inherit.importance.criteria import CRITERIA, Scores, Units, criterion

__all__ = ["CRITERIA", "Scores", "Units", "criterion"]
