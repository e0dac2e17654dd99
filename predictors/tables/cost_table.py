"""Costs of the user's own: a Parquet file that gives every component a value, as a metric.

``--cost energy=table.parquet --max energy=5mJ`` limits a sum over components of what the file says,
measured or modelled by whoever wrote it. Its columns are ``component`` (JSON, as ``spec_to_json``
writes it), ``size`` (side of the component's input, pixels) and the values, in a column that is
called like the cost, with its unit: ``energy_mJ``; one without a unit counts something.

    rows = {entry: joules(*entry) * 1e3 for entry in entries(load_space("tiny"), num_classes=10)}
    save_costs(Path("table.parquet"), "energy_mJ", rows)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from predictors.tables.additive import Entry
from predictors.tables.latency_table import spec_from_json, spec_to_json
from search_space import Architecture, ModuleSpec, components
from search_space.boundary import open_regular
from search_space.errors import CorruptFileError, NasError, UsageError
from search_space.metrics import COUNT, Metric, options, unit_of

MAX_BYTES = 2**28
MAX_ROWS = 1_000_000
_NAME = re.compile("[a-z][a-z0-9_]{0,40}")


def save_costs(path: Path, column: str, values: Mapping[Entry, float]) -> None:
    """Writes a cost table, in place of a file that may be there.

    ``column`` is the name of the cost and its unit, such as ``energy_mJ``; ``values`` are in that
    unit.
    """
    columns = {
        "component": [spec_to_json(spec) for spec, _ in values],
        "size": [size for _, size in values],
        column: [float(value) for value in values.values()],
    }
    pq.write_table(pa.table(columns), path)


def load_cost(option: str, path: Path) -> Metric:
    """Loads the metric that the table at ``path`` gives, by its name on the command line.

    Raises:
        UsageError: The name is no plain word, or that of a metric that is there already.
        CorruptFileError: The file is no such table.
    """
    if not _NAME.fullmatch(option) or option in options():
        raise UsageError(
            f"--cost {option}={path}: {option!r} is "
            f"{'a metric already' if option in options() else 'no plain name'}; give another of "
            "small letters, digits and underscores, as in energy."
        )
    try:
        name, values = _read(option, path)
    except FileNotFoundError:
        raise CorruptFileError(f"--cost {option}: {path} does not exist.") from None
    except NasError as error:
        raise CorruptFileError(
            f"{path}: {error} A cost table has the columns component, size and {option}, or "
            f"{option}_UNIT."
        ) from None

    def cost(spec: ModuleSpec, in_size: int) -> float:
        if (spec, in_size) not in values:
            raise CorruptFileError(
                f"--cost {option}: the table has no value for {spec} on an input of {in_size} "
                "pixels; write one for every component of the space, with the number of classes "
                "of the data: predictors.tables.additive.entries(space, num_classes) lists them."
            )
        return values[spec, in_size]

    unit = name.removeprefix(option).removeprefix("_")
    title = option.replace("_", " ")
    return Metric(name, title, unit_of(unit) if unit else COUNT, option=option, cost=cost)


def total_costs(
    costs: Iterable[Metric], architecture: Architecture, num_classes: int = 1000
) -> dict[str, float]:
    """Sums each of the ``costs`` that adds up over an architecture, by name."""
    parts = components(architecture, num_classes)
    return {
        metric.name: float(sum(metric.cost(part.spec, part.in_size) for part in parts))
        for metric in costs
        if metric.cost is not None
    }


def _read(option: str, path: Path) -> tuple[str, dict[Entry, float]]:
    with os.fdopen(open_regular(path, MAX_BYTES), "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            if parquet.metadata.num_rows > MAX_ROWS:
                raise CorruptFileError(f"it has more than {MAX_ROWS:,} rows.")
            named = [n for n in names if n == option or n.rpartition("_")[0] == option]
            if len(named) != 1 or not {"component", "size"} <= set(names):
                raise CorruptFileError(f"its columns are {', '.join(names)[:200]}.")
            if named[0] != option:
                unit_of(named[0].rpartition("_")[2])
            data = parquet.read(["component", "size", named[0]])
            components = data["component"].cast(pa.string()).to_pylist()
            sizes = data["size"].cast(pa.int64()).to_pylist()
            numbers = data[named[0]].cast(pa.float64()).to_numpy(zero_copy_only=False)
        # a column that is there twice is a KeyError, text that is no UTF-8 a ValueError
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise CorruptFileError(f"it cannot be read ({str(error)[:120]}).") from None
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise CorruptFileError("a value is negative, not finite or missing.")
    values: dict[Entry, float] = {}
    for component, size, number in zip(components, sizes, numbers.tolist(), strict=True):
        if component is None or size is None:
            raise CorruptFileError("a component or a size is missing.")
        entry = spec_from_json(component), size
        if entry in values:
            raise CorruptFileError(f"{entry[0]} on {size} pixels is there twice.")
        values[entry] = number
    return named[0], values
