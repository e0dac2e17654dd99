"""Latency-driven slimming (Li et al. 2022, EfficientFormer): from the largest network down, each
step where it costs least quality for what it saves.

One step takes the next lighter choice of one gene, or leaves a block out. The few most promising
ones of a step are evaluated, and the smallest loss per cost saved is taken, as published. The
importance by which steps are promising is learnt with the weights there; here it is a table of
quality's, or that of an additive model of what was evaluated. Above the limits, where nothing is
evaluated, it decides alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from predictors.surrogates import AdditiveAccuracy
from search.problem import Problem, Values
from search.samplers.archive import Archive, Indices, Judged, row_keys
from search.samplers.proposals import PopulationSampler, neighbours
from search_space.stage_space import Genes

WAYS = 4
LEAST_TO_FIT = 8
REFIT_SHARE = 0.05  # of the evaluations must be new
DRY_WALKS = 8  # in a row, that meet known networks only
ROUNDING = 1e-9  # of the largest network's cost: what saves less saves nothing


@dataclass(frozen=True)
class Step:
    """Ways to go on from a network.

    Attributes:
        row: the network, shape (genes,).
        ways: lighter ones, the most promising first, shape (k, genes).
        saved: what each of them saves, shape (k,).
    """

    row: Genes
    ways: Genes
    saved: Values


class Slimming(PopulationSampler):
    """Proposes the next steps of a walk from the largest network to the cheapest.

        sampler = Slimming(problem, seed=0)

    A step is decided when its ways are told. Until then the walk goes on as if they came out as
    predicted, so that workers have enough to do; what this foresaw wrongly is walked anew. Further
    walks begin anew with noise on the importance, uniform as published.

    Args:
        problem, seed, population: as of ``PopulationSampler``; the first population serves the
            model of importance, and is left out where there is a prior.
        ways: how many ways of a step are evaluated.
        steps: in how many a walk should reach the cheapest network, so that small steps do not use
            up the evaluations before: each saves its part where its gene has as much to give. None
            for steps as small as the space has them, as published.
        prior: By an evaluated objective's metric, what predicts it, as a table of quality does:
            whatever grows where the objective gets worse.
        noise: on the importance of each choice in later walks, relative to what a step loses.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        population: int = 12,
        ways: int = WAYS,
        steps: int | None = None,
        prior: Mapping[str, Callable[[Genes], Values]] | None = None,
        noise: float = 0.3,
    ) -> None:
        super().__init__(problem, seed=seed, population=population)
        space = problem.space
        self._ways, self._steps, self._noise = ways, steps, noise
        self._archive = Archive(problem)
        self._known: dict[bytes, Values] = {}
        self._model, self._fitted = AdditiveAccuracy(space), 0
        metric = problem.cost_metric
        self._judged = [o.metric != metric for o in problem.objectives]
        self._priors = [p for name, p in (prior or {}).items() if name != metric]
        if self._priors or population == 0:
            self._initial = self._no_rows()
        self._ends = space.encode([space.smallest, space.largest])
        if metric is not None:
            self._ends[0] = problem.tables[metric].argmin()
        self._skips = skip_genes(problem)
        self._walks = 0
        self._ahead: list[Step] = []  # the first is to be decided, the others are foreseen
        self._begin_walk()

    # Walks ------------------------------------------------------------------------------------

    def _begin_walk(self) -> None:
        space, self._here, self._ahead = self.problem.space, self._ends[1], []
        self._bias = np.zeros((space.num_genes, int(space.cardinalities.max()) + 1))
        if self._walks:
            near, _ = self._near(self._here)
            lost = self._predict(near) - self._predict(self._here[None])
            scale = self._noise * (float(np.abs(lost).mean()) if lost.any() else 1.0)
            self._bias[:, :-1] = scale * self._rng.random(self._bias[:, :-1].shape)
        self._walks += 1

    def _propose(self, n: int) -> Genes:
        rows, dry = self._no_rows(), 0
        self._refit()
        while dry < DRY_WALKS:
            before = len(rows)
            for step in self._walk():
                rows = np.concatenate([rows, self._screen.fresh(step.ways, n - len(rows))])
                if len(rows) == n:
                    return rows
            dry = 0 if len(rows) > before else dry + 1
            self._begin_walk()
        return rows

    def _walk(self) -> Iterator[Step]:
        """Steps to be decided and foreseen, down to where the walk ends."""
        if not self._ahead and self._is_start(self._here) and self._meets(self._here):
            yield Step(self._here, self._here[None], np.ones(1))
        i = 0
        while True:
            if i == len(self._ahead):
                step = self._open(self._foreseen(self._ahead[-1]) if i else self._here)
                if step is None:
                    return
                self._ahead.append(step)
            yield self._ahead[i]
            i += 1

    def _open(self, row: Genes) -> Step | None:
        """The next step from ``row`` that evaluations can decide; None where the walk ends."""
        while True:
            within = self._meets(row)
            if within and all(self._judged) and not self._meets(self._ends[1]):
                return None  # the limits are met, and less cost is no aim
            near, saved = self._near(row)
            if len(near) == 0:
                return None
            lost = self._predict(near, bias=True) - self._predict(row[None], bias=True)
            order = np.lexsort((-saved, lost / saved))
            near, saved = near[order], saved[order]
            meets = self.problem.cheap_violation(near) == 0
            if within or meets[0]:
                which = np.flatnonzero(meets)[: self._ways]
                return Step(row, near[which], saved[which])
            row = near[0]

    def _near(self, row: Genes) -> tuple[Genes, Values]:
        """Single changes of ``row`` that save something, (k, genes), and what they save, (k,).

        Of each gene the next lighter choice that saves a walk's part, or else the lightest, and
        ``skip`` where there is one.
        """
        near = neighbours(self.problem, row)
        violation = self.problem.cheap_violation(np.vstack([row, near]))
        costs, part = self._cost(np.vstack([row, near])), 0.0
        if violation[0] > 0:
            saved = violation[0] - violation[1:]
            saves = saved > ROUNDING * violation[0]
        else:
            saved = costs[0] - costs[1:]
            ends = self._cost(self._ends)
            saves = (saved > ROUNDING * abs(ends[1])) & (violation[1:] == 0)
            if self._steps is not None:
                part = self._span() / self._steps
        near, saved = near[saves], saved[saves]
        gene = (near != row).argmax(axis=1)
        chosen = set(np.flatnonzero(near[np.arange(len(near)), gene] == self._skips[gene]).tolist())
        for each in np.unique(gene):
            of_gene = np.flatnonzero(gene == each)
            of_gene = of_gene[np.argsort(saved[of_gene], kind="stable")]
            enough = of_gene[saved[of_gene] >= part]
            chosen.add(int(enough[0] if len(enough) else of_gene[-1]))
        which = np.array(sorted(chosen), dtype=np.int64)
        return near[which], saved[which]

    def _span(self) -> float:
        """From the largest cost within the limits on it to the smallest."""
        low, high = self._cost(self._ends)
        for limit in self.problem.constraints:
            if limit.metric == self.problem.cost_metric and limit.maximum is not None:
                high = min(high, limit.maximum)
        return float(max(high - low, 0.0))

    def _cost(self, rows: Genes) -> Values:
        """The metric that is saved; without any, how far genes are from their lightest choices."""
        if self.problem.cost_metric is None:
            return rows.sum(axis=1).astype(np.float64)
        return self.problem.cost_axis(rows)

    def _meets(self, row: Genes) -> bool:
        return bool(self.problem.cheap_violation(row[None])[0] == 0)

    def _is_start(self, row: Genes) -> bool:
        return bool((row == self._ends[1]).all())

    # What is lost -------------------------------------------------------------------------------

    def _predict(self, rows: Genes, *, bias: bool = False) -> Values:
        """The importance of all that rows lack, as far as it is known, (n, genes) to (n,)."""
        lost = np.zeros(len(rows))
        if self._fitted:
            lost += self._model.predict(rows).mean
        for prior in self._priors:
            lost += prior(rows)
        if bias:
            lost += self._bias[np.arange(rows.shape[1]), rows].sum(axis=1)
        return lost

    def _losses(self, results: Values) -> Values:
        """One number for the judged objectives, (n, objectives) to (n,); a failure's is infinite.

        Several are added in parts of their ranges.
        """
        judged = results[:, self._judged]
        if judged.shape[1] > 1:
            known = self._archive.results.objectives[self._archive.evaluated][:, self._judged]
            span = np.ptp(known, axis=0) if len(known) else np.ones(judged.shape[1])
            judged = judged / np.where(span > 0, span, 1.0)
        lost = judged.sum(axis=1)
        return np.where(np.isnan(lost), np.inf, lost)

    def _refit(self) -> None:
        rows = self._archive.evaluated
        enough = max(LEAST_TO_FIT, self._fitted * (1 + REFIT_SHARE))
        if not self._priors and any(self._judged) and len(rows) >= enough:
            results = self._archive.results[rows]
            self._model.fit(results.genes, self._losses(results.objectives))
            known, self._fitted = self._fitted, len(rows)
            if not known and self._walks == 1 and not self._meets(self._ends[1]):
                self._walks = 0  # what came down to the limits knew nothing
                self._begin_walk()

    def _learn(self, told: Judged) -> None:
        """Goes on as far as all ways of the next step are told."""
        self._archive.tell(told)
        self._known |= dict(zip(row_keys(told.genes), told.objectives, strict=True))
        while self._ahead and all(key in self._known for key in row_keys(self._ahead[0].ways)):
            step = self._ahead.pop(0)
            self._here = self._decided(step)
            if self._ahead and (self._ahead[0].row != self._here).any():
                self._ahead = []

    def _decided(self, step: Step) -> Genes:
        """The way with the smallest loss per cost saved, by evaluations."""
        lost = self._told(step.ways)
        own = (
            self._told(step.row[None])[0] if row_keys(step.row[None])[0] in self._known else np.inf
        )
        if not np.isfinite(own):  # above the limits, or failed
            known = np.isfinite(lost)
            if not known.any():
                return step.ways[0]
            off = lost[known] - self._predict(step.ways[known])
            own = self._predict(step.row[None])[0] + off.mean()
        return step.ways[int(((lost - own) / step.saved).argmin())]

    def _told(self, rows: Genes) -> Values:
        return self._losses(np.stack([self._known[key] for key in row_keys(rows)]))

    def _foreseen(self, step: Step) -> Genes:
        """What will be decided: known where all ways are, else as predicted."""
        known = all(key in self._known for key in row_keys(step.ways))
        return self._decided(step) if known else step.ways[0]


def skip_genes(problem: Problem) -> Indices:
    """The choice of each gene that leaves its block out, −2 where there is none; shape (genes,)."""
    space = problem.space
    skips = np.full(space.num_genes, -2, dtype=np.int64)
    for i, stage in enumerate(space.stages):
        start = space.block_columns(i).start
        for j, choices in enumerate(stage.positions):
            skips[start + j] = next((c for c, b in enumerate(choices) if b.skipped), -2)
    return skips
