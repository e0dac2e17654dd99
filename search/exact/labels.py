"""Partial solutions of a programme, many at once: made of blocks, joined, thinned out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.exact.programme import Values
from search.exact.relaxation import CLOSED, Indices

ROUNDED = 1e-13  # of the largest: sums that are added in another order differ by less


class TooManyError(Exception):
    """More candidates than are worth enumerating."""


@dataclass(frozen=True)
class Labels:
    """Partial solutions, by ascending loss.

    Attributes:
        loss, value: shape (k,).
        usage: shape (k, limits).
        parts: index into each stage's own labels, shape (k, stages), −1 for stages to come.
    """

    loss: Values
    value: Values
    usage: Values
    parts: Indices

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Labels:
        return Labels(self.loss[rows], self.value[rows], self.usage[rows], self.parts[rows])

    def undominated(self) -> Labels:
        """Without those that another one equals or beats in value and all usage."""
        import moocore

        size = np.abs(self.usage).max(axis=0, initial=1e-300)
        points = np.column_stack(
            [-self.value / np.abs(self.value).max(initial=1e-300), self.usage / size]
        )
        points = np.round(points / ROUNDED) * ROUNDED
        return self.take(moocore.is_nondominated(points, keep_weakly=False))


def multisets(
    blocks: int,
    objective: Values,
    usage: Values,
    losses: Values,
    most: float,
    most_labels: int,
    stages: int,
) -> tuple[Labels, npt.NDArray[np.int16]]:
    """Multisets of ``blocks`` choices whose losses add up to at most ``most``.

    Args:
        blocks: how many.
        objective, losses: shape (columns,).
        usage: shape (columns, limits).
        most_labels: beyond which this is given up; raises TooManyError.
        stages: of the network.

    Returns: labels, and how often each column is taken, shape (labels, columns).
    """
    open_ = np.flatnonzero((objective > CLOSED / 2) & (losses <= most))
    if blocks == 0:
        open_ = open_[:0]
    elif not len(open_):
        empty = np.zeros(0)
        return (
            Labels(empty, empty, np.zeros((0, usage.shape[1])), no_parts(0, stages)),
            np.zeros((0, len(objective)), dtype=np.int16),
        )
    order = open_[np.argsort(-losses[open_], kind="stable")]
    times = np.zeros((1, len(objective)), dtype=np.int16)
    loss, left = np.zeros(1), np.array([blocks])
    for column in order[:-1]:
        fit = np.full(len(loss), blocks, dtype=np.int64)
        if losses[column] * blocks > most - loss.max():
            with np.errstate(divide="ignore"):
                fit = np.floor((most - loss) / losses[column] + 1e-9).astype(np.int64)
        reps = np.minimum(left, fit) + 1
        if reps.sum() > most_labels:
            raise TooManyError
        origin, more = np.repeat(np.arange(len(loss)), reps), within(reps)
        loss, left = loss[origin] + more * losses[column], left[origin] - more
        times = times[origin]
        times[:, column] = more
    if len(order):
        times[:, order[-1]] = left
        loss = loss + left * losses[order[-1]]
    rank = np.argsort(loss, kind="stable")
    loss, times = loss[rank], times[rank]
    exact = times.astype(np.float64)
    value: Values = exact @ np.where(objective > CLOSED / 2, objective, 0.0)
    return Labels(loss, value, exact @ usage, no_parts(len(loss), stages)), times


def no_parts(n: int, stages: int) -> Indices:
    """Parts of labels that have none."""
    return np.full((n, stages), -1, dtype=np.int64)


def numbered(labels: Labels, stage: int) -> Labels:
    """With their own numbers as parts of ``stage``."""
    parts = np.full(labels.parts.shape, -1, dtype=np.int64)
    parts[:, stage] = np.arange(len(labels))
    return Labels(labels.loss, labels.value, labels.usage, parts)


def joined_labels(first: Labels, second: Labels, left: Indices, right: Indices) -> Labels:
    return Labels(
        first.loss[left] + second.loss[right],
        first.value[left] + second.value[right],
        first.usage[left] + second.usage[right],
        np.maximum(first.parts[left], second.parts[right]),
    )


def within(times: Indices) -> Indices:
    """0, 1, … times[i] − 1 for each i, one after another."""
    ends = np.cumsum(times)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - times, times)
