"""Accuracies that do not add up, with which searches are compared: random networks and forests.

A random network of two hidden layers or a forest of random trees sees the genes one-hot, an
inactive gene as zeros; half as much again follows the logarithm of the MACs, as trained networks
do. Nothing in either knows of blocks, stages or components. Costs are the space's real MACs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from landscapes import BEST, WORST, macs_problem

from search import Problem
from search_space import Genes, SearchSpace, load_space

Values = npt.NDArray[np.float64]
SHARE = 0.3  # of random architectures that meet the limit
SIZE_WEIGHT = 0.5  # of the logarithm of the MACs, relative to the random part's deviation
HIDDEN, GAIN = 64, 3.0
TREES, DEPTH, FITTED = 40, 8, 2000


@dataclass(frozen=True, eq=False)
class Random:
    """Accuracy of rows of genes: a random function of the genes and the size."""

    problem: Problem
    merit: Callable[[Genes], Values]
    centre: tuple[float, float]
    scale: tuple[float, float]

    def __call__(self, genes: Genes) -> Values:
        """Accuracy between 0 and 1, shape (n, genes) to (n,)."""
        parts = self.merit(genes), np.log(self.problem.tables["macs"].predict(genes))
        own, size = (
            (part - centre) / scale
            for part, centre, scale in zip(parts, self.centre, self.scale, strict=True)
        )
        return BEST - (BEST - WORST) * np.exp(
            -np.logaddexp(0.0, own + SIZE_WEIGHT * size + 2.0) / 2.0
        )


def one_hot(space: SearchSpace, genes: Genes) -> Values:
    """Shape (n, genes) to (n, choices of all genes); zeros for an inactive gene."""
    parts = [genes[:, [i]] == np.arange(count) for i, count in enumerate(space.cardinalities)]
    return np.hstack(parts).astype(np.float64)


def random_network(space: SearchSpace, seed: int) -> Callable[[Genes], Values]:
    """Two hidden layers of tanh."""
    rng = np.random.default_rng([seed, 78])
    width = int(space.cardinalities.sum())
    first = rng.normal(size=(width, HIDDEN)) * GAIN / np.sqrt(space.num_genes)
    second = rng.normal(size=(HIDDEN, HIDDEN)) * GAIN / np.sqrt(HIDDEN)
    last = rng.normal(size=HIDDEN)

    def merit(genes: Genes) -> Values:
        return np.asarray(np.tanh(np.tanh(one_hot(space, genes) @ first) @ second) @ last)

    return merit


def random_forest(space: SearchSpace, seed: int) -> Callable[[Genes], Values]:
    """Trees that split random genes at random, with random leaves."""
    from sklearn.ensemble import ExtraTreesRegressor

    rng = np.random.default_rng([seed, 79])
    rows = one_hot(space, space.sample(rng, FITTED))
    forest = ExtraTreesRegressor(TREES, max_depth=DEPTH, max_features=1, random_state=seed)
    forest.fit(rows, rng.normal(size=FITTED))
    return lambda genes: np.asarray(forest.predict(one_hot(space, genes)), dtype=np.float64)


MERITS = {"network": random_network, "forest": random_forest}


def named_random(name: str, seed: int) -> tuple[Problem, Random]:
    """``SPACE:network`` or ``SPACE:forest``: the problem and its accuracy."""
    space_name, kind = name.split(":")
    problem = macs_problem(load_space(space_name), SHARE)
    merit = MERITS[kind](problem.space, seed)
    rows = problem.space.sample(np.random.default_rng(0), 4000)
    parts = merit(rows), np.log(problem.tables["macs"].predict(rows))
    centre, scale = [float(p.mean()) for p in parts], [float(p.std()) for p in parts]
    return problem, Random(problem, merit, (centre[0], centre[1]), (scale[0], scale[1]))
