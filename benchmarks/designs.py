"""What do the training-free methods design at Swin-T's and ConvNeXt-T's size, and what does it cost?

For each of the two, within its parameters and MACs, and within its estimated latency on an A100:
the search by the ``combined`` score, as ``nas search`` does it and with far more effort; DeepMAD's
score, maximised exactly; a seed of a quarter of the size scaled up to the reference's parameters
(or latency) by every method that runs no network; and the next larger design contracted down to it.
Each design is costed on every GPU with a datasheet. Beside them stands what the same methods design
in the other preset, or without the rules that keep the search inside what was ever tested.

    python benchmarks/designs.py

Takes a few minutes and trains nothing. Writes ``benchmarks/results/designs.json`` and
``docs/designs.html``. The judgements below are an engineer's, of the digests that stand beside
them; where a design has changed since, the page says that its sentence is of an earlier one.
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from predictors.additive import AdditiveTable
from predictors.counts import counts
from predictors.latency.anchors import expected_error
from predictors.latency.catalog import find_device
from predictors.latency.datasheets import datasheet
from predictors.latency.estimate import estimate_entry
from predictors.proxies.deepmad import effectiveness_of_ends
from predictors.proxies.space_tables import SpaceScores, architecture_ends, score_architecture
from results.designs_page import Aside, Case, Design, DesignsPage, Finding, write_designs_page
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search.exact import optimise
from search.problem import Table
from search.scaling.base import ScalingOptions, ScalingTask, scaling_method
from search.scaling.cost import NetworkCosts
from search.scaling.quantities import latency_metric
from search.shape import SHAPE, ShapeRule
from search_space import Architecture, Genes, SearchSpace, Stage, components, known, load_space
from search_space.known import known_names

HERE = Path(__file__).parent
OUT, PAGE = HERE / "results" / "designs.json", HERE.parent / "docs" / "designs.html"
ACCURACIES = HERE / "data" / "imagenet_accuracy.csv"

BUDGET_DEVICE = "a100"
DEVICES = ("h200", "h100", "a100", "rtx4090", "rtx3090", "t4", "l4", "orin")  # fastest first
MAX_EFFECTIVENESS = 0.5
SCALING = ("compound", "fast", "resnet-rs", "deepmad")
LONG = {"seeds": 4, "generations": 600}  # of the long evolution; the other has nas search's own


@dataclass(frozen=True)
class Reference:
    """A known design, and what is needed to arrive at its size.

    Args:
        name, title: of the design.
        space: the smaller preset that has its widths and depths; ``other`` is the other one.
        seed_widths, seed_depths: of the small seed, made by hand; seed_words says how.
        larger: the next larger design of the family.
    """

    name: str
    title: str
    space: str
    other: str
    seed_widths: tuple[int, ...]
    seed_depths: tuple[int, ...]
    seed_words: str
    larger: str

    def seed(self) -> Architecture:
        design = known(self.name)
        stages = zip(design.stages, self.seed_widths, self.seed_depths, strict=True)
        return replace(
            design, stages=tuple(Stage(w, stage.blocks[:depth]) for stage, w, depth in stages)
        )


REFERENCES = (
    Reference(
        name="swin_t",
        title="Swin-T",
        space="tiny",
        other="base",
        seed_widths=(64, 128, 256, 512),
        seed_depths=(1, 1, 3, 1),
        seed_words="two thirds of its widths, half of its blocks",
        larger="swin_s",
    ),
    Reference(
        name="convnext_t",
        title="ConvNeXt-T",
        space="base",
        other="tiny",
        seed_widths=(72, 144, 288, 576),
        seed_depths=(1, 1, 3, 1),
        seed_words="three quarters of its widths, a third of its blocks",
        larger="convnext_s",
    ),
)


# Costs and scores ---------------------------------------------------------------------------------


class Yardstick:
    """Everything that is known of an architecture without training, from datasheets alone."""

    def __init__(self) -> None:
        # an empty folder: neither tables nor calibrations of this machine change the figures
        folder = Path(tempfile.mkdtemp(prefix="designs-"))
        self.targets = {name: find_device(name, folder=folder) for name in DEVICES}
        self.costs = NetworkCosts(list(self.targets.values()))

    def figures(self, architecture: Architecture) -> dict[str, Any]:
        """Counts, scores, ρ by stage and latencies, in plain form."""
        costs = self.costs(architecture)
        ends = architecture_ends(architecture)
        return {
            "digest": architecture.digest,
            "resolution": architecture.resolution,
            "widths": list(architecture.widths),
            "depths": list(architecture.depths),
            "num_params": costs["num_params"],
            "macs": costs["macs"],
            "activations": costs["activations"],
            "combined": score_architecture("combined", architecture),
            "deepmad": score_architecture("deepmad", architecture),
            "effectiveness": effectiveness_of_ends(ends),
            "effectiveness_by_stage": [effectiveness_of_ends([end]) for end in ends],
            "latency_ms": {name: costs[latency_metric(name)] for name in DEVICES},
        }

    def by_component(self, architecture: Architecture) -> dict[str, float]:
        """Milliseconds of each component on the budget's device."""
        conditions = self.targets[BUDGET_DEVICE].conditions
        return {
            part.path: estimate_entry(conditions, (part.spec, part.in_size)).latency_ms
            for part in components(architecture, self.costs.num_classes)
        }


