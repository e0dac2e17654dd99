"""Sums along a path, known at the end of every stage: DeepMAD's score and its bound.

A sum up to stage i is multiplied by a factor of that stage's width and resolution. It therefore
flows along the path: what a node receives and its own part leave it over the step that is taken.
Effectiveness ``L_i / (Π w)^(1/L_i) ≤ ρ`` says ``L_i · log(L_i / ρ) ≤ Σ log w``, whose left side is
convex in the integer L_i, so that chords between neighbouring integers say the same in linear rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.exact.programme import Programme
from search.exact.system import Columns, Values

if TYPE_CHECKING:  # it imports torch, which feasibility does not need
    from predictors.proxies.space_tables import PathTables


class Flow:
    """A quantity, none of whose parts are negative, summed from the stem to the end of each stage.

    Attributes:
        carried: columns by stage, shape (R, W, W after): the sum at the stage's end on the step
            that is taken, 0 on others. The last stage has one step after it.
        least, most: of the sums at each stage's end, whatever the path.
    """

    def __init__(self, programme: Programme, table: AdditiveTable) -> None:
        system, last = programme.system, len(programme.edges) - 1
        factors = programme.coefficients(table)
        self.carried: list[Columns] = []
        self.least, self.most = np.zeros(last + 1), np.zeros(last + 1)
        low = high = np.zeros((len(programme.space.resolutions), 1))
        for i, edges in enumerate(programme.edges):
            blocks = table.scale * table.blocks[i]
            depths = np.array(programme.space.stages[i].depths) - 1
            into = factors[edges]  # (R, W before, W, entries)
            offered = table.offered[i][:, None]
            least = np.where(offered, blocks, np.inf).min(axis=3)
            most = np.where(offered, blocks, -np.inf).max(axis=3)
            low = (low[:, :, None] + into.min(axis=3)).min(axis=1)
            high = (high[:, :, None] + into.max(axis=3)).max(axis=1)
            low = low + least.cumsum(axis=1)[:, depths].min(axis=1)
            high = high + most.cumsum(axis=1)[:, depths].max(axis=1)
            self.least[i], self.most[i] = low.min(), high.max()
            out = programme.edges[i + 1] if i < last else None
            num, width = low.shape
            self.carried.append(
                system.variables((num, width, 1 if out is None else out.shape[2]), math.inf, False)
            )
            for r, w in np.ndindex(num, width):
                counts, leaving = programme.counts[i][r, :, w], self.carried[i][r, w]
                terms: list[tuple[Columns, Values | float]] = [
                    (edges[r, :, w].ravel(), factors[edges[r, :, w].ravel()]),
                    (counts, factors[counts]),
                ]
                if i:
                    terms.append((self.carried[i - 1][r, :, w], 1.0))
                system.row(*terms, (leaving, -1.0), low=0.0, high=0.0)
                for step, column in enumerate(leaving):
                    taken = edges[r, :, w].ravel() if out is None else out[r, w, step]
                    term = np.array([column]), 1.0
                    system.row(term, (taken, -high[r, w]), low=-math.inf, high=0.0)
                    system.row(term, (taken, -low[r, w]), low=0.0, high=math.inf)


def score_coefficients(programme: Programme, paths: PathTables, entropy: Flow) -> Values:
    """DeepMAD's score over the variables, shape (n,)."""
    result = np.zeros(programme.system.size)
    for carried, factors in zip(entropy.carried, paths.factors, strict=True):
        result[carried] = factors[:, :, None]
    return result


def bound_effectiveness(
    programme: Programme, paths: PathTables, most: float, entropy: Flow
) -> None:
    """Allow no larger ρ at the end of any scale."""
    layers = Flow(programme, paths.layers)
    for i in paths.ends:
        carried, widths = layers.carried[i], entropy.carried[i]
        first = max(1, math.floor(layers.least[i]))
        for k in range(first, max(first + 1, math.ceil(layers.most[i]))):
            here = k * math.log(k / most)
            slope = (k + 1) * math.log((k + 1) / most) - here
            # here + slope · (L − k) ≤ Σ log w
            programme.system.row(
                (carried, slope), (widths, -2.0), low=-math.inf, high=slope * k - here
            )
