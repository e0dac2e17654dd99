"""Exact optima of additive tables at several prices of cost: the hull of their front."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.feasibility import unique_rows
from search_space.space import Genes


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
        transitions=tuple(
            a * x + b * y for x, y in zip(gain.transitions, cost.transitions, strict=True)
        ),
        head=a * gain.head + b * cost.head,
        scale=1.0,
        offset=gain.offset - price * cost.offset,
    )
