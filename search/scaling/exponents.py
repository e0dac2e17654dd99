"""Growth by fixed exponents: depth, width and resolution as powers of one number φ.

All shapes between the seed and the largest budget are found by bisection of φ, so the members
are exactly the largest shapes within their budgets: depths, widths and resolution only grow with
φ. Depths and widths are rounded to the nearest that is allowed (``shapes``), the resolution to the
nearest multiple of the total stride, so that all feature maps are whole; none is below the seed's.
The methods differ in the rates alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

from search.scaling.base import (
    Family,
    ScalingMethod,
    ScalingOptions,
    ScalingTask,
    Step,
    register_method,
)
from search.scaling.shapes import Shape, describe_change, grown_widths, nearest, total_stride
from search_space import Architecture
from search_space.errors import UsageError
from search_space.metrics import typed

TOLERANCE = 1e-6  # of φ; two roundings that are closer than this fall into one step
MAX_DEPTH = 1000


@dataclass(frozen=True)
class Rates:
    """Growth factors for φ = 1; MACs grow about ``depth · width² · resolution²`` fold."""

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0

    def shape(self, seed: Architecture, phi: float) -> Shape:
        """The shape of ``seed`` grown by ``phi ≥ 0``."""
        depth = self.depth**phi
        depths = tuple(max(d, nearest(depth * d, 1)) for d in seed.depths)
        side = nearest(seed.resolution * self.resolution**phi, total_stride(seed))
        resolution = max(seed.resolution, side)
        return Shape(depths, grown_widths(seed, self.width**phi), resolution)

    def shapes(self, seed: Architecture, low: float, high: float) -> list[tuple[float, Shape]]:
        """Every shape for φ from ``low`` to ``high``, in order, with a φ that gives it."""
        result = [(low, self.shape(seed, low))]
        pending = [(low, result[0][1], high, self.shape(seed, high))]
        while pending:
            low, first, high, last = pending.pop()
            if first == last:
                continue
            middle = (low + high) / 2
            if high - low <= TOLERANCE:
                result.append((high, last))
                continue
            between = self.shape(seed, middle)
            pending.append((middle, between, high, last))
            pending.append((low, first, middle, between))
        return result


class ExponentialMethod(ScalingMethod):
    """Scales by the rates that its subclass chooses."""

    @abstractmethod
    def rates(self) -> Rates:
        """The growth factors for φ = 1."""

    @abstractmethod
    def rule(self) -> str:
        """The rule in a sentence."""

    def scale(self, task: ScalingTask) -> Family:
        rates, path = self.rates(), [task.growing_from()]
        total = math.log(task.budgets[-1] / path[0].costs[task.by]) or 1.0
        before, phi = Shape.of(task.seed), 0.0
        while task.allows(path[-1].costs):
            for at, shape in rates.shapes(task.seed, phi, phi + 1)[1:]:
                if max(shape.depths) > MAX_DEPTH:
                    raise UsageError(
                        f"budget {typed(task.by, task.budgets[-1], digits=12)} would need a stage "
                        f"of more than {MAX_DEPTH} blocks; give smaller budgets or a larger --seed."
                    )
                architecture = shape.apply(task.seed)
                costs = task.costs(architecture)
                change = f"φ = {at:.3f}: {describe_change(before, shape)}"
                path.append(Step(architecture, costs, change))
                before = shape
                if not task.allows(costs):
                    break
            phi += 1
            grown = math.log(path[-1].costs[task.by] / path[0].costs[task.by])
            task.progress(min(grown, total), total, f"φ = {phi:g}")
        rule = (
            f"{self.rule()} Depths are rounded to the nearest, widths to the nearest multiple of 8 "
            "that the mixers allow, the resolution to the nearest multiple of the total stride."
        )
        return task.family_of(self.name, rule, path[:-1])


@register_method
class Compound(ExponentialMethod):
    """Grows depth, width and resolution together (Tan and Le, EfficientNet, 2019).

    The rates were found for EfficientNet-B0: α·β²·γ² ≈ 1.92, so MACs nearly double with each φ.
    """

    name = "compound"
    summary = "depth, width and resolution together (EfficientNet)"
    ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15

    def rates(self) -> Rates:
        return Rates(depth=self.ALPHA, width=self.BETA, resolution=self.GAMMA)

    def rule(self) -> str:
        return f"Depth {self.ALPHA}^φ, width {self.BETA}^φ, resolution {self.GAMMA}^φ."


@register_method
class FastCompound(ExponentialMethod):
    """Grows mostly the width, so that activations grow slowly.

    The time on an accelerator follows activations rather than MACs (Dollár, Singh and Girshick,
    Fast and Accurate Model Scaling, 2021). Of a growth of MACs by s = 2^φ, width takes the share
    0.8, depth and resolution 0.1 each: width s^(0.8/2), depth s^0.1, resolution s^(0.1/2).
    Activations, in proportion to depth · width · resolution², then grow as s^(0.1 + 0.4 + 0.1) =
    s^0.6, close to the √s of width alone.
    """

    name = "fast"
    summary = "mostly width, so that activations grow slowly (Dollár et al. 2021)"
    WIDTH, DEPTH, RESOLUTION = 0.8, 0.1, 0.1  # shares of the growth of MACs

    def rates(self) -> Rates:
        return Rates(2**self.DEPTH, 2 ** (self.WIDTH / 2), 2 ** (self.RESOLUTION / 2))

    def rule(self) -> str:
        return (
            f"MACs 2^φ, of which width takes the share {self.WIDTH}, depth {self.DEPTH} and "
            f"resolution {self.RESOLUTION}."
        )


@register_method
class ResNetRS(ExponentialMethod):
    """Grows depth for long training, width for short, and the resolution slowly.

    The paper (Bello et al., Revisiting ResNets, 2021) has two rules and no exponents: scale depth
    where overfitting can occur (long training), width where it cannot; and scale the resolution
    more slowly than EfficientNet. Here the resolution takes the share 0.2 of the growth of MACs
    (half of compound scaling's 2·log₂ 1.15 = 0.40) and depth or width takes the rest. Training is
    long from 100 epochs on: the paper finds width better at 10 epochs and depth at 350.
    """

    name = "resnet-rs"
    summary = "depth for long training, width for short, resolution slowly (Bello et al. 2021)"
    RESOLUTION, LONG_EPOCHS = 0.2, 100

    def __init__(self, epochs: int = 300) -> None:
        self.epochs = epochs
        self.scales_depth = epochs >= self.LONG_EPOCHS

    @classmethod
    def from_options(cls, options: ScalingOptions) -> Self:
        return cls(options.epochs)

    def rates(self) -> Rates:
        rest, resolution = 1 - self.RESOLUTION, 2 ** (self.RESOLUTION / 2)
        if self.scales_depth:
            return Rates(depth=2**rest, resolution=resolution)
        return Rates(width=2 ** (rest / 2), resolution=resolution)

    def rule(self) -> str:
        what = "depth" if self.scales_depth else "width"
        compared = "at least" if self.scales_depth else "fewer than"
        return (
            f"MACs 2^φ, of which resolution takes the share {self.RESOLUTION} and {what} the "
            f"rest: {self.epochs} epochs of training are {compared} {self.LONG_EPOCHS}."
        )
