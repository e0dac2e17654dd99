"""Devices as plain data: their tables, provenance and errors; and the calibration of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from predictors.devices import find_device
from predictors.estimates.anchors import figures_of
from predictors.estimates.calibrate import (
    calibrate,
    predict_network,
    read_measurements,
    sum_of_entries,
)
from predictors.estimates.datasheets import datasheet, datasheet_names
from predictors.estimates.design import most_helpful
from predictors.estimates.estimate import ESTIMATED_RUNTIMES, range_of
from predictors.estimates.model import batches
from predictors.measuring.this_machine import identify, local_device_names
from predictors.tables.conditions import Conditions
from predictors.tables.correction import Calibration
from predictors.tables.folder import known_tables, provenance
from predictors.tables.int8_gains import int8_gains, int8_warnings
from predictors.tables.latency_table import LatencyTable, MissingLatencyError


def overview() -> dict[str, Any]:
    """This machine's devices, every table on disk, the datasheets; unreadable tables apart."""
    tables, problems = [], []
    for known in known_tables():
        if known.table is None:
            problems.append(known.problem)
            continue
        tables.append({"path": str(known.path), **_table(known.table)})
    return {
        "devices": {name: str(identify(name)) for name in local_device_names()},
        "tables": tables,
        "estimated": {name: datasheet(name).model for name in datasheet_names()},
        "problems": problems,
    }


def _table(table: LatencyTable) -> dict[str, Any]:
    origins = Counter(value.origin for value in table.entries.values())
    return {
        "name": table.name,
        "conditions": str(table.conditions),
        "entries": len(table.entries),
        "origins": dict(origins),
        "expected_error": {c.space: c.expected_error for c in table.corrections.values()},
        "created": table.created,
        "calibrated": table.calibration is not None,
        "provenance": provenance(table),
    }


def describe_device(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance, conditions and errors of one device; ``options`` are those of ``find_device``.

    Raises:
        UnknownNameError, UsageError: As ``find_device`` does.
    """
    target = find_device(name, **options)
    table = LatencyTable.load(target.path) if target.path.exists() else None
    described: dict[str, Any] = {
        "name": name,
        "kind": target.kind,
        "provenance": provenance(LatencyTable(target.conditions, {}, {})),
        "conditions": target.conditions.to_dict(),
        "path": str(target.path) if table is not None else None,
    }
    if table is not None:
        described |= {
            **_table(table),
            "name": name,
            "conditions": target.conditions.to_dict(),
            "kinds": dict(Counter(spec.kind for spec, _ in table.entries)),
            "corrections": [
                {k: v for k, v in asdict(c).items() if k != "checks"} | {"checks": len(c.checks)}
                for c in table.corrections.values()
            ],
            "int8": [asdict(gain) for gain in int8_gains(table)],
            "int8_warnings": int8_warnings(table),
            "calibration": None if table.calibration is None else asdict(table.calibration),
        }
    if target.kind == "datasheet":
        described["datasheet"] = asdict(datasheet(name))
        described["ranges"] = _ranges_by_runtime(name, target.conditions)
        described["most_helpful"] = most_helpful(target.conditions)
    return described


def _ranges_by_runtime(name: str, conditions: Conditions) -> list[dict[str, Any]]:
    """Measured over estimated latency under each runtime, for one image, a few and many."""
    sheet = datasheet(name)
    rows = []
    for runtime in ESTIMATED_RUNTIMES:
        number_format = sheet.number_format(conditions.precision, runtime)
        for batch_size in (1, 8, 16):
            found = range_of(replace(conditions, runtime=runtime, batch_size=batch_size))
            figures = figures_of(sheet, runtime, number_format, batch_size)
            rows.append(
                {
                    "runtime": runtime,
                    "batches": batches(batch_size),
                    "low": found.quantile(0.1) / found.median,
                    "high": found.quantile(0.9) / found.median,
                    "promised": found.promised,
                    "figures": len(figures),
                    "mixers": sorted({a.mixer for a in figures}),
                    "reason": found.reason,
                }
            )
    return rows


def calibrate_device(
    name: str, csv: Path, num_classes: int, options: Mapping[str, Any], dry_run: bool
) -> tuple[Calibration, Path]:
    """Calibration of a device by the networks in ``csv``, and the table that holds it.

    An earlier calibration is replaced, not added to.

    Raises:
        MissingLatencyError: This machine has not been profiled.
        NasError: What ``read_measurements`` and ``find_device`` raise.
    """
    target = find_device(name, **options)
    measurements = read_measurements(csv)
    if target.path.exists():
        table = replace(LatencyTable.load(target.path), calibration=None)
    elif target.kind == "datasheet":
        table = LatencyTable(target.conditions, {}, {}, name=name)
    else:
        raise MissingLatencyError(
            f"device {name!r} has no latency table under these conditions yet "
            f"({target.conditions}); measure one first with: nas profile --device {name}"
        )
    sums = [sum_of_entries(table, m.architecture, num_classes) for m in measurements]
    predicted = [predict_network(table, m.architecture, num_classes) for m in measurements]
    calibration = calibrate(
        sums, [m.latency_ms for m in measurements], [m.name for m in measurements], predicted
    )
    if not dry_run:
        replace(table, calibration=calibration).save(target.path)
    return calibration, target.path
