"""Calibration: a handful of the user's own whole-network measurements correct a table.

They come in a CSV file with a column ``network``, the name of a known design or the path of an
architecture's file (relative to the CSV), and one that carries the unit in its name:
``latency_ms``, ``latency_us`` or ``latency_s``. Other columns are notes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from predictors.estimates.estimate import estimate_entry
from predictors.tables.correction import Calibration, fit_correction, leave_one_out_error
from predictors.tables.latency_table import LatencyTable, MissingLatencyError
from search_space import Architecture, components
from search_space.boundary import read_bytes
from search_space.errors import CorruptFileError, NasError
from search_space.files import load_architecture
from search_space.known import known_names

NETWORK_COLUMN = "network"
_MOST_BYTES = 2**20
UNITS_MS = {"latency_ms": 1.0, "latency_us": 1e-3, "latency_s": 1e3}


class MeasurementError(NasError, ValueError):
    """Raised for measurements that nothing can be calibrated with; names file and line."""


@dataclass(frozen=True)
class NetworkMeasurement:
    """One row: a network by its name in the file, its measured latency, and the line, from 1."""

    name: str
    architecture: Architecture
    latency_ms: float
    line: int


def read_measurements(path: Path) -> list[NetworkMeasurement]:
    """Reads the measurements in the file ``path``, in its order.

    Raises:
        MeasurementError: The header or a row is wrong; this and the others name file and line.
        UnknownNameError: There is no such network.
        CorruptFileError: The file cannot be read.
    """
    rows = _rows(path)
    if not rows:
        raise MeasurementError(f"{path} is empty; its first line must be {_HEADER}.")
    line, header = rows[0]
    names = [name.strip() for name in header]
    try:
        unit = _unit_column(names)
    except MeasurementError as error:
        raise error.located(f"{path}, line {line}") from None
    seen: dict[str, NetworkMeasurement] = {}
    for line, cells in rows[1:]:
        try:
            known = _measurement(path.parent, names, unit, cells, line)
            earlier = seen.setdefault(known.architecture.digest, known)
            if earlier is not known:
                raise MeasurementError(
                    f"network {known.name!r} is there already, in line {earlier.line}: give each "
                    "network once."
                )
        except NasError as error:
            raise error.located(f"{path}, line {line}") from None
    if not seen:
        raise MeasurementError(
            f"{path} has a header but no measurements: add a line for each network."
        )
    return list(seen.values())


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Reads lines that are not blank, with the number that each starts at."""
    try:
        text = read_bytes(path, _MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise CorruptFileError(
            f"{path} does not exist; give the path of a CSV file of measurements."
        ) from None
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} cannot be read as text: {error}.") from None
    reader, rows, start = csv.reader(io.StringIO(text, newline=""), strict=True), [], 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise CorruptFileError(
            f"{path}, line {start}: not a line of a CSV file ({error})."
        ) from None
    return rows


_HEADER = f"{NETWORK_COLUMN!r} and one of {', '.join(map(repr, UNITS_MS))}"


def _unit_column(names: Sequence[str]) -> str:
    """Finds the column of latencies, whose name says the unit."""
    columns = [n for n in names if n == NETWORK_COLUMN or n.startswith("latency")]
    units = [name for name in columns if name in UNITS_MS]
    if len(columns) != 2 or len(units) != 1:
        raise MeasurementError(
            f"the columns are {', '.join(map(repr, names)):.200}; the first line must have "
            f"{_HEADER}, once each and separated by a comma."
        )
    return units[0]


def _measurement(
    folder: Path, names: Sequence[str], unit: str, cells: Sequence[str], line: int
) -> NetworkMeasurement:
    if len(cells) != len(names):
        raise MeasurementError(
            f"{len(cells)} cells where the header has {len(names)} columns; quote cells that "
            "contain commas."
        )
    row = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    name, text = row[NETWORK_COLUMN], row[unit]
    try:
        latency_ms = math.nan if "_" in text else float(text) * UNITS_MS[unit]
    except ValueError:
        latency_ms = math.nan
    if not 0 < latency_ms < math.inf:
        raise MeasurementError(
            f"{unit} is {text!r:.40} but must be a positive number, with a point for decimals "
            "and no unit."
        )
    if not name:
        raise MeasurementError(f"no network; give one of {', '.join(known_names())}, or a path.")
    where = name if name in known_names() or not Path(name).suffix else str(folder / name)
    return NetworkMeasurement(name, load_architecture(where), latency_ms, line)


def calibrate(
    sums_ms: Sequence[float],
    measured_ms: Sequence[float],
    names: Sequence[str],
    predicted_ms: Sequence[float] | None = None,
) -> Calibration:
    """Calibrates sums of entries by measurements of the same networks, all positive, shape (n,).

    The median ratio; from four networks on a line, where that predicts each network from the
    others clearly better (``correction.fit_correction``). ``predicted_ms`` are predictions without
    calibration, by default the sums.

    Raises:
        MeasurementError: There are no networks.
    """
    if not names:
        raise MeasurementError("there are no networks to calibrate with: measure at least one.")
    ratios = np.array(sums_ms if predicted_ms is None else predicted_ms) / np.array(measured_ms)
    before = float(np.mean(np.abs(ratios - 1)))
    scale, offset = fit_correction(sums_ms, measured_ms)
    return Calibration(
        scale=scale,
        offset_ms=offset,
        error_before=before,
        error_after=leave_one_out_error(sums_ms, measured_ms) if len(names) > 1 else before,
        networks=tuple(names),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def predict_network(
    table: LatencyTable, architecture: Architecture, num_classes: int = 1000
) -> float:
    """Predicts milliseconds of any network whose components the table has, or estimates.

    Corrected by the table's calibration, otherwise by the median correction of its spaces.

    Raises:
        MissingLatencyError: A measured table lacks a component.
    """
    total = sum_of_entries(table, architecture, num_classes)
    by = table.calibration or table.typical_correction()
    return by.offset_ms + by.scale * total


def sum_of_entries(table: LatencyTable, architecture: Architecture, num_classes: int) -> float:
    """Adds milliseconds of a network's components; a table of estimates estimates what it lacks.

    Raises:
        MissingLatencyError: A measured table lacks a component; the message names the first.
    """
    total = 0.0
    for part in components(architecture, num_classes):
        entry = (part.spec, part.in_size)
        known = table.entries.get(entry)
        if known is None and table.conditions.estimated:
            known = estimate_entry(table.conditions, entry)
        if known is None:
            raise MissingLatencyError(
                f"the latency table of {table.conditions.device} lacks {part.path} of network "
                f"{architecture}: {part.spec} on a {part.in_size}-pixel input. Measure a space "
                "that contains the network with `nas profile`, or calibrate with networks of a "
                "space that was profiled."
            )
        total += known.latency_ms
    return total
