"""Latency tables of unavailable GPUs: estimated, and labelled as such.

    estimate(estimated_conditions("a100", runtime="eager"), space, 1000)

The roofline with constants from published figures (``anchors``), or, where a table of another GPU
was measured, that table times the ratio of rooflines (``transfer``). Every estimate comes with the
mean relative error of predicting figures that the fit did not see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from predictors.estimates.anchors import (
    Held,
    anchors,
    constants,
    expected_error,
    mean_error,
    one_device,
    one_family,
    one_figure,
    one_implementation,
)
from predictors.estimates.datasheets import Datasheet, datasheet, datasheet_of
from predictors.estimates.roofline import Demand
from predictors.estimates.transfer import entry_kind, target_sheet, transfer
from predictors.measuring.runtimes import runtime_names
from predictors.measuring.this_machine import implementation_digest
from predictors.tables.additive import Entry, entries
from predictors.tables.conditions import ROOFLINE, Conditions
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
        protocol=ROOFLINE,
    )
    sheet.number_format(precision, runtime)
    return conditions


def estimate(
    conditions: Conditions,
    space: SearchSpace,
    num_classes: int = 1000,
    *,
    measured: LatencyTable | None = None,
) -> LatencyTable:
    """Estimates all entries of ``space`` under ``conditions``, which ``estimated_conditions`` made.

    The range of an entry is that of its kind's expected error, a correction's expected error that
    of the space's worst mixer: a search prefers what is underestimated. A table that was
    ``measured`` on a GPU with a datasheet is transferred where its runtime, precision and batch
    size are these.

    Raises:
        UnknownNameError: The device has no datasheet.
    """
    sheet = target_sheet(conditions)
    if measured is not None and not measured.conditions.differences(conditions):
        source = datasheet_of(measured.conditions.device)
        if source is not None:
            return transfer(measured, source, conditions, space, num_classes)
    number_format = sheet.number_format(conditions.precision, conditions.runtime)
    names = {block.label for stage in space.stages for block in stage.blocks}
    expected = max(
        (expected_error(sheet, conditions.runtime, number_format, name) for name in sorted(names)),
        key=lambda each: each.error,
    )
    correction = Correction.estimated(
        space.name,
        expected.error,
        "by the roofline model from a datasheet; expect errors of "
        f"±{expected.error:.0%} (found by {expected.reason}).",
    )
    estimates = {entry: estimate_entry(conditions, entry) for entry in entries(space, num_classes)}
    return LatencyTable(conditions, estimates, {space.digest: correction}, name=sheet.name)


def estimate_entry(conditions: Conditions, entry: Entry) -> EntryLatency:
    """Estimates one entry by the roofline, with the range of its kind's expected error."""
    sheet = target_sheet(conditions)
    number_format = sheet.number_format(conditions.precision, conditions.runtime)
    demand = Demand.of_entry(entry, conditions, sheet)
    value = demand.latency_ms(constants(conditions.runtime, number_format))
    mixer = entry_kind(entry[0]) if entry[0].kind == "block" else None
    error = expected_error(sheet, conditions.runtime, number_format, mixer).error
    return EntryLatency.estimated(value, error)


# Errors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnchorError:
    """Error of estimates on ``n`` published figures that the fit did not see.

    ``held_out`` says what that is: the ``figure`` itself, all of its ``device``, its ``mixer``
    kind, or its ``implementation``, whose kernels other runtimes do not share. ``precision`` is the
    number format of products, ``mean_error`` that of |prediction / figure − 1|, ``within_10`` the
    share of figures with at most 10 % error.
    """

    held_out: str
    source: str
    implementation: str
    device: str
    runtime: str
    precision: str
    mixer: str
    n: int
    mean_error: float
    within_10: float


def anchor_errors(name: str | None = None) -> list[AnchorError]:
    """Lists what the expected errors of device ``name`` stand on; of all devices without a name.

    Errors of leaving out mixer kinds and implementations hold for devices without figures too, so
    they are always listed.

    Raises:
        UnknownNameError: The device has no datasheet.
    """
    sheet = None if name is None else datasheet(name)
    groups = defaultdict(list)
    for a in anchors():
        groups[a.group].append(a)
    result: list[AnchorError] = []
    for held_out, held in (("figure", one_figure), ("device", one_device)):
        for figures in groups.values():
            result += _rows(held_out, held(figures, figures[0].hosted), sheet)
    result += _rows("mixer", one_family("eager"), None)
    return [*result, *_rows("implementation", one_implementation(), None)]


def _rows(held_out: str, held: Iterable[Held], sheet: Datasheet | None) -> Iterator[AnchorError]:
    parts = defaultdict(list)
    for h in held:
        a = h.anchor
        if sheet is None or datasheet(a.device).computes_like(sheet):
            key = (a.source, a.implementation, a.device, a.runtime, a.number_format, a.mixer)
            parts[key].append(h)
    for key, part in parts.items():
        close = sum(abs(h.error) <= 0.1 for h in part) / len(part)
        yield AnchorError(held_out, *key, len(part), mean_error(part), close)
