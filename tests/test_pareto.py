"""Fronts, hypervolume and tau against brute force written straight from their definitions."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from results.pareto import hypervolume, kendall_tau, non_dominated, pareto_ranks

VALUES = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))
POINTS = st.integers(2, 3).flatmap(
    lambda m: hnp.arrays(float, st.tuples(st.integers(0, 12), st.just(m)), elements=VALUES)
)
FLAGS = st.lists(st.booleans(), min_size=3, max_size=3)


def dominates(a: np.ndarray, b: np.ndarray, signs: np.ndarray) -> bool:
    a, b = a * signs, b * signs
    return bool(np.all(a <= b) and np.any(a < b))


def brute_ranks(points: np.ndarray, signs: np.ndarray) -> list[int]:
    """Peel off fronts one by one; NaN points last, together."""
    known = [i for i in range(len(points)) if not np.isnan(points[i]).any()]
    ranks, left, rank = {}, set(known), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i], signs) for j in left)}
        ranks.update(dict.fromkeys(front, rank))
        left -= front
        rank += 1
    return [ranks.get(i, rank) for i in range(len(points))]


@settings(deadline=None)  # the first example pays for imports
@given(POINTS, FLAGS)
def test_ranks_and_the_front_equal_brute_force(points: np.ndarray, flags: list[bool]) -> None:
    maximise = flags[: points.shape[1]]
    signs = np.where(maximise, -1.0, 1.0)
    expected = brute_ranks(points, signs)
    nan = np.isnan(points).any(axis=1)
    assert pareto_ranks(points, maximise).tolist() == expected
    mask = [rank == 0 and not unknown for rank, unknown in zip(expected, nan, strict=True)]
    assert non_dominated(points, maximise).tolist() == mask


@settings(deadline=None)  # the first example pays for imports
@given(POINTS, FLAGS, st.integers(1, 4))
def test_hypervolume_counts_unit_cells(points: np.ndarray, flags: list[bool], edge: int) -> None:
    """On an integer grid the volume is the number of unit cells that some point dominates."""
    maximise = flags[: points.shape[1]]
    signs = np.where(maximise, -1.0, 1.0)
    reference = np.full(points.shape[1], float(edge))
    low = points[~np.isnan(points).any(axis=1)] * signs
    cells = itertools.product(*(np.arange(-5.0, r) for r in reference * signs))
    expected = sum(bool((low <= np.array(cell)).all(axis=1).any()) for cell in cells)
    assert hypervolume(points, list(reference), maximise) == pytest.approx(expected)


def test_equal_points_all_stay() -> None:
    assert non_dominated([[1, 1], [1, 1], [2, 0.5], [2, 2]]).tolist() == [True, True, True, False]


def test_no_points_and_wrong_shapes() -> None:
    assert non_dominated([]).tolist() == []
    assert pareto_ranks(np.zeros((0, 2))).tolist() == []
    assert hypervolume([], [1.0, 1.0]) == 0.0
    with pytest.raises(ValueError, match="objectives"):
        non_dominated([1.0, 2.0])


def test_ten_thousand_points_rank_fast() -> None:
    points = np.random.default_rng(0).random((10_000, 3))
    pareto_ranks(points[:10])
    start = time.perf_counter()
    ranks = pareto_ranks(points, [True, False, False])
    assert time.perf_counter() - start < 1.0
    assert (ranks == 0).sum() == non_dominated(points, [True, False, False]).sum()


def brute_tau_b(x: np.ndarray, y: np.ndarray) -> float | None:
    pairs = list(itertools.combinations(range(len(x)), 2))
    sx = np.array([np.sign(x[i] - x[j]) for i, j in pairs])
    sy = np.array([np.sign(y[i] - y[j]) for i, j in pairs])
    norm = math.sqrt((sx**2).sum() * (sy**2).sum()) if pairs else 0.0
    return float((sx * sy).sum()) / norm if norm else None


@settings(deadline=None)  # the first example pays for imports
@given(hnp.arrays(float, st.tuples(st.integers(0, 9), st.just(2)), elements=VALUES))
def test_tau_is_the_share_of_ordered_pairs(pairs: np.ndarray) -> None:
    result = kendall_tau(pairs[:, 0], pairs[:, 1], resamples=20)
    known = pairs[~np.isnan(pairs).any(axis=1)]
    expected = brute_tau_b(known[:, 0], known[:, 1])
    assert result.n == len(known)
    if expected is None:
        assert (result.tau, result.low, result.high) == (None, None, None)
    else:
        assert result.tau == pytest.approx(expected)
        assert (result.low is None) == (len(known) < 5)


def test_the_interval_covers_the_true_tau() -> None:
    """For a bivariate normal, tau = 2/pi asin(rho); 95 % intervals must mostly hold it."""
    rho, true = 0.7, 2 / math.pi * math.asin(0.7)
    hits = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, noise = rng.normal(size=(2, 80))
        found = kendall_tau(x, rho * x + math.sqrt(1 - rho**2) * noise, resamples=120, seed=seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= true <= found.high
    assert hits >= 25


def test_tau_is_reproducible_and_checks_shapes() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    assert kendall_tau(x, y) == kendall_tau(x, y)
    with pytest.raises(ValueError, match="not of shapes"):
        kendall_tau([1, 2], [1, 2, 3])
