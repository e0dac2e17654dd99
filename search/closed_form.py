"""Fronts of problems where every metric is a closed form: evolution at NumPy's speed.

Constrained NSGA-II (Deb et al. 2002) with large populations, and an archive of everything that
was ever non-dominated. A generation costs and scores thousands of architectures at once; there is
nothing to keep in a journal, since the same seed finds the same front again in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from results.pareto import non_dominated
from search.feasibility import diverse_sample, extreme_rows, repair, unique_rows
from search.problem import Problem, Values
from search.samplers.archive import Judged
from search.samplers.evolution import evolve
from search_space.stage_space import Genes


@dataclass(frozen=True)
class ScoredFront:
    """The result of a closed-form search.

    Args:
        genes: of the non-dominated feasible architectures, shape (n, genes), sorted by the last
            objective, best first.
        objectives: minimised, shape (n, objectives).
        num_seen: architectures that were costed and scored.
        sample: some of the feasible ones that were seen, evenly over the search, for pictures.
    """

    genes: Genes
    objectives: Values
    num_seen: int
    sample: Genes


def scored_front(
    problem: Problem,
    score: Callable[[Genes], Values],
    metric: str = "score",
    *,
    seed: int = 0,
    population: int = 512,
    generations: int = 150,
    start: Genes | None = None,
    sample: int = 400,
    progress: Callable[[int, int, Values], None] | None = None,
) -> ScoredFront:
    """Search a problem whose only evaluated metric is the closed form ``score``.

    Args:
        problem: with tables for all other metrics; has at least one feasible architecture.
        score: rows of shape (n, genes) to (n,); NaN for what may not be chosen.
        population: survivors of a generation, which has as many children.
        start: rows that join the first population, shape (k, genes).
        sample: how many feasible rows to remember for pictures.
        progress: called with generation, generations and the best objectives so far.
    """
    rng = np.random.default_rng(seed)
    rows = np.concatenate([diverse_sample(problem, rng, 4 * population), extreme_rows(problem)])
    rows, _ = repair(problem, rows, rng, wanted=population)
    if start is not None:
        rows = unique_rows(np.concatenate([start, rows]))
    archive, shown, seen = Judged.nothing(problem), rows[:0], 0

    def judge(genes: Genes) -> tuple[Values, Values]:
        metrics = {**problem.cheap_metrics(genes), metric: score(genes)}
        return problem.objective_values(metrics), problem.violation(metrics)

    per_generation = -(-sample // generations)
    run = evolve(problem, rows, judge, rng, size=population, generations=generations)
    for number, (generation, known) in enumerate(run, 1):
        fresh = generation[known:]
        seen += len(fresh)
        scored = ~np.isnan(fresh.objectives).any(axis=1)
        feasible = fresh[(fresh.violations <= 0) & scored]
        archive += feasible
        archive = archive[non_dominated(archive.objectives)]
        shown = np.concatenate([shown, feasible.genes[:per_generation]])
        if progress is not None and len(archive):
            progress(number, generations, archive.objectives.min(axis=0))
    order = np.argsort(archive.objectives[:, -1], kind="stable")
    unique = unique_rows(archive.genes[order])
    objectives, _ = judge(unique)
    return ScoredFront(unique, objectives, seen, unique_rows(shown))
