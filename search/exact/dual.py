"""Prices that make the bound of the Lagrangian relaxation small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from search.exact.programme import Values
from search.exact.relaxation import Evaluation, Indices, Relaxation

PATIENCE = 4  # rounds without a smaller bound until steps are halved
HIGHEST_PRICE = 1e4  # times the objective of a block
CONVERGED = 1e-7  # of the bound above its least possible value

Seen = Callable[[Indices, Values, Evaluation], None]
"""Is told the programmes, the prices and what came of them."""


def descend(
    relaxation: Relaxation,
    rows: Indices,
    prices: Values,
    level: Callable[[], float],
    lowest: Values,
    rounds: int,
    seen: Seen,
) -> None:
    """Subgradient steps of Polyak's (1969) length on many programmes at once.

    A programme whose bound falls to ``level()``, the best value known, or below its own ``lowest``
    (it is infeasible), is done.

    Args:
        rows: of the programmes, shape (r,).
        prices: to start from, shape (r, limits).
        level: what bounds are to be brought below; −∞ where nothing is known.
        lowest: shape (r,), the objective's smallest value.
        seen: called after each evaluation.
    """
    best = np.full(len(rows), np.inf)
    best_prices, step = prices.copy(), np.ones(len(rows))
    stalled = np.zeros(len(rows), dtype=np.int64)
    for _ in range(rounds):
        if not len(rows):
            return
        found = relaxation.evaluate(rows, prices)
        seen(rows, prices, found)
        smaller = found.bounds < best
        best_prices = np.where(smaller[:, None], prices, best_prices)
        stalled = np.where(smaller, 0, stalled + 1)
        best = np.minimum(best, found.bounds)
        target = np.maximum(level(), lowest)
        slope = relaxation.capacity[rows] - found.usage
        slope = np.where((prices <= 0) & (slope > 0), 0.0, slope)
        steep = (slope**2).sum(axis=1)
        again = stalled >= PATIENCE
        step = np.where(again, step / 2, step)
        stalled = np.where(again, 0, stalled)
        origin = np.where(again[:, None], best_prices, prices)
        length = step * np.maximum(found.bounds - target, 0) / np.maximum(steep, 1e-300)
        prices = np.maximum(0.0, origin - length[:, None] * slope)
        on = (best > target) & (steep > 0)
        rows, prices, lowest = rows[on], prices[on], lowest[on]
        best, best_prices, step, stalled = best[on], best_prices[on], step[on], stalled[on]


@dataclass
class Cuts:
    """Solutions that bound the relaxation of some programmes from below, whatever the prices.

    Each is a line: its objective, and its programme's capacities less its usage.
    """

    values: list[float] = field(default_factory=list)
    usage: list[Values] = field(default_factory=list)
    capacity: list[Values] = field(default_factory=list)

    def cheapest(self, highest: float) -> tuple[float, Values]:
        """Smallest value of the largest line, and its prices, at most ``highest`` each."""
        values, slopes = np.array(self.values), np.stack(self.capacity) - np.stack(self.usage)
        limits = slopes.shape[1]
        found = linprog(
            np.r_[1.0, np.zeros(limits)],
            A_ub=np.hstack([-np.ones((len(values), 1)), slopes]),
            b_ub=-values,
            bounds=[(None, None), *[(0.0, highest)] * limits],
            method="highs",
        )
        assert found.status == 0, found.message
        return float(found.fun), np.maximum(found.x[1:], 0.0)


def minimise(
    relaxation: Relaxation,
    rows: Indices,
    prices: Values,
    level: Callable[[], float],
    lowest: float,
    rounds: int,
    seen: Seen,
) -> Values:
    """Prices, shape (limits,), that minimise the largest bound of ``rows``, by cutting planes.

    Kelley's method (1960): the bound is convex and piecewise linear in the few prices, each
    solution of the relaxation is one of its pieces, and the least value of those that are known
    gives the next prices. Ends early where the bound falls to ``level()`` or below ``lowest``.

    Args:
        rows: of the programmes, shape (r,).
        prices: to start from, shape (limits,).
    """
    cuts = Cuts()
    size = max(
        float(np.abs(np.where(s.objective > -1e100, s.objective, 0)).max())
        for s in relaxation.stages
    )
    best, best_prices = np.inf, prices
    for _ in range(rounds):
        found = relaxation.evaluate(rows, np.broadcast_to(prices, (len(rows), len(prices))))
        seen(rows, np.broadcast_to(prices, (len(rows), len(prices))), found)
        top = int(found.bounds.argmax())
        if found.bounds[top] < best:
            best, best_prices = float(found.bounds[top]), prices
        if best <= max(level(), lowest):
            break
        cuts.values.append(float(found.values[top]))
        cuts.usage.append(found.usage[top])
        cuts.capacity.append(relaxation.capacity[rows[top]])
        least, prices = cuts.cheapest(HIGHEST_PRICE * size)
        if best - least <= CONVERGED * max(abs(best), size):
            break
    return best_prices
