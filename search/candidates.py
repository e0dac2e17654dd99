"""What to evaluate of a front that a quality table predicts, before anything is known of sums.

The table's own optima come first, those with the most latency within the budget before others. A
table has errors, though, so an architecture that it predicts a little worse may be better: variants
of these optima are taken too, by how many standard errors they lie behind the front.
"""

from __future__ import annotations

import numpy as np

from predictors.tables.additive import AdditiveTable
from predictors.tables.quality import Measure, QualityTable
from search.feasibility import unique_rows
from search_space import Genes

DEVIATIONS = 2.0
FRONT_SHARE = 0.5
_DRAWN = 64  # variants for each candidate
_CHANGES = 1.5  # genes of a variant, on average


def candidates(
    front: Genes,
    quality: QualityTable,
    latency: AdditiveTable,
    budget: float,
    count: int,
    rng: np.random.Generator,
    *,
    measure: Measure = "blend",
    deviations: float = DEVIATIONS,
) -> Genes:
    """Chooses rows to evaluate: members of a front near a budget, and what may be as good.

    Example:
        Twenty networks of at most 5 ms::

            front = sweep(space, table.compile(space), latency, maximise=(False, False)).genes
            rows = candidates(front, table, latency, 5.0, 20, np.random.default_rng(0))

    Args:
        front: Rows of the front of both tables, shape (n, genes), in any order.
        quality: The table that the front is of.
        latency: Milliseconds, or whatever the budget is of.
        budget: Most of it.
        count: How many rows at most.
        rng: Draws variants.
        measure: Of the quality table, that the front is of.
        deviations: A variant's prediction is at most so many of its standard errors behind the
            best of the front at the same latency.

    Returns:
        Distinct rows within the budget, shape (≤ count, genes): half of them members of the front
        from the budget downwards, the rest variants, the nearest to the front first, then more
        members where there are too few variants. None where no member is within the budget.
    """
    space = latency.space
    loss = quality.compile(space, measure)
    front = unique_rows(front)
    paid = latency.predict(front)
    order = np.argsort(-paid, kind="stable")
    members = front[order[paid[order] <= budget]]
    if not len(members):
        return members
    chosen = members[: max(1, round(FRONT_SHARE * count))]
    drawn = np.repeat(chosen, -(-_DRAWN * count // len(chosen)), axis=0)
    drawn = unique_rows(space.mutate(drawn, rng, _CHANGES / space.num_genes))
    spent = latency.predict(drawn)
    within = (spent <= budget) & (spent >= latency.predict(chosen).min())
    drawn, spent = drawn[within], spent[within]
    # of members from the cheapest to the dearest, the best so far is the front's step
    steps = latency.predict(members)[::-1]
    best = np.minimum.accumulate(loss.predict(members)[::-1])
    behind = loss.predict(drawn) - best[np.searchsorted(steps, spent, side="right") - 1]
    error = quality.standard_error(space, drawn, measure)
    close = behind <= deviations * error
    drawn, behind, error = drawn[close], behind[close], error[close]
    order = np.argsort(behind / np.maximum(error, 1e-300), kind="stable")
    rows = np.concatenate([chosen, drawn[order], members[len(chosen) :]])
    _, first = np.unique(rows, axis=0, return_index=True)
    rows = rows[np.sort(first)]
    return rows[:count]
