"""Fast compound scaling (Dollár, Singh and Girshick, Fast and Accurate Model Scaling, 2021).

The time on an accelerator follows activations rather than MACs. Of a growth of MACs by s = 2^φ,
width takes the share 0.8, depth and resolution 0.1 each: width s^(0.8/2), depth s^0.1,
resolution s^(0.1/2). Activations, in proportion to depth · width · resolution², then grow as
s^(0.1 + 0.4 + 0.1) = s^0.6, close to the √s of width alone.
"""

from __future__ import annotations

from search.scaling.base import register_method
from search.scaling.exponents import ExponentialMethod, Rates

WIDTH_SHARE, DEPTH_SHARE, RESOLUTION_SHARE = 0.8, 0.1, 0.1


@register_method
class FastCompound(ExponentialMethod):
    """Grows mostly the width, so that activations grow slowly."""

    name = "fast"
    summary = "mostly width, so that activations grow slowly (Dollár et al. 2021)"

    def rates(self) -> Rates:
        return Rates(2**DEPTH_SHARE, 2 ** (WIDTH_SHARE / 2), 2 ** (RESOLUTION_SHARE / 2))

    def rule(self) -> str:
        return (
            f"MACs 2^φ, of which width takes the share {WIDTH_SHARE}, depth {DEPTH_SHARE} and "
            f"resolution {RESOLUTION_SHARE}."
        )
