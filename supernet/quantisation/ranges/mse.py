"""The range with the smallest mean squared error of rounding."""

from __future__ import annotations

from supernet.quantisation.ranges.ways import Range, Seen, parts_of, rounded, way

PARTS = tuple(0.4 + 0.02 * i for i in range(31))  # of the whole range, 0.4 to 1


@way("mse")
def mse(seen: Seen) -> list[Range]:
    """Tries parts of the whole range, shrunk on both sides alike."""
    values, counts = seen.values()

    def error(tried: Range) -> float:
        low, high = tried
        return float(counts @ (rounded(values, low, high) - values) ** 2) if high > low else 0.0

    return [min(parts_of(seen, PARTS), key=error)]
