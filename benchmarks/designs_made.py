"""What every method that trains nothing makes of a budget, for ``designs.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from designs_cases import BUDGET_DEVICE, Reference, Yardstick

from predictors.counts import counts
from predictors.proxies.space_tables import SpaceScores
from predictors.tables.additive import AdditiveTable
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search.exact import optimise
from search.problem import Table
from search.scaling.base import Family, ScalingOptions, ScalingTask, scaling_method
from search.shape import SHAPE, ShapeRule
from search_space import Architecture, Genes, SearchSpace, known
from search_space.metrics import LATENCY, on_device

MAX_EFFECTIVENESS = 0.5
SCALED = (
    ("compound", "scaled, compound"),
    ("fast", "scaled, fast"),
    ("resnet-rs", "scaled, resnet-rs"),
    ("deepmad", "scaled, deepmad"),
    ("contract", "contract"),
)


@dataclass(frozen=True)
class Effort:
    """Runs of an evolution, and the generations of each."""

    seeds: int = 1
    generations: int = 150


NAS_SEARCH, LONG, SHORT = Effort(), Effort(3, 450), Effort(1, 300)


class Preset:
    """A space with its tables and scores."""

    def __init__(self, space: SearchSpace, yardstick: Yardstick) -> None:
        self.space = space
        metric = on_device(LATENCY, BUDGET_DEVICE)
        self.tables: dict[str, AdditiveTable] = {
            **counts(space),
            metric: yardstick.costs.table(metric, space),
        }
        self.scores = SpaceScores.build(space, self.tables)
        self.rule = ShapeRule(space)

    @property
    def can_break_rule(self) -> bool:
        """Whether the space has an architecture that breaks the rule on shapes."""
        return bool(self.rule.predict(self.rule.argmax()[None])[0] > 0)

    def evolved(
        self,
        limits: dict[str, float],
        effort: Effort,
        *,
        shape_rule: bool = True,
        latency: bool = False,
    ) -> tuple[Architecture, list[float]]:
        """The best by the combined score, and the best score of each run.

        ``latency`` is a second objective in ``nas search``; a search that wants the best alone
        does better without it.
        """
        rules: dict[str, Table] = {SHAPE: self.rule} if shape_rule else {}
        objectives = [Objective("score", "maximize")]
        if latency:
            objectives.append(Objective(on_device(LATENCY, BUDGET_DEVICE), "minimize"))
        problem = Problem(
            self.space,
            tuple(objectives),
            tuple(
                Constraint(m, maximum=most)
                for m, most in (limits | dict.fromkeys(rules, 0.0)).items()
            ),
            {**self.tables, **rules},
            evaluated=("score",),
        )

        def score(genes: Genes) -> np.ndarray:
            return self.scores.predict("combined", genes)

        found: list[tuple[float, Genes]] = []
        for seed in range(effort.seeds):
            front = scored_front(
                problem, score, seed=seed, generations=effort.generations, sample=0
            )
            best = int(front.objectives[:, 0].argmin())
            found.append((-float(front.objectives[best, 0]), front.genes[best]))
        row = max(found, key=lambda pair: pair[0])[1]
        return self.space.decode(row[None])[0], [value for value, _ in found]

    def optimal(
        self,
        limits: dict[str, float],
        *,
        effectiveness: float | None = MAX_EFFECTIVENESS,
        shape_rule: bool = True,
    ) -> tuple[Architecture, str]:
        """The best by DeepMAD's score, and what is proven of it."""
        optimum = optimise(
            self.space,
            self.scores.paths,
            [Constraint(metric, maximum=most) for metric, most in limits.items()],
            self.tables,
            effectiveness=None if effectiveness is None else (self.scores.paths, effectiveness),
            shape_rule=shape_rule,
        )
        proof = (
            f"proven within {optimum.proof.gap:.2%} of the largest score of "
            f"{self.space.size:.1e} architectures"
        )
        return self.space.decode(optimum.genes[None])[0], proof


