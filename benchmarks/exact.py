"""How long does a proof take? Optima, fronts, and a million closed-form evaluations.

    python benchmarks/exact.py [--part optima|fronts|bands|million]

``optima``: on the presets ``base`` and ``tiny``, with limits on the latency of two devices
estimated from datasheets (A100 and Jetson Orin; quantiles of random architectures), three linear
objectives: the entropy of the longest path, DeepMAD's score of it, and an additive model of
accuracy (logarithms of the blocks' MACs with noise). Proven without a gap.

``fronts``: all points of a preset of 64,512 architectures, checked against brute force, and twenty
points of ``tiny``, each proven to be efficient.

``bands``: latency, parameters and MACs within 2 % and 1 % of those of random architectures; how
long it takes to find a member of each.

``million``: a million random architectures of each preset costed on all tables, scored, and their
front found; and an evolution of the same size.

Seconds are of wall time, beside those of the processor, which other work on the machine disturbs
less. Figures go to ``benchmarks/results/exact.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from predictors.counts import counts
from predictors.devices import find_device, latency_table
from predictors.proxies.space_tables import PathTables, SpaceScores
from predictors.tables.additive import AdditiveTable
from results.pareto import non_dominated
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search.exact import meeting, optimise, sweep
from search.samplers.base import enumerate_rows
from search_space import SearchSpace, load_space
from search_space.space_definition import space_from_dict

OUT = Path(__file__).parent / "results" / "exact.json"
SPACES = ("base", "tiny")
DEVICES = ("a100", "orin")
QUANTILES = (0.1, 0.5, 0.9)
COUNT = 1_000_000
CLASSES = 1000


class Clock:
    """Wall time and processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


@dataclass(frozen=True)
class Setting:
    """A preset with its tables; ``objectives`` by name."""

    space: SearchSpace
    tables: dict[str, AdditiveTable]
    paths: PathTables
    objectives: dict[str, AdditiveTable | PathTables]

    @classmethod
    def of(cls, name: str) -> Setting:
        space = load_space(name)
        tables, paths = counts(space, CLASSES), PathTables.build(space, CLASSES)
        for device in DEVICES:
            measured = latency_table(find_device(device), space, CLASSES)
            tables[f"latency_ms@{device}"] = measured.compile(space, CLASSES)
        objectives = {
            "entropy": paths.entropy,
            "deepmad": paths,
            "accuracy": additive_accuracy(tables["macs"]),
        }
        return cls(space, tables, paths, objectives)

    def limits(self, quantile: float) -> list[Constraint]:
        """Latency limits that this share of random architectures meets, less on the second."""
        rows = self.space.sample(np.random.default_rng(0), 4000)
        result = []
        for device, share in zip(DEVICES, (quantile, 0.9 * quantile), strict=True):
            metric = f"latency_ms@{device}"
            most = float(np.quantile(self.tables[metric].predict(rows), share))
            result.append(Constraint(metric, maximum=most))
        return result


def additive_accuracy(macs: AdditiveTable) -> AdditiveTable:
    """A model of accuracy with diminishing returns: no block is worth what its MACs say."""
    rng = np.random.default_rng(0)

    def worth(values: np.ndarray) -> np.ndarray:
        noise = 1 + 0.25 * rng.normal(size=values.shape)
        return np.asarray(0.3 * np.log1p(values / 1e6) * noise)

    return AdditiveTable(
        macs.space,
        worth(macs.stem),
        tuple(map(worth, macs.blocks)),
        tuple(map(worth, macs.transitions)),
        worth(macs.head),
    )


# Optima -------------------------------------------------------------------------------------------


def optima() -> Iterator[dict[str, Any]]:
    """Every preset, tightness and objective."""
    for name in SPACES:
        setting = Setting.of(name)
        for quantile in QUANTILES:
            limits = setting.limits(quantile)
            for title, objective in setting.objectives.items():
                clock = Clock()
                found = optimise(setting.space, objective, limits, setting.tables, gap=0.0)
                row: dict[str, Any] = {
                    "space": name,
                    "quantile": quantile,
                    "limits": {c.metric: c.maximum for c in limits},
                    "objective": title,
                    "value": found.value,
                    "proven_gap": found.proof.gap,
                    "nodes": found.proof.nodes,
                    **clock.read(),
                }
                print(row, flush=True)
                yield row


# Fronts -------------------------------------------------------------------------------------------


