"""DeepMAD as a mathematical programme: against evolution, and at the published ResNet-18 budget.

    python benchmarks/deepmad.py --part problems [--seconds 600] [--workers 2]
    python benchmarks/deepmad.py --part r18

``problems``: ten problems over the presets ``tiny`` and ``base`` (limits on MACs, parameters,
activations, an estimated A100 latency, and ρ). The exact solver's time and score stand beside an
evolution's over the same score (vectorised: 512 parents and as many children a generation,
restarted from its best when a round ends) after ``--seconds``, and the time at which evolution
last improved.

``r18``: a plain space of bottlenecks (1×1, k×k, 1×1) at 224 px with the budget of ResNet-18: 1.82 G
MACs, 11.69 M parameters, ρ ≤ 0.3. Projections, batch norms and the classifier are counted. The
public code's penalty of 10·exp(standard deviation of the last three depths) is taken off; the
published DeepMAD-R18 scores 32,085 and ten minutes of the public search, with its mutation fixed,
33,290.

Figures go to ``benchmarks/results/deepmad.json``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np

from predictors.counts import counts
from predictors.devices import find_device, latency_table
from predictors.proxies.deepmad import StageEnd, effectiveness_of_ends, score_of_ends
from predictors.proxies.space_tables import PathTables
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search.exact import optimise
from search.exact.system import Columns, System
from search.shape import SHAPE, ShapeRule
from search_space import Genes, load_space

OUT = Path(__file__).parent / "results" / "deepmad.json"
PROBLEMS: list[tuple[str, dict[str, float], float]] = [
    ("tiny", {"macs": 1e9}, 0.3),
    ("tiny", {"macs": 2e9, "num_params": 10e6}, 0.5),
    ("tiny", {"macs": 4.5e9, "num_params": 29e6}, 0.5),
    ("tiny", {"latency_ms": 0.8}, 0.5),
    ("tiny", {"latency_ms": 1.2, "num_params": 15e6, "activations": 12e6}, 0.3),
    ("base", {"macs": 4.5e9, "num_params": 29e6}, 0.5),
    ("base", {"macs": 8.7e9, "num_params": 50e6}, 0.5),
    ("base", {"macs": 15.4e9, "num_params": 88e6}, 0.5),
    ("base", {"latency_ms": 1.5}, 0.3),
    ("base", {"latency_ms": 2.0, "macs": 9e9, "activations": 30e6}, 0.4),
]


# Against evolution --------------------------------------------------------------------------------


def solve_both(number: int, seconds: float) -> dict[str, Any]:
    """The exact solution of a problem and the best of an evolution that runs for ``seconds``."""
    name, limits, rho = PROBLEMS[number]
    space = load_space(name)
    paths, tables = PathTables.build(space), counts(space)
    if "latency_ms" in limits:
        table = latency_table(find_device("a100"), space, 1000)
        tables["latency_ms"] = table.compile(space, 1000)
    constraints = [Constraint(metric, maximum=most) for metric, most in limits.items()]
    begin = time.monotonic()
    optimum = optimise(
        space, paths, constraints, tables, effectiveness=(paths, rho), shape_rule=True
    )
    exact_seconds = time.monotonic() - begin

    problem = Problem(
        space,
        (Objective("score", "maximize"),),
        (*constraints, Constraint(SHAPE, maximum=0.0)),
        {**tables, SHAPE: ShapeRule(space)},
        evaluated=("score",),
    )

    def score(genes: Genes) -> np.ndarray:
        return np.where(paths.effectiveness(genes) <= rho, paths.score(genes), np.nan)

    begin, found, seen = time.monotonic(), -math.inf, 0
    improved, reached, best = 0.0, None, None
    seed = 0
    while time.monotonic() - begin < seconds:
        result = scored_front(problem, score, seed=seed, generations=50, start=best, sample=0)
        seen, seed = seen + result.num_seen, seed + 1
        if len(result.genes) and -result.objectives[0, 0] > found:
            found, best = float(-result.objectives[0, 0]), result.genes[:1]
            improved = time.monotonic() - begin
        if reached is None and found >= optimum.value * (1 - 1e-4):
            reached = time.monotonic() - begin
    return {
        "space": name,
        "limits": limits,
        "effectiveness": rho,
        "exact": optimum.value,
        "proven_gap": optimum.proof.gap,
        "exact_seconds": exact_seconds,
        "nodes": optimum.proof.nodes,
        "evolution": found,
        "evolution_seconds": seconds,
        "evolution_improved_last_at": improved,
        "evolution_reached_exact_at": reached,
        "evolution_candidates": seen,
    }


# The plain bottleneck space -----------------------------------------------------------------------

WIDTHS = ((16, 32, 64), (64, 128, 256), (128, 192, 256, 384), (256, 384, 512, 640))
LAST_WIDTHS = (512, 1024, 1536, 2048)
INNER = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
KERNELS = (3, 5)
DEPTHS = tuple(range(1, 19))
SIZES = (112, 56, 28, 14, 7)
R18 = {"macs": 1.82e9, "num_params": 11.69e6, "effectiveness": 0.3}
CHOICES = tuple(itertools.product(KERNELS, INNER))


def bottleneck(c_in: int, c_out: int, size_in: int, size: int, k: int, b: int) -> dict[str, float]:
    """Costs of one bottleneck; the k×k layer has the stride. A change of width is projected."""
    first, middle, last = c_in * b, k * k * b * b, b * c_out
    projection = c_in * c_out if (c_in != c_out or size != size_in) else 0
    norms = 2 * (2 * b + c_out + (c_out if projection else 0))
    return {
        "macs": first * size_in**2 + (middle + last + projection) * size**2,
        "num_params": first + middle + last + projection + norms,
        "entropy": 0.5 * (math.log(c_in) + math.log(b * k * k) + math.log(b)),
        "layers": 3.0,
    }


def bottlenecks(
    widths: tuple[int, ...], spread: int, best: float
) -> tuple[float, float, tuple[tuple[int, ...], ...]] | None:
    """Stem and four stages of these widths; the last three depths differ by at most ``spread``.

    Returns the score, its bound and the blocks by stage; None where nothing is above ``best``.
    """
    stem, *stages = widths
    system = System()
    weights = np.array([1.0, 1.0, 1.0, 8.0])
    logs = np.array([math.log(c * r * r) for c, r in zip(stages, SIZES[1:], strict=True)])
    factors = np.cumsum((weights * logs)[::-1])[::-1]
    # the stem is a scale of its own, of one layer
    base = 0.5 * math.log(27)
    constant = math.log(stem * SIZES[0] ** 2) * base + factors[0] * base
    limits = {
        "macs": R18["macs"] - 27.0 * stem * SIZES[0] ** 2 - 1000 * stages[-1],
        "num_params": R18["num_params"] - 29.0 * stem - 1001 * stages[-1],
    }
    columns: list[Columns] = []
    costs: list[np.ndarray] = []  # by block: MACs, parameters, entropy, layers
    gains: list[np.ndarray] = []
    for i, width in enumerate(stages):
        first = [bottleneck(widths[i], width, SIZES[i], SIZES[i + 1], *c) for c in CHOICES]
        later = [bottleneck(width, width, SIZES[i + 1], SIZES[i + 1], *c) for c in CHOICES]
        block = system.variables((2, len(CHOICES)))
        system.upper[block[1]] = DEPTHS[-1] - 1
        system.row((block[0], 1.0), low=1.0, high=1.0)
        system.row((block[1], 1.0), low=0.0, high=DEPTHS[-1] - 1.0)
        columns.append(block.ravel())
        costs.append(np.array([list(c.values()) for c in (*first, *later)]))
        gains.append(factors[i] * costs[i][:, 2])
        every, cost = np.concatenate(columns), np.concatenate(costs)
        # ρ: chords of L · log(L / ρ) between the integers, the stem's layer among them
        for k in range(3 * (i + 1) + 1, 3 * DEPTHS[-1] * (i + 1) + 1):
            here = k * math.log(k / R18["effectiveness"])
            slope = (k + 1) * math.log((k + 1) / R18["effectiveness"]) - here
            high = slope * (k - 1) - here + 2 * base
            system.row((every, slope * cost[:, 3] - 2 * cost[:, 2]), low=-np.inf, high=high)
    for number, limit in enumerate(limits.values()):
        system.row((every, cost[:, number]), low=-np.inf, high=limit)
    for i, j in itertools.permutations((1, 2, 3), 2):
        system.row((columns[i], 1.0), (columns[j], -1.0), low=-np.inf, high=float(spread))
    gain = np.concatenate(gains)
    if best > -math.inf:
        system.row((every, gain), low=best - constant, high=np.inf)
    answer = system.maximise(gain, gap=1e-3, seconds=600)
    if answer.values is None:
        return None
    choices = []
    for block in columns:
        times = np.rint(answer.values[block]).astype(int)
        choices.append(
            tuple(int(c) % len(CHOICES) for c in np.repeat(np.arange(len(times)), times))
        )
    score = constant + float(gain @ answer.values[every])
    return score, constant + answer.bound, tuple(choices)


def ends_of(widths: tuple[int, ...], choices: tuple[tuple[int, ...], ...]) -> list[StageEnd]:
    """What the independent formulas need of the same network."""
    entropy, layers, c_in = 0.5 * math.log(3 * 3**2), 1, widths[0]
    ends = [StageEnd(c_in, SIZES[0] ** 2, entropy, layers)]
    for size, width, row in zip(SIZES[1:], widths[1:], choices, strict=True):
        for choice in row:
            k, b = CHOICES[choice]
            entropy, layers = entropy + 0.5 * math.log(c_in * (b * k**2) * b), layers + 3
            c_in = width
        ends.append(StageEnd(width, size**2, entropy, layers))
    return ends


def penalty(depths: list[int]) -> float:
    """The public code's, over the last three stages."""
    return 10 * math.exp(float(np.std(depths[-3:])))