@dataclass
class Made:
    """A design as a method made it."""

    key: str
    title: str
    how: str
    architecture: Architecture
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def designs(
    reference: Reference, preset: Preset, yardstick: Yardstick, limits: dict[str, float], by: str
) -> Iterator[Made]:
    """What every method makes of a budget, the reference first."""
    own = known(reference.name)
    name, space = reference.title, preset.space.name
    yield Made("reference", name, "The reference, as published.", own)

    def timed(make: Callable[[], tuple[Architecture, Any]]) -> tuple[Architecture, Any, float]:
        begin = time.monotonic()
        architecture, extra = make()
        return architecture, extra, time.monotonic() - begin

    found, runs, seconds = timed(lambda: preset.evolved(limits, NAS_SEARCH, latency=True))
    yield Made(
        "combined",
        "combined score",
        f"Evolution over {space} as nas search does it: 512 × 150, score and latency, seed 0.",
        found,
        seconds,
        {"best_of_runs": runs},
    )
    found, runs, seconds = timed(lambda: preset.evolved(limits, LONG))
    yield Made(
        "combined_long",
        "combined score, searched longer",
        f"The same for the score alone, the best of {LONG.seeds} runs of 512 × "
        f"{LONG.generations}; they reached {', '.join(f'{run:.3f}' for run in runs)}.",
        found,
        seconds,
        {"best_of_runs": runs},
    )
    found, proof, seconds = timed(lambda: preset.optimal(limits))
    yield Made(
        "deepmad",
        "DeepMAD, exact",
        f"Integer programming over {space} with ρ ≤ {MAX_EFFECTIVENESS}: {proof}.",
        found,
        seconds,
    )
    for method, title in SCALED:
        begin = time.monotonic()
        family = scaled(reference, method, {by: limits[by]}, by, yardstick)
        what = f"Down from {reference.larger}" if method == "contract" else "Up from the seed"
        steps = family.members[0].index
        rule = family.rule.partition(" Depths are rounded")[0]
        yield Made(
            f"scale_{method}",
            title,
            f"{what} in {steps} step{'s' if steps != 1 else ''}. {rule}",
            family.members[0].architecture,
            time.monotonic() - begin,
        )


def scaled(
    reference: Reference,
    method: str,
    limits: dict[str, float],
    by: str,
    yardstick: Yardstick,
) -> Family:
    """The family with one member, from the seed or from the larger design."""
    task = ScalingTask(
        seed=known(reference.larger) if method == "contract" else reference.seed(),
        by=by,
        budgets=(limits[by],),
        limits={metric: most for metric, most in limits.items() if metric != by},
        costs=yardstick.costs,
    )
    return scaling_method(method).from_options(ScalingOptions()).scale(task)


def asides(
    reference: Reference,
    presets: dict[str, Preset],
    limits: dict[str, float],
    by: str,
    yardstick: Yardstick,
) -> Iterator[tuple[str, str, Architecture]]:
    """What the space and the rules decided: method, what was changed, the design."""
    preset, other = presets[reference.space], presets[reference.other]
    own, combined, deepmad = preset.space.name, "combined", "DeepMAD"
    yield combined, f"space {other.space.name}", other.evolved(limits, SHORT)[0]
    if max(preset.space.resolutions) > 224:
        at_224 = Preset(replace(preset.space, resolutions=(224,)), yardstick)
        yield combined, f"{own} at 224 px only", at_224.evolved(limits, SHORT)[0]
    if preset.can_break_rule:
        found, _ = preset.evolved(limits, SHORT, shape_rule=False)
        yield combined, f"{own} without the rule on shapes", found
    yield deepmad, f"space {other.space.name}", other.optimal(limits)[0]
    if preset.can_break_rule:
        yield (
            deepmad,
            f"{own} without the rule on shapes",
            preset.optimal(limits, shape_rule=False)[0],
        )
    yield deepmad, f"{own} without the bound on ρ", preset.optimal(limits, effectiveness=None)[0]
    if "macs" in limits:
        for method, name in SCALED:
            family = scaled(reference, method, limits, by, yardstick)
            yield name, "MACs held too", family.members[0].architecture
