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
from search.samplers.ranking import constrained_ranks, crowding_distance
from search_space.space import Genes

CROSSOVER_SHARE = 0.5


@dataclass(frozen=True)
class ScoredFront:
    """What a closed-form search found.

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
        metric: its name in the problem.
        seed: of everything random.
        population: survivors of a generation, which has as many children.
        generations: how many.
        start: rows that join the first population, shape (k, genes).
        sample: how many feasible rows to remember for pictures.
        progress: called with generation, generations and the best objectives so far.
    """
    rng = np.random.default_rng(seed)
    mutation_rate = max(0.05, 2 / problem.space.num_genes)
    rows = np.concatenate([diverse_sample(problem, rng, 4 * population), extreme_rows(problem)])
    rows, _ = repair(problem, rows, rng, wanted=population)
    if start is not None:
        rows = unique_rows(np.concatenate([start, rows]))
    archive, archived = rows[:0], np.zeros((0, len(problem.objectives)))
    shown, seen = rows[:0], 0

    def judge(genes: Genes) -> tuple[Values, Values]:
        metrics = {**problem.cheap_metrics(genes), metric: score(genes)}
        return problem.objective_values(metrics), problem.violation(metrics)

    objectives, violations = judge(rows)
    fresh = np.arange(len(rows))
    for generation in range(generations):
        seen += len(fresh)
        scored = ~np.isnan(objectives[fresh]).any(axis=1)
        feasible = fresh[(violations[fresh] <= 0) & scored]
        archive = np.concatenate([archive, rows[feasible]])
        archived = np.concatenate([archived, objectives[feasible]])
        keep = non_dominated(archived)
        archive, archived = archive[keep], archived[keep]
        per_generation = -(-sample // generations)
        shown = np.concatenate([shown, rows[feasible[:per_generation]]])
        if progress is not None and len(archived):
            progress(generation + 1, generations, archived.min(axis=0))
        if generation + 1 == generations:
            break
        ranks = constrained_ranks(objectives, violations)
        crowding = crowding_distance(objectives, ranks)
        best = np.lexsort((-crowding, ranks))[:population]
        rows, objectives, violations = rows[best], objectives[best], violations[best]
        # survivors are sorted: the smaller of two positions wins a tournament
        parents = rng.integers(len(rows), size=(2, 2, population)).min(axis=1)
        crossed = rng.random(population) < CROSSOVER_SHARE
        children = np.where(
            crossed[:, None],
            problem.space.crossover(rows[parents[0]], rows[parents[1]], rng),
            rows[parents[0]],
        )
        mutated = ~crossed | (rng.random(population) < 0.5)
        changed = problem.space.mutate(children, rng, mutation_rate)
        children = np.where(mutated[:, None], changed, children)
        known = len(rows)
        together = unique_rows(np.concatenate([rows, children]))
        children = together[known:]  # survivors are distinct and come first
        child_objectives, child_violations = judge(children)
        rows = np.concatenate([rows, children])
        objectives = np.concatenate([objectives, child_objectives])
        violations = np.concatenate([violations, child_violations])
        fresh = np.arange(known, len(rows))
    order = np.argsort(archived[:, -1], kind="stable")
    unique = unique_rows(archive[order])
    objectives, _ = judge(unique)
    return ScoredFront(unique, objectives, seen, unique_rows(shown))
