"""The range of nearly all that was seen: rare outliers are cut off."""

from __future__ import annotations

import numpy as np

from supernet.quantisation.ranges.ways import Seen, way

CUT_OFF = 0.01  # per cent on each side


@way("percentile")
def percentile(seen: Seen) -> tuple[float, float]:
    """Returns the values between which all but a ten-thousandth on each side lies."""
    low, high = np.percentile(seen.values.numpy(), [CUT_OFF, 100 - CUT_OFF])
    return float(low), float(high)
