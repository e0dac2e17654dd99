"""Accuracies in closed form with which searches are compared: additive, bent and entangled.

Each component of an architecture has a random worth that leans towards the heavier choices and
falls with depth. Accuracy saturates in the sum of all worths, and random tables over pairs of
genes entangle what would otherwise be separable. Costs are the real MACs of the space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from predictors.counts import counts
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search_space import Genes, SearchSpace, load_space

Values = npt.NDArray[np.float64]
BEST, WORST = 0.95, 0.35


@dataclass(frozen=True, eq=False)
class Landscape:
    """Accuracy of rows of genes.

    Args:
        worths: per gene, shape (choices + 1,); the last is of an inactive one.
        pairs: columns of two genes and a table of shape (choices + 1, choices + 1) each.
        centre, scale: of the sum of worths, over random architectures.
        entangled: standard deviation of the pairs' part relative to the rest's.
    """

    worths: tuple[Values, ...]
    pairs: tuple[tuple[int, int, Values], ...]
    centre: float
    scale: float
    entangled: float

    def additive(self, genes: Genes) -> Values:
        """Sum of worths, shape (n, genes) to (n,)."""
        columns = zip(self.worths, genes.T, strict=True)
        return np.sum([worth[column] for worth, column in columns], axis=0)

    def __call__(self, genes: Genes) -> Values:
        """Accuracy between 0 and 1, shape (n, genes) to (n,)."""
        merit = (self.additive(genes) - self.centre) / self.scale
        for i, j, table in self.pairs:
            merit = (
                merit + self.entangled / np.sqrt(len(self.pairs)) * table[genes[:, i], genes[:, j]]
            )
        return BEST - (BEST - WORST) * np.exp(-np.logaddexp(0.0, merit + 2.0) / 2.0)


def landscape(space: SearchSpace, seed: int, entangled: float, pairs: int = 40) -> Landscape:
    """A random landscape over ``space``; the same seed gives the same one."""
    rng = np.random.default_rng([seed, 77])
    worths = [np.zeros(0)] * space.num_genes
    worths[0] = np.r_[np.linspace(0, 1, len(space.resolutions)), 0.0]
    for i, stage in enumerate(space.stages):
        column = int(space.width_columns[i])
        worths[column] = np.r_[np.log(np.array(stage.widths) / stage.widths[0]), 0.0]
        worths[column] *= rng.uniform(0.5, 1.5)
        worths[column + 1] = np.zeros(len(stage.depths) + 1)
        mixers = sorted({block.label for block in stage.blocks})
        of_mixer = dict(zip(mixers, rng.normal(0.5, 0.4, len(mixers)), strict=True))
        of_choice = np.array(
            [
                of_mixer[block.label] + 0.15 * block["mlp_ratio"] + rng.normal(0, 0.2)
                for block in stage.blocks
            ]
        )
        for position, gene in enumerate(range(*space.block_columns(i).indices(space.num_genes))):
            own = of_choice + rng.normal(0, 0.1, len(of_choice))
            worths[gene] = np.r_[own / np.sqrt(1 + position), 0.0]
    chosen = [rng.choice(space.num_genes, 2, replace=False) for _ in range(pairs)]
    tables = tuple(
        (int(i), int(j), rng.normal(size=(len(worths[i]), len(worths[j])))) for i, j in chosen
    )
    plain = Landscape(tuple(worths), tables, 0.0, 1.0, entangled)
    sums = plain.additive(space.sample(np.random.default_rng(0), 4000))
    centre, scale = float(sums.mean()), float(sums.std())
    return Landscape(tuple(worths), tables, centre, scale, entangled)


def macs_problem(space: SearchSpace, share: float) -> Problem:
    """Accuracy against MACs, which at most ``share`` of random architectures keep to."""
    table = counts(space, 10)["macs"]
    sample = table.predict(space.sample(np.random.default_rng(0), 4000))
    return Problem(
        space,
        (Objective("accuracy", "maximize"), Objective("macs", "minimize")),
        (Constraint("macs", maximum=float(np.quantile(sample, share))),),
        {"macs": table},
    )


def best_known(problem: Problem, accuracy: Landscape) -> Values:
    """Minimised objectives of the front that 200,000 evaluations find, shape (k, 2)."""
    return scored_front(
        problem, accuracy, "accuracy", seed=0, population=1000, generations=200
    ).objectives


def named_landscape(name: str, seed: int) -> tuple[Problem, Landscape]:
    """``SPACE:SHARE:ENTANGLED``: space, share of feasible random architectures, entanglement."""
    space_name, share, entangled = name.split(":")
    problem = macs_problem(load_space(space_name), float(share))
    return problem, landscape(problem.space, seed, float(entangled))
