"""Searches that left a latency budget unused, and the network that would use it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable

from results.journal import Evaluation
from search import Objective
from search_space.metrics import LATENCY, format_metric, title_of
from search_space.units import format_latency

SHARE = 0.75  # of the budget; a front that ends before it leaves some idle


def idle_budget(
    evaluations: Iterable[Evaluation],
    front: Collection[Evaluation],
    quality: Objective,
    limit_ms: float,
    run: str,
) -> str | None:
    """A note that the front ends well below the limit, though slower networks were tried.

    Inherited weights favour small networks where a supernet was trained briefly: larger ones learn
    more of what remains to be learned when they are trained on. None where the front uses the
    budget, or nothing that would use it was evaluated.

    Args:
        evaluations: all that were made.
        front: of them, not empty.
        quality: the objective that tells networks apart.
        limit_ms: of the latency.
        run: folder of the run, for the command to give.
    """
    end = max(evaluation.metrics[LATENCY] for evaluation in front)
    slower = [
        evaluation
        for evaluation in evaluations
        if evaluation.status == "ok" and SHARE * limit_ms < evaluation.metrics[LATENCY] <= limit_ms
    ]
    if end > SHARE * limit_ms or not slower:
        return None

    def worth(evaluation: Evaluation) -> float:
        return quality.sign * evaluation.metrics[quality.metric]

    best, here = min(slower, key=worth), min(front, key=worth)

    def value(evaluation: Evaluation) -> str:
        return format_metric(quality.metric, evaluation.metrics[quality.metric])

    title = title_of(quality.metric)
    return (
        f"The front ends at {format_latency(end)} of {format_latency(limit_ms)}: of {len(slower)} "
        f"evaluated networks that use the budget, the best ({best.digest}, "
        f"{format_latency(best.metrics[LATENCY])}) has a validation {title} of {value(best)} "
        f"with inherited weights, the front's best {value(here)}. Larger networks often inherit "
        "less than they can learn: train the supernet longer (--epochs), or see what that one "
        f"reaches with `nas finetune {shlex.quote(run)} --networks {best.digest}`."
    )
