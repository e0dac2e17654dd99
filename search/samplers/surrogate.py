"""Search by a model of the evaluated objectives: refit, predict a pool, propose the best.

Bayesian optimisation with expected hypervolume improvement (Emmerich et al. 2006): after a first,
spread population, a model predicts the evaluated objectives of a pool of feasible candidates,
cheap objectives being known; candidates are taken one by one, each as if those before it, and
all that are still being evaluated, came out as predicted (Ginsbourger et al. 2010, kriging
believer). The pool is bred on the model, from the best evaluated rows, random ones, and the exact
optima of an additive model at several prices of cost.

Refits become rarer as evaluations add up and fits are of bounded size, so the time per candidate
stays bounded. A model depends on what it was fitted to only, so the state needs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from predictors.surrogates import (
    AdditiveAccuracy,
    EnsembleSurrogate,
    GaussianProcess,
    Surrogate,
    WithPrior,
)
from predictors.tables.additive import AdditiveTable
from search.feasibility import diverse_sample, unique_rows
from search.problem import Problem, Values
from search.samplers.acquisition import MOST_BOXES, boxes, expected_hypervolume_improvement
from search.samplers.archive import Archive, Indices, Judged, row_keys
from search.samplers.evolution import evolve
from search.samplers.proposals import PopulationSampler
from search.samplers.ranking import best_first
from search_space import SearchSpace
from search_space.errors import UnknownNameError
from search_space.stage_space import Genes

Predict = Callable[[Genes], Values]
MODELS: dict[str, Callable[[SearchSpace, Sequence[Predict]], Surrogate]] = {
    "gaussian_process": GaussianProcess,
    "trees": EnsembleSurrogate,
    "additive": lambda space, costs: AdditiveAccuracy(space),
}
LEAST_TO_FIT = 8
MOST_TO_FIT = 800
REFIT_SHARE = 0.05  # of the evaluations must be new
POOL, GENERATIONS = 256, 6
RANDOM_SHARE = 0.5


class SurrogateSampler(PopulationSampler):
    """Proposes what a model expects to enlarge the front, for few, expensive evaluations.

        sampler = SurrogateSampler(problem, seed=0)

    Args:
        problem, seed, population: as of ``PopulationSampler``.
        model: ``gaussian_process``, ``trees`` or ``additive``.
        prior: By an evaluated objective's metric, what predicts it before anything is evaluated:
            whatever grows where the objective gets worse. The model learns what it misses.

    Raises:
        UnknownNameError: There is no such model.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        population: int = 12,
        model: str = "gaussian_process",
        prior: Mapping[str, Predict] | None = None,
    ) -> None:
        if model not in MODELS:
            raise UnknownNameError("surrogate", model, MODELS)
        super().__init__(problem, seed=seed, population=population)
        self._make, self._prior = MODELS[model], prior or {}
        self._archive = Archive(problem)
        self._pool = self._no_rows()
        self._open: dict[bytes, None] = {}  # asked for and not told yet
        self._fitted = 0  # how many of the archive's first rows the models know
        self._models: list[Surrogate | None] = []
        self._additive = AdditiveAccuracy(problem.space)  # for its optima only

    # Asking -----------------------------------------------------------------------------------

    def ask(self, n: int) -> Genes:
        rows = super().ask(n)
        self._open.update(dict.fromkeys(row_keys(rows)))
        return rows

    def _propose(self, n: int) -> Genes:
        if len(self._archive.evaluated) < LEAST_TO_FIT:
            return self._no_rows()
        told = len(self._archive)
        due = self._fitted == 0 or told >= self._fitted + max(2, round(REFIT_SHARE * told))
        if due or len(self._pool) < 2 * n:
            self._fitted = told
            self._refit()
            self._pool = self._fresh_pool(n)
        pool = self._screen.candidates(self._pool)
        chosen = self._take(pool, n)
        self._screen.mark(chosen)
        return chosen

    def _take(self, pool: Genes, n: int) -> Genes:
        """The ``n`` most promising rows of a pool, one by one; shape (≤ n, genes)."""
        if len(pool) == 0:
            return pool
        mean, deviation = self._predict(pool)
        archive, reference = self._archive, self._reference()
        front = archive.results.objectives[archive.front]
        if self._open:
            waiting = np.stack([np.frombuffer(key, dtype=np.int64) for key in self._open])
            front = np.concatenate([front, self._predict(waiting)[0]])
        left = np.arange(len(pool))
        chosen: list[int] = []
        free = boxes(front, reference)
        while len(chosen) < n and len(left):
            gain = expected_hypervolume_improvement(mean[left], deviation[left], free)
            best = int(gain.argmax())
            chosen.append(int(left[best]))
            if len(free.upper) < MOST_BOXES:
                free = free.without(mean[left[best]])
            left = np.delete(left, best)
        return pool[np.array(chosen, dtype=np.int64)]

    def _reference(self) -> Values:
        """The problem's, or the worst value so far where it has none."""
        reference = self.problem.reference
        worst = self._archive.results.objectives[self._archive.evaluated].max(axis=0)
        return np.where(np.isnan(reference), worst, reference)

    # The models -------------------------------------------------------------------------------

    def _refit(self) -> None:
        """Fit to the first ``self._fitted`` rows of the archive."""
        rows = self._worth_fitting(self._archive.evaluated)
        known = self._archive.results[rows]
        if len(self._models) != len(self.problem.objectives):
            self._models = [
                None if objective.metric in self.problem.tables else self._model(objective.metric)
                for objective in self.problem.objectives
            ]
        for k, model in enumerate(self._models):
            if model is not None:
                model.fit(known.genes, known.objectives[:, k])

    def _model(self, metric: str) -> Surrogate:
        """A model that may follow all that is known of a candidate without evaluating it."""
        space, known = self.problem.space, [t.predict for t in self.problem.tables.values()]
        if metric not in self._prior:
            return self._make(space, known)
        prior = self._prior[metric]
        return WithPrior(self._make(space, [*known, prior]), prior)

    def _worth_fitting(self, rows: Indices) -> Indices:
        """Of the archive's first rows: all, or the better half of the most and some of the rest."""
        rows = rows[rows < self._fitted]
        if len(rows) <= MOST_TO_FIT:
            return rows
        best = self._best_first(rows)
        half = MOST_TO_FIT // 2
        rest = best[half:]
        step = np.linspace(0, len(rest) - 1, MOST_TO_FIT - half).astype(np.int64)
        return np.sort(np.concatenate([best[:half], rest[step]]))

    def _best_first(self, rows: Indices) -> Indices:
        known = self._archive.results[rows]
        return rows[best_first(known.objectives, known.violations)]

    def _predict(self, genes: Genes) -> tuple[Values, Values]:
        """Minimised means and deviations, shape (n, objectives) each."""
        mean = np.zeros((len(genes), len(self._models)))
        deviation = np.zeros_like(mean)
        for k, (model, objective) in enumerate(
            zip(self._models, self.problem.objectives, strict=True)
        ):
            if model is None:
                table = self.problem.tables[objective.metric]
                mean[:, k] = objective.sign * table.predict(genes)
            else:
                prediction = model.predict(genes)
                mean[:, k], deviation[:, k] = prediction.mean, prediction.deviation
        return mean, deviation

    @property
    def rank_quality(self) -> dict[str, float | None]:
        """Kendall τ of each modelled objective's values and cross-validated predictions."""
        named = zip(self.problem.objectives, self._models, strict=False)
        return {
            objective.metric: model.rank_quality for objective, model in named if model is not None
        }

    # The pool ---------------------------------------------------------------------------------

    def _fresh_pool(self, n: int) -> Genes:
        rng, archive = self._rng, self._archive
        best = archive.results.genes[self._best_first(archive.evaluated)[:POOL]]
        random = diverse_sample(self.problem, rng, round(RANDOM_SHARE * POOL))
        start = np.concatenate([best, random, self._optima()])

        def promise(genes: Genes) -> tuple[Values, Values]:
            mean, deviation = self._predict(genes)
            return mean - deviation, np.zeros(len(genes))

        *_, (last, _) = evolve(
            self.problem,
            start,
            promise,
            rng,
            size=max(POOL, 4 * n),
            generations=GENERATIONS,
            rate=1.5 / self.problem.space.num_genes,
            accept=self._feasible,
        )
        return self._screen.candidates(last.genes[best_first(last.objectives, last.violations)])

    def _feasible(self, rows: Genes) -> Genes:
        return rows[self.problem.cheap_violation(rows) == 0] if len(rows) else rows

    def _optima(self) -> Genes:
        """Optima of additive models of the evaluated objectives at several prices of cost."""
        costs = [
            table
            for table in self.problem.tables.values()
            if isinstance(table, AdditiveTable) and table.combine == "sum"
        ]
        rows = self._worth_fitting(self._archive.evaluated)
        optima = [self._no_rows()]
        for k, model in enumerate(self._models):
            if model is None:
                continue
            known = self._archive.results[rows]
            self._additive.fit(known.genes, -known.objectives[:, k])
            optima += [priced_optima(self._additive.table(), cost) for cost in costs]
        return np.concatenate(optima)

    def _learn(self, told: Judged) -> None:
        self._archive.tell(told)
        for key in row_keys(told.genes):
            self._open.pop(key, None)


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