class Preset:
    """A space with its tables and scores."""

    def __init__(self, space: SearchSpace, yardstick: Yardstick) -> None:
        self.space = space
        metric = latency_metric(BUDGET_DEVICE)
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
        *,
        seeds: int = 1,
        generations: int = 150,
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
            objectives.append(Objective(latency_metric(BUDGET_DEVICE), "minimize"))
        problem = Problem(
            self.space,
            tuple(objectives),
            tuple(Constraint(m, maximum=most) for m, most in (limits | dict.fromkeys(rules, 0.0)).items()),
            {**self.tables, **rules},
            evaluated=("score",),
        )

        def score(genes: Genes) -> np.ndarray:
            return self.scores.predict("combined", genes)

        found: list[tuple[float, Genes]] = []
        for seed in range(seeds):
            front = scored_front(problem, score, seed=seed, generations=generations, sample=0)
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
            paths=self.scores.paths,
            effectiveness=effectiveness,
            shape_rule=shape_rule,
        )
        proof = (
            f"proven within {optimum.proof.gap:.2%} of the largest score of "
            f"{self.space.size:.1e} architectures"
        )
        return self.space.decode(optimum.genes[None])[0], proof


# The designs of a case ----------------------------------------------------------------------------


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

    found, runs, seconds = timed(lambda: preset.evolved(limits, latency=True))
    yield Made(
        "combined",
        "combined score",
        f"Evolution over {space} as nas search does it: 512 × 150, score and latency, seed 0.",
        found,
        seconds,
        {"best_of_runs": runs},
    )
    found, runs, seconds = timed(lambda: preset.evolved(limits, **LONG))
    yield Made(
        "combined_long",
        "combined score, searched longer",
        f"The same for the score alone, the best of {LONG['seeds']} runs of 512 × "
        f"{LONG['generations']}; they reached {', '.join(f'{run:.3f}' for run in runs)}.",
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
    for method in (*SCALING, "contract"):
        start = known(reference.larger) if method == "contract" else reference.seed()
        task = ScalingTask(seed=start, by=by, budgets=(limits[by],), costs=yardstick.costs)
        begin = time.monotonic()
        family = scaling_method(method).from_options(ScalingOptions()).scale(task)
        what = f"Down from {reference.larger}" if method == "contract" else "Up from the seed"
        yield Made(
            f"scale_{method}",
            "contract" if method == "contract" else f"scaled, {method}",
            f"{what} in {family.members[0].index} steps. {family.rule}",
            family.members[0].architecture,
            time.monotonic() - begin,
            {"seed": start.digest},
        )


def asides(
    reference: Reference, presets: dict[str, Preset], limits: dict[str, float], yardstick: Yardstick
) -> Iterator[tuple[str, str, Architecture]]:
    """What the space and the rules decided: score, what was changed, the design."""
    preset, other = presets[reference.space], presets[reference.other]
    long = {"seeds": 2, "generations": 300}
    if len(preset.space.resolutions) > 1 and max(preset.space.resolutions) > 224:
        at_224 = Preset(replace(preset.space, resolutions=(224,)), yardstick)
        yield "combined", f"{preset.space.name}, at 224 px only", at_224.evolved(limits, **long)[0]
    yield "combined", f"space {other.space.name}", other.evolved(limits, **long)[0]
    if preset.can_break_rule:
        found, _ = preset.evolved(limits, shape_rule=False, **long)
        yield "combined", f"{preset.space.name}, without the rule on shapes", found
    yield "deepmad", f"space {other.space.name}", other.optimal(limits)[0]
    if preset.can_break_rule:
        found, _ = preset.optimal(limits, shape_rule=False)
        yield "deepmad", f"{preset.space.name}, without the rule on shapes", found
    found, _ = preset.optimal(limits, effectiveness=None)
    yield "deepmad", f"{preset.space.name}, without the bound on ρ", found


def main() -> None:
    begin = time.monotonic()
    yardstick = Yardstick()
    presets = {name: Preset(load_space(name), yardstick) for name in ("tiny", "base")}
    result: list[dict[str, Any]] = []
    for reference in REFERENCES:
        own = yardstick.figures(known(reference.name))
        metric = latency_metric(BUDGET_DEVICE)
        variants = {
            "counts": ({m: own[m] for m in ("num_params", "macs")}, "num_params"),
            "latency": ({metric: own["latency_ms"][BUDGET_DEVICE]}, metric),
        }
        for variant, (limits, by) in variants.items():
            print(reference.name, variant, limits)
            preset = presets[reference.space]
            rows = []
            for made in designs(reference, preset, yardstick, limits, by):
                figures = yardstick.figures(made.architecture)
                rows.append((made, figures))
                print(
                    f"{made.key:16} {made.seconds:5.1f} s {figures['digest']} "
                    f"{figures['resolution']} {figures['widths']} {figures['depths']} "
                    f"P {figures['num_params']/1e6:.2f} M {figures['macs']/1e9:.2f} "
                    f"A {figures['activations']/1e6:.1f} c {figures['combined']:.3f} "
                    f"d {figures['deepmad']:.0f} r "
                    f"{' '.join(f'{r:.2f}' for r in figures['effectiveness_by_stage'])} "
                    f"ms {' '.join(f'{t:.3f}' for t in figures['latency_ms'].values())}", flush=True)
                for s in made.architecture.stages:
                    print("    ", s.width, [f"{b.mixer.name}{tuple(dict(b.mixer.params).values())}x{b.mlp_ratio:g}" for b in s.blocks])
                print("     ", made.facts)
            for score, changed, architecture in asides(reference, presets, limits, yardstick):
                figures = yardstick.figures(architecture)
                print("ASIDE", score, changed,                     f"{figures['resolution']} {figures['widths']} {figures['depths']} "
                    f"P {figures['num_params']/1e6:.2f} M {figures['macs']/1e9:.2f} "
                    f"A {figures['activations']/1e6:.1f} c {figures['combined']:.3f} "
                    f"d {figures['deepmad']:.0f} r "
                    f"{' '.join(f'{r:.2f}' for r in figures['effectiveness_by_stage'])} "
                    f"ms {' '.join(f'{t:.3f}' for t in figures['latency_ms'].values())}", flush=True)
                for s in architecture.stages:
                    print("    ", s.width, [f"{b.mixer.name}{tuple(dict(b.mixer.params).values())}x{b.mlp_ratio:g}" for b in s.blocks])
    for n in known_names():
        f = yardstick.figures(known(n)); print(n, f["combined"], [round(x,3) for x in f["effectiveness_by_stage"]], f["latency_ms"]["a100"], f["macs"])
    print("seconds", time.monotonic() - begin)


if __name__ == "__main__":
    main()
