"""From a measured GPU to an unavailable one: measured entries × ratio of rooflines.

The roofline's errors are largely those of kernels, which both devices run: they cancel in the
ratio. One scalar from published figures of the target, where there are any for the runtime, takes
up what is left. Runtime, number format and batch must be the same on both sides.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np

from predictors.estimates.anchors import (
    Anchor,
    anchor_network,
    anchors,
    basis,
    fit_anchors,
    tensor_format,
)
from predictors.estimates.datasheets import Datasheet, datasheet, datasheet_names, datasheet_of
from predictors.estimates.roofline import Constants, Demand, fit
from predictors.tables.additive import Entry, entries
from predictors.tables.conditions import Conditions
from predictors.tables.correction import Correction
from predictors.tables.latency_table import EntryLatency, LatencyTable, MissingLatencyError
from search_space import ModuleSpec, SearchSpace, components
from search_space.errors import UnknownNameError, UsageError

_MOST_FITTED = 300  # entries; more do not change three constants
_LEAST_FITTED = 8


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

    An entry that was not measured is the roofline's times what measured entries of its kind
    take in terms of theirs. The correction of the space is carried along; where there is none,
    the typical one of the table.

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
    sheet, wanted = target_sheet(target), entries(space, num_classes)
    base = measured.typical_correction(space)
    there = _Rooflines(measured, source, wanted)
    scalar = 1.0 if sheet == source else _scalar(there, sheet, target, base)
    error = transfer_error(source, sheet, target.runtime, target.precision)
    error = math.hypot(error, base.expected_error)
    new, ratios = {}, []
    for entry in wanted:
        here_ms = Demand.of_entry(entry, target, sheet).latency_ms(there.constants)
        ratios.append(scalar * here_ms / there.roofline_ms(entry))
        new[entry] = EntryLatency.estimated(there.latency_ms(entry) * ratios[-1], error)
    correction = Correction.estimated(
        space.name,
        error,
        f"transferred from a table of {source.name} by the ratio of rooflines; expect errors of "
        f"±{error:.0%}.",
        scale=base.scale,
        offset_ms=base.offset_ms * float(np.median(ratios)),
    )
    return LatencyTable(target, new, {space.digest: correction}, name=sheet.name)


class _Rooflines:
    """A measured table, and the roofline that was fitted on it."""

    def __init__(self, measured: LatencyTable, source: Datasheet, wanted: Sequence[Entry]) -> None:
        self.measured, self.source = measured, source
        figures = [e for e in wanted if e in measured.entries]
        if len(figures) < _LEAST_FITTED:
            figures = list(measured.entries)
        if len(figures) < _LEAST_FITTED:
            raise MissingLatencyError(
                f"the table measured on {measured.conditions.device.model} has {len(figures)} "
                f"entries, too few to transfer: measure a space with `nas profile` there first."
            )
        sample = figures[:: math.ceil(len(figures) / _MOST_FITTED)]
        self.constants: Constants = fit(
            [Demand.of_entry(e, measured.conditions, source) for e in sample],
            [measured.entries[e].latency_ms for e in sample],
            hosted=measured.conditions.runtime == "eager",
        )
        biases = defaultdict(list)
        for entry in figures:
            bias = measured.entries[entry].latency_ms / self.roofline_ms(entry)
            biases[entry_kind(entry[0])].append(bias)
        self._bias = {kind: float(np.median(values)) for kind, values in biases.items()}
        self._usual_bias = float(np.median([b for values in biases.values() for b in values]))

    def roofline_ms(self, entry: Entry) -> float:
        demand = Demand.of_entry(entry, self.measured.conditions, self.source)
        return demand.latency_ms(self.constants)

    def bias(self, kind: str) -> float:
        """Latency of a kind of component over its roofline; of all kinds if it was not measured."""
        return self._bias.get(kind, self._usual_bias)

    def latency_ms(self, entry: Entry) -> float:
        if entry in self.measured.entries:
            return self.measured.entries[entry].latency_ms
        kind = entry_kind(entry[0])
        if kind not in self._bias:
            raise MissingLatencyError(
                f"the table measured on {self.measured.conditions.device.model} has no entry of "
                f"kind {kind!r}: measure a space that has some with `nas profile` there first."
            )
        return self._bias[kind] * self.roofline_ms(entry)


def _scalar(there: _Rooflines, sheet: Datasheet, target: Conditions, base: Correction) -> float:
    """Median of published over transferred figures at the nearest batch size; 1 without any."""

    def corrected_ms(anchor: Anchor) -> float:
        total = before = 0.0
        conditions = replace(target, batch_size=anchor.batch_size)
        for part in components(anchor_network(anchor.network)):
            entry, bias = (part.spec, part.in_size), there.bias(entry_kind(part.spec))
            demand = Demand.of_entry(entry, conditions, datasheet(anchor.device))
            total += bias * demand.latency_ms(there.constants)
            before += bias * there.roofline_ms(entry)
        return base.offset_ms * total / before + base.scale * total

    figures = _figures_of(sheet, target.runtime, target.precision)
    ratios = [(a.batch_size, a.latency_ms / corrected_ms(a)) for a in figures]
    return _at_nearest_batch(ratios, target.batch_size)


def _at_nearest_batch(ratios: Iterable[tuple[int, float]], batch_size: int) -> float:
    ratios = list(ratios)
    if not ratios:
        return 1.0
    nearest = min((batch for batch, _ in ratios), key=lambda b: abs(math.log(b / batch_size)))
    return float(np.median([ratio for batch, ratio in ratios if batch == nearest]))


# Expected error -----------------------------------------------------------------------------------


def _figures_of(sheet: Datasheet, runtime: str, precision: str) -> list[Anchor]:
    """Lists published figures of a device under a runtime, in the number format that it uses."""
    fitted = basis(runtime, sheet.number_format(precision, runtime))
    if not fitted.exact:
        return []
    return [a for a in fitted.figures if datasheet(a.device).computes_like(sheet)]


@cache
def transfer_error(source: Datasheet, target: Datasheet, runtime: str, precision: str) -> float:
    """Finds the mean relative error of transferring published figures; 0 within one device.

    Every figure of a device is predicted from the same network's on another device of the same
    source, with constants fitted on that other device and, where the target has figures of its
    own, with the scalar of these but the one that is predicted. The runtime's own figures where
    there are any of two devices, otherwise in another format of this precision, otherwise those
    of all runtimes that hide the host.
    """
    if source == target:
        return 0.0
    number_format = target.number_format(precision, runtime)
    fitted = basis(runtime, number_format)
    figures = list(fitted.figures) if fitted.exact else []
    alike = [a for a in anchors() if a.half == (tensor_format(number_format) == "fp16")]
    if not _pairs(figures):
        figures = [a for a in alike if a.runtime == runtime]
    if not _pairs(figures):
        figures = [a for a in alike if not a.hosted]
    scaled = bool(_figures_of(target, runtime, precision))
    errors = [transferred(here, there, scaled) for here, there in _pairs(figures)]
    return float(np.mean([np.mean(np.abs(each)) for each in errors]))


def _pairs(figures: Iterable[Anchor]) -> list[tuple[list[Anchor], list[Anchor]]]:
    """Figures of two devices from one source, for all ordered pairs of devices."""
    groups: dict[tuple[str, ...], dict[str, list[Anchor]]] = defaultdict(dict)
    for a in figures:
        groups[a.group].setdefault(a.device, []).append(a)
    return [pair for devices in groups.values() for pair in permutations(devices.values(), 2)]


def transferred(
    source: Sequence[Anchor], target: Sequence[Anchor], scaled: bool = False
) -> list[float]:
    """Lists relative errors of the figures of ``target`` that ``source`` has too, see above."""
    constants = fit_anchors(tuple(source), source[0].hosted)
    alike = {(a.network, a.batch_size): a for a in source}
    pairs = []
    for b in target:
        if a := alike.get((b.network, b.batch_size)):
            ratio = b.demand.latency_ms(constants) / a.demand.latency_ms(constants)
            pairs.append((b, a.latency_ms * ratio))
    errors = []
    for b, predicted in pairs:
        others = [(c.batch_size, c.latency_ms / value) for c, value in pairs if c is not b]
        scalar = _at_nearest_batch(others, b.batch_size) if scaled else 1.0
        errors.append(scalar * predicted / b.latency_ms - 1)
    return errors
