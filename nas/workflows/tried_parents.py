"""What a run knows of the networks that it tried as its parent, and which of them is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from results.report.inheritance import TriedParent
from search_space.boundary import read_model
from search_space.metrics import LATENCY, MACS, PARAMS, format_metric

PARENTS = "parents"  # folder of a run: a file for each parent that was tried
TRYING, FINDING, MEASURING = "trying parents", "parents of the zoo", "measuring the parents"
FIX = "Delete it and continue the run."


def read_tried(run: Path) -> tuple[TriedParent, ...]:
    """Parents that a run tried, in their order; raises CorruptFileError."""
    files = sorted((run / PARENTS).glob("[0-9]*.json"))
    return tuple(read_model(file, TriedParent, fix=FIX) for file in files)


def choose(tried: Sequence[TriedParent]) -> tuple[TriedParent, str]:
    """Chooses the parent to keep, and says why.

    Of those within one standard error of the best accuracy it is the fastest, of which the least
    must be taken away (the rule of Breiman et al., 1984, for models of different size).
    """
    best = max(tried, key=lambda one: (accuracy_of(one), -(one.loss or 0.0)))
    share = accuracy_of(best)
    error = math.sqrt(share * (1 - share) / max(1, best.images))
    close = [one for one in tried if accuracy_of(one) >= share - error]
    timed = all(one.latency_ms is not None for one in close)
    kept = min(close, key=lambda one: (one.latency_ms if timed else one.macs, -accuracy_of(one)))
    if len(close) == 1:
        return kept, f"the best of {len(tried)} on {best.images:,} validation images"
    return kept, (
        f"the {'fastest' if timed else 'smallest'} of the {len(close)} that are within a standard "
        f"error ({100 * error:.1f} points) of the best accuracy on {best.images:,} validation "
        "images"
    )


def accuracy_of(one: TriedParent) -> float:
    """The accuracy of one that was tried, 0..1."""
    assert one.accuracy is not None
    return one.accuracy


def tried_lines(tried: Sequence[TriedParent]) -> Iterator[str]:
    """A line for each network that was tried as the parent."""
    for one in tried:
        latency = "" if one.latency_ms is None else f" at {format_metric(LATENCY, one.latency_ms)}"
        costs = f"{format_metric(MACS, one.macs)} MACs, {format_metric(PARAMS, one.num_params)}"
        yield f"{one.name}: {accuracy_of(one):.1%}{latency} ({costs} parameters)"
