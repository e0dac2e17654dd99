"""The range with which the module says what it says in float.

What rounding costs the output is not what it costs a place: a few outliers may carry all that
later layers need, or nothing. Parts of the whole range are therefore tried in the network, and
judged by the cross entropy of its output to that in float, place after place.
"""

from __future__ import annotations

from supernet.quantisation.ranges.ways import Range, Seen, parts_of, way

PARTS = (1.0, 0.9, 0.8, 0.7, 0.55)


@way("cross_entropy")
def cross_entropy(seen: Seen) -> list[Range]:
    """Gives parts of the whole range to choose from."""
    return parts_of(seen, PARTS)
