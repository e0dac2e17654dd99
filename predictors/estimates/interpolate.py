"""Interpolation of entries that a table lacks from measured ones of other shapes.

Within a family (same kind of module, same mixer and mixer parameters) latency is close to
linear in multiply-adds, activations, parameters, and a constant for the calls. The line is fitted
with non-negative coefficients to the nearest measured shapes, in relative error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from predictors.counts import count_entry
from predictors.tables.additive import Entry, entries
from predictors.tables.latency_table import EntryLatency, LatencyTable, MissingLatencyError
from search_space import ModuleSpec, SearchSpace

NEAREST = 16
LEAST = 4
_SHAPE_OPTIONS = frozenset({"dim", "out_dim", "hidden", "num_classes"})

Values = npt.NDArray[np.float64]


def interpolated(table: LatencyTable, space: SearchSpace, num_classes: int = 1000) -> LatencyTable:
    """Interpolates every entry that ``space`` asks for and ``table`` lacks.

    Where the space has no correction of its own, it gets the median one of the table's other
    spaces. ``expected_error`` grows by the interpolated entries' share of a mean network.

    Raises:
        MissingLatencyError: A family has fewer than four measured shapes, or the table has no
            correction at all.
    """
    missing = table.missing(space, num_classes)
    known = space.digest in table.corrections
    if not missing and known:
        return table
    families: dict[ModuleSpec, list[Entry]] = {}
    for entry, value in table.entries.items():
        if value.origin == "measured":
            families.setdefault(_family(entry[0]), []).append(entry)
    filled: dict[Entry, EntryLatency] = {}
    errors: dict[Entry, float] = {}
    for entry in missing:
        measured = families.get(_family(entry[0]), [])
        if len(measured) < LEAST:
            raise MissingLatencyError(
                f"{entry[0]} on a {entry[1]}-pixel input cannot be interpolated: the table of "
                f"{table.conditions.device} has {len(measured)} measured shapes of that kind, "
                f"at least {LEAST} are needed. Measure it: nas profile --space {space.name}"
            )
        filled[entry], errors[entry] = _interpolate(table, entry, measured)
    extended = table.with_session(filled)
    if not table.corrections:
        table.correction(space)  # says what is missing
    correction = table.typical_correction(space)
    wanted = entries(space, num_classes)
    times = np.array([extended.entries[entry].latency_ms for entry in wanted])
    each = np.array([errors.get(entry, 0.0) for entry in wanted])  # measured ones have none
    total = math.hypot(correction.expected_error, float((times * each).sum() / times.sum()))
    warning = (
        f"{len(missing)} of {len(wanted)} entries are interpolated, "
        f"with an error of {np.mean(list(errors.values())):.0%} each."
        if missing
        else "the correction is that of other spaces."
    )
    correction = replace(correction, expected_error=total, warnings=(*correction.warnings, warning))
    return replace(extended, corrections={**table.corrections, space.digest: correction})


def _family(spec: ModuleSpec) -> ModuleSpec:
    """Returns ``spec`` without the options that are shapes."""
    return ModuleSpec(spec.kind, tuple(o for o in spec.options if o[0] not in _SHAPE_OPTIONS))


def _features(items: Sequence[Entry]) -> Values:
    rows = []
    for spec, in_size in items:
        cost = count_entry(spec, in_size)
        rows.append([1.0, cost.macs, cost.activations, cost.num_params])
    return np.array(rows, dtype=np.float64)


def _interpolate(
    table: LatencyTable, entry: Entry, measured: Sequence[Entry]
) -> tuple[EntryLatency, float]:
    """Returns the entry's latency, and the mean relative leave-one-out error of its fit."""
    wanted, features = _features([entry])[0], _features(measured)
    distance = np.abs(np.log(features[:, 1:] + 1) - np.log(wanted[1:] + 1)).sum(axis=1)
    nearest = np.argsort(distance, kind="stable")[:NEAREST]
    features = features[nearest]
    times = np.array([table.entries[measured[i]].latency_ms for i in nearest])
    scale = np.maximum(features.max(axis=0), 1.0)
    value = float(_fit(features / scale, times) @ (wanted / scale))
    errors = []
    for i in range(len(times)):
        others = np.arange(len(times)) != i
        predicted = _fit(features[others] / scale, times[others]) @ (features[i] / scale)
        errors.append(abs(predicted - times[i]) / times[i])
    error = float(np.mean(errors))
    value = max(value, float(times.min()) * 1e-3)
    return EntryLatency.estimated(value, error, "interpolated"), error


def _fit(features: Values, times: Values) -> Values:
    """Fits non-negative coefficients with the least squared relative error."""
    solution, _ = nnls(features / times[:, None], np.ones(len(times)))
    return np.asarray(solution, dtype=np.float64)
