"""Constrained non-dominated sorting and crowding distance (Deb et al. 2002), vectorised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from results.pareto import pareto_ranks
from search.problem import Values

Ranks = npt.NDArray[np.int64]


def constrained_ranks(objectives: Values, violations: Values) -> Ranks:
    """Rank of each point under constraint domination, 0 best, shape (n,).

    Feasible points come first, by non-dominated sorting; then infeasible ones by ascending
    violation, equal violations sharing a rank; then all points of infinite or NaN violation,
    together with feasible ones that have a NaN objective (failed evaluations).

    Args:
        objectives: shape (n, objectives), minimised.
        violations: shape (n,), 0 where feasible.
    """
    finite = np.isfinite(violations)
    complete = ~np.isnan(objectives).any(axis=1)
    feasible = np.flatnonzero(finite & (violations <= 0) & complete)
    infeasible = np.flatnonzero(finite & (violations > 0))
    ranks = np.zeros(len(objectives), dtype=np.int64)
    last = 0
    if len(feasible):
        rank = pareto_ranks(objectives[feasible])
        ranks[feasible] = rank
        last = int(rank.max()) + 1
    if len(infeasible):
        level = np.unique(violations[infeasible], return_inverse=True)[1]
        ranks[infeasible] = last + level
        last += int(level.max()) + 1
    rest = np.ones(len(objectives), dtype=bool)
    rest[feasible] = rest[infeasible] = False
    ranks[rest] = last
    return ranks


def best_first(objectives: Values, violations: Values) -> Ranks:
    """Indices of all points by rank, and within a rank by crowding distance, shape (n,).

    Args as of ``constrained_ranks``.
    """
    ranks = constrained_ranks(objectives, violations)
    return np.lexsort((-crowding_distance(objectives, ranks), ranks))


def crowding_distance(objectives: Values, ranks: Ranks) -> Values:
    """Crowding distance of each point among those of its rank, shape (n,).

    Sum over objectives of the distance between a point's two neighbours in its front, relative
    to the front's range; infinite at the front's ends, 0 for points with a NaN objective. Equal
    points share one distance between them: all but the first get 0.
    """
    distance = np.zeros(len(objectives))
    known = np.flatnonzero(~np.isnan(objectives).any(axis=1))
    if len(known) == 0:
        return distance
    keys = np.column_stack([ranks[known], objectives[known]])
    index = known[np.unique(keys, axis=0, return_index=True)[1]]
    points, rank = objectives[index], ranks[index]
    total = np.zeros(len(index))
    for column in range(objectives.shape[1]):
        order = np.lexsort((points[:, column], rank))
        value, group = points[order, column], rank[order]
        starts = np.r_[True, group[1:] != group[:-1]]
        ends = np.r_[starts[1:], True]
        front = np.cumsum(starts) - 1
        span = (value[ends] - value[starts])[front]
        inner = ~(starts | ends)
        gap = np.zeros(len(index))
        gap[1:-1] = value[2:] - value[:-2]
        share = np.divide(gap, span, out=np.zeros_like(gap), where=inner & (span > 0))
        total[order] += np.where(inner, share, np.inf)
    distance[index] = total
    return distance