def r18() -> dict[str, Any]:
    """The best bottleneck network within ResNet-18's budget, for each spread of the depths."""
    cases = [w for w in itertools.product(*WIDTHS, LAST_WIDTHS) if list(w) == sorted(w)]
    results = []
    for spread in (0, 1, 2):
        begin, best, bound, solved = time.monotonic(), -math.inf, -math.inf, 0
        for number, case in enumerate(cases):
            print(f"\r{number} of {len(cases)}", end="", flush=True)
            better = bottlenecks(case, spread, best)
            solved += better is not None
            if better is not None:
                best, (widths, choices) = better[0], (case, better[2])
                bound = max(bound, better[1])
        ends, depths = ends_of(widths, choices), [len(row) for row in choices]
        assert math.isclose(score_of_ends(ends), best, rel_tol=1e-9)
        results.append(
            {
                "spread": spread,
                "score": best,
                "after_penalty": best - penalty(depths),
                "effectiveness": effectiveness_of_ends(ends),
                "proven_gap": max(0.0, bound / best - 1),
                "seconds": time.monotonic() - begin,
                "programmes": len(cases),
                "solved": solved,
                "widths": widths,
                "depths": depths,
                "blocks": [[CHOICES[c] for c in row] for row in choices],
            }
        )
        print("\r", results[-1])
    return {"budget": R18, "published": 32085, "public_search_mended": 33290, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--part", choices=["problems", "r18"], required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    stored = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    if options.part == "r18":
        stored["r18"] = r18()
    else:
        solve = functools.partial(solve_both, seconds=options.seconds)
        rows = []
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            for row in pool.imap(solve, range(len(PROBLEMS))):
                print(row, flush=True)
                rows.append(row)
        stored["problems"] = rows
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
