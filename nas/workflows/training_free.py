"""Phases of a search without images: closed-form scores instead of training.

Every architecture is costed and scored in microseconds, so the search sees tens of thousands; the
best few may be ordered anew by the proxies that run networks. What is exported is untrained.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property

import numpy as np

from nas.config import TrainingFreeConfig
from nas.workflows.finishing import export_untrained, latency_text
from nas.workflows.measuring import Measured
from nas.workflows.reporting import Findings, assemble
from nas.workflows.run import Run
from predictors.counts import count_architecture
from predictors.estimates.calibrate import predict_network
from predictors.proxies import ScoreSettings
from predictors.proxies.combined import RANK_QUALITY
from predictors.proxies.space_tables import PathTables, SpaceScores, score_architecture
from predictors.tables.additive import AdditiveTable
from predictors.tables.cost_table import total_costs
from predictors.tables.latency_table import LatencyTable
from results.files import as_plain
from results.journal import Evaluation
from results.report.data import Chosen, ProofRow, ReportData
from results.store import EXPORT, SNAPSHOT
from search import Objective, Problem
from search.closed_form import scored_front
from search.exact import optimise, sweep
from search.exact.programme import GAP
from search.problem import ROUNDING, Table, Values
from search.samplers.registry import EXACT
from search.scaling.two_criteria import COMPLEXITY, TRAINABILITY, TwoScorer, rank_sums
from search.shape import SHAPE, ShapeRule
from search_space import Architecture, Genes, known, known_names
from search_space.errors import NasError
from search_space.metrics import LATENCY, MACS, SCORE, metric_named

POINT_SECONDS = 120.0  # of the solver, for each member of a proven front
FRONT_MEMBERS = 30  # shown, exported and measured, evenly over the latency
_NOTES = {
    "combined": "The score is a weighted mean of three standardised logarithms: parameters, "
    "activations and, with half the weight, depth over width on the longest path. "
    f"{RANK_QUALITY} It says nothing about the images that the network will be trained on.",
    "deepmad": "The score is DeepMAD's entropy of the longest path, weighted by stage.",
    "entropy": "The score is half the sum of the logarithms of the widths on the longest path.",
    "params": "The score is the number of parameters: the largest network within the limits.",
    "macs": "The score is the number of MACs: the most computation within the limits.",
}


class TrainingFreeSearch(Run[TrainingFreeConfig]):
    """A search without images: networks are judged by a closed-form score."""

    quality = Objective.on(SCORE)
    evaluated = (SCORE,)
    num_seen: int | None
    proofs: tuple[ProofRow, ...] = ()

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def all_phases(self) -> ReportData:
        _ = self.target, self.others, self.cost_tables  # errors before anything is made
        table = self.latency_table()
        problem = self.problem(table)
        front = self.searched(problem)
        baselines = self.baselines(front, table)
        measured = self.measured([*front.values()], [*baselines.values()], table)
        best, reason = self.best(self.finalists(front, measured))
        chosen = self.exported(best, measured.get(best.digest), table, reason)
        self.notes.append(
            f"The exported network is untrained. Train it with: nas train --architecture "
            f"{shlex.quote(str(self.path / EXPORT / chosen.digest / 'config.json'))} --data FOLDER"
        )
        data = assemble(
            self,
            table,
            Findings(self.shown, front, baselines, measured, chosen, tuple(self.notes)),
            quality=SCORE,
            quality_note=_NOTES[self.config.search.score],
            num_seen=self.num_seen,
            proofs=self.proofs,
        )
        return self.finish(data)

    @cached_property
    def rules(self) -> dict[str, Table]:
        rule = ShapeRule(self.space)
        if rule.predict(rule.argmin()[None])[0] == 0:
            return {SHAPE: rule}
        self.note(
            "No architecture of this space has the shape of the networks that the score was "
            "checked on (stages that never get narrower, the third the deepest), so its shape was "
            "left free."
        )
        return {}

    def searched(self, problem: Problem) -> dict[str, Evaluation]:
        """The front by digest, fastest first, thinned evenly; a sample of what was seen."""
        name = self.config.search.score
        counts = {m: t for m, t in problem.tables.items() if isinstance(t, AdditiveTable)}
        scores = SpaceScores.build(self.space, counts)

        def score(genes: Genes) -> Values:
            values = scores.predict(name, genes)
            if name != "deepmad":
                return values
            rho = scores.predict("effectiveness", genes)
            most = self.config.search.max_effectiveness * (1 + ROUNDING)
            return np.where(rho <= most, values, np.nan)

        self.num_seen = None
        if self.config.search.sampler == EXACT:
            front = self.proven_front(problem, scores, counts)
            sample = front[:0]
        else:
            with self.phase("searching") as progress:
                start = self.optimum(problem, scores, counts) if name == "deepmad" else None
                result = scored_front(
                    problem,
                    score,
                    seed=self.config.seed,
                    start=start,
                    progress=lambda done, total, best: progress(
                        done, total, f"best score {-best[0]:.4g}"
                    ),
                )
            front = result.genes[_even(problem.cost_axis(result.genes), FRONT_MEMBERS)]
            best = result.genes[result.objectives[:, 0].argmin()]
            front = np.unique(np.concatenate([front, best[None]]), axis=0)
            sample, self.num_seen = result.sample, result.num_seen
            self.console.say(f"  {self.num_seen:,} scored, {len(result.genes)} on the front")
        members = self._evaluations(front, problem, score)
        members.sort(key=lambda e: e.metrics[LATENCY])
        self.shown = (*members, *self._evaluations(sample, problem, score))
        with self.directory.journal() as journal:
            for evaluation in self.shown:
                if evaluation.digest not in journal:
                    journal.append(evaluation)
            journal.snapshot(self.path / SNAPSHOT)
        return {e.digest: e for e in members}

    def proven_front(
        self, problem: Problem, scores: SpaceScores, tables: Mapping[str, AdditiveTable]
    ) -> Genes:
        """Rows of the front at evenly spaced costs, each proven to have the best score there."""
        quality = scores.additive(self.config.search.score)
        assert quality is not None, "the configuration allows no other"
        cost = problem.objectives[1].metric
        bounded = self.config.search.score == "deepmad"
        with self.phase("proving the front") as progress:
            front = sweep(
                self.space,
                quality,
                tables[cost],
                [c for c in problem.constraints if c.metric in tables],
                tables,
                effectiveness=self._effectiveness(scores) if bounded else None,
                shape_rule=SHAPE in self.rules,
                maximise=(True, problem.objectives[1].direction == "maximize"),
                points=FRONT_MEMBERS,
                gap=GAP,
                seconds=POINT_SECONDS,
                progress=lambda done, share: progress(done, FRONT_MEMBERS, f"{share:.0%} of costs"),
            )
        proven = zip(self.space.decode(front.genes), front.points, strict=True)
        self.proofs = tuple(
            ProofRow(digest=a.digest, value=point.value, **as_plain(asdict(point.proof)))
            for a, point in proven
        )
        stopped = sum(point.proof.status == "stopped" for point in front.points)
        late = f" The solver was stopped at {stopped} of them, whose gaps say what is open."
        self.note(
            f"The front is proven by an integer programme over all {self.space.size:.2g} "
            f"architectures: within the limits, nothing at the {metric_named(cost).title} of a "
            f"member or below has a score more than {front.gap:.2%} better "
            f"({len(front)} members, {front.seconds:.0f} s).{late if stopped else ''}"
        )
        return front.genes

    def optimum(
        self, problem: Problem, scores: SpaceScores, tables: Mapping[str, AdditiveTable]
    ) -> Genes:
        """Proven best row by DeepMAD's score within all limits, shape (1, genes)."""
        optimum = optimise(
            self.space,
            scores.paths,
            [c for c in problem.constraints if c.metric in tables],
            tables,
            effectiveness=self._effectiveness(scores),
            shape_rule=SHAPE in self.rules,
        )
        self.note(
            f"The score of {optimum.value:,.0f} is proven to be within {optimum.proof.gap:.2%} of "
            f"the largest that any of {self.space.size:.2g} architectures within the limits has "
            f"(one integer programme over the whole space, {optimum.proof.seconds:.0f} s)."
        )
        return optimum.genes[None]

    def _effectiveness(self, scores: SpaceScores) -> tuple[PathTables, float]:
        return scores.paths, self.config.search.max_effectiveness

    def _evaluations(
        self, genes: Genes, problem: Problem, score: Callable[[Genes], Values]
    ) -> list[Evaluation]:
        metrics = {**problem.cheap_metrics(genes), SCORE: score(genes)}
        metrics.pop(SHAPE, None)
        return [
            Evaluation.of(architecture, {name: values[i] for name, values in metrics.items()}, i)
            for i, architecture in enumerate(self.space.decode(genes))
        ]

    def baselines(
        self, front: Mapping[str, Evaluation], table: LatencyTable
    ) -> dict[str, Evaluation]:
        """Known designs up to twice as slow as what the search found.

        Where their latency is not known yet, up to twice the MACs: they are measured with the rest.
        """
        most = {m: 2 * max(e.metrics[m] for e in front.values()) for m in (MACS, LATENCY)}
        result = {}
        for name in known_names():
            architecture = known(name)
            metrics: dict[str, float] = dict(count_architecture(architecture, self.num_classes))
            try:
                metrics[LATENCY] = predict_network(table, architecture, self.num_classes)
            except NasError:  # the table was measured for the space alone
                if not self.target.at_hand:
                    continue
            with suppress(NasError):  # a user's table is of the space alone
                metrics |= total_costs(self.costs, architecture, self.num_classes)
            known_of = LATENCY if LATENCY in metrics else MACS
            if metrics[known_of] > most[known_of]:
                continue
            metrics[SCORE] = score_architecture(
                self.config.search.score, architecture, self.num_classes
            )
            result[name] = Evaluation.of(architecture, metrics)
        return result

    def best(self, finalists: Sequence[Evaluation]) -> tuple[Evaluation, str]:
        """The best finalist and why: by score, or by its ranks and those of expensive proxies."""
        if self.config.search.rerank < 2 or len(finalists) < 2:
            return finalists[0], (
                "the fastest of the front" if self.missed else "the best score within the budget"
            )
        names = f"{TRAINABILITY} and {COMPLEXITY}"
        scorer = TwoScorer(
            settings=ScoreSettings(seed=self.config.seed, repeats=3, device=self.compute)
        )
        scores = []
        with self.phase(f"ordering {len(finalists)} networks by {names}") as progress:
            for i, evaluation in enumerate(finalists):
                scores.append(scorer(Architecture.from_dict(evaluation.architecture)))
                progress(i + 1, len(finalists), evaluation.digest)
        ranks = rank_sums(scores) + np.arange(len(finalists))  # finalists are sorted by score
        return (
            finalists[int(np.argmin(ranks))],
            f"the smallest sum of ranks by score, {names} of the {len(finalists)} best by score",
        )

    @property
    def num_finalists(self) -> int:
        return max(1, self.config.search.rerank)

    def exported(
        self, evaluation: Evaluation, measured: Measured | None, table: LatencyTable, reason: str
    ) -> Chosen:
        """The chosen network with random weights, in every format."""
        measurements = {} if measured is None else measured.metrics
        latency = latency_text(evaluation.metrics, measurements, table)
        folder = self.path / EXPORT / evaluation.digest
        with self.phase("exporting"):
            exports = export_untrained(evaluation, folder, self.config, latency)
        return Chosen(
            digest=evaluation.digest,
            architecture=evaluation.architecture,
            predicted=evaluation.metrics,
            measured=measurements,
            exports=tuple(exports),
            reason=reason,
        )


def _even(values: Values, count: int) -> Genes:
    """Indices of at most ``count`` of ``values``, ascending and evenly spread over their range."""
    order = np.argsort(values)
    wanted = np.linspace(values.min(), values.max(), count)
    nearest = np.abs(values[order][:, None] - wanted).argmin(axis=0)
    return order[np.unique(nearest)]
