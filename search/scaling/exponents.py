"""Growth by fixed exponents: depth, width and resolution as powers of one number φ.

All shapes between the seed and the largest budget are found by bisection of φ, so the members
are exactly the largest shapes within their budgets: depths, widths and resolution only grow with
φ. Depths and widths are rounded to the nearest that is allowed (``shapes``), the resolution to the
nearest multiple of the total stride, so that all feature maps are whole; none is below the seed's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from search.scaling.base import Family, ScalingMethod, ScalingTask, Step
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
