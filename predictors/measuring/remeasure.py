"""Measurements of whole networks, interleaved as entries are: predictions are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from predictors.measuring.bench import (
    SPLIT_HALF_LIMIT,
    Bench,
    Limits,
    Progress,
    Subject,
    WeightPool,
    network_subject,
    run_rounds,
    split_half_disagreement,
    statistic,
)
from predictors.measuring.this_machine import local_conditions
from predictors.tables.conditions import Conditions
from predictors.tables.correction import NotNegative, Positive
from search_space import Architecture

_AGREE = 0.02


@dataclass(frozen=True)
class Measurement:
    """Measured latency of a network: 25th, 10th and 90th percentile of its runs, milliseconds.

    ``split_half_disagreement`` is the relative difference between both halves of the runs;
    ``warnings`` say what may have spoilt this measurement or those made together with it.
    """

    latency_ms: Positive
    low_ms: Positive
    high_ms: Positive
    runs: int
    split_half_disagreement: NotNegative
    warnings: tuple[str, ...] = ()


def measure_networks(
    architectures: Sequence[Architecture],
    num_classes: int = 1000,
    conditions: Conditions | None = None,
    *,
    seed: int = 0,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measures the latency of each network on this machine, in the order given.

    ``conditions`` are by default those of this machine's CPU in eager execution.

    Raises:
        UnknownNameError: ``conditions`` are another machine's.
        UsageError: Their runtime cannot be used here.
    """
    conditions = local_conditions() if conditions is None else conditions
    pool = WeightPool(conditions)
    subjects = [network_subject(a, num_classes, conditions, pool) for a in architectures]
    return measure_subjects(subjects, conditions, seed=seed, limits=limits, progress=progress)


def measure_subjects(
    subjects: Sequence[Subject],
    conditions: Conditions,
    *,
    seed: int = 0,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measures whole networks that are built already, in the order given.

    Raises:
        UsageError: The runtime of ``conditions`` cannot run one of them.
    """
    if not subjects:
        return []
    limits = limits or Limits(min_seconds=5.0)
    bench = Bench(subjects, conditions, seed)

    def stable(bench: Bench) -> bool:
        return max(map(split_half_disagreement, bench.samples)) <= _AGREE

    run_rounds(bench, limits, stable, progress)
    halves = [split_half_disagreement(samples) for samples in bench.samples]
    notes = bench.warnings
    drifted = [half for half in halves if half > SPLIT_HALF_LIMIT]
    if drifted:
        notes.append(
            f"the first and second half of the runs differ by up to {max(drifted):.0%} for "
            f"{len(drifted)} of {len(halves)} networks: the machine's speed changed during the "
            "measurement."
        )
    spreads = [np.percentile(samples, [10, 90]).tolist() for samples in bench.samples]
    return [
        Measurement(statistic(samples), low, high, len(samples), half, tuple(notes))
        for samples, (low, high), half in zip(bench.samples, spreads, halves, strict=True)
    ]


def measure_network(
    architecture: Architecture, num_classes: int = 1000, conditions: Conditions | None = None
) -> Measurement:
    """Measures the latency of one network on this machine; see ``measure_networks``."""
    return measure_networks([architecture], num_classes, conditions)[0]
