"""From a measured GPU to an unavailable one: measured entries × ratio of models × one scalar.

The model's errors are largely those of kernels, which both devices run: they cancel in the ratio.
One scalar, from published figures of the target where there are any for the runtime, takes up what
is left; three networks of the user's own (``nas calibrate``) do so better. Runtime, number format
and batch must be the same on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import permutations

import numpy as np

from predictors.estimates.anchors import Anchor, anchors, figures_of, median_ratio
from predictors.estimates.datasheets import Datasheet, datasheet_names, datasheet_of
from predictors.estimates.kernels import Demand
from predictors.estimates.model import batches, constants_of
from predictors.tables.additive import Entry, entries
from predictors.tables.conditions import Conditions
from predictors.tables.correction import Correction
from predictors.tables.latency_table import EntryLatency, LatencyTable, MissingLatencyError
from search_space import ModuleSpec, SearchSpace
from search_space.errors import UnknownNameError, UsageError

_LEAST_ENTRIES = 8


def entry_kind(spec: ModuleSpec) -> str:
    """Returns the mixer of a block, the kind of another component."""
    return spec.label


def target_sheet(conditions: Conditions) -> Datasheet:
    """Returns the datasheet of the device of ``conditions``.

    Raises:
        UnknownNameError: There is none.
    """
    sheet = datasheet_of(conditions.device)
    if sheet is None:
        raise UnknownNameError("datasheet", conditions.device.model, datasheet_names())
    return sheet


def transfer(
    measured: LatencyTable,
    source: Datasheet,
    target: Conditions,
    space: SearchSpace,
    num_classes: int = 1000,
) -> LatencyTable:
    """Estimates a table for one device from a table that was measured on another, of ``source``.

    An entry that was not measured is the model's times what measured entries of its kind take in
    terms of theirs. The correction of the space is carried along; where there is none, the typical
    one of the table.

    Raises:
        UsageError: Runtime, precision or batch size of the tables differ.
        MissingLatencyError: A kind of component was not measured at all.
        UnknownNameError: The target has no datasheet.
    """
    for name in target.differences(measured.conditions):
        raise UsageError(
            f"{name}={getattr(measured.conditions, name)} of the table measured on "
            f"{measured.conditions.device.model} cannot stand for {getattr(target, name)}: "
            "transfer works within one runtime, precision and batch size only."
        )
    if len(measured.entries) < _LEAST_ENTRIES:
        raise MissingLatencyError(
            f"the table measured on {measured.conditions.device.model} has "
            f"{len(measured.entries)} entries, too few to transfer: measure a space with "
            "`nas profile` there first."
        )
    sheet, wanted = target_sheet(target), entries(space, num_classes)
    constants = constants_of(target.runtime)

    def model_ms(entry: Entry, on: Datasheet) -> float:
        return constants.latency_ms(Demand.of_entry(entry, target, on))

    biases = defaultdict(list)
    for entry, value in measured.entries.items():
        biases[entry_kind(entry[0])].append(value.latency_ms / model_ms(entry, source))
    base = measured.typical_correction(space)
    spread = ratios(target, source, sheet)
    factor = _scalar(target, source, sheet)
    new, factors = {}, []
    error = float(np.hypot((spread[17] - spread[1]) / 2, base.expected_error))
    for entry in wanted:
        there_ms = model_ms(entry, source)
        factors.append(factor * model_ms(entry, sheet) / there_ms)
        if entry in measured.entries:
            latency_ms = measured.entries[entry].latency_ms
        elif kind := biases.get(entry_kind(entry[0])):
            latency_ms = float(np.median(kind)) * there_ms
        else:
            raise MissingLatencyError(
                f"the table measured on {measured.conditions.device.model} has no entry of kind "
                f"{entry_kind(entry[0])!r}: measure a space that has some with `nas profile` there "
                "first."
            )
        new[entry] = EntryLatency.estimated(latency_ms * factors[-1], error)
    correction = Correction.estimated(
        space.name,
        error,
        f"transferred from a table of {source.name} by the ratio of models; four in five networks "
        f"take {spread[1]:.2f} to {spread[17]:.2f} times the estimate. Three networks of your own "
        "make it better: nas calibrate.",
        scale=base.scale,
        offset_ms=base.offset_ms * float(np.median(factors)),
        ratios=spread,
    )
    return LatencyTable(target, new, {space.digest: correction}, name=sheet.name)


def _scalar(target: Conditions, source: Datasheet, sheet: Datasheet) -> float:
    """How much slower than the ratio of models the target is, by figures of both devices."""
    if sheet == source:
        return 1.0
    both = []
    for each in (sheet, source):
        number_format = each.number_format(target.precision, target.runtime)
        found = figures_of(each, target.runtime, number_format, target.batch_size)
        if not found:
            return 1.0
        both.append(median_ratio(found, constants_of(target.runtime)))
    return both[0] / both[1]


def ratios(target: Conditions, source: Datasheet, sheet: Datasheet) -> tuple[float, ...]:
    """Quantiles at 5, 10, … 95 % of measured over transferred latency; ones within one device.

    Every network that two devices of one source have figures of is carried from one to the other:
    with the scalar of the other networks where both these devices have figures, without one where
    not. Those of the runtime where there are any, otherwise those of eager execution.
    """
    if sheet == source:
        return (1.0,) * 19
    scaled = _scalar(target, source, sheet) != 1.0
    found = _carried(target.runtime, batches(target.batch_size), scaled)
    found = found or _carried("eager", "16-", scaled)
    return tuple(np.quantile(found, np.arange(1, 20) / 20).tolist())


def _carried(runtime: str, batch: str, scaled: bool) -> list[float]:
    groups: dict[tuple[str, str], dict[str, dict[tuple[str, int], Anchor]]] = defaultdict(dict)
    for a in anchors():
        if (a.runtime, batches(a.batch_size)) == (runtime, batch):
            group = groups[a.implementation, a.number_format]
            group.setdefault(a.device, {})[a.network, a.batch_size] = a
    constants, result = constants_of(runtime), []
    for devices in groups.values():
        for here, there in permutations(devices.values(), 2):
            rows = [
                here[key].ratio(constants) / there[key].ratio(constants)
                for key in here.keys() & there.keys()
            ]
            for i, ratio in enumerate(rows):
                others = rows[:i] + rows[i + 1 :]
                if not scaled or others:
                    result.append(ratio / float(np.median(others)) if scaled else ratio)
    return result
