"""Successive halving: bad candidates are given up after a part of the images.

The candidates of a batch are all evaluated on a first part of the images, the better half of them
on a second as large, the better half of those on as many images as all before, and so on until
the last few have seen every image (Jamieson and Talwalkar 2016, within each batch). Better is
constrained non-dominated rank, then crowding distance, so that a batch keeps its spread over a
front. Who goes on depends on the batch alone, never on timing or on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.executors import Outcome
from search.history import Candidate
from search.problem import Problem
from search.samplers.ranking import best_first
from search_space.metrics import BALANCED_ACCURACY, IMAGES, metric_named


def of_all_parts(candidate: Candidate) -> Outcome:
    """All parts as one outcome: means over all images, and the seconds of all."""
    outcomes = candidate.outcomes
    seconds = sum(outcome.seconds for outcome in outcomes)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    metrics = {} if errors else _means(outcomes)
    return Outcome(candidate.index, metrics, seconds, errors[0] if errors else None)


def _means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over the images of some parts."""
    rows = [outcome.metrics for outcome in outcomes]
    images = np.array([row[IMAGES] for row in rows])
    means = {
        name: float(np.average([row[name] for row in rows], weights=images)) for name in rows[0]
    }
    return {**means, IMAGES: float(images.sum())}


def better_half(problem: Problem, running: Sequence[Candidate]) -> list[Candidate]:
    """The half that goes on, in the order given; the larger half of an odd number."""
    rows = [{**each.cheap, **_means(each.outcomes)} for each in running]
    names = set().union(*rows)
    columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    objectives = problem.objective_values(columns)
    order = best_first(objectives, problem.violation(columns))
    return [running[i] for i in sorted(order[: -(-len(running) // 2)])]


def expected(stopped: Candidate, finished: Sequence[Candidate]) -> Outcome:
    """The expected outcome of a stopped candidate on all images; IMAGES stays as many as it saw.

    Its own figures, moved by as much as those of the batch's ``finished`` moved on average from
    the same images to all of them: parts differ in how hard their images are, for all alike. No
    figure leaves what the images that were not seen could make of it: a mean of values between a
    metric's floor and ceiling, over all images, of which those that were seen are known. In the
    balanced accuracy images count by their classes' frequencies, so those that were not seen may
    add more than their share, and only the whole is at most 1.
    """
    outcome, parts = of_all_parts(stopped), len(stopped.outcomes)
    if not finished:
        return outcome
    metrics = dict(outcome.metrics)
    wholes = [_means(other.outcomes) for other in finished]
    parted = [_means(other.outcomes[:parts]) for other in finished]
    seen = metrics[IMAGES] / wholes[0][IMAGES]
    for name in metrics.keys() - {IMAGES}:
        metric, known = metric_named(name), metrics[name]
        low = -np.inf if metric.floor is None else seen * known + (1 - seen) * metric.floor
        high = np.inf if metric.ceiling is None else metric.ceiling
        if name != BALANCED_ACCURACY:
            high = seen * known + (1 - seen) * high
        moves = [whole[name] - part[name] for whole, part in zip(wholes, parted, strict=True)]
        moved = known + np.mean(moves)
        metrics[name] = float(np.clip(moved, low, high))
    return Outcome(outcome.ticket, metrics, outcome.seconds)
