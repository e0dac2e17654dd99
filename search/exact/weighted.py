"""Weighted sums of additive tables are additive tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.exact.programme import Values
from search_space.errors import UsageError


def weighted_sum(terms: Sequence[tuple[float, AdditiveTable]]) -> AdditiveTable:
    """The table of ``Σ weight · table``; at least one term, all of one space.

    Raises UsageError for a table that is the largest of its parts: weights of such do not add up.
    """
    assert terms, "a sum needs a term"
    space = terms[0][1].space
    for _, table in terms:
        assert table.space == space, "tables of different spaces do not add up"
        if table.combine != "sum":
            raise UsageError("a table that is the largest of its parts has no place in a sum.")
    tables = [table for _, table in terms]
    factors = [weight * table.scale for weight, table in terms]

    def add(parts: Iterable[Values]) -> Values:
        result: Values = np.sum([f * part for f, part in zip(factors, parts, strict=True)], axis=0)
        return result

    return AdditiveTable(
        space,
        add(table.stem for table in tables),
        tuple(add(parts) for parts in zip(*(t.blocks for t in tables), strict=True)),
        tuple(add(parts) for parts in zip(*(t.downsamples for t in tables), strict=True)),
        add(table.head for table in tables),
        offset=sum(weight * table.offset for weight, table in terms),
    )
