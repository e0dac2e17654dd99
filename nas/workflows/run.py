"""Runs of every kind: their device, limits, latency table and problem, and how they measure.

Each phase of a run leaves its result in the run directory and finds it there when the run is
continued.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from nas.cli.console import Console, PhaseProgress
from nas.config import RunConfig
from nas.workflows.margins import lowered_by, promise
from nas.workflows.measuring import (
    Measured,
    check_networks,
    measure_twice,
    read_measured,
    speed_change,
    speed_note,
    to_json,
)
from nas.workflows.reporting import rebuild_report
from predictors.counts import counts
from predictors.devices import Target, find_device, latency_table, stored_target
from predictors.measuring.this_machine import local_device_names
from predictors.memory import peak_memory
from predictors.tables.additive import AdditiveTable, entries
from predictors.tables.cost_table import MAX_BYTES as COST_BYTES
from predictors.tables.cost_table import load_cost
from predictors.tables.folder import provenance
from predictors.tables.int8_gains import int8_warnings
from predictors.tables.latency_table import LatencyTable
from results.export.write import read_export
from results.files import atomic_write
from results.journal import Evaluation
from results.report.data import ReportData
from results.report.page import write_report
from results.store import EXPORT, RESULT, RunDirectory
from search import Constraint, Objective, Problem, check_feasible, feasible_range
from search.problem import Table
from search_space import Architecture, SearchSpace
from search_space.boundary import read_bytes
from search_space.errors import CorruptFileError, InfeasibleError, RunError
from search_space.metrics import LATENCY, MEMORY, TABLE, Metric, device_of, format_metric, metrics
from search_space.units import format_latency

Config = TypeVar("Config", bound=RunConfig)
LATENCY_TABLE = "latency.parquet"
MEASURED = "measured.json"


class Run(ABC, Generic[Config]):
    """A run in its directory; a kind of run adds its phases."""

    quality: Objective
    """Tells networks apart."""
    evaluated: tuple[str, ...]
    """Metrics that have no table."""

    def __init__(self, config: Config, directory: RunDirectory, console: Console) -> None:
        self.config, self.directory, self.console = config, directory, console
        self.path = directory.path
        self.space: SearchSpace = config.search_space()
        self.compute = "cuda" if torch.cuda.is_available() else "cpu"
        self.notes: list[str] = []
        self.missed = False  # whether no member of the front met the budget when measured

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Outputs of the classifier."""

    @property
    def num_finalists(self) -> int:
        """Front members that the last decision is between."""
        return 1

    @abstractmethod
    def all_phases(self) -> ReportData:
        """Make everything that is not there yet; returns the report's data."""

    def run(self) -> ReportData:
        """The report's data; a run that is complete is only read."""
        done = self.complete()
        return self.all_phases() if done is None else done

    def complete(self) -> ReportData | None:
        """A complete run's report; None where something is left to make, or is damaged."""
        if self.directory.manifest.get("status") != "complete":
            return None
        try:
            data = rebuild_report(self.path)
            if data.chosen is not None:
                read_export(self.path / EXPORT / data.chosen.digest)
        except (CorruptFileError, RunError) as error:
            self.console.warn(f"{error} What is missing is made again.")
            return None
        self.console.say("this run is complete; its report was written again")
        return data

    @cached_property
    def target(self) -> Target:
        """The device that is searched for."""
        return self._target(self.config.device, **self.config.latency.conditions())

    @cached_property
    def others(self) -> dict[str, Target]:
        """Further devices whose latency is limited, by metric."""
        batch_size = self.target.conditions.batch_size
        return {
            metric: self._target(device, batch_size=batch_size)
            for metric in dict.fromkeys(
                [*self.limits, *self.config.lower_limits(), *self.config.minimised()]
            )
            if (device := device_of(metric)) is not None
        }

    def _target(self, device: str, **conditions: Any) -> Target:
        """A device; a continued run goes on under the conditions of its own table.

        Tables that have come or gone since do not matter to it.
        """
        file = self._table_file(device)
        if file.exists():
            with suppress(CorruptFileError):  # reported, and measured again, where it is needed
                return stored_target(device, LatencyTable.load(file))
        return find_device(device, **conditions)

    def _table_file(self, device: str) -> Path:
        name = LATENCY_TABLE if device == self.config.device else f"latency-{device}.parquet"
        return self.path / name

    @cached_property
    def limits(self) -> dict[str, float]:
        """Upper limits by metric name, without the margin."""
        return self.config.limits(self.target.conditions.batch_size)

    def margin(self, target: Target, table: LatencyTable) -> float:
        """Share of a latency budget that the search leaves free."""
        if self.config.latency.margin is not None:
            return self.config.latency.margin
        if target.at_hand or target.name in local_device_names():
            return 0.0
        slowdown = table.slowdown(self.space, self.config.latency.confidence)
        return min(0.9, max(0.0, 1 - 1 / slowdown))

    def latency_table(self, target: Target | None = None) -> LatencyTable:
        """The run's own table of a device: a continued run predicts what it predicted before."""
        target = target or self.target
        file = self._table_file(target.name)
        if file.exists():
            try:
                return LatencyTable.load(file)
            except CorruptFileError as error:
                self.console.warn(f"{error} The table is measured again.")
        with self.phase(f"latency table of {target.name}") as progress:
            table = latency_table(
                target,
                self.space,
                self.num_classes,
                interpolate=self.config.latency.interpolate,
                seed=self.config.seed,
                progress=progress.rounds,
            )
        asked = entries(self.space, self.num_classes)
        for warning in (*table.correction(self.space).warnings, *int8_warnings(table, asked)):
            self.console.warn(warning)
        self.console.say(
            f"  {provenance(table)}; 10-90 % of networks take "
            f"{table.slowdown(self.space, 0.1):.2f} to {table.slowdown(self.space, 0.9):.2f} times "
            "what is predicted"
        )
        table.save(file)
        return table

    @cached_property
    def rules(self) -> dict[str, Table]:
        """Further cheap metrics that must be 0, and can be, by name."""
        return {}

    @cached_property
    def costs(self) -> list[Metric]:
        """Metrics that are sums over components: registered ones, and the user's own tables.

        The run keeps a copy of a table, so that it continues with the costs that it began with.
        """
        costs = [m for m in metrics(TABLE) if m.cost is not None]
        for option, file in self.config.costs.items():
            copy = self.path / f"cost-{option}.parquet"
            if not copy.exists():
                atomic_write(copy, read_bytes(Path(file), COST_BYTES))
            costs.append(load_cost(option, copy))
        return costs

    @cached_property
    def cost_tables(self) -> dict[str, Table]:
        """Tables of ``costs`` by name.

        Raises:
            CorruptFileError: A table of the user's lacks a component of the space.
        """
        return {
            metric.name: AdditiveTable.build(self.space, self.num_classes, metric.cost)
            for metric in self.costs
            if metric.cost is not None
        }

    def problem(self, table: LatencyTable) -> Problem:
        """The search problem; what cannot be met is refused before anything is trained.

        Raises:
            InfeasibleError: No architecture of the space meets the limits.
        """
        latencies = {LATENCY: table}
        latencies |= {metric: self.latency_table(t) for metric, t in self.others.items()}
        tables: dict[str, Table] = {
            **{
                m: latency.compile(self.space, self.num_classes) for m, latency in latencies.items()
            },
            **counts(self.space, self.num_classes),
            **self.rules,
            **self.cost_tables,
        }
        upper, lower = self.limits, self.config.lower_limits()
        minimised = self.config.minimised()
        if MEMORY in (*upper, *lower, *minimised):
            conditions = self.target.conditions
            tables[MEMORY] = peak_memory(
                self.space,
                self.num_classes,
                batch_size=conditions.batch_size,
                precision=conditions.precision,
            )
        limits = [
            Constraint(metric, maximum=upper.get(metric), minimum=lower.get(metric))
            for metric in dict.fromkeys([*upper, *lower])
        ]
        limits = [
            self._with_margin(limit, latencies[limit.metric])
            if limit.metric in latencies
            else limit
            for limit in limits
        ]
        problem = Problem(
            self.space,
            (self.quality, *map(Objective.on, minimised)),
            (*limits, *(Constraint(rule, maximum=0.0) for rule in self.rules)),
            tables,
            evaluated=self.evaluated,
        )
        latency = tables[LATENCY]
        low = latency.predict(latency.argmin()[None])[0]
        high = latency.predict(latency.argmax()[None])[0]
        self.console.say(
            f"  {self.space.name}: {self.space.size:.2g} architectures from {format_latency(low)} "
            f"to {format_latency(high)} on {self.config.device}"
        )
        for offered in feasible_range(problem, np.random.default_rng(self.config.seed)).values():
            metric = offered.constraint.metric
            if metric not in self.rules:
                self.console.say(
                    f"  {offered.constraint}: the space has "
                    f"{format_metric(metric, offered.smallest)} to "
                    f"{format_metric(metric, offered.largest)}, and {offered.share:.1%} of random "
                    "architectures meet it"
                )
        try:
            check_feasible(problem)
        except InfeasibleError as error:
            named = {
                device_of(limit.metric) or self.config.device: limit.margin
                for limit in limits
                if limit.margin
            }
            if not named:
                raise
            raise InfeasibleError(f"{error} {lowered_by(named)}") from None
        return problem

    def _with_margin(self, limit: Constraint, table: LatencyTable) -> Constraint:
        """A limit of latency as the search keeps it, with a note; a band moves as a whole."""
        target = self.others.get(limit.metric, self.target)
        share = self.margin(target, table)
        if not share or limit.maximum is None:
            return limit
        lowered = limit.lowered(share)
        least, most = (table.slowdown(self.space, quantile) for quantile in (0.1, 0.9))
        self.note(
            f"Latencies of {target.name} are {provenance(table)}; four in five networks take "
            f"{least:.2f} to {most:.2f} times what is predicted. "
            f"{promise(limit, lowered, share, self.config.latency)}"
        )
        return lowered

    def measured(
        self, front: Sequence[Evaluation], others: Sequence[Evaluation], table: LatencyTable
    ) -> dict[str, Measured]:
        """Networks of the front and others measured twice on the device; kept in the run.

        With them those that were measured with the table, which tell how its speed changed.
        """
        if not self.target.at_hand:
            if self.config.device in local_device_names():
                self.console.warn(
                    "this machine, or what is installed on it, is not what the latency table was "
                    "measured on; networks are not measured again."
                )
            return {}
        by_digest = {
            e.digest: Architecture.from_dict(e.architecture) for e in (*front, *others)
        } | check_networks(table, self.space)
        result = self._measured(by_digest)
        change = speed_change(table, self.space, result)
        note = None if change is None else speed_note(change, front, result)
        if note is not None:
            self.console.warn(note)
            self.notes.append(note)
        return result

    def _measured(self, by_digest: Mapping[str, Architecture]) -> dict[str, Measured]:
        """Measurements of these networks: those of an earlier start where it has all of them."""
        file = self.path / MEASURED
        try:
            stored = read_measured(file)
        except CorruptFileError as error:
            self.console.warn(f"{error} The networks are measured again.")
            stored = {}
        if stored.keys() >= by_digest.keys():
            return stored
        with self.phase(f"measuring {len(by_digest)} networks on the device") as progress:
            result = measure_twice(
                by_digest, self.num_classes, self.target.conditions, self.config.seed, progress
            )
        for warning in sorted({w for m in result.values() for w in m.second.warnings}):
            self.console.warn(warning)
        self.directory.write_json(MEASURED, to_json(result))
        return result

    def finalists(
        self, front: Mapping[str, Evaluation], measured: Mapping[str, Measured]
    ) -> list[Evaluation]:
        """The best front members that meet the budget when measured, best first."""
        target = self.limits.get(LATENCY, math.inf)

        def latency(evaluation: Evaluation) -> float:
            if evaluation.digest not in measured:  # no such device here
                return evaluation.metrics[LATENCY]
            return measured[evaluation.digest].metrics[LATENCY]

        within = [evaluation for evaluation in front.values() if latency(evaluation) <= target]
        if within:
            metric, sign = self.quality.metric, self.quality.sign
            within.sort(key=lambda e: (sign * e.metrics[metric], latency(e)))
            return within[: self.num_finalists]
        fastest = min(front.values(), key=latency)
        message = (
            "No member of the front met the budget when measured; the fastest was taken, at "
            f"{format_latency(latency(fastest))}."
        )
        self.console.warn(
            f"{message} The machine may be busier than when its table was measured: run "
            "`nas profile --fresh` and search again, or ask for less."
        )
        self.notes.append(message)
        self.missed = True
        return [fastest]

    def note(self, text: str) -> None:
        """Say a sentence now, and in the report among what a reader must know."""
        self.console.say(f"  {text}")
        self.notes.append(text)

    @contextmanager
    def phase(self, name: str) -> Iterator[PhaseProgress]:
        """A phase that people see and the manifest remembers."""
        with self.directory.phase(name), self.console.phase(name) as progress:
            yield progress

    def finish(self, data: ReportData) -> ReportData:
        """Write result and report, and close the run."""
        self.directory.write_json(RESULT, data.to_dict())
        with self.phase("report"):
            write_report(self.path, data)
        self.directory.update_manifest(
            status="complete", finished=datetime.now(UTC).isoformat(timespec="seconds")
        )
        return data
