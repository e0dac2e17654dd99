"""Interface of scaling methods: a task goes in, a family comes out, both plain data.

A method walks from a seed along a path of architectures, step by step, and the members of the
family are the steps that come closest to their budgets from below. A method is a class under
``@register_method`` in a file of this package.
"""

from __future__ import annotations

import itertools
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, Self

from predictors.proxies import ScoreSettings
from search.scaling.shapes import without_skips
from search_space import Architecture
from search_space.errors import InfeasibleError, UnknownNameError, UsageError
from search_space.metrics import format_metric, title_of, typed

Costs = Mapping[str, float]
CostFunction = Callable[[Architecture], Costs]
Progress = Callable[[float, float, str], None]
"""Told the part of the way that is done, the whole (above 0), and what is tried."""


@dataclass(frozen=True)
class Step:
    """One architecture of a path.

    Args:
        costs: by metric: ``num_params``, ``macs``, ``activations``, ``latency_ms@DEVICE``.
        change: the difference from the step before, for people; empty for the seed.
        scores: by name of the proxy, where the method chose this step by any.
    """

    architecture: Architecture
    costs: Costs
    change: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The step as JSON types; scores that are not finite are left out."""
        return {
            "digest": self.architecture.digest,
            "change": self.change,
            "costs": dict(self.costs),
            "scores": {k: v for k, v in self.scores.items() if math.isfinite(v)},
            "architecture": self.architecture.to_dict(),
        }


@dataclass(frozen=True)
class Member:
    """The largest step within a budget.

    Args:
        name: the budget as people write it: ``25M``, ``2ms``.
        budget: upper limit of the family's metric.
    """

    name: str
    budget: float
    index: int
    step: Step

    @property
    def architecture(self) -> Architecture:
        return self.step.architecture

    @property
    def costs(self) -> Costs:
        return self.step.costs

    def to_dict(self) -> dict[str, Any]:
        """The member and its step as JSON types."""
        head = {"name": self.name, "budget": self.budget, "index": self.index}
        return head | self.step.to_dict()


@dataclass(frozen=True)
class Family:
    """Networks of different sizes made from one seed.

    Args:
        rule: what the method did, in a sentence.
        by: metric that the budgets limit.
        limits: upper limits of further metrics.
        members: by ascending budget.
        path: every step in order; the first is the seed.
        notes: for those who judge the result.
    """

    method: str
    rule: str
    by: str
    limits: Mapping[str, float]
    members: tuple[Member, ...]
    path: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    @property
    def seed(self) -> Architecture:
        return self.path[0].architecture

    def to_dict(self) -> dict[str, Any]:
        """The family as JSON types."""
        return vars(self) | {
            "limits": dict(self.limits),
            "members": [member.to_dict() for member in self.members],
            "path": [step.to_dict() for step in self.path],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class ScalingTask:
    """A seed, and the budgets of the family to make of it.

    Args:
        seed: what is scaled; afterwards without positions that are skipped.
        by: metric that the budgets limit.
        budgets: at least one, in any order; kept in ascending order.
        costs: gives all metrics of any architecture.
        limits: upper limits that every member keeps, by metric.
        progress: is told how far the method has come.

    Raises:
        UsageError: There is no budget, one that is not positive, or one twice.
    """

    seed: Architecture
    by: str
    budgets: tuple[float, ...]
    costs: CostFunction
    limits: Mapping[str, float] = field(default_factory=dict)
    progress: Progress = lambda done, total, text: None

    def __post_init__(self) -> None:
        budgets = tuple(sorted(self.budgets))
        if not budgets:
            raise UsageError("there is no budget; give at least one, as in --to 5M,10M.")
        for before, budget in itertools.pairwise((0.0, *budgets)):
            if not budget > 0 or not math.isfinite(budget):
                raise UsageError(f"budget {budget!r} must be a positive, finite number.")
            if budget == before:
                raise UsageError(
                    f"budget {typed(self.by, budget, digits=12)} is there twice; give each once."
                )
        object.__setattr__(self, "budgets", budgets)
        object.__setattr__(self, "seed", without_skips(self.seed))

    def allows(self, costs: Costs, budget: float | None = None) -> bool:
        """Whether ``costs`` are within a budget (the largest by default) and all limits."""
        limit = self.budgets[-1] if budget is None else budget
        return costs[self.by] <= limit and all(
            costs[metric] <= maximum for metric, maximum in self.limits.items()
        )

    def growing_from(self) -> Step:
        """The seed as the first step of a growth.

        Raises:
            UsageError: The smallest budget is below the seed's size.
            InfeasibleError: The seed breaks a limit, which adding to it cannot fix.
        """
        costs = self.costs(self.seed)
        if self.budgets[0] < costs[self.by]:
            fix = "larger budgets, a smaller --seed, or take --method contract"
            raise self._beside(self.budgets[0], costs, "below", "adds", fix)
        for metric, maximum in self.limits.items():
            if costs[metric] > maximum:
                raise InfeasibleError(
                    f"the seed's own {title_of(metric)} is "
                    f"{format_metric(metric, costs[metric])}, above the limit of "
                    f"{format_metric(metric, maximum)}, and this method only adds. Raise the "
                    "limit, give a smaller --seed, or take --method contract."
                )
        return Step(self.seed, costs)

    def contracting_from(self) -> Step:
        """The seed as the first step of a contraction.

        Raises:
            UsageError: The largest budget is above the seed's size, which removing cannot reach.
        """
        costs = self.costs(self.seed)
        if self.budgets[-1] > costs[self.by]:
            fix = "smaller budgets, a larger --seed, or take a method that grows, such as compound"
            raise self._beside(self.budgets[-1], costs, "above", "removes", fix)
        return Step(self.seed, costs)

    def _beside(self, budget: float, costs: Costs, where: str, does: str, fix: str) -> UsageError:
        return UsageError(
            f"budget {typed(self.by, budget, digits=12)} is {where} the seed's own "
            f"{format_metric(self.by, costs[self.by])} ({title_of(self.by)}), and this method only "
            f"{does}. Give {fix}."
        )

    def family_of(
        self, method: str, rule: str, path: Sequence[Step], notes: Sequence[str] = ()
    ) -> Family:
        """The family whose members are the largest steps within each budget and all limits.

        The largest has the largest value of the metric ``by``; of equal ones the later is taken.
        So members of larger budgets never cost less. There must be one for each budget.
        """
        members = []
        for budget in self.budgets:
            fitting = [i for i, step in enumerate(path) if self.allows(step.costs, budget)]
            best = max(fitting, key=lambda i: (path[i].costs[self.by], i))
            members.append(Member(typed(self.by, budget, digits=12), budget, best, path[best]))
        same = [
            f"The members {first.name} and {second.name} are the same network: between their "
            "budgets nothing was found that keeps all limits."
            for first, second in itertools.pairwise(members)
            if first.architecture == second.architecture
        ]
        limits, found = dict(self.limits), tuple(members)
        return Family(method, rule, self.by, limits, found, tuple(path), (*notes, *same))


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """Options of all methods; each takes those that concern it.

    Args:
        score: settings of proxies that run networks, and the seed of all randomness.
        epochs: planned epochs of training.
        proxy: the score that a contraction keeps as high as it can.
        known_scores: by digest of the scored architecture, values by name of the proxy, from an
            earlier run with the same ``score``.
        record: receives every new score: architecture, values, seconds.
    """

    score: ScoreSettings = field(default_factory=ScoreSettings)
    epochs: int = 300
    proxy: str = "deepmad"
    known_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    record: Callable[[Architecture, Mapping[str, float], float], None] = lambda *scored: None


class ScalingMethod(ABC):
    """Makes a family of a seed.

        family = scaling_method("compound").from_options(ScalingOptions()).scale(task)

    Attributes:
        name: on the command line.
        summary: what it is, with its source.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @classmethod
    def from_options(cls, options: ScalingOptions) -> Self:
        """The method with these options."""
        return cls()

    @classmethod
    def scores_networks(cls, options: ScalingOptions) -> bool:
        """Whether the method runs networks to choose, which takes long."""
        return False

    @abstractmethod
    def scale(self, task: ScalingTask) -> Family:
        """The family of a task.

        Raises:
            UsageError: The budgets are on the wrong side of the seed.
            InfeasibleError: The limits cannot be met from this seed.
        """


_METHODS: dict[str, type[ScalingMethod]] = {}


def register_method(cls: type[ScalingMethod]) -> type[ScalingMethod]:
    """Make a method known under its name, which must be new."""
    if cls.name in _METHODS:
        raise ValueError(f"a scaling method named {cls.name!r} is registered already")
    _METHODS[cls.name] = cls
    return cls


def _methods() -> Mapping[str, type[ScalingMethod]]:
    """All methods, by importing every file of this package: a new one needs no list."""
    package = import_module("search.scaling")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"search.scaling.{module.name}")
    return _METHODS


def scaling_method(name: str) -> type[ScalingMethod]:
    """The method ``name``. Raises UnknownNameError: there is no such method; names the nearest."""
    methods = _methods()
    if name not in methods:
        raise UnknownNameError("scaling method", name, methods)
    return methods[name]
