"""The range of nearly all that was seen: rare outliers are cut off."""

from __future__ import annotations

import torch

from supernet.quantisation.ranges.ways import Range, Seen, way

CUT_OFF = 1e-5  # of all values, on each side


@way("percentile")
def percentile(seen: Seen) -> list[Range]:
    """Returns the values between which all but a hundred-thousandth on each side lies."""
    values, counts = seen.values()
    below = counts.cumsum(0) / counts.sum()
    ends = torch.tensor([CUT_OFF, 1 - CUT_OFF], dtype=below.dtype)
    low, high = values[torch.searchsorted(below, ends).clamp(max=len(values) - 1)].tolist()
    return [(low, high)]
