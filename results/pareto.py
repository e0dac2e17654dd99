"""Pareto fronts, hypervolume and rank correlation.

Dominance and hypervolume come from moocore (exact, compiled); Kendall's tau from SciPy, with a
percentile bootstrap interval (Efron 1979). One rule for NaN everywhere: a point with a NaN
objective is unknown, so it is on no front, ranks behind every known point, and adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Maximise = bool | Sequence[bool]


def _known(points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Points as ``(n, m)`` and the mask ``(n,)`` of those without NaN."""
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        array = array.reshape(0, array.shape[-1] if array.ndim == 2 else 0)
    if array.ndim != 2:
        raise ValueError(f"points must be (n, objectives), not of shape {array.shape}")
    return array, np.asarray(~np.isnan(array).any(axis=1), dtype=np.bool_)


def non_dominated(points: ArrayLike, maximise: Maximise = False) -> NDArray[np.bool_]:
    """Mask of the points that no other point dominates.

    Args:
        points: ``(n, objectives)``; ``n`` may be 0.
        maximise: one flag for all objectives, or one each; False minimises.

    Returns:
        bool, ``(n,)``. Equal points do not dominate each other: all of them stay. A point with
        NaN is False.
    """
    import moocore

    array, known = _known(points)
    mask = known.copy()
    if known.any():
        mask[known] = moocore.is_nondominated(array[known], maximise=maximise, keep_weakly=True)
    return mask


def pareto_ranks(points: ArrayLike, maximise: Maximise = False) -> NDArray[np.int64]:
    """Rank of each point by non-dominated sorting: 0 on the front, 1 on the front behind it, …

    10,000 points of two or three objectives take milliseconds.

    Args:
        points, maximise: As for ``non_dominated``.

    Returns:
        int64, ``(n,)``; points with NaN share the rank behind the last.
    """
    import moocore

    array, known = _known(points)
    ranks = np.zeros(len(array), dtype=np.int64)
    if known.any():
        ranks[known] = moocore.pareto_rank(array[known], maximise=maximise)
        ranks[~known] = ranks[known].max() + 1
    return ranks


def hypervolume(points: ArrayLike, reference: Sequence[float], maximise: Maximise = False) -> float:
    """Volume that the points dominate up to ``reference`` (Zitzler and Thiele 1998), exact.

    Args:
        points: ``(n, objectives)``; points with NaN, or not better than the reference in every
            objective, add nothing.
        reference: ``(objectives,)``, the worst corner.
        maximise: as for ``non_dominated``.
    """
    import moocore

    array, known = _known(points)
    if not known.any():
        return 0.0
    return float(moocore.hypervolume(array[known], np.asarray(reference, float), maximise=maximise))


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b over ``n`` pairs with the ends of its bootstrap interval; None if unknown."""

    tau: float | None
    low: float | None
    high: float | None
    n: int


def kendall_tau(
    x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95, resamples: int = 500, seed: int = 0
) -> RankCorrelation:
    """Kendall's tau-b (ties count for neither side) with a percentile bootstrap interval.

    Args:
        x, y: ``(n,)`` each; pairs with a NaN are left out.
        confidence: mass of the interval; ``resamples`` of the pairs, drawn with ``seed``, give it.

    Returns:
        tau None where fewer than two pairs remain or a side is constant; the interval None below
        five pairs, where it would say nothing.
    """
    from scipy.stats import kendalltau

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"x and y must be (n,) each, not of shapes {a.shape} and {b.shape}")
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    n = len(a)
    if n < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return RankCorrelation(None, None, None, n)
    tau = float(kendalltau(a, b).statistic)
    if n < 5:
        return RankCorrelation(tau, None, None, n)
    rng = np.random.default_rng(seed)
    drawn = []
    for rows in rng.integers(0, n, size=(resamples, n)):
        if np.ptp(a[rows]) > 0 and np.ptp(b[rows]) > 0:
            drawn.append(kendalltau(a[rows], b[rows]).statistic)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if drawn else (tau, tau)
    return RankCorrelation(tau, float(low), float(high), n)
