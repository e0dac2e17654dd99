"""Profiling: measures what a space needs and a table lacks, and fits its correction.

Entries and whole check networks are timed in the same rounds (see ``bench``), which go on until the
check networks' halves agree and the sum of the entries stands still. Samples are saved every few
seconds, so a killed profile continues where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from predictors.counts import count_entry
from predictors.measuring.bench import (
    Bench,
    Limits,
    Progress,
    WeightPool,
    network_subject,
    run_rounds,
    split_half_disagreement,
    statistic,
)
from predictors.measuring.entry_plan import EntryPlan, first_portion
from predictors.measuring.runner import stable
from predictors.measuring.this_machine import local_conditions
from predictors.tables.conditions import Conditions
from predictors.tables.correction import CheckNetwork, Correction, NotNegative, correction_of
from predictors.tables.folder import cached_table, table_path, writable
from predictors.tables.latency_table import SCHEMA_VERSION, EntryLatency, LatencyTable
from predictors.tables.parquet import read_parquet, write_parquet
from search_space import Architecture, SearchSpace, components
from search_space.boundary import parse_model
from search_space.errors import CorruptFileError

log = logging.getLogger(__name__)

NUM_CHECKS = 12
SAVE_SECONDS = 10.0
_PARTIAL_KEY = b"nas.latency_samples"
_PARTIAL_SCHEMA = pa.schema([("subject", pa.string()), ("samples_ms", pa.list_(pa.float64()))])


def check_architectures(space: SearchSpace) -> list[Architecture]:
    """Chooses the networks that a correction is fitted on: both extremes and random ones."""
    rng = np.random.default_rng(int(space.digest, 16))
    drawn = space.decode(space.sample(rng, NUM_CHECKS - 2))
    return list(dict.fromkeys([space.smallest, space.largest, *drawn]))


def profile(
    space: SearchSpace,
    num_classes: int = 1000,
    conditions: Conditions | None = None,
    cache_dir: Path | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    limits: Limits | None = None,
    fresh: bool = False,
) -> LatencyTable:
    """Measures a latency table that can ``compile(space, num_classes)``, and saves it.

    What is on disk for these conditions is used, only the rest is measured. Where the runtime
    keeps memory for each entry there are portions that fit, one after the other.

    Args:
        space: The space whose entries are needed.
        num_classes: Classes of the head.
        conditions: What is measured under, by default this machine's CPU in eager execution.
        cache_dir: Folder of tables, by default ``cache_folder()``.
        seed: Seed of the order of visits.
        progress: Called after each round; while the runtime compiles or loads 0 rounds are done,
            and the seconds are what is left of that.
        limits: Rounds and seconds of a portion.
        fresh: Whether everything is measured anew; what is on disk stays until that is done.

    Raises:
        UnknownNameError: ``conditions`` are another machine's.
        CorruptFileError: The table on disk cannot be used.
        UsageError: The runtime cannot be used here.
    """
    conditions = local_conditions() if conditions is None else conditions
    table = cached_table(conditions, cache_dir)
    if fresh:
        table = LatencyTable(conditions, {}, {}, name=table.name)
    elif table.complete(space, num_classes):
        return table
    path = table_path(conditions, cache_dir)
    writable(path.parent)
    limits = limits or Limits()
    session = _Session(table, space, num_classes, path, limits)
    if fresh:
        session.partial.unlink(missing_ok=True)
    while True:
        session.run(seed, progress)
        # another process may have written meanwhile: what is on disk stays
        table = session.extend(table if fresh else cached_table(conditions, cache_dir))
        complete = table.complete(space, num_classes)
        if complete or not fresh:
            table.save(path)
        session.partial.unlink(missing_ok=True)
        if complete:
            return table
        session.go_on(table)


class _Stated(BaseModel):
    """Metadata of the file of an interrupted session."""

    conditions_digest: str
    seconds: NotNegative


class _Session:
    """One measurement of a table's missing entries beside the check networks of a space."""

    def __init__(
        self, table: LatencyTable, space: SearchSpace, num_classes: int, path: Path, limits: Limits
    ) -> None:
        self.table, self.space, self.num_classes, self.limits = table, space, num_classes, limits
        self.checks = check_architectures(space)
        self.partial = path.with_suffix(f".{space.digest}-{num_classes}.partial.parquet")
        self.level: dict[str, float] = {}  # milliseconds of the check networks, by digest
        self.seconds = 0.0
        self.stopped = "converged"
        self.warnings: list[str] = []
        self.go_on(table)

    def go_on(self, table: LatencyTable) -> None:
        """Turns to what ``table`` lacks, or as much of it as may be loaded at once."""
        missing = table.missing(self.space, self.num_classes)
        for spec, in_size in missing:  # a module that is not what it declares is found here
            count_entry(spec, in_size)
        self.table, self.missing = table, first_portion(missing, table.conditions)
        self.plan = EntryPlan(self.missing, table.conditions)

    def run(self, seed: int, progress: Progress | None) -> None:
        conditions = self.table.conditions
        pool = WeightPool(conditions)
        subjects = self.plan.subjects(pool)
        subjects += [network_subject(a, self.num_classes, conditions, pool) for a in self.checks]
        self.bench = bench = Bench(subjects, conditions, seed)
        names = [*self.plan.names(), *(f"network {a.digest}" for a in self.checks)]
        if earlier := _load_partial(self.partial, names, conditions):
            bench.samples, bench.seconds = earlier
        saved = time.monotonic()

        def preparing(done: int, total: int, eta_s: float) -> None:
            nonlocal saved
            slow = self.plan.runtime.name != "eager" and time.monotonic() - saved > 1
            if progress is not None and slow:
                saved = time.monotonic()
                progress(0, self.limits.max_rounds, eta_s)

        def save() -> None:
            whole = [samples[: bench.rounds] for samples in bench.samples]
            metadata = {
                "schema_version": SCHEMA_VERSION,
                "conditions_digest": conditions.digest,
                "seconds": bench.seconds,
            }
            rows = pa.table({"subject": names, "samples_ms": whole}, schema=_PARTIAL_SCHEMA)
            write_parquet(self.partial, rows, _PARTIAL_KEY, metadata)

        def after_round(done: int, total: int, eta_s: float) -> None:
            nonlocal saved
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
            if progress is not None:
                progress(done, total, eta_s)

        def stands(bench: Bench) -> bool:
            return stable(bench.samples, len(self.checks))

        try:
            stopped = run_rounds(bench, self.limits, stands, after_round, preparing)
        except KeyboardInterrupt:
            if bench.rounds:
                save()
            raise
        self.seconds += bench.seconds
        self.stopped = stopped if self.stopped == "converged" else self.stopped
        self.warnings += bench.warnings

    def _split(self, samples: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
        """Parts the samples of the plan's subjects from those of the check networks."""
        return samples[: len(self.plan)], samples[len(self.plan) :]

    def extend(self, table: LatencyTable) -> LatencyTable:
        """Returns ``table`` with this session's entries and, once it has all, a correction.

        Entries are brought to the level of the session that the correction was fitted in, or of the
        first portion, by the ratio of what the check networks took then and now.
        """
        entries_part, checks_part = self._split(self.bench.samples)
        checked = {a.digest: statistic(s) for a, s in zip(self.checks, checks_part, strict=True)}
        known = table.corrections.get(self.space.digest)
        if known is not None:
            self.level = {check.digest: check.measured_ms for check in known.checks}
        self.level = self.level or checked
        drift = float(np.median([then / checked[digest] for digest, then in self.level.items()]))
        measured = {}
        latencies = self.plan.latencies(entries_part)
        for entry, samples in zip(self.missing, latencies, strict=True):
            scaled = [drift * sample for sample in samples]
            measured[entry] = EntryLatency.of(scaled, statistic(scaled))
        table = table.with_session(measured)
        if known is not None or table.missing(self.space, self.num_classes):
            return table
        return table.with_session({}, {self.space.digest: self._correct(table, checks_part)})

    def _correct(self, table: LatencyTable, checks_part: Sequence[list[float]]) -> Correction:
        checks = []
        for architecture, samples in zip(self.checks, checks_part, strict=True):
            chain = components(architecture, self.num_classes)
            total = sum(table.entries[part.spec, part.in_size].latency_ms for part in chain)
            digest = architecture.digest
            checks.append(CheckNetwork(digest, total, self.level[digest], len(samples)))
        return correction_of(
            self.space.name,
            checks,
            halves=max(map(split_half_disagreement, checks_part)),
            rounds=self.bench.rounds,
            seconds=self.seconds,
            stopped=self.stopped,
            warnings=self.warnings,
        )


def _load_partial(
    path: Path, names: list[str], conditions: Conditions
) -> tuple[list[list[float]], float] | None:
    """Loads samples and seconds of an interrupted session with the same subjects, if any."""
    if not path.exists():
        return None
    try:
        rows, metadata = read_parquet(path, _PARTIAL_KEY, _PARTIAL_SCHEMA, SCHEMA_VERSION)
        samples = [row["samples_ms"] for row in rows]
        stated = parse_model(metadata, _Stated, path)
        digest = stated.conditions_digest
        if [row["subject"] for row in rows] != names or digest != conditions.digest:
            raise CorruptFileError(f"{path} belongs to another session.")
        counts = {len(values) for values in samples}
        values = np.array(samples, dtype=np.float64)
        if len(counts) != 1 or not (np.isfinite(values).all() and (values > 0).all()):
            raise CorruptFileError(f"{path} does not hold complete samples.")
        return samples, stated.seconds
    except (CorruptFileError, TypeError, ValueError) as error:
        log.warning("An interrupted profile is left out: %s It starts over.", error)
        return None
