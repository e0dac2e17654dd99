"""Scaling strategy of ResNet-RS (Bello et al., Revisiting ResNets, 2021), as rates.

The paper has two rules and no exponents: scale depth where overfitting can occur (long training),
width where it cannot; and scale the resolution more slowly than EfficientNet. Here the resolution
takes the share 0.2 of the growth of MACs (half of compound scaling's 2·log₂ 1.15 = 0.40) and depth
or width takes the rest. Training is long from 100 epochs on: the paper finds width better at 10
epochs and depth at 350.
"""

from __future__ import annotations

from typing import Self

from search.scaling.base import ScalingOptions, register_method
from search.scaling.exponents import ExponentialMethod, Rates

RESOLUTION_SHARE = 0.2
LONG_TRAINING_EPOCHS = 100


@register_method
class ResNetRS(ExponentialMethod):
    """Grows depth for long training, width for short, and the resolution slowly."""

    name = "resnet-rs"
    summary = "depth for long training, width for short, resolution slowly (Bello et al. 2021)"

    def __init__(self, epochs: int = 300) -> None:
        self.epochs = epochs

    @classmethod
    def from_options(cls, options: ScalingOptions) -> Self:
        return cls(options.epochs)

    @property
    def scales_depth(self) -> bool:
        return self.epochs >= LONG_TRAINING_EPOCHS

    def rates(self) -> Rates:
        rest = 1 - RESOLUTION_SHARE
        return Rates(
            depth=2**rest if self.scales_depth else 1.0,
            width=1.0 if self.scales_depth else 2 ** (rest / 2),
            resolution=2 ** (RESOLUTION_SHARE / 2),
        )

    def rule(self) -> str:
        what = "depth" if self.scales_depth else "width"
        compared = "at least" if self.scales_depth else "fewer than"
        return (
            f"MACs 2^φ, of which resolution takes the share {RESOLUTION_SHARE} and {what} the "
            f"rest: {self.epochs} epochs of training are {compared} {LONG_TRAINING_EPOCHS}."
        )
