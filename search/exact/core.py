"""Everything that is worth looking at in one programme: solutions whose relaxed value is high.

At prices λ each block has a loss, by how much its priced value is below the best there. A
solution's objective is at most the bound less the sum of its losses, so that solutions better
than a known one have small losses, and those are few. They are enumerated by stage as multisets
of blocks, joined from stage to stage while the losses allow, and compared with the numbers of the
tables themselves: no solver's tolerance stands between a solution and its limits. How much loss
is allowed grows until nothing beyond it can be better than what was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.exact.labels import (
    Labels,
    TooManyError,
    joined_labels,
    multisets,
    no_parts,
    numbered,
    within,
)
from search.exact.programme import Values
from search.exact.relaxation import Indices, Relaxation

MOST_LABELS = 2_000_000
PAIRS_PER_LABEL = 20  # in the last join, which keeps none
CHUNK = 500_000  # pairs looked at together
MANY = 2_000  # labels from which a dominance filter pays
FIRST_SHARE = 1e-4  # of the way from the bound to the lowest value, allowed as loss at first
GROWTH, FAST_GROWTH = 4.0, 16.0  # of the loss that is allowed; the latter while labels are few
FEW = 2_000


@dataclass(frozen=True)
class Candidate:
    """A solution within all limits."""

    value: float
    usage: Values
    depths: tuple[int, ...]
    counts: tuple[tuple[Indices, ...], ...]


@dataclass(frozen=True)
class _Stage:
    """A stage's own labels, and what each is made of."""

    labels: Labels
    depths: Indices
    counts: tuple[npt.NDArray[np.int16], ...]  # per cell (labels, columns)


