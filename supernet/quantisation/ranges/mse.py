"""The range with the smallest mean squared error of rounding."""

from __future__ import annotations

import torch

from supernet.quantisation.ranges.ways import Seen, rounded, way

PARTS = tuple(0.4 + 0.02 * i for i in range(31))  # of the whole range, 0.4 to 1


@way("mse")
def mse(seen: Seen) -> tuple[float, float]:
    """Tries parts of the whole range, shrunk on both sides alike."""
    values, low, high = seen.values, min(seen.low, 0.0), max(seen.high, 0.0)
    if high <= low:
        return low, high
    errors = [
        float(torch.mean((rounded(values, part * low, part * high) - values) ** 2))
        for part in PARTS
    ]
    best = PARTS[min(range(len(PARTS)), key=errors.__getitem__)]
    return best * low, best * high