def enumerable() -> SearchSpace:
    """64,512 architectures."""
    mixers = ["pooling", {"window_attention": {"window": 4, "head_dim": 8}}]
    return space_from_dict(
        {
            "name": "enumerable",
            "macro": {"stem_kernel": 2, "stem_stride": 2},
            "resolution": [16, 24],
            "stages": [
                {"width": [8, 16], "depth": [1, 2], "mixers": mixers, "mlp_ratio": 2},
                {"width": [16, 24], "depth": 1, "mixers": mixers, "mlp_ratio": [2, 3]},
                {"width": [16, 32], "depth": [1, 2, 3], "mixers": mixers, "mlp_ratio": [2, 4]},
                {"width": [32, 40], "depth": 1, "mixers": ["pooling"], "mlp_ratio": [2]},
            ],
        }
    )


def fronts() -> dict[str, Any]:
    """All points of a small preset, some of a large one."""
    space = enumerable()
    paths = PathTables.build(space, 10)
    cost = latency_table(find_device("orin"), space, 10).compile(space, 10)
    clock = Clock()
    front = sweep(space, paths.entropy, cost)
    result: dict[str, Any] = {
        "enumerable": {"architectures": space.size, "points": len(front), **clock.read()}
    }
    rows = enumerate_rows(space)
    points = np.stack([-paths.entropy.predict(rows), cost.predict(rows)], axis=1)
    points = np.unique(np.round(points, 12), axis=0)  # equal sums differ by rounding
    expected = points[non_dominated(points)]
    found = np.stack([-front.quality, front.cost], axis=1)
    assert expected.shape == found.shape, "the sweep's front is not that of brute force"
    assert np.allclose(expected, found, rtol=1e-9), "the sweep's front is not that of brute force"
    result["enumerable"]["equals_brute_force"] = True

    setting = Setting.of("tiny")
    clock = Clock()
    front = sweep(
        setting.space,
        setting.objectives["accuracy"],
        setting.tables["latency_ms@a100"],
        setting.limits(0.5)[1:],
        setting.tables,
        points=20,
    )
    result["tiny"] = {
        "points": len(front),
        "largest_gap": front.gap,
        **clock.read(),
    }
    return result


# Bands --------------------------------------------------------------------------------------------


def bands() -> Iterator[dict[str, Any]]:
    """Limits from both sides around what one architecture has."""
    for name, width in itertools.product(("digits", "tiny"), (0.02, 0.01)):
        space = load_space(name)
        latency = latency_table(find_device("orin"), space, CLASSES).compile(space, CLASSES)
        tables = {**counts(space, CLASSES), "latency_ms": latency}
        seconds = []
        for row in space.sample(np.random.default_rng(1), 10):
            limits = []
            for metric in ("latency_ms", "num_params", "macs"):
                value = float(tables[metric].predict(row[None])[0])
                limits.append(Constraint(metric, value * (1 + width), value * (1 - width)))
            clock = Clock()
            meeting(space, limits, tables)  # raises where none is found
            seconds.append(clock.read()["cpu_seconds"])
        result = {
            "space": name,
            "half_width": width,
            "bands": len(seconds),
            "cpu_seconds": {"median": float(np.median(seconds)), "most": max(seconds)},
        }
        print(result, flush=True)
        yield result


# A million ----------------------------------------------------------------------------------------


def million() -> Iterator[dict[str, Any]]:
    """Sampled, costed, scored and compared; and an evolution that sees as many."""
    for name in SPACES:
        setting = Setting.of(name)
        space, limits = setting.space, setting.limits(0.5)
        scores = SpaceScores(setting.paths, setting.tables)
        problem = Problem(
            space,
            (Objective("score", "maximize"), Objective("latency_ms@a100", "minimize")),
            tuple(limits),
            setting.tables,
            evaluated=("score",),
        )
        clock = Clock()
        rows = space.sample(np.random.default_rng(0), COUNT)
        metrics = problem.cheap_metrics(rows)
        metrics["score"] = scores.predict("combined", rows)
        feasible = np.flatnonzero(problem.violation(metrics) == 0)
        front = non_dominated(problem.objective_values(metrics)[feasible])
        row = {
            "space": name,
            "architectures": COUNT,
            "tables": len(setting.tables),
            "front": int(front.sum()),
            **clock.read(),
        }
        clock = Clock()
        found = scored_front(
            problem,
            partial(scores.predict, "combined"),
            population=COUNT // 100,
            generations=100,
        )
        row["evolution"] = {"seen": found.num_seen, "front": len(found.genes), **clock.read()}
        print(row, flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--part", choices=["optima", "fronts", "bands", "million"])
    options = parser.parse_args()
    stored = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    if options.part in (None, "optima"):
        stored["optima"] = list(optima())
    if options.part in (None, "fronts"):
        stored["fronts"] = fronts()
        print(stored["fronts"])
    if options.part in (None, "bands"):
        stored["bands"] = list(bands())
    if options.part in (None, "million"):
        stored["million"] = list(million())
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
