"""Latency tables of unavailable GPUs: estimated, and labelled as such.

    estimate(estimated_conditions("a100", runtime="eager"), space, 1000)

The model of ``model.py`` with the device's own scalar where figures were published, or, where a
table of another GPU was measured, that table times the ratio of models (``transfer``). Every
estimate comes with the range in which four in five measured latencies of figures lay that the fit
did not see.
"""

from __future__ import annotations

from collections.abc import Sequence

from predictors.estimates.anchors import expected_range, scalar
from predictors.estimates.datasheets import datasheet, datasheet_of
from predictors.estimates.kernels import Demand
from predictors.estimates.model import Range, constants_of
from predictors.estimates.transfer import entry_kind, target_sheet, transfer
from predictors.measuring.runtimes import runtime_names
from predictors.measuring.this_machine import implementation_digest
from predictors.operators import Operator, operators
from predictors.tables.additive import Entry, entries
from predictors.tables.conditions import ESTIMATED, Conditions
from predictors.tables.correction import Correction
from predictors.tables.latency_table import EntryLatency, LatencyTable
from search_space import SearchSpace
from search_space.errors import UnknownNameError

ESTIMATED_RUNTIMES = ("eager", "cudagraph", "inductor", "tensorrt")
"""The runtimes of GPUs as a rule; there are no published figures of others."""


def estimated_conditions(
    name: str, *, batch_size: int = 1, precision: str = "fp16", runtime: str = "cudagraph"
) -> Conditions:
    """Makes the conditions of an estimate for the device ``name``.

    Raises:
        UnknownNameError: There is no such datasheet, runtime or precision.
        UsageError: The device does not compute in the precision.
    """
    sheet = datasheet(name)
    if runtime not in runtime_names():
        raise UnknownNameError("runtime", runtime, runtime_names())
    conditions = Conditions(
        device=sheet.identity,
        runtime=runtime,
        precision=precision,
        batch_size=batch_size,
        threads=1,
        runtime_version="datasheet",
        implementation=implementation_digest(),
        protocol=ESTIMATED,
    )
    sheet.number_format(precision, runtime)
    return conditions


def range_of(conditions: Conditions) -> Range:
    """Finds how measured latencies will lie around estimates under ``conditions``."""
    sheet = target_sheet(conditions)
    number_format = sheet.number_format(conditions.precision, conditions.runtime)
    return expected_range(sheet, conditions.runtime, number_format, conditions.batch_size)


def estimate(
    conditions: Conditions,
    space: SearchSpace,
    num_classes: int = 1000,
    *,
    measured: LatencyTable | None = None,
) -> LatencyTable:
    """Estimates all entries of ``space`` under ``conditions``, which ``estimated_conditions`` made.

    A table that was ``measured`` on a GPU with a datasheet is transferred where its runtime,
    precision and batch size are these.

    Raises:
        UnknownNameError: The device has no datasheet.
    """
    sheet = target_sheet(conditions)
    if measured is not None and not measured.conditions.differences(conditions):
        source = datasheet_of(measured.conditions.device)
        if source is not None:
            return transfer(measured, source, conditions, space, num_classes)
    found = range_of(conditions)
    how = (
        "by a model of kernels from a datasheet; of networks like these, four in five measured "
        f"{found.quantile(0.1) / found.median:.2f} to {found.quantile(0.9) / found.median:.2f} "
        f"times the estimate (found by {found.reason})."
    )
    if not found.promised:
        how += (
            " Nothing can be promised of eager execution at batch 1, where the host is timed: "
            "take --runtime cudagraph or tensorrt."
        )
    correction = Correction.estimated(space.name, found.error, how, ratios=found.ratios)
    estimates = {entry: estimate_entry(conditions, entry) for entry in entries(space, num_classes)}
    return LatencyTable(conditions, estimates, {space.digest: correction}, name=sheet.name)


def estimate_entry(conditions: Conditions, entry: Entry) -> EntryLatency:
    """Estimates the median of one entry, with the range of four in five."""
    launched = operators(*entry, conditions.batch_size, conditions.precision)
    mixer = entry_kind(entry[0]) if entry[0].kind == "block" else None
    return estimate_operators(conditions, launched, mixer)


def estimate_operators(
    conditions: Conditions, launched: Sequence[Operator], mixer: str | None = None
) -> EntryLatency:
    """Estimates the median of what any module launches, with the range of four in five.

    Args:
        conditions: From ``estimated_conditions``.
        launched: From ``operators`` or ``trace``, in the batch size and precision of
            ``conditions``.
        mixer: Kind of mixer whose published figures count before the device's others.
    """
    sheet, found = target_sheet(conditions), range_of(conditions)
    number_format = sheet.number_format(conditions.precision, conditions.runtime)
    demand = Demand.of(launched, sheet, number_format)
    value = constants_of(conditions.runtime).latency_ms(demand) * found.median
    value *= scalar(sheet, conditions.runtime, number_format, conditions.batch_size, mixer)
    return EntryLatency.estimated(value, found.error)