class Core:
    """One programme at given prices.

    Args:
        row: of the programme in the relaxation.
        prices: shape (limits,).
        tie: the limit whose usage decides between equal objectives, if any.
        most: labels and pairs of labels beyond which an enumeration is given up.

    Attributes:
        seen: pairs of labels that the last enumeration looked at.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        row: int,
        prices: Values,
        tie: int | None = None,
        most: int = MOST_LABELS,
    ) -> None:
        self.relaxation, self.row, self.prices, self.tie = relaxation, row, prices, tie
        self.most_labels, self.seen = most, 0
        self.rules = relaxation.programmes[row].depth_rules
        self.options = relaxation.programmes[row].depths
        self.most = relaxation.capacity[row] + relaxation.tolerance
        rows = np.array([row])
        self.bound = float(relaxation.evaluate(rows, prices[None]).bounds[0])

    def enumerate(self, loss: float) -> Candidate | None:
        """The best solution of all whose losses add up to at most ``loss``; raises TooManyError."""
        self.seen = 0
        stages = [self._stage(i, loss) for i in range(len(self.options))]
        if any(len(stage.labels) == 0 for stage in stages):
            return None
        order = sorted(range(len(stages)), key=lambda i: len(stages[i].labels))
        ahead = [stages[i].labels.usage.min(axis=0) for i in order]
        reached = stages[order[0]].labels
        for n, i in enumerate(order[1:-1], 1):
            left, right = self._pairs(reached, stages[i].labels, loss)
            room = self.most - sum(ahead[n + 1 :])
            joined = joined_labels(reached, stages[i].labels, left, right)
            joined = joined.take((joined.usage <= room).all(axis=1))
            if len(joined) > MANY and not self.rules:
                joined = joined.undominated()
            reached = joined.take(np.argsort(joined.loss, kind="stable"))
        return self._last(reached, stages[order[-1]].labels, stages, loss)

    def _last(
        self, first: Labels, second: Labels, stages: Sequence[_Stage], loss: float
    ) -> Candidate | None:
        """The best pair within all limits, first by value, then by what decides between equals."""
        times = np.searchsorted(second.loss, loss - first.loss, side="right")
        if times.sum() > PAIRS_PER_LABEL * self.most_labels:
            raise TooManyError
        self.seen = int(times.sum())
        constant = float(self.relaxation.constants[self.row])
        best, best_tie, best_parts = -math.inf, math.inf, None
        rounding = self.relaxation.rounding
        for rows in np.split(np.arange(len(times)), _chunks(times)):
            left, right = np.repeat(rows, times[rows]), within(times[rows])
            value = constant + first.value[left] + second.value[right]
            near = np.flatnonzero(value >= best - rounding)
            left, right, value = left[near], right[near], value[near]
            usage = first.usage[left] + second.usage[right]
            meets = (usage <= self.most).all(axis=1)
            if self.rules:
                parts = np.maximum(first.parts[left], second.parts[right])
                meets &= self._follow(parts, stages)
            if not meets.any():
                continue
            top = float(value[meets].max())
            equal = np.flatnonzero(meets & (value >= top - rounding))
            tie = np.zeros(len(equal)) if self.tie is None else usage[equal, self.tie]
            chosen = equal[tie.argmin()]
            if top > best + rounding or tie.min() < best_tie:
                best, best_tie = float(value[chosen]), float(tie.min())
                best_usage = usage[chosen]
                best_parts = np.maximum(first.parts[left[chosen]], second.parts[right[chosen]])
        if best_parts is None:
            return None
        return Candidate(
            best,
            best_usage,
            tuple(int(s.depths[p]) for s, p in zip(stages, best_parts, strict=True)),
            tuple(
                tuple(cell[p].astype(np.int64) for cell in s.counts)
                for s, p in zip(stages, best_parts, strict=True)
            ),
        )

    def _follow(self, parts: Indices, stages: Sequence[_Stage]) -> npt.NDArray[np.bool_]:
        """Which solutions follow the rules on depths."""
        result = np.ones(len(parts), dtype=bool)
        for i, j, most in self.rules:
            here, there = (
                np.asarray(self.options[s])[stages[s].depths[parts[:, s]]] for s in (i, j)
            )
            result &= here <= there + most
        return result

    def _pairs(self, first: Labels, second: Labels, loss: float) -> tuple[Indices, Indices]:
        """Pairs of labels whose losses add up to at most ``loss``."""
        times = np.searchsorted(second.loss, loss - first.loss, side="right")
        if times.sum() > self.most_labels:
            raise TooManyError
        return np.repeat(np.arange(len(first)), times), within(times)

    # One stage --------------------------------------------------------------------------------

    def _stage(self, index: int, loss: float) -> _Stage:
        """All multisets of blocks of one stage whose losses add up to at most ``loss``."""
        stage = self.relaxation.stages[index]
        objective = stage.objective[self.row]  # (cells, columns)
        usage = np.moveaxis(stage.usage[:, self.row], 0, -1)  # (cells, columns, limits)
        priced = objective - usage @ self.prices
        peak = priced.max(axis=1)
        by_depth = peak @ stage.counts
        found: list[tuple[Labels, tuple[npt.NDArray[np.int16], ...], int]] = []
        for d in range(len(self.options[index])):
            lost = float(by_depth.max() - by_depth[d])
            if lost > loss:
                continue
            labels = Labels(
                np.array([lost]),
                np.zeros(1),
                np.zeros((1, usage.shape[2])),
                no_parts(1, len(self.options)),
            )
            counts: tuple[npt.NDArray[np.int16], ...] = ()
            for cell in range(len(stage.positions)):
                blocks = int(stage.counts[cell, d])
                own, times = multisets(
                    blocks,
                    objective[cell],
                    usage[cell],
                    peak[cell] - priced[cell],
                    loss - lost,
                    self.most_labels,
                    len(self.options),
                )
                left, right = self._pairs(labels, own, loss)
                labels = joined_labels(labels, own, left, right)
                counts = (*(c[left] for c in counts), times[right])
                # the same sums come about in many ways where cells share choices
                labels = numbered(labels, index)
                if len(labels) > MANY:
                    labels = labels.undominated()
                labels = labels.take(np.argsort(labels.loss, kind="stable"))
                kept = labels.parts[:, index]
                counts = tuple(c[kept] for c in counts)
            found.append((labels, counts, d))
        together = Labels(
            np.concatenate([f[0].loss for f in found]),
            np.concatenate([f[0].value for f in found]),
            np.concatenate([f[0].usage for f in found]),
            np.concatenate([f[0].parts for f in found]),
        )
        depths = np.concatenate([np.full(len(f[0]), f[2]) for f in found])
        cells = tuple(
            np.concatenate([f[1][cell] for f in found]) for cell in range(len(stage.positions))
        )
        together = numbered(together, index)
        if len(together) > MANY and not self.rules:
            together = together.undominated()
        together = together.take(np.argsort(together.loss, kind="stable"))
        kept = together.parts[:, index]
        return _Stage(numbered(together, index), depths[kept], tuple(cell[kept] for cell in cells))


def _chunks(times: Indices) -> Indices:
    """Where to split rows so that each part has about ``CHUNK`` pairs or one row."""
    part = np.cumsum(times) // CHUNK
    return np.flatnonzero(np.diff(part)) + 1


def indifferent(value: float, gap: float, rounding: float, ties: bool) -> float:
    """The objective from which on a solution would be of interest, where ``value`` is known.

    With ``ties``, equal objectives are: those that differ by no more than ``rounding``.
    """
    if value == -math.inf:
        return value
    return value - rounding if ties else value + max(gap * abs(value), rounding)


@dataclass(frozen=True)
class Resolved:
    """What is best in a programme, if anything of interest, and what nothing in it exceeds."""

    best: Candidate | None
    ceiling: float
    complete: bool


def resolve(core: Core, lowest: float, value: float, gap: float) -> Resolved:
    """Enumerate until nothing that is left out could be of interest.

    Args:
        lowest: the objective's smallest value.
        value: the best that is known; −∞ where nothing is.
        gap: relative, by which solutions need not be told apart; 0 where ``core.tie`` is given.
    """
    rounding = core.relaxation.rounding
    if core.bound < lowest - rounding:
        return Resolved(None, -math.inf, True)
    best: Candidate | None = None
    everything = max(0.0, core.bound - lowest) * (1 + 1e-9) + rounding
    loss, ceiling = FIRST_SHARE * everything, core.bound
    while True:
        enough = core.bound - indifferent(value, gap, rounding, core.tie is not None)
        loss = min(loss, max(enough, 0.0) + rounding, everything)
        try:
            found = core.enumerate(loss)
        except TooManyError:
            return Resolved(best, ceiling, False)
        if found is not None:  # no worse than before, since what was looked at has grown
            best, value = found, max(value, found.value)
        inside = -math.inf if found is None else found.value
        if loss >= everything:
            return Resolved(best, inside, True)
        ceiling = max(inside, core.bound - loss)
        if core.bound - loss <= indifferent(value, gap, rounding, core.tie is not None):
            return Resolved(best, ceiling, True)
        loss *= GROWTH if core.seen > FEW else FAST_GROWTH
