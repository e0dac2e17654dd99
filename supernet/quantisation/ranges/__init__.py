"""How the range of an activation is found from what was seen of it, one file a way."""

from supernet.quantisation.ranges import (  # noqa: F401  they register themselves
    cross_entropy,
    min_max,
    mse,
    percentile,
)
from supernet.quantisation.ranges.ways import RANGES, Range, Ranges, Seen, way

__all__ = ["RANGES", "Range", "Ranges", "Seen", "way"]
