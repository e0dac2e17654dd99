"""Compound scaling (Tan and Le, EfficientNet, 2019): depth α^φ, width β^φ, resolution γ^φ.

With α = 1.2, β = 1.1, γ = 1.15, found for EfficientNet-B0, α·β²·γ² ≈ 1.92: MACs nearly double
with each φ.
"""

from __future__ import annotations

from search.scaling.base import register_method
from search.scaling.exponents import ExponentialMethod, Rates

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15


@register_method
class Compound(ExponentialMethod):
    """Grows depth, width and resolution together."""

    name = "compound"
    summary = "depth, width and resolution together (EfficientNet)"

    def rates(self) -> Rates:
        return Rates(depth=ALPHA, width=BETA, resolution=GAMMA)

    def rule(self) -> str:
        return f"Depth {ALPHA}^φ, width {BETA}^φ, resolution {GAMMA}^φ."
