"""The range of all that was seen: nothing is cut off."""

from __future__ import annotations

from supernet.quantisation.ranges.ways import Range, Seen, way


@way("min_max")
def min_max(seen: Seen) -> list[Range]:
    """Returns the smallest and the largest value."""
    return [(seen.low, seen.high)]
