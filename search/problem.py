"""Search problems: objectives and constraints on metrics by name, and the tables of costs.

A metric with a table (latency, MACs, parameters …) is cheap: it is known for every row of genes
before anything is evaluated. The others (accuracy) come from evaluation. Objectives are turned
to minimisation, violations are relative to their bounds and summed, as in Deb et al. 2002.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from search_space.errors import InvalidQuantityError, UnknownNameError
from search_space.metrics import ACCURACY, format_metric, metric_named, typed
from search_space.space import SearchSpace
from search_space.stage_space import Genes

Values = npt.NDArray[np.float64]
ROUNDING = 1e-12
REFERENCE_MARGIN = 0.1  # of the range between ideal and worst, so that front ends count


class Table(Protocol):
    """A cheap metric; ``predictors.tables.additive.AdditiveTable`` is one."""

    def predict(self, genes: Genes) -> Values:
        """Values of rows of genes, shape (n, genes) to (n,)."""
        ...

    def argmin(self) -> Genes:
        """Row with the smallest value of the whole space, shape (genes,)."""
        ...

    def argmax(self) -> Genes:
        """Row with the largest value of the whole space, shape (genes,)."""
        ...


@dataclass(frozen=True)
class Objective:
    """A metric to make as small or as large as possible."""

    metric: str
    direction: Literal["minimize", "maximize"]

    def __post_init__(self) -> None:
        if self.direction not in ("minimize", "maximize"):
            raise UnknownNameError("direction", self.direction, ("minimize", "maximize"))

    @classmethod
    def on(cls, metric: str) -> Objective:
        """A metric in the direction that is better."""
        smaller = metric_named(metric).better == "smaller"
        return cls(metric, "minimize" if smaller else "maximize")

    @property
    def sign(self) -> float:
        """Factor that turns the metric into something to minimise."""
        return 1.0 if self.direction == "minimize" else -1.0


@dataclass(frozen=True)
class Constraint:
    """Bounds on a metric, both inclusive; at least one is set.

    Args:
        margin: share by which both were lowered (``lowered``), which messages undo: they speak of
            limits that the user can type.

    Raises:
        InvalidQuantityError: No bound, one that is not finite, or an empty band.
    """

    metric: str
    maximum: float | None = None
    minimum: float | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        if not bounds or not all(math.isfinite(bound) for bound in bounds):
            raise InvalidQuantityError(
                f"constraint on {self.metric}: minimum={self.minimum}, maximum={self.maximum}; "
                "set at least one of them to a finite number."
            )
        if len(bounds) == 2 and bounds[0] > bounds[1]:
            raise InvalidQuantityError(
                f"constraint on {self.metric}: minimum {bounds[0]:g} lies above maximum "
                f"{bounds[1]:g}; swap them."
            )

    def violation(self, values: Values) -> Values:
        """Excess relative to the bound, 0 where met, infinite for NaN; (n,) to (n,).

        Sums of the same numbers in another order may differ by their rounding, which is no excess.
        """
        excess = np.zeros(len(values))
        if self.maximum is not None:
            excess = np.maximum(excess, (values - self.maximum) / scale_of(self.maximum))
        if self.minimum is not None:
            excess = np.maximum(excess, (self.minimum - values) / scale_of(self.minimum))
        excess = np.where(excess <= ROUNDING, 0.0, excess)
        return np.where(np.isnan(values), np.inf, excess)

    def lowered(self, margin: float) -> Constraint:
        """The same with its bounds lowered by a share, as predictions that may be too low need."""
        low, high = (b if b is None else b * (1 - margin) for b in (self.minimum, self.maximum))
        return Constraint(self.metric, maximum=high, minimum=low, margin=margin)

    def __str__(self) -> str:
        return " and ".join(
            f"{self.metric} {sign} {format_metric(self.metric, bound)}"
            for sign, bound in (("≥", self.minimum), ("≤", self.maximum))
            if bound is not None
        )

    def advice(self, value: float, above: bool) -> str:
        """Advice to change the limit, as the user knows it, so that ``value`` meets it.

        Args:
            value: of an architecture that misses the maximum (``above``) or the minimum.
        """
        limit = typed(self.metric, value / (1 - self.margin), 1 if above else -1)
        what, end = ("raise the limit", "more") if above else ("lower the minimum", "less")
        return f"{what} of {self.metric} to {limit} or {end}"

    @property
    def note(self) -> str:
        """The part of messages that speaks of the margin; empty without one."""
        if not self.margin:
            return ""
        return f", and the margin of {self.margin:.0%} is left free below the limit"


def scale_of(bound: float) -> float:
    """The number that an excess over a bound is relative to."""
    return abs(bound) or 1.0


@dataclass(frozen=True)
class Problem:
    """Objectives and constraints over a space, with a table for each cheap metric.

    Args:
        constraints: on cheap metrics, so that a candidate meets them before it is evaluated.
        tables: cheap metrics by name.
        evaluated: metrics that every evaluation gives.

    Raises:
        UnknownNameError: An objective names a metric that is neither, or a constraint one that is
            not cheap.
        InvalidQuantityError: There is no objective, or two on one metric.

    Example:
        >>> limits = (Constraint("macs", maximum=1e9),)
        >>> problem = Problem(space, (Objective.on("accuracy"),), limits, counts(space))
        >>> problem.cheap_violation(problem.space.sample(rng, 100))
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    evaluated: tuple[str, ...] = (ACCURACY,)

    def __post_init__(self) -> None:
        if not self.objectives:
            raise InvalidQuantityError("a problem needs an objective; add one, as in accuracy.")
        for objective in self.objectives:
            if objective.metric not in self.metrics:
                raise UnknownNameError("metric", objective.metric, self.metrics)
        for constraint in self.constraints:
            if constraint.metric not in self.tables:
                raise UnknownNameError("cheap metric", constraint.metric, tuple(self.tables))
        named = {
            "objective": [objective.metric for objective in self.objectives],
            "constraint": [constraint.metric for constraint in self.constraints],
        }
        for what, names in named.items():
            if twice := {name for name in names if names.count(name) > 1}:
                raise InvalidQuantityError(
                    f"{what} on {', '.join(sorted(twice))} is given twice; merge the two."
                )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, cheap ones first."""
        return (*self.tables, *(name for name in self.evaluated if name not in self.tables))

    @property
    def needs_evaluation(self) -> tuple[str, ...]:
        """Metrics of objectives that only an evaluation can give."""
        return tuple(o.metric for o in self.objectives if o.metric not in self.tables)

    def cheap_metrics(self, genes: Genes) -> dict[str, Values]:
        """Every cheap metric of rows of genes, shape (n, genes) to (n,) each."""
        return {name: table.predict(genes) for name, table in self.tables.items()}

    @property
    def cost_metric(self) -> str | None:
        """The cheap metric that matters first, by objectives, then constraints; None without."""
        used = [o.metric for o in self.objectives] + [c.metric for c in self.constraints]
        return next((metric for metric in used if metric in self.tables), None)

    def cost_axis(self, genes: Genes) -> Values:
        """Values of ``cost_metric``, 0 without one; (n, genes) to (n,)."""
        metric = self.cost_metric
        return np.zeros(len(genes)) if metric is None else self.tables[metric].predict(genes)

    def cheap_violation(self, genes: Genes) -> Values:
        """Summed relative violation of the constraints by rows, (n,); 0 means that all are met."""
        used = {c.metric for c in self.constraints}
        metrics = {m: self.tables[m].predict(genes) for m in used}
        return self.violation(metrics) if metrics else np.zeros(len(genes))

    def violation(self, metrics: Mapping[str, Values]) -> Values:
        """Summed relative violation of the constraints, (n,); 0 means feasible, NaN gives ∞.

        A constrained metric that ``metrics`` lacks counts as NaN.
        """
        n = max((len(values) for values in metrics.values()), default=0)
        total = np.zeros(n)
        for constraint in self.constraints:
            total += constraint.violation(metrics.get(constraint.metric, np.full(n, np.nan)))
        return total

    def objective_values(self, metrics: Mapping[str, Values]) -> Values:
        """Objectives to be minimised, shape (n, objectives); NaN where a metric is missing."""
        n = max((len(values) for values in metrics.values()), default=0)
        columns = [o.sign * metrics.get(o.metric, np.full(n, np.nan)) for o in self.objectives]
        return np.stack(columns, axis=1)

    @cached_property
    def reference(self) -> Values:
        """Reference point of the hypervolume, minimised like the objectives, shape (objectives,).

        A cheap objective's is its bound, or its worst value in the space, plus a tenth of the
        range; an evaluated one's is 0 where it is maximised, and NaN, for nothing is known
        beforehand, where it is minimised.
        """
        bounds = {c.metric: c for c in self.constraints}
        result = np.full(len(self.objectives), np.nan)
        for i, objective in enumerate(self.objectives):
            limit = None
            if (bound := bounds.get(objective.metric)) is not None:
                limit = bound.maximum if objective.sign > 0 else bound.minimum
            if objective.metric in self.tables:
                table = self.tables[objective.metric]
                ends = np.stack([table.argmin(), table.argmax()])
                ideal, worst = np.sort(objective.sign * table.predict(ends))
                worst = worst if limit is None else min(worst, objective.sign * limit)
                result[i] = worst + REFERENCE_MARGIN * max(worst - ideal, 1e-12)
            elif objective.sign < 0:
                result[i] = 0.0
        return result
