"""Candidates that a model thinks well of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.feasibility import unique_rows
from search.problem import Problem, Values
from search.samplers.ranking import constrained_ranks, crowding_distance
from search_space.space import Genes


def breed(
    problem: Problem,
    start: Genes,
    promise: Callable[[Genes], tuple[Values, Values]],
    rng: np.random.Generator,
    *,
    size: int,
    generations: int,
) -> Genes:
    """Evolve rows towards the front of what is promised; all cheaply feasible, best ranks first.

    Args:
        problem: whose operators and cheap constraints hold.
        start: rows, shape (n, genes), any.
        promise: rows to minimised objectives (n, objectives) and violations (n,).
        rng: of everything random.
        size: survivors and children of a generation.
        generations: how many.
    """
    space = problem.space
    known: set[bytes] = set()
    rows = _new_feasible(problem, start, known)
    values = promise(rows)
    for _ in range(generations):
        if len(rows) == 0:
            break
        order = _best_first(*values)[:size]
        rows, values = rows[order], (values[0][order], values[1][order])
        # rows are sorted: the smaller of two positions wins a tournament
        first, second = rng.integers(len(rows), size=(2, 2, size)).min(axis=1)
        crossed = (rng.random(size) < 0.5)[:, None]
        children = np.where(crossed, space.crossover(rows[first], rows[second], rng), rows[first])
        mutated = ~crossed | (rng.random((size, 1)) < 0.5)
        rate = 1.5 / space.num_genes
        children = np.where(mutated, space.mutate(children, rng, rate), children)
        fresh = _new_feasible(problem, children, known)
        more = promise(fresh)
        rows = np.concatenate([rows, fresh])
        values = (np.concatenate([values[0], more[0]]), np.concatenate([values[1], more[1]]))
    return rows[_best_first(*values)]


def _new_feasible(problem: Problem, rows: Genes, known: set[bytes]) -> Genes:
    """Feasible rows that are not ``known``, each once, and now known."""
    new = []
    for i, row in enumerate(np.ascontiguousarray(rows, dtype=np.int64)):
        key = row.tobytes()
        if key not in known:
            known.add(key)
            new.append(i)
    fresh = rows[np.array(new, dtype=np.int64)]
    return fresh[problem.cheap_violation(fresh) == 0] if len(fresh) else fresh


def _best_first(objectives: Values, violations: Values) -> Genes:
    ranks = constrained_ranks(objectives, violations)
    return np.lexsort((-crowding_distance(objectives, ranks), ranks))


def priced_optima(gain: AdditiveTable, cost: AdditiveTable, prices: int = 16) -> Genes:
    """Exact maximisers of ``gain − price × cost`` for prices from nothing to forbidding.

    They are the corners of the convex hull of the front of the two tables, unconstrained.
    Shape (≤ prices + 1, genes).
    """
    ends = np.stack([gain.argmax(), cost.argmin()])
    gains, costs = gain.predict(ends), cost.predict(ends)
    if costs[0] <= costs[1]:
        return ends[:1]
    slope = max(float((gains[0] - gains[1]) / (costs[0] - costs[1])), 1e-300)
    rows = [
        priced(gain, cost, slope * factor).argmax() for factor in np.geomspace(0.05, 20, prices)
    ]
    return unique_rows(np.stack([ends[0], *rows]))


def priced(gain: AdditiveTable, cost: AdditiveTable, price: float) -> AdditiveTable:
    """The table of ``gain − price × cost``; both must add up (``combine`` is ``sum``)."""
    assert gain.combine == cost.combine == "sum"
    a, b = gain.scale, -price * cost.scale
    return replace(
        gain,
        stem=a * gain.stem + b * cost.stem,
        blocks=tuple(a * x + b * y for x, y in zip(gain.blocks, cost.blocks, strict=True)),
        downsamples=tuple(
            a * x + b * y for x, y in zip(gain.downsamples, cost.downsamples, strict=True)
        ),
        head=a * gain.head + b * cost.head,
        scale=1.0,
        offset=gain.offset - price * cost.offset,
    )
